"""What the bytes of a body are, and raw audio into samples (pure).

`BodyReader` is the whole of it for one request body: bytes in, out come the bytes to decode and
what they are. Only `NATIVE` audio is decoded here, by `PcmDecoder`; `media.py` has ffmpeg do the
rest.
"""

import enum
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.errors import InvalidOption, UnsupportedAudio

SAMPLE_RATE: Final = 16_000
SAMPLE_BYTES: Final = 2

Samples: TypeAlias = NDArray[np.float32]
"""Mono, 16 kHz, shape `(n,)`, in [-1, 1)."""


class Container(enum.Enum):
    """A file format that names its own codec. `demuxer` is ffmpeg's word, `label` a person's."""

    WAV = "wav", "WAV"
    FLAC = "flac", "FLAC"
    MP3 = "mp3", "MP3"
    AAC = "aac", "AAC (ADTS)"
    OGG = "ogg", "Ogg"
    WEBM = "matroska", "WebM or Matroska"
    MP4 = "mp4", "MP4"
    MPEG_TS = "mpegts", "MPEG-TS"
    AIFF = "aiff", "AIFF"
    CAF = "caf", "CAF"
    AMR = "amr", "AMR"
    FLV = "flv", "FLV"

    def __init__(self, demuxer: str, label: str) -> None:
        self.demuxer = demuxer
        self.label = label

    def __str__(self) -> str:
        return self.label


class Encoding(enum.Enum):
    """How one raw sample is written. `demuxer` is ffmpeg's word, `width` counts bytes."""

    U8 = "u8", 1
    S16LE = "s16le", 2
    S16BE = "s16be", 2
    S24LE = "s24le", 3
    S32LE = "s32le", 4
    F32LE = "f32le", 4
    F64LE = "f64le", 8
    MULAW = "mulaw", 1
    ALAW = "alaw", 1

    def __init__(self, demuxer: str, width: int) -> None:
        self.demuxer = demuxer
        self.width = width


@dataclass(frozen=True, slots=True)
class Pcm:
    """Raw audio without a header; as constructed it is what the service takes by default."""

    encoding: Encoding = Encoding.S16LE
    rate: int = SAMPLE_RATE
    channels: int = 1

    @property
    def frame_bytes(self) -> int:
        return self.encoding.width * self.channels

    def __str__(self) -> str:
        return f"raw {self.encoding.demuxer}, {self.rate} Hz, {self.channels} channel(s)"


AudioFormat: TypeAlias = Container | Pcm

NATIVE: Final = Pcm()
"""The one format that needs no ffmpeg."""

ACCEPTED: Final = "raw PCM, WAV, FLAC, MP3, AAC, Ogg, WebM, MP4 or MPEG-TS"

MIN_RATE, MAX_RATE, MAX_CHANNELS = 1_000, 384_000, 32


# Content types

_UNTYPED = {
    "",
    "application/octet-stream",
    "binary/octet-stream",
    # What curl sends with --data-binary and -T unless told otherwise.
    "application/x-www-form-urlencoded",
}

# RFC 2586 has audio/l16 big-endian. Those who send it to speech services mostly mean the
# little-endian that their machine holds, so big-endian has to be asked for.
_TYPES_OF: dict[AudioFormat, str] = {
    NATIVE: "audio/pcm audio/x-pcm audio/l16 audio/x-l16 audio/raw audio/x-raw",
    Pcm(Encoding.MULAW, 8_000): "audio/basic audio/pcmu audio/mulaw audio/x-mulaw",
    Pcm(Encoding.ALAW, 8_000): "audio/pcma audio/alaw audio/x-alaw",
    Container.WAV: "audio/wav audio/x-wav audio/wave audio/vnd.wave audio/x-pn-wav",
    Container.FLAC: "audio/flac audio/x-flac",
    Container.MP3: "audio/mpeg audio/mp3 audio/x-mp3 audio/mpeg3 audio/x-mpeg-3 audio/mpga",
    Container.AAC: "audio/aac audio/aacp audio/x-aac audio/x-hx-aac-adts",
    Container.OGG: "audio/ogg video/ogg application/ogg audio/opus audio/vorbis",
    Container.WEBM: "audio/webm video/webm audio/x-matroska video/x-matroska "
    "audio/matroska video/matroska",
    Container.MP4: "audio/mp4 video/mp4 audio/m4a audio/x-m4a video/quicktime "
    "audio/3gpp video/3gpp",
    Container.MPEG_TS: "video/mp2t audio/mp2t",
    Container.AIFF: "audio/aiff audio/x-aiff",
    Container.CAF: "audio/x-caf",
    Container.AMR: "audio/amr",
    Container.FLV: "video/x-flv",
}
_FORMAT_OF: dict[str, AudioFormat] = {
    name: audio_format for audio_format, names in _TYPES_OF.items() for name in names.split()
}

