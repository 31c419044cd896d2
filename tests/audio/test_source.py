"""Every format through the real ffmpeg, live."""

import asyncio

import numpy as np
import pytest

from tests.audio.media import (
    AAC_TS,
    CONTAINERS,
    FORMATS,
    RAW,
    VIDEO,
    Make,
    assert_same_speech,
    collect,
    decode,
    fed,
    feed,
    samples_of,
)
from whisper_byoc.audio.content_types import format_of_content_type
from whisper_byoc.audio.ffmpeg import BLOCK_BYTES
from whisper_byoc.audio.formats import (
    NATIVE,
    SAMPLE_RATE,
    AudioFormat,
    Container,
    Gap,
    Pcm,
    Samples,
)
from whisper_byoc.audio.pcm import RawStream
from whisper_byoc.audio.sniffing import sniff
from whisper_byoc.audio.source import open_source
from whisper_byoc.errors import UnsupportedAudio
from whisper_sim.transport import transport_segments

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("label", FORMATS)
async def test_a_format_gives_the_speech_that_went_in(
    label: str, make: Make, speech: bytes
) -> None:
    arguments, suffix, content_type, expected, chunk_bytes = FORMATS[label]
    data = make(arguments, suffix)
    assert sniff(data) == expected
    assert format_of_content_type(content_type) == expected
    async with open_source() as source, fed(source, data, chunk_bytes):
        samples = await collect(source)
    assert source.format == expected
    assert_same_speech(samples, speech)


@pytest.mark.parametrize("content_type", RAW)
async def test_raw_audio_of_another_kind_is_what_its_label_says(
    content_type: str, make: Make, speech: bytes
) -> None:
    data = make(RAW[content_type], "raw")
    samples = await decode(data, format_of_content_type(content_type), chunk_bytes=1_001)
    assert_same_speech(samples, speech)


@pytest.mark.parametrize("declared", [None, NATIVE])
@pytest.mark.parametrize("chunk_bytes", [1, 641, 1 << 20])
async def test_our_own_format_passes_unchanged(
    speech: bytes, declared: AudioFormat | None, chunk_bytes: int
) -> None:
    native = speech[:40_000]
    samples = await decode(native, declared, chunk_bytes)
    assert np.array_equal(samples, samples_of(native))


async def test_our_own_format_needs_no_ffmpeg(make: Make, speech: bytes) -> None:
    for data in (speech, make("", "wav")):
        async with open_source(ffmpeg_path="/no/ffmpeg") as source, fed(source, data):
            assert np.array_equal(await collect(source), samples_of(speech))


async def test_lossless_audio_passes_ffmpeg_unchanged(make: Make, speech: bytes) -> None:
    assert np.array_equal(await decode(make("", "flac")), samples_of(speech))


