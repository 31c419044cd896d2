"""One body, whatever it is and says it is."""

import random
from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.bodies import AUDIO, DATA, box, chunk, fmt, speechlike, unhurried, wav
from whisper_byoc.audio.body import BodyReader
from whisper_byoc.audio.formats import NATIVE, AudioFormat, Container, Encoding, Pcm
from whisper_byoc.audio.pcm import RawStream
from whisper_byoc.audio.sniffing import SNIFF_BYTES
from whisper_byoc.errors import UnsupportedAudio


def read_body(
    chunks: Iterable[bytes], declared: AudioFormat | None = None, stream: RawStream | None = None
) -> tuple[BodyReader, bytes]:
    body = BodyReader(declared, stream)
    payload = b"".join([body.receive_bytes(piece) for piece in chunks])
    return body, payload + body.receive_eof()


@pytest.mark.parametrize(
    ("declared", "data", "expected"),
    [
        pytest.param(None, AUDIO, NATIVE, id="raw audio by default"),
        pytest.param(None, b"fLaC" + bytes(20), Container.FLAC, id="sniffed"),
        pytest.param(Container.MP3, bytes(50), Container.MP3, id="declared, without magic"),
        pytest.param(
            Container.MPEG_TS, b"OggS" + bytes(20), Container.OGG, id="magic outweighs the label"
        ),
        pytest.param(NATIVE, b"fLaC" + bytes(20), NATIVE, id="declared raw audio is not sniffed"),
        pytest.param(None, b"\x01\x02", NATIVE, id="too short to tell"),
        pytest.param(None, box(b"ftyp"), Container.MP4, id="an MP4 of one box"),
    ],
)
def test_a_body_is_handed_on_whole(
    declared: AudioFormat | None, data: bytes, expected: AudioFormat
) -> None:
    body, payload = read_body([data[i : i + 3] for i in range(0, len(data), 3)], declared)
    assert body.format == body.payload_format == expected
    assert payload == data


@pytest.mark.parametrize("declared", [None, NATIVE, Container.FLAC, Container.WAV])
def test_an_empty_body_is_nothing(declared: AudioFormat | None) -> None:
    stream = RawStream()
    read_body([b"\x01"], NATIVE, stream)
    body, payload = read_body([b"", b""], declared, stream)
    assert (body.payload_format, payload) == (None, b"")
    assert read_body([b"\x02"], NATIVE, stream)[1] == b"\x01\x02"


def test_a_piece_of_a_sample_goes_to_the_next_body() -> None:
    audio = speechlike(100)
    stream = RawStream()
    _, before = read_body([audio[:101]], stream=stream)
    assert before == audio[:100]
    _, behind = read_body([audio[101:]], NATIVE, stream)
    assert before + behind == audio


def test_a_piece_of_a_stereo_frame_goes_to_the_next_body() -> None:
    stereo = Pcm(rate=48_000, channels=2)
    stream = RawStream()
    assert read_body([b"abc", b"defg"], stereo, stream)[1] == b"abcd"
    body, payload = read_body([b"hi"], None, stream)
    assert (body.format, payload) == (stereo, b"efgh")


def test_a_piece_does_not_begin_raw_audio_of_another_format() -> None:
    stream = RawStream()
    read_body([b"abc"], Pcm(channels=2), stream)
    assert read_body([b"defg"], NATIVE, stream)[1] == b"defg"


@pytest.mark.parametrize("between", [b"fLaC" + bytes(20), wav(fmt(), DATA)])
def test_a_piece_does_not_wait_through_a_file(between: bytes) -> None:
    stream = RawStream()
    read_body([b"abc"], NATIVE, stream)
    read_body([between], None, stream)
    assert read_body([b"defg"], NATIVE, stream)[1] == b"defg"


def test_a_wav_does_not_begin_with_what_the_body_before_left() -> None:
    stream = RawStream()
    read_body([b"\x01"], NATIVE, stream)
    _, payload = read_body([wav(fmt(), DATA)], None, stream)
    assert payload == AUDIO


@unhurried
@given(
    st.lists(st.binary(max_size=200)),
    st.sampled_from([None, NATIVE, Pcm(Encoding.S24LE, channels=2), *Container]),
)
def test_any_body_is_read_or_refused(chunks: list[bytes], declared: AudioFormat | None) -> None:
    with suppress(UnsupportedAudio):
        read_body(chunks, declared)


def test_many_small_chunks_of_a_hostile_header_cost_little() -> None:
    """Each look goes on where the one before stopped: no work grows with its square."""
    random_bytes = random.Random(3).randbytes(SNIFF_BYTES)
    hostile = wav(*[chunk(b"JUNK", b"")] * 20_000)
    for data in (b"\xff\xf1\x50\x43\xff\xff\xfc" + random_bytes, hostile):
        body = BodyReader()
        for start in range(0, len(data), 3):
            body.receive_bytes(data[start : start + 3])
