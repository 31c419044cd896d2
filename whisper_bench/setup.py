"""What every part of a benchmark is told."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
"""The checkout, with its weights and scripts."""
MODEL = "tiny.en"

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Setup:
    """What every worker is told. weights: the checkpoint that all but faster-whisper read; engine:
    of `ours`; batch: recordings given at once."""

    models_dir: Path
    weights: Path
    threads: int
    url: str
    engine: str
    device: str
    batch: int

    @property
    def ctranslate2_dir(self) -> Path:
        return self.models_dir / "ctranslate2" / MODEL