_RATE_NAMES = ("rate", "sample-rate", "sample_rate", "samplerate")
_CHANNELS_NAMES = ("channels", "channel-count")


def format_of_content_type(header: str | None) -> AudioFormat | None:
    """The format that a `Content-Type` header declares; None where it says nothing about it.

    Raw PCM is s16le, 16 kHz, mono unless `rate`, `channels`, `endianness` (`little-endian` or
    `big-endian`) or `format` (`s16le`, `f32le`, `mulaw`, …) say otherwise.
    Raises UnsupportedAudio for a type that is not audio, InvalidOption for a bad parameter.
    """
    media_type, *pieces = (header or "").split(";")
    media_type = media_type.strip().lower()
    if media_type in _UNTYPED:
        return None
    declared = _FORMAT_OF.get(media_type)
    if declared is None:
        raise UnsupportedAudio(f"labelled {media_type[:80]!r}", ACCEPTED)
    if isinstance(declared, Container):
        return declared
    return _with_parameters(declared, dict(_parameter(piece) for piece in pieces))


def _parameter(piece: str) -> tuple[str, str]:
    name, _, value = piece.partition("=")
    return name.strip().lower(), value.strip().strip('"').lower()


def _with_parameters(pcm: Pcm, parameters: dict[str, str]) -> Pcm:
    for name in _RATE_NAMES:
        if name in parameters:
            pcm = replace(pcm, rate=_number(name, parameters[name], MIN_RATE, MAX_RATE))
    for name in _CHANNELS_NAMES:
        if name in parameters:
            pcm = replace(pcm, channels=_number(name, parameters[name], 1, MAX_CHANNELS))
    if "format" in parameters:
        pcm = replace(pcm, encoding=_encoding(parameters["format"]))
    if "endianness" in parameters:
        pcm = replace(pcm, encoding=_byte_order(pcm.encoding, parameters["endianness"]))
    return pcm


def _number(name: str, found: str, least: int, most: int) -> int:
    # int() alone takes signs, underscores and other scripts' digits.
    if found.isascii() and found.isdigit() and len(found) <= 9 and least <= int(found) <= most:
        return int(found)
    raise InvalidOption(name, found, f"a whole number from {least} to {most}")


def _encoding(found: str) -> Encoding:
    for encoding in Encoding:
        if encoding.demuxer == found:
            return encoding
    raise InvalidOption("format", found, f"one of {', '.join(e.demuxer for e in Encoding)}")


def _byte_order(encoding: Encoding, found: str) -> Encoding:
    if found in ("little-endian", "little"):
        return encoding
    if found in ("big-endian", "big") and encoding.width == SAMPLE_BYTES:
        return Encoding.S16BE
    raise InvalidOption("endianness", found, "little-endian, or for 16-bit samples big-endian")


# Sniffing

_ADTS_HEADER = 7
_MAX_ADTS_FRAME = 8_191
SNIFF_BYTES: Final = _MAX_ADTS_FRAME + _ADTS_HEADER
"""`sniff` never asks for more than this: the longest ADTS frame and the header behind it. Raw PCM
waits for 8 bytes as a rule, for 377 where it begins with the byte 0x47."""

_TEXT_BYTES = 64

Pattern: TypeAlias = dict[int, bytes]
"""Bytes by their offset."""

