"""Whether an MP4 can be decoded while it arrives (pure)."""

import struct

from whisper_byoc.audio.sniffing import SNIFF_BYTES
from whisper_byoc.errors import UnsupportedAudio

_MP4_BOXES = 8
"""So many are looked at: before the index come few, such as ftyp, free and uuid."""


def mp4_is_streamable(head: bytes) -> bool | None:
    """Whether an MP4 carries its index (`moov`) before its media, as far as `head` shows.

    None while more bytes are needed; at most SNIFF_BYTES or eight boxes, then ffmpeg may try.
    Raises UnsupportedAudio where the media come first: then nothing can be decoded before the end.
    """
    position = 0
    for _ in range(_MP4_BOXES):
        if position + 16 > SNIFF_BYTES:
            return True
        box = head[position : position + 16]
        if len(box) < 16:
            return None
        size, name = struct.unpack_from(">I4s", box)
        if name == b"moov":
            return True
        if name in (b"mdat", b"moof"):
            raise UnsupportedAudio(
                "MP4 with its index (moov) behind the audio, or without one",
                "fragmented MP4, or one written with -movflags +faststart",
            )
        if size == 1:
            (size,) = struct.unpack_from(">Q", box, 8)
        if size < 8:
            return True
        position += size
    return True