async def test_mpeg_ts_segments_follow_one_another(make: Make, speech: bytes) -> None:
    """Each stands alone and begins again at time 0, as after a publisher's restart."""
    samples = await decode(make(*AAC_TS) * 3)
    assert abs(samples.size - 3 * len(speech) // 2) < 0.4 * SAMPLE_RATE


CLOCK = 95_443.7
"""s after which a transport stream's clock, which has 33 bits of 90 kHz, begins anew."""
TONE = np.sin(np.arange(3 * SAMPLE_RATE) * 0.2).astype(np.float32) * np.float32(0.3)


@pytest.mark.parametrize("codec", ["libopus", "aac"])
@pytest.mark.parametrize(
    ("first_time", "then", "missing"),
    [
        pytest.param(100.0, 103.0, 0, id="goes on"),
        pytest.param(100.0, 108.0, 5, id="5 s"),
        pytest.param(100.0, 114.0, 11, id="11 s"),
        pytest.param(100.0, 193.0, 90, id="90 s"),
        pytest.param(0.0, 3_603.0, 3_600, id="an hour"),
        pytest.param(CLOCK - 13, CLOCK - 10 + 90 - CLOCK, 90, id="90 s over a new clock"),
        pytest.param(CLOCK - 3, 0.0, 0, id="a new clock"),
        pytest.param(100.0, 0.0, 0, id="back"),
        pytest.param(100.0, 90.0, 0, id="back by a little"),
        pytest.param(100.0, 103.0 + 7 * 3_600, 0, id="seven hours are a broken clock"),
        pytest.param(100.0, 103.0 + 24 * 3_600, 0, id="a day, too"),
    ],
)
async def test_where_a_transport_streams_clock_leaps_ahead_something_is_missing(
    codec: str, first_time: float, then: float, missing: float
) -> None:
    parts = [
        b"".join(await transport_segments(TONE, codec=codec, first_time=time))
        for time in (first_time, then)
    ]
    pieces: list[Samples | Gap] = []
    async with open_source() as source, fed(source, b"".join(parts)):
        while (piece := await source.next_piece()) is not None:
            pieces.append(piece)
    gaps = [piece.num_samples for piece in pieces if isinstance(piece, Gap)]
    heard = sum(piece.size for piece in pieces if not isinstance(piece, Gap))
    assert heard == pytest.approx(2 * len(TONE), abs=0.15 * SAMPLE_RATE)
    assert len(gaps) == (1 if missing else 0)
    assert sum(gaps) == pytest.approx(missing * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)


async def test_who_wants_samples_only_gets_silence_in_a_gap() -> None:
    first = b"".join(await transport_segments(TONE, codec="aac", video=False))
    second = b"".join(await transport_segments(TONE, codec="aac", video=False, first_time=14.5))
    samples = await decode(first + second)
    assert samples.size == pytest.approx(17.5 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert not samples[round(3.2 * SAMPLE_RATE) : round(14.3 * SAMPLE_RATE)].any()
    assert np.abs(samples[round(14.7 * SAMPLE_RATE) :]).max() > 0.2


async def test_mpeg_ts_may_begin_in_the_middle(make: Make, speech: bytes) -> None:
    data = make(*AAC_TS)[188 * 20 + 77 :]
    samples = await decode(data, Container.MPEG_TS)
    assert abs(samples.size - len(speech) // 2) < 0.6 * SAMPLE_RATE


@pytest.mark.parametrize(
    "label", [label for label in FORMATS if not label.startswith(("faststart", "WAV of our"))]
)
async def test_samples_come_out_while_the_input_still_comes(label: str, make: Make) -> None:
    arguments, suffix, content_type, _, _ = FORMATS[label]
    data = make(arguments, suffix)
    async with (
        asyncio.timeout(20),
        open_source(format_of_content_type(content_type)) as source,
    ):
        await source.send(data[: len(data) // 2])
        samples = await anext(source)
    assert samples.size


@pytest.mark.parametrize("label", ["FLAC", "MP3", "Ogg Opus", "WebM Opus", "MPEG-TS with AAC"])
async def test_a_body_that_is_cut_gives_what_it_holds(
    label: str, make: Make, speech: bytes
) -> None:
    arguments, suffix, *_ = FORMATS[label]
    data = make(arguments, suffix)
    samples = await decode(data[: len(data) // 2 - 77])
    assert 0.3 < samples.size / (len(speech) // 2) < 0.7


@pytest.mark.parametrize("container", CONTAINERS)
async def test_noise_is_not_audio(container: Container) -> None:
    noise = np.random.default_rng(1).bytes(20_000)
    with pytest.raises(UnsupportedAudio):
        await decode(noise, container)


@pytest.mark.parametrize("declared", [None, NATIVE, Container.WAV, Container.MPEG_TS])
async def test_an_empty_body_is_no_samples_and_no_error(declared: AudioFormat | None) -> None:
    """It is a keepalive."""
    assert not (await decode(b"", declared)).size


async def test_a_header_alone_is_not_audio(make: Make) -> None:
    for label, num_bytes in (("FLAC", 60), ("WebM Opus", 300), ("MPEG-TS with AAC", 564)):
        arguments, suffix, *_ = FORMATS[label]
        with pytest.raises(UnsupportedAudio, match="ffmpeg cannot decode"):
            await decode(make(arguments, suffix)[:num_bytes])


async def test_mpeg_ts_without_sound_says_so(make: Make) -> None:
    with pytest.raises(UnsupportedAudio, match="MPEG-TS without an audio stream"):
        await decode(make(f"{VIDEO} -an -map 1:v -f mpegts", "ts"))


async def test_mp4_with_its_index_at_the_end_names_the_way_out(make: Make) -> None:
    with pytest.raises(UnsupportedAudio, match="fragmented MP4"):
        await decode(make("-b:a 96k", "m4a"))


async def test_text_is_refused_before_it_is_complete() -> None:
    async with asyncio.timeout(10), open_source() as source:
        await source.send(b"<!DOCTYPE html><html>")
        with pytest.raises(UnsupportedAudio, match="text that begins with"):
            await anext(source)
        await source.send(b"dropped")
        await source.send_eof()
        with pytest.raises(UnsupportedAudio):
            await anext(source)


@pytest.mark.parametrize("declared", [NATIVE, Pcm(rate=8_000)])
async def test_the_sender_waits_for_the_reader(declared: Pcm) -> None:
    """Ten minutes are sent, and only what buffers hold leaves the sender's hands."""
    block, num_blocks, sent = bytes(BLOCK_BYTES), 600, 0

    async def send() -> None:
        nonlocal sent
        for _ in range(num_blocks):
            await source.send(block)
            sent += 1
        await source.send_eof()

    async with asyncio.timeout(30), open_source(declared) as source:
        sender = asyncio.ensure_future(send())
        first = await anext(source)
        done, _ = await asyncio.wait({sender}, timeout=0.5)
        assert not done
        assert sent < 30
        samples = first.size + (await collect(source)).size
        await sender
    assert samples == num_blocks * BLOCK_BYTES // 2 * SAMPLE_RATE // declared.rate


@pytest.mark.parametrize("declared", [None, NATIVE, Pcm(rate=8_000), Container.FLAC])
async def test_leaving_a_source_wakes_who_sends_and_who_reads(
    declared: AudioFormat | None,
) -> None:
    async with asyncio.timeout(20):
        async with open_source(declared) as full, open_source(declared) as idle:
            sender = asyncio.ensure_future(feed(full, bytes(10_000_000), 1 << 16))
            reader = asyncio.ensure_future(collect(idle))
            if declared != Container.FLAC:
                await anext(full)
        await sender
        assert not (await reader).size


async def test_a_cancelled_reader_has_lost_nothing(make: Make, speech: bytes) -> None:
    for data in (make("", "flac"), speech):
        async with asyncio.timeout(20), open_source() as source:
            reader = asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait({reader}, timeout=0.01)
            assert not done
            reader.cancel()
            async with fed(source, data):
                assert np.array_equal(await collect(source), samples_of(speech))


@pytest.mark.parametrize("declared", [NATIVE, Pcm(rate=8_000)])
async def test_a_cancelled_sender_leaves_a_source_that_closes(declared: Pcm) -> None:
    async with asyncio.timeout(20), open_source(declared) as source:
        sender = asyncio.ensure_future(feed(source, bytes(10_000_000), 1 << 16))
        await anext(source)
        sender.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sender


async def test_what_a_body_leaves_of_a_sample_begins_the_next(speech: bytes) -> None:
    samples, stream = [], RawStream()
    for part in (speech[:10_001], b"", speech[10_001:]):
        async with open_source(NATIVE, stream) as source, fed(source, part):
            samples.append(await collect(source))
    assert np.array_equal(np.concatenate(samples), samples_of(speech))
