"""What a `Content-Type` says."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.bodies import unhurried
from whisper_byoc.audio.content_types import format_of_content_type
from whisper_byoc.audio.formats import NATIVE, AudioFormat, Container, Encoding, Pcm
from whisper_byoc.errors import InvalidOption, ServiceError, UnsupportedAudio

LATIN_1 = st.characters(max_codepoint=0xFF)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(None, None, id="no header says nothing"),
        pytest.param("", None, id="an empty header says nothing"),
        pytest.param("application/octet-stream", None, id="octet-stream says nothing"),
        pytest.param("binary/octet-stream", None, id="binary octet-stream says nothing"),
        pytest.param(
            "application/x-www-form-urlencoded", None, id="what curl sends by default says nothing"
        ),
        pytest.param("audio/pcm", NATIVE, id="pcm is s16le 16 kHz mono"),
        pytest.param("audio/L16", NATIVE, id="l16 without parameters is ours, in any case"),
        pytest.param("audio/x-raw", NATIVE, id="x-raw is ours"),
        pytest.param("audio/raw; Rate=8000", Pcm(rate=8_000), id="a rate is taken"),
        pytest.param(
            "audio/l16;rate=44100;channels=2;endianness=big-endian",
            Pcm(Encoding.S16BE, 44_100, 2),
            id="rate, channels and endianness are taken",
        ),
        pytest.param('audio/l16; rate="24000"', Pcm(rate=24_000), id="a value may be quoted"),
        pytest.param(
            "audio/l16;endianness=little-endian", NATIVE, id="little-endian may be said too"
        ),
        pytest.param(
            "audio/x-l16; sample-rate=16000; channel-count=1", NATIVE, id="another API's names"
        ),
        pytest.param(
            "audio/pcm;format=F32LE;rate=48000",
            Pcm(Encoding.F32LE, 48_000),
            id="floats of a browser",
        ),
        pytest.param("audio/pcm;layout=interleaved", NATIVE, id="other parameters are ignored"),
        pytest.param("audio/basic", Pcm(Encoding.MULAW, 8_000), id="basic is 8 kHz mu-law"),
        pytest.param("audio/PCMA;rate=16000", Pcm(Encoding.ALAW, 16_000), id="A-law with a rate"),
        pytest.param("audio/wav", Container.WAV, id="wav"),
        pytest.param("audio/vnd.wave", Container.WAV, id="vnd.wave"),
        pytest.param("audio/x-flac", Container.FLAC, id="x-flac"),
        pytest.param("audio/mpeg", Container.MP3, id="mpeg audio"),
        pytest.param("audio/aac", Container.AAC, id="aac"),
        pytest.param("audio/ogg; codecs=opus", Container.OGG, id="ogg with a codec"),
        pytest.param("audio/webm;codecs=opus", Container.WEBM, id="what a browser records"),
        pytest.param("video/webm", Container.WEBM, id="webm with a picture"),
        pytest.param("video/MP2T", Container.MPEG_TS, id="trickle's type, in trickle's case"),
        pytest.param("audio/x-m4a", Container.MP4, id="m4a"),
        pytest.param("video/mp4", Container.MP4, id="mp4 with a picture"),
    ],
)
def test_format_of_content_type(header: str | None, expected: AudioFormat | None) -> None:
    assert format_of_content_type(header) == expected


@pytest.mark.parametrize("header", ["text/html", "application/json", "image/png", "wav"])
def test_a_type_that_is_not_audio_is_named_with_what_is_accepted(header: str) -> None:
    with pytest.raises(UnsupportedAudio) as caught:
        format_of_content_type(header)
    assert header in str(caught.value)
    assert "FLAC" in str(caught.value)


@pytest.mark.parametrize(
    "parameter",
    [
        "rate=abc",
        "rate=0",
        "rate=",
        "rate=-16000",
        "rate=16_000",
        "rate=16000.0",
        "rate=١٦٠٠٠",
        "rate=99999999999999999999",
        "channels=99",
        "channels=0",
        "endianness=middle",
        "format=f32le;endianness=big-endian",
        "format=mp3",
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(parameter: str) -> None:
    with pytest.raises(InvalidOption):
        format_of_content_type(f"audio/l16;{parameter}")


@unhurried
@given(st.text(LATIN_1, max_size=80) | st.text(LATIN_1, max_size=40).map("audio/l16;".__add__))
def test_any_content_type_gives_a_format_or_one_of_our_errors(header: str) -> None:
    with suppress(ServiceError):
        format_of_content_type(header)