_PATTERNS: tuple[tuple[Container, Pattern], ...] = (
    (Container.WAV, {0: b"RIFF", 8: b"WAVE"}),
    (Container.WAV, {0: b"RF64", 8: b"WAVE"}),
    (Container.FLAC, {0: b"fLaC"}),
    (Container.OGG, {0: b"OggS"}),
    (Container.WEBM, {0: b"\x1a\x45\xdf\xa3"}),
    (Container.MP4, {4: b"ftyp"}),
    (Container.MP4, {4: b"styp"}),
    (Container.MP4, {4: b"moov"}),
    (Container.AIFF, {0: b"FORM", 8: b"AIFF"}),
    (Container.AIFF, {0: b"FORM", 8: b"AIFC"}),
    (Container.CAF, {0: b"caff\x00\x01"}),
    (Container.AMR, {0: b"#!AMR"}),
    (Container.FLV, {0: b"FLV\x01"}),
    # ISO/IEC 13818-1: a sync byte every 188 bytes.
    (Container.MPEG_TS, {0: b"G", 188: b"G", 376: b"G"}),
)
_NOT_AUDIO: tuple[tuple[str, Pattern], ...] = (
    ("a PNG image", {0: b"\x89PNG\r\n\x1a\n"}),
    ("a JPEG image", {0: b"\xff\xd8\xff", 6: b"JFIF"}),
    ("a PDF document", {0: b"%PDF-"}),
    ("a ZIP archive", {0: b"PK\x03\x04"}),
)
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"#extm3u")
_PRINTABLE = frozenset(b"\t\n\r" + bytes(range(0x20, 0x7F)))


def sniff(head: bytes, *, at_end: bool = False) -> AudioFormat | None:
    """What the body that begins with `head` is; None while more bytes are needed to tell.

    Answers at the latest with SNIFF_BYTES of it, or when `at_end` says that there is no more.
    What matches nothing is NATIVE. Raises UnsupportedAudio for what is certainly not audio.
    """
    unsure = False
    for found in _verdicts(head, at_end=at_end):
        if isinstance(found, Container):
            return found
        unsure |= found is None
    return None if unsure and not at_end else NATIVE


def begins_anew(head: bytes, current: AudioFormat | None) -> bool:
    """Whether a segment that begins with `head` is a file of its own, and not more of the one
    before, which is `current`. Transport streams go on in one another, and so does raw audio."""
    if isinstance(current, Pcm):
        return False
    try:
        found = sniff(head, at_end=True)
    except UnsupportedAudio:
        return False
    if not isinstance(found, Container):
        return False
    return not (found is Container.MPEG_TS and current is Container.MPEG_TS)


def _verdicts(head: bytes, *, at_end: bool) -> Iterator[AudioFormat | None]:
    """Each with the meaning of `sniff`'s answer: NATIVE for no, None for not yet."""
    yield _as_text(head, at_end=at_end)
    for name, pattern in _NOT_AUDIO:
        match = _matches(head, pattern)
        if match:
            raise UnsupportedAudio(name, ACCEPTED)
        yield NATIVE if match is False else None
    for container, pattern in _PATTERNS:
        match = _matches(head, pattern)
        yield container if match else NATIVE if match is False else None
    yield _as_tagged(head)
    yield _as_frames(head, Container.AAC, _ADTS_HEADER, _adts_frame)
    yield _as_frames(head, Container.MP3, _MPEG_HEADER, _mpeg_frame)


def _matches(head: bytes, pattern: Pattern) -> bool | None:
    """None where `head` is too short to say no."""
    match: bool | None = True
    for offset, magic in pattern.items():
        found = head[offset : offset + len(magic)]
        if not magic.startswith(found):
            return False
        if len(found) < len(magic):
            match = None
    return match


def _as_text(head: bytes, *, at_end: bool) -> AudioFormat | None:
    """Playlists, pages and JSON. 64 bytes of printable ASCII are 2 ms in which every sample is
    above 8,224 and below 32,383 with a printable low byte too: no sound does that."""
    text = head.removeprefix(b"\xef\xbb\xbf")
    start = text[:_TEXT_BYTES]
    printable = _PRINTABLE.issuperset(start)
    enough = _TEXT_BYTES if not at_end else _TEXT_BYTES // 4
    if text.lower().startswith(_MARKUP) or (printable and len(start) >= enough):
        raise UnsupportedAudio(f"text that begins with {start[:24].decode('latin-1')!r}", ACCEPTED)
    return None if printable else NATIVE


