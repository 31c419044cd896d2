"""What tests of the doors share."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import Speak


@pytest.fixture(scope="session")
def sentence(speak: Speak) -> NDArray[np.float32]:
    """About 3 s of speech, 16 kHz."""
    return speak("The train to the harbour leaves at nine.")
