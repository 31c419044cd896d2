"""What bytes are, by label and by magic; raw audio and WAV in any chunking."""

import random
import struct
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_byoc.audio import (
    MAX_HEADER_BYTES,
    NATIVE,
    SNIFF_BYTES,
    AudioFormat,
    BodyReader,
    Container,
    Encoding,
    Pcm,
    PcmDecoder,
    WavReader,
    format_of_content_type,
    mp4_is_streamable,
    sniff,
)
from whisper_byoc.errors import InvalidOption, ServiceError, UnsupportedAudio

unhurried = settings(deadline=None)  # the machine is shared


LATIN_1 = st.characters(max_codepoint=0xFF)


def speechlike(num_samples: int, seed: int = 0) -> bytes:
    """s16le noise at the level of speech."""
    noise = np.random.default_rng(seed).normal(0, 2_000, num_samples)
    return noise.astype("<i2").tobytes()


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


# Content types


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


@pytest.mark.parametrize("header", ["text/html", "application/json", "image/png", "audio/*", "wav"])
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


# Sniffing

MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz
MP3_PADDED = b"\xff\xfb\x92\x00" + bytes(414)
MPEG2_FRAME = b"\xff\xf3\x44\xc4" + bytes(92)  # MPEG-2 layer III, 32 kbit/s, 24 kHz
ADTS_FRAME = b"\xff\xf1\x50\x40\x19\x1f\xfc" + bytes(193)  # 200 bytes
TS_PACKET = b"\x47" + bytes(187)


def id3(body: bytes) -> bytes:
    size = len(body)
    return b"ID3\x04\x00\x00" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + body


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        pytest.param(b"RIFF\x24\x00\x00\x00WAVEfmt ", Container.WAV, id="RIFF and WAVE"),
        pytest.param(b"RF64\xff\xff\xff\xffWAVEds64", Container.WAV, id="RF64 and WAVE"),
        pytest.param(b"RIFF\x24\x00\x00\x00AVI LIST", NATIVE, id="RIFF alone is not enough"),
        pytest.param(b"fLaC\x00\x00\x00\x22", Container.FLAC, id="FLAC"),
        pytest.param(b"OggS\x00\x02\x00\x00", Container.OGG, id="Ogg"),
        pytest.param(b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", Container.WEBM, id="EBML"),
        pytest.param(b"\x00\x00\x00\x18ftypisom", Container.MP4, id="MP4"),
        pytest.param(b"FORM\x00\x06\x3c\xcaAIFFCOMM", Container.AIFF, id="AIFF"),
        pytest.param(b"caff\x00\x01\x00\x00desc", Container.CAF, id="CAF"),
        pytest.param(b"#!AMR\n\x3c\x48", Container.AMR, id="AMR"),
        pytest.param(b"FLV\x01\x04\x00\x00\x00\x09", Container.FLV, id="FLV"),
        pytest.param(TS_PACKET * 3, Container.MPEG_TS, id="three packets of MPEG-TS"),
        pytest.param(TS_PACKET * 2 + bytes(188), NATIVE, id="two sync bytes are chance"),
        pytest.param(MP3_FRAME * 2, Container.MP3, id="two MP3 frames"),
        pytest.param(MP3_PADDED + MP3_FRAME, Container.MP3, id="a padded MP3 frame"),
        pytest.param(MPEG2_FRAME * 2, Container.MP3, id="two frames of MPEG-2 layer III"),
        pytest.param(MP3_FRAME + bytes(417), NATIVE, id="one MP3 header is chance"),
        pytest.param(MP3_FRAME + MPEG2_FRAME, NATIVE, id="the second MP3 header must agree"),
        pytest.param(ADTS_FRAME * 2, Container.AAC, id="two ADTS frames"),
        pytest.param(ADTS_FRAME + bytes(200), NATIVE, id="one ADTS header is chance"),
        pytest.param(id3(bytes(300)) + MP3_FRAME, Container.MP3, id="ID3 before MP3"),
        pytest.param(id3(bytes(63)) + ADTS_FRAME, Container.AAC, id="ID3 before ADTS, as in HLS"),
        pytest.param(id3(bytes(20)) + b"fLaC\0\0\0\x22", Container.FLAC, id="ID3 before FLAC"),
        pytest.param(id3(bytes(99_999))[:10], Container.MP3, id="a long ID3 tag needs no more"),
        pytest.param(b"ID3\xff\xff" + bytes(8), NATIVE, id="ID3 of an impossible version"),
        pytest.param(bytes(64), NATIVE, id="digital silence"),
        pytest.param(b"\xff\xff" * 500, NATIVE, id="a quiet room at -1"),
        pytest.param(b"\xff\xff\x14\x00" * 64, NATIVE, id="a quiet room that looks like layer I"),
        pytest.param(speechlike(100), NATIVE, id="speech"),
    ],
)
def test_sniff(head: bytes, expected: AudioFormat) -> None:
    assert sniff(head) == expected


