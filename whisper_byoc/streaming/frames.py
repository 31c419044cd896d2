"""Makes blocks of whole frames (512 samples) of pieces of any length (pure)."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.decode import FRAME_SAMPLES


class FrameBlocks:
    """Cuts one stream into blocks of whole frames; the samples behind the last whole block wait
    here for more."""

    def __init__(self, max_frames: int, min_frames: int = 1) -> None:
        """max_frames, min_frames: the most and the fewest frames that a block may have. With both
        alike, blocks are the same however the samples come."""
        self._max_samples = max_frames * FRAME_SAMPLES
        self._min_samples = min_frames * FRAME_SAMPLES
        self._rest = np.empty(0, dtype=np.float32)

    @property
    def num_lacking(self) -> int:
        """Samples that complete the frame of those that wait."""
        return -len(self._rest) % FRAME_SAMPLES

    def receive_samples(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """The blocks that the next samples, float32 (n,), complete: float32 (m,) each, in order.
        The caller has to take all of them before it brings more."""
        self._rest = np.concatenate([self._rest, samples])
        while len(self._rest) >= self._min_samples:
            whole = len(self._rest) // FRAME_SAMPLES * FRAME_SAMPLES
            block, self._rest = np.split(self._rest, [min(whole, self._max_samples)])
            yield block

    def receive_end(self) -> NDArray[np.float32]:
        """The samples that still wait, float32 (n,), too few for a block: the stream has ended."""
        tail, self._rest = self._rest, self._rest[:0]
        return tail
