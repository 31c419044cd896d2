"""What every part of a benchmark is told."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout; in an image, the folder that the packages are installed in."""
MODEL = "tiny.en"
"""What all benchmarks measure: peers are told its name, and that it is for English."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What every run is told.

    models_dir: folder of the weights and their manifest. weights: the checkpoint that all but
    faster-whisper read. threads: of each run. url: of a running service, or empty. engine, device:
    of `ours`. batch: recordings given at once. effort: of recordings, ours and the service's.
    process: of the service, when it was started for this.
    """

    models_dir: Path
    weights: Path
    threads: int
    url: str
    engine: str
    device: str
    batch: int
    effort: str = "thorough"
    process: int | None = None

    @property
    def ctranslate2_dir(self) -> Path:
        return self.models_dir / "ctranslate2" / MODEL
