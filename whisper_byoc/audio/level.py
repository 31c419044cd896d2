"""The level of a recording, brought up where it is quiet (pure)."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from whisper_byoc.audio.formats import Samples

BLOCK_SAMPLES: Final = 64 * 512
"""About 2 s, which are brought up alike."""
_FRAME_SAMPLES: Final = 512
_AHEAD: Final = 4
"""Blocks behind one that are heard before it is handed on."""
_SHARE: Final = 80
"""Percentile of the frames of a block that says how loud it is."""
_WANTED: Final = -28.0
_LOUDEST: Final = -10.0
"""dB of full scale to which a block is brought up, and to which its loudest frame is at most."""
_MOST: Final = 50.0
"""dB by which a block is brought up at most."""
_FORGOTTEN: Final = 1.0
"""dB by which what was loud before counts less with each block."""
_NOTHING: Final = -120.0


@dataclass(frozen=True, slots=True)
class _Block:
    """level, loudest: power in dB of full scale."""

    samples: Samples
    level: float
    loudest: float


_NONE = _Block(np.zeros(0, np.float32), _NOTHING, _NOTHING)


class Leveller:
    """Samples of one recording in, the same number out, later by up to five blocks where they are
    quiet, and at once behind what was not.

    Voice activity misses speech that is much quieter than what it was trained on, and speech of a
    usual level passes unchanged. How much a block is brought up depends on it, on those before it
    and on 8 s behind it, so that it begins before the speech does. Blocks are counted from the
    first sample, whatever the pieces.
    """

    def __init__(self) -> None:
        self._waiting = np.zeros(0, np.float32)
        """Of the block that is not whole."""
        self._num_passed = 0
        """Samples at the start of the oldest block, whole or not, that were handed on."""
        self._blocks: deque[_Block] = deque()
        self._before = _NONE
        """What the blocks that were handed on count for."""
        self._gain: float | None = None

    def receive_samples(self, samples: Samples) -> Samples:
        """float32 (n,), and of the result (m,)."""
        self._waiting = np.concatenate([self._waiting, samples])
        ready = []
        while len(self._waiting) >= BLOCK_SAMPLES:
            block, self._waiting = np.split(self._waiting, [BLOCK_SAMPLES])
            self._blocks.append(_measured(block))
            if len(self._blocks) > _AHEAD or self._loud_enough(self._blocks[0]):
                ready.append(self._take())
        if not self._blocks and self._gain == 0 and self._loud_enough(_NONE):
            # What comes can only make the gain smaller, and it is nothing already.
            ready.append(self._waiting[self._num_passed :])
            self._num_passed = len(self._waiting)
        return np.concatenate(ready) if ready else np.zeros(0, np.float32)

    def receive_end(self) -> Samples:
        """All that still waits."""
        if len(self._waiting):
            self._blocks.append(_measured(self._waiting))
            self._waiting = self._waiting[:0]
        ready = [self._take() for _ in range(len(self._blocks))]
        return np.concatenate(ready) if ready else np.zeros(0, np.float32)

    def _loud_enough(self, block: _Block) -> bool:
        return _gain([self._before, block]) == 0

    def _take(self) -> Samples:
        gain = _gain([self._before, *self._blocks])
        block = self._blocks.popleft()
        self._before = _Block(
            _NONE.samples,
            max(self._before.level, block.level) - _FORGOTTEN,
            max(self._before.loudest, block.loudest) - _FORGOTTEN,
        )
        before = gain if self._gain is None else self._gain
        self._gain = gain
        samples = block.samples
        if gain or before:
            factors = 10 ** (np.linspace(before, gain, len(samples)) / 20)
            samples = np.clip(samples * factors.astype(np.float32), -1, 1)
        samples, self._num_passed = samples[self._num_passed :], 0
        return samples


def _gain(blocks: Sequence[_Block]) -> float:
    """dB, for the first of them that is to be handed on."""
    room = _WANTED - max(block.level for block in blocks)
    room = min(room, _LOUDEST - max(block.loudest for block in blocks))
    return min(max(room, 0.0), _MOST)


def _measured(samples: Samples) -> _Block:
    padded = np.pad(samples.astype(np.float64), (0, -len(samples) % _FRAME_SAMPLES))
    powers = (padded.reshape(-1, _FRAME_SAMPLES) ** 2).mean(axis=1)
    levels = 10 * np.log10(powers + 10 ** (_NOTHING / 10))
    return _Block(samples, float(np.percentile(levels, _SHARE)), float(levels.max()))
