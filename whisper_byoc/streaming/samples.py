"""The samples of one stream, addressed by their place in it (pure).

A place is counted in samples, at 16 kHz, from the first sample of the stream.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A piece of a stream: float32 (n,), 16 kHz mono, from place `start` on."""

    start: int
    samples: NDArray[np.float32]

    @property
    def offset(self) -> float:
        """Where it begins, in seconds from the start of the stream."""
        return self.start / SAMPLE_RATE

    @property
    def end(self) -> float:
        """Where it ends, in seconds from the start of the stream."""
        return (self.start + len(self.samples)) / SAMPLE_RATE


class SampleBuffer:
    """The samples from place `start` to place `end`: those that are still needed."""

    def __init__(self) -> None:
        # Room for more than is kept: a live stream appends 30 times a second to a window of up to
        # 30 s, which would be copied every time if it were always exactly full.
        self._data = np.empty(SAMPLE_RATE, dtype=np.float32)
        self.start = 0
        self.end = 0

    def append(self, samples: NDArray[np.float32]) -> None:
        """Put float32 (n,) behind what is kept."""
        kept = self.end - self.start
        if kept + len(samples) > len(self._data):
            self._data.resize(2 * (kept + len(samples)), refcheck=False)
        self._data[kept : kept + len(samples)] = samples
        self.end += len(samples)

    def drop_before(self, place: int) -> None:
        """Forget the samples before `place`, as far as there are any."""
        start = min(max(place, self.start), self.end)
        if start > self.start:
            self._data[: self.end - start] = self.copy(start, self.end)
            self.start = start

    def skip(self, num_samples: int) -> None:
        """Forget all, and go on so many samples later."""
        self.end += num_samples
        self.start = self.end

    def copy(self, start: int, end: int) -> NDArray[np.float32]:
        """float32 (end - start,), which must be kept here."""
        return self._data[start - self.start : end - self.start].copy()