def _as_tagged(head: bytes) -> AudioFormat | None:
    """ID3v2 (id3.org, 3.1) stands before MP3, but also before ADTS in HLS and at times FLAC."""
    match = _matches(head, {0: b"ID3"})
    if match is False:
        return NATIVE
    if len(head) < 10:
        return None
    if 0xFF in head[3:5] or max(head[6:10]) >= 0x80:
        return NATIVE
    end = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    if end + _ADTS_HEADER > SNIFF_BYTES:
        return Container.MP3
    behind = head[end : end + _ADTS_HEADER]
    if len(behind) < _ADTS_HEADER:
        return None
    if behind.startswith(b"fLaC"):
        return Container.FLAC
    return Container.AAC if _adts_frame(behind) else Container.MP3


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame header: `num_bytes` to the next, `constant` what the next must share."""

    num_bytes: int
    constant: tuple[int, ...]


def _as_frames(
    head: bytes, container: Container, header_bytes: int, parse: Callable[[bytes], _Frame | None]
) -> AudioFormat | None:
    """One header in speech is chance, two at the right distance are not."""
    if not head.startswith(b"\xff"):
        return NATIVE if head else None
    if len(head) < header_bytes:
        return None
    first = parse(head[:header_bytes])
    if first is None:
        return NATIVE
    following = head[first.num_bytes : first.num_bytes + header_bytes]
    if len(following) < header_bytes:
        return None
    second = parse(following)
    return container if second and second.constant == first.constant else NATIVE


def _adts_frame(header: bytes) -> _Frame | None:
    """ISO/IEC 14496-3, 1.A.2.2: sync, layer 0, a rate, a length that holds the header."""
    rate = header[2] >> 2 & 0xF
    num_bytes = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    if header[0] != 0xFF or header[1] & 0xF6 != 0xF0 or rate > 12 or num_bytes < _ADTS_HEADER:
        return None
    return _Frame(num_bytes, (header[1], header[2] >> 6, rate))


_MPEG_HEADER = 4
_MPEG1_LAYER2 = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_MPEG1_LAYER3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG_RATES = (44_100, 48_000, 32_000)


def _mpeg_frame(header: bytes) -> _Frame | None:
    """ISO/IEC 11172-3, 2.4.1.3, layers II and III. Layer I begins with 0xFF 0xFE or 0xFF 0xFF,
    in raw PCM the sample -257 or -1 of any quiet room, and nobody sends it."""
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3  # 3 is MPEG-1; 1 III, 2 II
    bitrate, rate = header[2] >> 4, header[2] >> 2 & 3
    if header[0] != 0xFF or header[1] < 0xE0 or version == 1 or layer not in (1, 2):
        return None
    if not 1 <= bitrate <= 14 or rate == 3:
        return None
    mpeg1 = version == 3
    bitrates = _MPEG2 if not mpeg1 else _MPEG1_LAYER3 if layer == 1 else _MPEG1_LAYER2
    hertz = _MPEG_RATES[rate] >> (0 if mpeg1 else 1 if version == 2 else 2)
    samples = 576 if layer == 1 and not mpeg1 else 1_152
    num_bytes = samples // 8 * bitrates[bitrate - 1] * 1_000 // hertz + (header[2] >> 1 & 1)
    return _Frame(num_bytes, (version, layer, rate))


# Raw audio


class _FrameCutter:
    """Hands on whole frames of `frame_bytes`; `carry` is the piece that waits for its rest."""

    def __init__(self, frame_bytes: int, carry: bytes = b"") -> None:
        self.carry = carry
        self._frame_bytes = frame_bytes

    def receive_bytes(self, data: bytes) -> bytes:
        if self.carry:
            data = self.carry + data
        whole = len(data) - len(data) % self._frame_bytes
        self.carry = data[whole:]
        return data[:whole]


class PcmDecoder:
    """NATIVE bytes into samples, in chunks of any size; a byte left at the end is dropped."""

    def __init__(self) -> None:
        self._cutter = _FrameCutter(NATIVE.frame_bytes)

    def receive_bytes(self, data: bytes) -> Samples:
        whole = np.frombuffer(self._cutter.receive_bytes(data), "<i2")
        samples: Samples = np.multiply(whole, np.float32(1 / 32_768), dtype=np.float32)
        return samples


# WAV

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
        if all(_matches(start, {0: form, 8: b"WAVE"}) is False for form in (b"RIFF", b"RF64")):
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
    """Container.WAV where only ffmpeg can tell what the data are."""
    if len(fmt) < 16:
        raise UnsupportedAudio(f"WAV with a fmt chunk of {len(fmt)} bytes", "at least 16")
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", fmt)
    if tag == _EXTENSIBLE and fmt[26:40] == _EXTENSIBLE_GUID:
        (tag,) = struct.unpack_from("<H", fmt, 24)
    encoding = _ENCODING_OF.get((tag, bits))
    if encoding is None or block != encoding.width * channels:
        return Container.WAV
    if not (MIN_RATE <= rate <= MAX_RATE and 1 <= channels <= MAX_CHANNELS):
        raise UnsupportedAudio(
            f"WAV of {rate} Hz and {channels} channels",
            f"{MIN_RATE} to {MAX_RATE} Hz and 1 to {MAX_CHANNELS} channels",
        )
    return Pcm(encoding, rate, channels)


# MP4

_MP4_BOXES = 8


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


# One body


class BodyReader:
    """Finds out what one request body holds and hands on the bytes to decode.

    `declared` is what the content type says. The magic of a container outweighs it, because
    trickle labels every channel video/mp2t and uploads are mislabelled; declared raw PCM is taken
    as it is. `carry` is what the body before left of an unfinished frame of raw audio.
    """

    def __init__(self, declared: AudioFormat | None = None, carry: bytes = b"") -> None:
        self.format: AudioFormat | None = None
        """What the body is; None while unknown, and for an empty body."""
        self.payload_format: AudioFormat | None = None
        """What `receive_bytes` returns: the raw format inside a WAV, else `format`."""
        self._declared = declared
        self._carry = carry
        self._head = bytearray()
        self._wav: WavReader | None = None
        self._cutter: _FrameCutter | None = None

    @property
    def carry(self) -> bytes:
        """The unfinished frame at the end, for the next body of the same stream."""
        return self._cutter.carry if self._cutter else self._carry

    def receive_bytes(self, data: bytes) -> bytes:
        """The bytes to decode as `payload_format`; empty while that is unknown.

        Raises UnsupportedAudio.
        """
        return self._receive(data, at_end=False)

    def receive_eof(self) -> bytes:
        """The bytes that still waited for a decision. Raises UnsupportedAudio."""
        rest = self._receive(b"", at_end=True)
        if self._wav:
            self._wav.receive_eof()
        return rest

    def _receive(self, data: bytes, *, at_end: bool) -> bytes:
        if self.format is None:
            self._head += data
            data = bytes(self._head)
            self.format = self._decide(data, at_end=at_end) if data else None
            if self.format is None:
                return b""
            self._head.clear()
            if self.format is Container.WAV:
                self._wav = WavReader()
        return self._unwrap(data)

    def _decide(self, head: bytes, *, at_end: bool) -> AudioFormat | None:
        if isinstance(self._declared, Pcm):
            return self._declared
        found = sniff(head, at_end=at_end)
        if found is NATIVE:
            return self._declared or NATIVE
        if found is Container.MP4 and not (mp4_is_streamable(head) or at_end):
            return None
        return found

    def _unwrap(self, data: bytes) -> bytes:
        if self._wav:
            data = self._wav.receive_bytes(data)
            if self._wav.format is None:
                return b""
            self.payload_format = self._wav.format
        else:
            self.payload_format = self.format
        if not isinstance(self.payload_format, Pcm):
            return data
        if self._cutter is None:
            carry = b"" if self._wav else self._carry
            self._cutter = _FrameCutter(self.payload_format.frame_bytes, carry)
        return self._cutter.receive_bytes(data)
