"""Whole frames of samples out of pieces of any length (pure)."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.decode import FRAME_SAMPLES


class FrameBlocks:
    """Cuts one stream into blocks of whole frames; what does not fill a frame waits here for more.

    max_frames: of 512 samples, that a block may have.
    """

    def __init__(self, max_frames: int) -> None:
        self._max_samples = max_frames * FRAME_SAMPLES
        self._rest = np.empty(0, dtype=np.float32)

    def receive_samples(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """The blocks that are whole now, float32 (n,), in order. All of them have to be taken."""
        self._rest = np.concatenate([self._rest, samples])
        while whole := len(self._rest) // FRAME_SAMPLES * FRAME_SAMPLES:
            block, self._rest = np.split(self._rest, [min(whole, self._max_samples)])
            yield block

    def receive_end(self) -> NDArray[np.float32]:
        """What still waits, which is less than a frame, and may be nothing."""
        tail, self._rest = self._rest, self._rest[:0]
        return tail