@pytest.mark.parametrize(
    "head",
    [
        b'{"model": "tiny.en", "language": "en", "response_format": "verbose_json"}',
        b"WEBVTT\n\n00:00.000 --> 00:04.000\nThese are captions and not what was captioned.\n",
        b"<!DOCTYPE html>\n",
        b"<html lang='de'><title>\xc3\x9cber uns",
        b"\xef\xbb\xbf<?xml version='1.0'?>",
        b"#EXTM3U\n",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR",
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
        b"%PDF-1.7\n",
        b"PK\x03\x04\x14\x00\x00\x00",
    ],
)
def test_what_is_certainly_not_audio_is_refused(head: bytes) -> None:
    with pytest.raises(UnsupportedAudio):
        sniff(head)


def test_short_text_is_refused_when_no_more_comes() -> None:
    text = b'{"error": "no such file"}'
    assert sniff(text) is None
    with pytest.raises(UnsupportedAudio, match="text that begins with"):
        sniff(text, at_end=True)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x01\x00", id="one sample could be the size of an MP4 box"),
        pytest.param(b"RIFF\x00\x00", id="RIFF without the rest"),
        pytest.param(TS_PACKET + b"\x47", id="two sync bytes of MPEG-TS"),
        pytest.param(MP3_FRAME, id="one frame of MP3"),
        pytest.param(ADTS_FRAME + b"\xff\xf1", id="a frame of ADTS and a piece"),
        pytest.param(id3(bytes(300))[:100], id="a piece of ID3"),
    ],
)
def test_a_head_that_is_too_short_waits_and_is_raw_at_the_end(head: bytes) -> None:
    assert sniff(head) is None
    assert sniff(head, at_end=True) == NATIVE


@unhurried
@given(
    st.binary(max_size=600)
    | st.sampled_from(
        [b"\xff\xf1", b"\xff\xfb", b"G", b"ID3", b"RIFF", b"\x00\x00\x00\x18ftyp"]
    ).flatmap(lambda start: st.binary(max_size=600).map(start.__add__))
)
def test_any_bytes_are_told_within_the_bound(head: bytes) -> None:
    with suppress(UnsupportedAudio):
        sniff(head)
        assert sniff(head, at_end=True) is not None
        assert sniff(head.ljust(SNIFF_BYTES, b"\x00")) is not None


def test_no_speech_is_taken_for_a_container() -> None:
    """50,000 beginnings at levels from a silent room to a shout."""
    rng = np.random.default_rng(7)
    for level in (1, 20, 300, 2_000, 8_000):
        noise = rng.normal(0, level, 200_000).clip(-32_768, 32_767).astype("<i2").tobytes()
        for start in range(0, 2 * 10_000, 2):
            assert sniff(noise[start : start + SNIFF_BYTES]) == NATIVE


# Raw audio


def test_samples_are_divided_by_32768() -> None:
    samples = PcmDecoder().receive_bytes(struct.pack("<4h", 0, 1, -32_768, 32_767))
    assert samples.dtype == np.float32
    assert samples.tolist() == [0, 1 / 32_768, -1, 32_767 / 32_768]


