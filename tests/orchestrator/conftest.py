"""What tests of the orchestrator's room share."""

import logging
from collections.abc import Iterator

import pytest

from tests.orchestrator.log import Log


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logger = logging.getLogger("whisper_byoc.orchestrator")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)
