"""A WAV header as it arrives, and the audio behind it (pure)."""

import struct
from typing import Final

from whisper_byoc.audio.formats import CHANNELS, RATES, AudioFormat, Container, Encoding, Pcm
from whisper_byoc.audio.sniffing import matches
from whisper_byoc.errors import UnsupportedAudio

MAX_HEADER_BYTES: Final = 1 << 20
"""How far into a WAV its `data` chunk may begin; recorders put a few kilobytes before it."""

_WAV_EXPECTED = "WAV with a fmt and then a data chunk"
_SIZE_UNKNOWN = (0, 0xFFFF_FFFF)
_EXTENSIBLE = 0xFFFE
# The rest of the subformat's GUID behind its first two bytes, which are the format tag.
_EXTENSIBLE_GUID = bytes.fromhex("000000001000800000aa00389b71")
_ENCODING_OF = {  # (format tag, bits per sample)
    (1, 8): Encoding.U8,
    (1, 16): Encoding.S16LE,
    (1, 24): Encoding.S24LE,
    (1, 32): Encoding.S32LE,
    (3, 32): Encoding.F32LE,
    (3, 64): Encoding.F64LE,
    (6, 8): Encoding.ALAW,
    (7, 8): Encoding.MULAW,
}


class WavReader:
    """Reads a WAV header as it arrives, then hands on the audio behind it.

    `format` is None until the header is known. Then it is the raw format of what
    `receive_bytes` returns, or Container.WAV where the audio is compressed and all bytes from the
    first are handed on. A data size of 0 or 0xFFFFFFFF, which programs that write to a pipe leave,
    means until the end; chunks behind the data are ignored.
    """

    def __init__(self) -> None:
        self.format: AudioFormat | None = None
        self._head = bytearray()
        self._position = 12  # of the next chunk in the head
        self._layout: AudioFormat | None = None
        self._long_size = 0  # of the data, from the ds64 chunk of RF64 (EBU Tech 3306)
        self._left: int | None = None  # bytes of data still to come; None is until the end

    def receive_bytes(self, data: bytes) -> bytes:
        """Raises UnsupportedAudio where the header is not that of a WAV."""
        if self.format is None:
            self._head += data
            self._read_header()
            if self.format is None:
                return b""
            data = bytes(self._head)
            if isinstance(self.format, Pcm):
                data = data[self._position :]
            self._head.clear()
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        return data

    def receive_eof(self) -> None:
        """Raises UnsupportedAudio where the header has not been complete."""
        if self.format is None:
            raise UnsupportedAudio("WAV that ends inside its header", _WAV_EXPECTED)

    def _read_header(self) -> None:
        head, start = self._head, bytes(self._head[:12])
        if all(matches(start, {0: form, 8: b"WAVE"}) is False for form in (b"RIFF", b"RF64")):
            raise UnsupportedAudio("labelled WAV and has no RIFF header", _WAV_EXPECTED)
        while self.format is None and self._position + 8 <= len(head):
            name, size = struct.unpack_from("<4sI", head, self._position)
            body = self._position + 8
            if name == b"data":
                self._position = body
                self._start(size)
                return
            if name in (b"fmt ", b"ds64"):
                if body + size > len(head):
                    break
                self._read_chunk(name, bytes(head[body : body + size]))
            self._position = body + size + size % 2
        if self.format is None and max(self._position, len(head)) > MAX_HEADER_BYTES:
            raise UnsupportedAudio(
                f"WAV without audio in its first {MAX_HEADER_BYTES} bytes", _WAV_EXPECTED
            )

    def _read_chunk(self, name: bytes, body: bytes) -> None:
        if name == b"fmt ":
            self._layout = _wav_layout(body)
            if self._layout is Container.WAV:
                self.format = Container.WAV
        elif len(body) >= 16:
            (self._long_size,) = struct.unpack_from("<Q", body, 8)

    def _start(self, size: int) -> None:
        if self._layout is None:
            raise UnsupportedAudio("WAV with its data before its fmt chunk", _WAV_EXPECTED)
        self.format = self._layout
        if size in _SIZE_UNKNOWN:
            size = self._long_size
        self._left = size or None


def _wav_layout(fmt: bytes) -> AudioFormat:
    """What the data are by the body of a fmt chunk; Container.WAV where only ffmpeg can tell.

    Raises UnsupportedAudio.
    """
    if len(fmt) < 16:
        raise UnsupportedAudio(f"WAV with a fmt chunk of {len(fmt)} bytes", "at least 16")
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", fmt)
    if tag == _EXTENSIBLE and fmt[26:40] == _EXTENSIBLE_GUID:
        (tag,) = struct.unpack_from("<H", fmt, 24)
    encoding = _ENCODING_OF.get((tag, bits))
    if encoding is None or block != encoding.width * channels:
        return Container.WAV
    if rate not in RATES or channels not in CHANNELS:
        raise UnsupportedAudio(
            f"WAV of {rate} Hz and {channels} channels",
            f"{RATES[0]} to {RATES[-1]} Hz and {CHANNELS[0]} to {CHANNELS[-1]} channels",
        )
    return Pcm(encoding, rate, channels)
