"""Raw audio with its clock, as ffmpeg writes it: samples, and what is missing between them (pure).

The form is QuickTime in fragments (ISO/IEC 14496-12, 8.8), one frame of the decoder in each. In
`moof`, `traf`, `tfdt` stands the frame's place, counted in samples, and `mdat` has its audio.
"""

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from whisper_byoc.audio.channels import Mixer, mixed
from whisper_byoc.audio.formats import NATIVE, SAMPLE_RATE, Gap, Samples
from whisper_byoc.audio.pcm import to_samples

MUXER: Final[dict[str, str | int]] = {
    "f": "mov",
    "acodec": f"pcm_{NATIVE.encoding.demuxer}",
    "ar": NATIVE.rate,
    "movflags": "frag_every_frame+empty_moov+default_base_moof+skip_trailer",
}
"""ffmpeg's options of an output that `ClockedDecoder` reads."""

_TOLERATED = round(0.1 * SAMPLE_RATE)
"""Samples by which the clock may be off: less is how senders round and resamplers begin."""
_MAX_OVERLAP = SAMPLE_RATE
"""Samples that may be left out at once: a clock that is further behind is another clock, and no
reason to lose speech."""
_HEADER = struct.Struct(">I4s")
_PARENTS = (b"moof", b"traf")
_CHANNELS_AT = 36
"""From the name `stsd`, of which `moov` has one, to the number of channels: the name, a version, a
number of entries, and of the first entry its size, its name, 8 bytes of every kind and 8 of sound
(14496-12, 8.5.2 and 12.2.3)."""


class ClockedDecoder:
    """The bytes of such a stream, in pieces of any length, into samples and gaps.

    Where the clock is ahead of the samples, there is a gap; where the samples are ahead of it, some
    are left out, so that times stay those of the clock. Holds one fragment at most.
    """

    def __init__(self) -> None:
        self._waiting = b""
        self._clock = 0
        """Place of the next frame, by the last `tfdt`."""
        self._end: int | None = None
        """Place behind the last samples; None before the first."""
        self._mixer: Mixer | None = None
        """None for one channel."""

    def receive_bytes(self, data: bytes) -> list[Samples | Gap]:
        """What they complete, in order; no two blocks of samples follow one another."""
        pieces: list[Samples | Gap] = []
        blocks: list[Samples] = []
        for kind, content in self._boxes(data):
            if kind == b"tfdt":
                # FullBox: a version and flags, then 64 bits in version 1 and 32 in version 0.
                self._clock = int.from_bytes(content[4:], "big")
            elif kind == b"moov":
                place = content.find(b"stsd") + _CHANNELS_AT
                num_channels = int.from_bytes(content[place : place + 2], "big")
                self._mixer = Mixer(num_channels) if num_channels > 1 else None
            elif kind == b"mdat":
                samples = mixed(self._mixer, content) if self._mixer else to_samples(content)
                gap, samples = self._place(samples)
                if gap:
                    pieces += [*_joined(blocks), Gap(gap)]
                    blocks = []
                blocks.append(samples)
        return [*pieces, *_joined(blocks)]

    def _place(self, samples: Samples) -> tuple[int, Samples]:
        """How many samples are missing before these, and what of these is new."""
        if self._end is None or self._clock < self._end - _MAX_OVERLAP:
            self._end = self._clock
        ahead = self._clock - self._end
        if abs(ahead) <= _TOLERATED:
            ahead = 0
        samples = samples[max(0, -ahead) :]
        self._end += max(0, ahead) + len(samples)
        return max(0, ahead), samples

    def _boxes(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The boxes that are whole, each with its content. Those that hold other boxes are opened
        when they are whole, too, and not told of."""
        self._waiting += data
        position = 0
        while position + _HEADER.size <= len(self._waiting):
            size, kind = _HEADER.unpack_from(self._waiting, position)
            if position + size > len(self._waiting):
                break
            if kind in _PARENTS:
                size = _HEADER.size
            else:
                yield kind, self._waiting[position + _HEADER.size : position + size]
            position += size
        self._waiting = self._waiting[position:]


def _joined(blocks: list[Samples]) -> list[Samples]:
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    return [samples] if samples.size else []
