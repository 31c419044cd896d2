"""WAV in any chunking."""

import struct
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.bodies import AUDIO, DATA, chunk, fmt, pieces, unhurried, wav
from whisper_byoc.audio.body import BodyReader
from whisper_byoc.audio.formats import NATIVE, AudioFormat, Container, Encoding, Pcm
from whisper_byoc.audio.pcm import PcmDecoder
from whisper_byoc.audio.wav import MAX_HEADER_BYTES, WavReader
from whisper_byoc.errors import UnsupportedAudio


def extensible(subformat: int, bits: int = 16) -> bytes:
    guid = struct.pack("<H", subformat) + bytes.fromhex("000000001000800000aa00389b71")
    return fmt(0xFFFE, bits=bits, more=struct.pack("<HHI", 22, bits, 4) + guid)


DS64 = chunk(b"ds64", struct.pack("<QQQI", 0, len(AUDIO), 0, 0))
UNKNOWN = 0xFFFF_FFFF

NATIVE_WAVS = [
    pytest.param(wav(fmt(), DATA), id="the plain 44 bytes"),
    pytest.param(wav(fmt(more=b"\0\0"), DATA), id="a fmt chunk of 18 bytes"),
    pytest.param(wav(extensible(1), DATA), id="WAVE_FORMAT_EXTENSIBLE"),
    pytest.param(wav(chunk(b"JUNK", bytes(28)), fmt(), DATA), id="JUNK before fmt"),
    pytest.param(wav(fmt(), chunk(b"LIST", b"INFOabc"), DATA), id="a padded chunk of odd size"),
    pytest.param(wav(fmt(), chunk(b"bext", bytes(9_000)), DATA), id="a chunk beyond the sniffing"),
    pytest.param(wav(fmt(), DATA, chunk(b"LIST", b"INFO")), id="a chunk behind the data"),
    pytest.param(wav(fmt(), chunk(b"data", AUDIO, 0)), id="a data size of 0"),
    pytest.param(wav(fmt(), chunk(b"data", AUDIO, UNKNOWN)), id="a data size of 0xFFFFFFFF"),
    pytest.param(wav(fmt(), chunk(b"data", AUDIO, 99_999)), id="a data size that is too large"),
    pytest.param(
        wav(DS64, fmt(), chunk(b"data", AUDIO, UNKNOWN), b"LIST\0\0\0\0", form=b"RF64"),
        id="RF64 with its size in ds64",
    ),
    pytest.param(wav(fmt(), chunk(b"data", AUDIO + b"\x01", 321)), id="half a sample at the end"),
]


def read_wav(chunks: Iterable[bytes]) -> tuple[AudioFormat | None, bytes]:
    reader = WavReader()
    audio = b"".join([reader.receive_bytes(piece) for piece in chunks])
    reader.receive_eof()
    return reader.format, audio


@pytest.mark.parametrize("data", NATIVE_WAVS)
def test_wav_of_our_own_format_is_read_without_help(data: bytes) -> None:
    for chunks in ([data], [data[i : i + 1] for i in range(len(data))]):
        found, audio = read_wav(chunks)
        assert found == NATIVE
        assert audio[: len(AUDIO)] == AUDIO
        assert len(audio) - len(AUDIO) in (0, 1)


@unhurried
@given(
    st.sampled_from([param.values[0] for param in NATIVE_WAVS]), st.lists(st.integers(min_value=0))
)
def test_any_chunking_of_a_wav_gives_the_same_samples(data: bytes, cuts: list[int]) -> None:
    decoder = PcmDecoder()
    body = BodyReader()
    chunks = [body.receive_bytes(piece) for piece in pieces(data, cuts)]
    samples = np.concatenate(
        [decoder.receive_bytes(part) for part in (*chunks, body.receive_eof())]
    )
    assert body.format == Container.WAV
    assert body.payload_format == NATIVE
    assert np.array_equal(samples, PcmDecoder().receive_bytes(AUDIO))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(fmt(rate=44_100, channels=2), Pcm(rate=44_100, channels=2), id="CD audio"),
        pytest.param(fmt(bits=24), Pcm(Encoding.S24LE), id="24 bits"),
        pytest.param(fmt(bits=8), Pcm(Encoding.U8), id="8 bits are unsigned"),
        pytest.param(fmt(3, bits=32), Pcm(Encoding.F32LE), id="floats"),
        pytest.param(extensible(3, bits=32), Pcm(Encoding.F32LE), id="extensible floats"),
        pytest.param(fmt(7, rate=8_000, bits=8), Pcm(Encoding.MULAW, 8_000), id="mu-law"),
    ],
)
def test_other_wav_hands_on_its_audio_and_says_what_it_is(header: bytes, expected: Pcm) -> None:
    assert read_wav([wav(header, DATA)]) == (expected, AUDIO)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(fmt(0x55, bits=0), id="MP3 in WAV"),
        pytest.param(fmt(0x11, bits=4), id="ADPCM"),
        pytest.param(fmt(bits=20), id="20 bits"),
        pytest.param(fmt(0xFFFE, more=bytes(24)), id="extensible of an unknown kind"),
    ],
)
def test_compressed_wav_is_handed_on_from_its_first_byte(header: bytes) -> None:
    data = wav(header, DATA)
    assert read_wav([data[:30], data[30:]]) == (Container.WAV, data)


def test_wav_says_what_it_is_before_its_audio_comes() -> None:
    reader = WavReader()
    reader.receive_bytes(wav(fmt(0x11, bits=4)))
    assert reader.format == Container.WAV
    reader = WavReader()
    reader.receive_bytes(wav(fmt(bits=24), b"data\xff\xff\xff\xff"))
    assert reader.format == Pcm(Encoding.S24LE)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param(b"nothing of the kind", "no RIFF header", id="no RIFF"),
        pytest.param(b"RIFF", "inside its header", id="cut in RIFF"),
        pytest.param(wav(fmt())[:30], "inside its header", id="cut in fmt"),
        pytest.param(wav(fmt()), "inside its header", id="cut before data"),
        pytest.param(wav(DATA), "data before its fmt", id="no fmt"),
        pytest.param(wav(chunk(b"fmt ", bytes(4))), "fmt chunk of 4 bytes", id="a short fmt"),
        pytest.param(wav(fmt(channels=0)), "0 channels", id="no channels"),
        pytest.param(wav(fmt(rate=1)), "1 Hz", id="one sample a second"),
        pytest.param(
            wav(chunk(b"JUNK", b"", 1 << 30)), "without audio in its first", id="a huge chunk"
        ),
        pytest.param(
            wav(*[chunk(b"JUNK", b"")] * (MAX_HEADER_BYTES // 8 + 1)),
            "without audio in its first",
            id="chunks without end",
        ),
    ],
)
def test_a_wav_without_a_usable_header_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(UnsupportedAudio, match=problem):
        read_wav([data])


@unhurried
@given(st.lists(st.binary(max_size=50)), st.booleans())
def test_any_bytes_for_a_wav_are_read_or_refused(chunks: list[bytes], begun: bool) -> None:
    with suppress(UnsupportedAudio):
        read_wav([wav(chunk(b"JUNK", b"")), *chunks] if begun else chunks)
