"""What kinds of audio there are: raw audio and files (pure)."""

import enum
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE: Final = 16_000
"""Hz; what Whisper and the voice activity model hear."""

Samples: TypeAlias = NDArray[np.float32]
"""Mono, 16 kHz, shape `(n,)`, in [-1, 1)."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What is missing between two blocks of samples, by the clock of their stream."""

    num_samples: int


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
    AU = "au", "AU"
    ASF = "asf", "WMA or another ASF"
    MPEG_PS = "mpeg", "MPEG-PS"
    AVI = "avi", "AVI"
    W64 = "w64", "Wave64"
    WAVPACK = "wv", "WavPack"
    APE = "ape", "Monkey's Audio"
    TTA = "tta", "TTA"
    TAK = "tak", "TAK"
    MUSEPACK = "mpc", "Musepack"
    MUSEPACK_8 = "mpc8", "Musepack 8"
    AC3 = "ac3", "AC-3"
    EAC3 = "eac3", "E-AC-3"
    DTS = "dts", "DTS"
    LATM = "loas", "AAC (LATM)"
    VOC = "voc", "VOC"
    SOX = "sox", "SoX's own format"
    SPHERE = "nistsphere", "NIST SPHERE"
    IRCAM = "ircam", "IRCAM"
    REALMEDIA = "rm", "RealMedia"
    QCP = "qcp", "QCP"

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


@dataclass(frozen=True, slots=True)
class WholeFile:
    """A body that is a whole recording, as uploads are, so that it can be decoded from any place.

    Its bytes decide what it is. hint: what its label says; raw audio is believed where no magic
    bytes say otherwise. label: how it is labelled, for messages. takes_raw: whether bytes of no
    known kind may be NATIVE audio though nothing says so, where they look like sound.
    """

    hint: AudioFormat | None = None
    label: str = ""
    takes_raw: bool = False


Declared: TypeAlias = AudioFormat | WholeFile
"""What is known of a body before its first byte."""

STREAMED: Final = frozenset(
    {
        Container.WAV,
        Container.FLAC,
        Container.MP3,
        Container.AAC,
        Container.OGG,
        Container.WEBM,
        Container.MPEG_TS,
        Container.FLV,
        Container.AMR,
        Container.AU,
    }
)
"""What can be decoded while it arrives, whoever wrote it; ffmpeg may want to go to and fro in the
others, and does so where the whole file is there."""

NATIVE: Final = Pcm()
"""s16le, 16 kHz, mono: the one format that needs no ffmpeg."""

ACCEPTED: Final = "raw PCM, WAV, FLAC, MP3, AAC, Ogg, WebM, MP4, MPEG-TS or the like"

RATES: Final = range(1_000, 384_001)
CHANNELS: Final = range(1, 33)
"""What raw audio may have, so that a header cannot ask for resampling without measure."""
