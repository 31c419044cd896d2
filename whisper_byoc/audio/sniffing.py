"""What a body is by its first bytes (pure)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from whisper_byoc.audio.formats import ACCEPTED, NATIVE, AudioFormat, Container
from whisper_byoc.errors import UnsupportedAudio

_ADTS_HEADER = 7
_MAX_ADTS_FRAME = 8_191
SNIFF_BYTES: Final = _MAX_ADTS_FRAME + _ADTS_HEADER
"""`sniff` never asks for more than this: the longest ADTS frame and the header behind it. Raw PCM
waits for 8 bytes as a rule, for 377 where it begins with the byte 0x47."""

_MAGIC_BYTES = 32
"""Longer than every pattern but MPEG-TS's."""
_TEXT_BYTES = 64
"""So many printable characters at its beginning make a body text (see `_as_text`)."""

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
    (Container.AU, {0: b".snd\x00"}),
    (Container.ASF, {0: bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")}),
    (Container.MPEG_PS, {0: b"\x00\x00\x01\xba"}),
    (Container.AVI, {0: b"RIFF", 8: b"AVI "}),
    (Container.W64, {0: b"riff\x2e\x91\xcf\x11"}),
    (Container.WAVPACK, {0: b"wvpk"}),
    (Container.APE, {0: b"MAC "}),
    (Container.TTA, {0: b"TTA1"}),
    (Container.TAK, {0: b"tBaK"}),
    (Container.MUSEPACK_8, {0: b"MPCK"}),
    (Container.DTS, {0: b"\x7f\xfe\x80\x01"}),
    (Container.VOC, {0: b"Creative Voice File\x1a"}),
    (Container.SOX, {0: b".SoX"}),
    (Container.SOX, {0: b"XoS."}),
    (Container.SPHERE, {0: b"NIST_1A\n"}),
    (Container.REALMEDIA, {0: b".RMF\x00"}),
    (Container.REALMEDIA, {0: b".ra\xfd"}),
    (Container.QCP, {0: b"RIFF", 8: b"QLCM"}),
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
    return _first(_verdicts(head, at_end=at_end), at_end=at_end)


def sniff_magic(head: bytes, *, at_end: bool = False) -> AudioFormat | None:
    """As `sniff`, by magic bytes alone: those that chance does not bring about in raw audio of
    whatever encoding. Answers with 32 bytes, and raises nothing."""
    found = _first(_by_pattern(head), at_end=at_end)
    if found is None and len(head) >= _MAGIC_BYTES:
        return NATIVE
    return NATIVE if found is Container.MPEG_TS else found


def _first(verdicts: Iterator[AudioFormat | None], *, at_end: bool) -> AudioFormat | None:
    unsure = False
    for found in verdicts:
        if isinstance(found, Container):
            return found
        unsure |= found is None
    return None if unsure and not at_end else NATIVE


def _by_pattern(head: bytes) -> Iterator[AudioFormat | None]:
    for container, pattern in _PATTERNS:
        match = matches(head, pattern)
        yield container if match else NATIVE if match is False else None


def _verdicts(head: bytes, *, at_end: bool) -> Iterator[AudioFormat | None]:
    """The answer of every check: a container, NATIVE for no, None while it needs more bytes.

    Raises UnsupportedAudio for what is certainly not audio.
    """
    # The head of a SPHERE file is text.
    yield Container.SPHERE if head.startswith(b"NIST_1A\n") else _as_text(head, at_end=at_end)
    for name, pattern in _NOT_AUDIO:
        match = matches(head, pattern)
        if match:
            raise UnsupportedAudio(name, ACCEPTED)
        yield NATIVE if match is False else None
    yield from _by_pattern(head)
    yield _as_tagged(head)
    yield _as_frames(head, Container.AAC, _ADTS_HEADER, _adts_frame)
    yield _as_frames(head, Container.MP3, _MPEG_HEADER, _mpeg_frame)


def matches(head: bytes, pattern: Pattern) -> bool | None:
    """Whether `head` has the pattern's bytes; None where it may, and is too short to tell."""
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
    match = matches(head, {0: b"ID3"})
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
    """Whether `head` begins with two frames: what looks like a header happens by chance in raw
    speech, two of them at the distance that the first gives do not."""
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
