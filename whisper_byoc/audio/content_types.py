"""What a `Content-Type` header says that a body is (pure)."""

from dataclasses import replace

from whisper_byoc.audio.formats import (
    ACCEPTED,
    CHANNELS,
    NATIVE,
    RATES,
    AudioFormat,
    Container,
    Encoding,
    Pcm,
    WholeFile,
)
from whisper_byoc.errors import InvalidOption, UnsupportedAudio

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
    Container.AMR: "audio/amr audio/amr-wb",
    Container.FLV: "video/x-flv",
    Container.AU: "audio/x-au audio/au",
    Container.ASF: "audio/x-ms-wma video/x-ms-asf video/x-ms-wmv audio/wma",
    Container.AVI: "video/x-msvideo video/avi",
}
_FORMAT_OF: dict[str, AudioFormat] = {
    name: audio_format for audio_format, names in _TYPES_OF.items() for name in names.split()
}

_RATE_NAMES = ("rate", "sample-rate", "sample_rate", "samplerate")
_CHANNELS_NAMES = ("channels", "channel-count")


def format_of_content_type(header: str | None) -> AudioFormat | None:
    """The format that a `Content-Type` header declares; None where it says nothing about it.

    Raw PCM is s16le, 16 kHz, mono unless `rate`, `channels`, `endianness` (`little-endian` or
    `big-endian`) or `format` (`s16le`, `f32le`, `mulaw`, …) say otherwise. Other types of audio and
    video say nothing: the bytes will.
    Raises UnsupportedAudio for a type that is not audio, InvalidOption for a bad parameter.
    """
    media_type, *pieces = (header or "").split(";")
    media_type = media_type.strip().lower()
    if media_type in _UNTYPED:
        return None
    declared = _FORMAT_OF.get(media_type)
    if declared is None and media_type.startswith(("audio/", "video/")):
        return None
    if declared is None:
        raise UnsupportedAudio(f"labelled {media_type[:80]!r}", ACCEPTED)
    if isinstance(declared, Container):
        return declared
    return _with_parameters(declared, dict(_parameter(piece) for piece in pieces))


def whole_file(header: str | None, *, takes_raw: bool) -> WholeFile:
    """What a `Content-Type` header says of a whole recording: a hint, whatever it is.

    takes_raw: see `WholeFile`; only without a label. Raises InvalidOption for a bad parameter of
    raw audio.
    """
    label = (header or "").partition(";")[0].strip()
    if label.lower() in _UNTYPED:
        return WholeFile(takes_raw=takes_raw)
    try:
        return WholeFile(format_of_content_type(header), label)
    except UnsupportedAudio:
        return WholeFile(None, label)


def _parameter(piece: str) -> tuple[str, str]:
    name, _, value = piece.partition("=")
    return name.strip().lower(), value.strip().strip('"').lower()


def _with_parameters(pcm: Pcm, parameters: dict[str, str]) -> Pcm:
    for name in _RATE_NAMES:
        if name in parameters:
            pcm = replace(pcm, rate=_number(name, parameters[name], RATES))
    for name in _CHANNELS_NAMES:
        if name in parameters:
            pcm = replace(pcm, channels=_number(name, parameters[name], CHANNELS))
    if "format" in parameters:
        pcm = replace(pcm, encoding=_encoding(parameters["format"]))
    if "endianness" in parameters:
        pcm = replace(pcm, encoding=_byte_order(pcm.encoding, parameters["endianness"]))
    return pcm


def _number(name: str, found: str, allowed: range) -> int:
    # int() alone takes signs, underscores and other scripts' digits.
    if found.isascii() and found.isdigit() and len(found) <= 9 and int(found) in allowed:
        return int(found)
    raise InvalidOption(name, found, f"a whole number from {allowed[0]} to {allowed[-1]}")


def _encoding(found: str) -> Encoding:
    known = {encoding.demuxer: encoding for encoding in Encoding}
    if found not in known:
        raise InvalidOption("format", found, f"one of {', '.join(known)}")
    return known[found]


def _byte_order(encoding: Encoding, found: str) -> Encoding:
    if found in ("little-endian", "little"):
        return encoding
    if found in ("big-endian", "big") and encoding.width == 2:
        return Encoding.S16BE
    raise InvalidOption("endianness", found, "little-endian, or for 16-bit samples big-endian")
