"""One channel out of several, though they may cancel one another out, and samples out of the bytes
that ffmpeg writes (pure)."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import SAMPLE_RATE, Pcm, Samples
from whisper_byoc.audio.pcm import FrameCutter, to_samples
from whisper_byoc.audio.wav import WavReader

BLOCK_SAMPLES: Final = 512
"""Samples of each channel that are mixed in one way: a frame of voice activity."""

_MEMORY: Final = 0.1 * SAMPLE_RATE
"""Samples over which powers are averaged, each counting e times as much as one so much older."""
_CANCELLED, _TOGETHER = 0.25, 0.5
"""Power of the mix over what channels that have nothing to do with one another would give. Under
the first they cancel out, above the second they do not any more."""
_LOUDER = 4.0
"""How much more power another channel needs to take the place of the one that is heard."""


class Mixer:
    """The mean of the channels; while they cancel out, the loudest of them instead.

    A microphone that is wired the wrong way round, or a channel that was turned over to sound wide,
    leaves silence in the mean. Channels that merely differ (speakers in a room, one on each) are
    mixed, so that each is heard. What a block gives depends on it and those before it.
    """

    def __init__(self, num_channels: int) -> None:
        self.num_channels = num_channels
        self._mean = np.full(num_channels, 1 / num_channels, np.float32)
        self._weights: NDArray[np.float32] | None = None
        self._chosen: int | None = None
        """The channel that is heard alone."""
        self._powers = np.zeros(num_channels)
        self._mix_power = 0.0

    def mix(self, block: NDArray[np.int16]) -> Samples:
        """block: int16 (n, channels), BLOCK_SAMPLES or as the decoder cut it. Returns float32 (n,)
        in [-1, 1)."""
        if not len(block):
            return np.zeros(0, np.float32)
        self._measure(block)
        self._choose()
        weights = self._mean if self._chosen is None else np.zeros_like(self._mean)
        if self._chosen is not None:
            weights[self._chosen] = 1
        before = weights if self._weights is None else self._weights
        self._weights = weights
        samples = block.astype(np.float32) * np.float32(1 / 32_768)
        if np.array_equal(before, weights):
            return np.asarray((samples * weights).sum(axis=1), np.float32)
        # From one way to the other within the block, so that nothing clicks.
        share = np.linspace(0, 1, len(block), dtype=np.float32)[:, None]
        return np.asarray((samples * (before + (weights - before) * share)).sum(axis=1), np.float32)

    def _measure(self, block: NDArray[np.int16]) -> None:
        # In whole numbers: the same samples give the same powers, however they are summed up.
        exact = block.astype(np.int64)
        keep = math.exp(-len(block) / _MEMORY)
        self._powers = self._powers * keep + (exact**2).sum(axis=0)
        num_channels = exact.shape[1]
        mix = int((exact.sum(axis=1) ** 2).sum()) / num_channels**2
        self._mix_power = self._mix_power * keep + mix

    def _choose(self) -> None:
        unrelated = float(self._powers.sum()) / len(self._powers) ** 2
        loudest = int(self._powers.argmax())
        if self._chosen is None:
            if self._mix_power < _CANCELLED * unrelated:
                self._chosen = loudest
        elif self._mix_power > _TOGETHER * unrelated:
            self._chosen = None
        elif self._powers[loudest] > _LOUDER * self._powers[self._chosen]:
            self._chosen = loudest


class RawDecoder:
    """Bytes of s16le, 16 kHz, in pieces of any length into samples; several channels are mixed,
    and up to a block of them waits. What is left of a sample at the end is dropped."""

    def __init__(self, num_channels: int) -> None:
        self._frame_bytes = 2 * num_channels
        self._mixer = Mixer(num_channels) if num_channels > 1 else None
        self._block_bytes = self._frame_bytes * (BLOCK_SAMPLES if self._mixer else 1)
        self._cutter = FrameCutter(self._block_bytes)

    def receive_bytes(self, data: bytes) -> Samples:
        return self._decode(self._cutter.receive_bytes(data))

    def receive_end(self) -> Samples:
        rest = self._cutter.receive_end()
        return self._decode(rest[: len(rest) // self._frame_bytes * self._frame_bytes])

    def _decode(self, data: bytes) -> Samples:
        if self._mixer is None or not data:
            return to_samples(data)
        blocks = (
            data[start : start + self._block_bytes]
            for start in range(0, len(data), self._block_bytes)
        )
        return np.concatenate([mixed(self._mixer, block) for block in blocks])


class WavDecoder:
    """As `RawDecoder`, of a WAV of s16le, 16 kHz, whose header says how many channels it has."""

    def __init__(self) -> None:
        self._wav = WavReader()
        self._raw: RawDecoder | None = None

    def receive_bytes(self, data: bytes) -> Samples:
        data = self._wav.receive_bytes(data)
        if self._raw is None and isinstance(self._wav.format, Pcm):
            self._raw = RawDecoder(self._wav.format.channels)
        return self._raw.receive_bytes(data) if self._raw else to_samples(b"")

    def receive_end(self) -> Samples:
        return self._raw.receive_end() if self._raw else to_samples(b"")


def mixed(mixer: Mixer, data: bytes) -> Samples:
    """Whole frames of s16le as one channel."""
    return mixer.mix(np.frombuffer(data, "<i2").reshape(-1, mixer.num_channels))
