"""What bytes are, by magic."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.bodies import id3, speechlike, unhurried
from whisper_byoc.audio.formats import NATIVE, AudioFormat, Container
from whisper_byoc.audio.sniffing import SNIFF_BYTES, sniff
from whisper_byoc.errors import UnsupportedAudio

MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz
MP3_PADDED = b"\xff\xfb\x92\x00" + bytes(414)
MPEG2_FRAME = b"\xff\xf3\x44\xc4" + bytes(92)  # MPEG-2 layer III, 32 kbit/s, 24 kHz
ADTS_FRAME = b"\xff\xf1\x50\x40\x19\x1f\xfc" + bytes(193)  # 200 bytes
TS_PACKET = b"\x47" + bytes(187)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        pytest.param(b"RIFF\x24\x00\x00\x00WAVEfmt ", Container.WAV, id="RIFF and WAVE"),
        pytest.param(b"RF64\xff\xff\xff\xffWAVEds64", Container.WAV, id="RF64 and WAVE"),
        pytest.param(b"RIFF\x24\x00\x00\x00WEBPVP8 ", NATIVE, id="RIFF alone is not enough"),
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