def test_an_odd_byte_at_the_end_is_dropped() -> None:
    assert PcmDecoder().receive_bytes(b"\x00\x40\x7f").tolist() == [0.5]


@unhurried
@given(st.binary(max_size=400), st.lists(st.integers(min_value=0)))
def test_any_chunking_of_raw_audio_gives_the_same_samples(data: bytes, cuts: list[int]) -> None:
    decoder = PcmDecoder()
    samples = np.concatenate([decoder.receive_bytes(piece) for piece in pieces(data, cuts)])
    assert np.array_equal(samples, PcmDecoder().receive_bytes(data))
    assert samples.size == len(data) // 2


# WAV

AUDIO = speechlike(160)


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    size = len(body) if size is None else size
    return name + struct.pack("<I", size) + body + b"\x00" * (len(body) % 2)


def fmt(
    tag: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, more: bytes = b""
) -> bytes:
    block = channels * bits // 8
    body = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    return chunk(b"fmt ", body + more)


def extensible(subformat: int, bits: int = 16) -> bytes:
    guid = struct.pack("<H", subformat) + bytes.fromhex("000000001000800000aa00389b71")
    return fmt(0xFFFE, bits=bits, more=struct.pack("<HHI", 22, bits, 4) + guid)


def wav(*chunks: bytes, form: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return form + struct.pack("<I", len(body)) + body


DATA = chunk(b"data", AUDIO)
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


# MP4


def box(name: bytes, size: int = 16) -> bytes:
    return struct.pack(">I4s", size, name) + bytes(size - 8)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        pytest.param(box(b"ftyp") + box(b"moov"), True, id="the index comes first"),
        pytest.param(box(b"ftyp") + box(b"free", 99) + box(b"moov"), True, id="free between"),
        pytest.param(box(b"ftyp"), None, id="not yet known"),
        pytest.param(b"", None, id="nothing yet"),
        pytest.param(box(b"uuid", 99_999), True, id="beyond what is looked at"),
        pytest.param(box(b"free") * 8, True, id="many boxes"),
        pytest.param(struct.pack(">I4sQ", 1, b"free", 24) + bytes(8) + box(b"moov"), True, id="64"),
        pytest.param(struct.pack(">I4sQ", 0, b"free", 0), True, id="a box to the end"),
    ],
)
def test_mp4_is_streamable(head: bytes, expected: bool | None) -> None:
    assert mp4_is_streamable(head) is expected


@pytest.mark.parametrize("media", [b"mdat", b"moof"])
def test_mp4_with_its_index_at_the_end_is_refused_with_the_way_out(media: bytes) -> None:
    with pytest.raises(UnsupportedAudio, match=r"fragmented MP4, or .* \+faststart"):
        mp4_is_streamable(box(b"ftyp") + box(b"wide") + box(media))


# One body


def read_body(
    chunks: Iterable[bytes], declared: AudioFormat | None = None, carry: bytes = b""
) -> tuple[BodyReader, bytes]:
    body = BodyReader(declared, carry)
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
    body, payload = read_body([b"", b""], declared, carry=b"\x01")
    assert (body.payload_format, payload, body.carry) == (None, b"", b"\x01")


def test_a_piece_of_a_sample_goes_to_the_next_body() -> None:
    audio = speechlike(100)
    first, before = read_body([audio[:101]])
    assert first.carry == audio[100:101]
    second, behind = read_body([audio[101:]], NATIVE, carry=first.carry)
    assert before + behind == audio
    assert second.carry == b""


def test_a_piece_of_a_stereo_frame_goes_to_the_next_body() -> None:
    stereo = Pcm(rate=48_000, channels=2)
    body, payload = read_body([b"abc", b"defg"], stereo)
    assert (payload, body.carry) == (b"abcd", b"efg")


def test_a_wav_does_not_begin_with_what_the_body_before_left() -> None:
    _, payload = read_body([wav(fmt(), DATA)], carry=b"\x01")
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
