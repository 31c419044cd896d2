"""Every format through the real ffmpeg, live; and no process left behind."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from whisper_byoc.audio.content_types import format_of_content_type
from whisper_byoc.audio.ffmpeg import (
    BLOCK_BYTES,
    Decoder,
    ffmpeg_command,
    find_ffmpeg,
)
from whisper_byoc.audio.formats import (
    NATIVE,
    SAMPLE_RATE,
    AudioFormat,
    Container,
    Encoding,
    Pcm,
    Samples,
)
from whisper_byoc.audio.pcm import RawStream
from whisper_byoc.audio.sniffing import sniff
from whisper_byoc.audio.source import AudioSource, open_source
from whisper_byoc.errors import ConfigurationError, UnsupportedAudio

pytestmark = pytest.mark.anyio

TEXT = "Nobody knows why the fox did so, but everybody agrees that it was a fine thing to do."


@pytest.fixture(scope="module")
def ffmpeg() -> str:
    return find_ffmpeg()


@pytest.fixture(scope="module")
def speech(speak: Callable[[str], Samples]) -> bytes:
    """Five seconds, NATIVE."""
    return bytes((speak(TEXT) * 32_767).astype("<i2").tobytes())


Make = Callable[..., bytes]


@pytest.fixture(scope="module")
def make(ffmpeg: str, speech: bytes, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The speech in another format, by the arguments that ffmpeg needs for it."""
    folder = tmp_path_factory.mktemp("media")
    made: dict[str, bytes] = {}

    def make_one(arguments: str, suffix: str) -> bytes:
        key = f"{arguments} {suffix}"
        if key not in made:
            path = folder / f"{len(made)}.{suffix}"
            command = [ffmpeg, "-loglevel", "error", "-f", "s16le", "-ar", "16000", "-ac", "1"]
            command += ["-i", "pipe:0", *arguments.split(), str(path)]
            subprocess.run(command, input=speech, check=True)
            made[key] = path.read_bytes()
        return made[key]

    return make_one


VIDEO = "-f lavfi -i testsrc=size=320x240:rate=25:duration=6 -c:v mpeg2video"
AAC_TS = "-c:a aac -b:a 96k -ar 48000 -f mpegts", "ts"

# label: (ffmpeg's arguments, file's suffix, content type, what it is, bytes per chunk)
FORMATS = {
    "FLAC": ("", "flac", "audio/flac", Container.FLAC, 700),
    "MP3": ("-b:a 64k", "mp3", "audio/mpeg", Container.MP3, 100),
    "Ogg Opus": ("-c:a libopus", "ogg", "audio/ogg", Container.OGG, 3),
    "Ogg Vorbis at 44.1 kHz": ("-c:a libvorbis -ar 44100", "ogg", "audio/ogg", Container.OGG, 100),
    "WebM Opus": ("-c:a libopus -live 1", "webm", "audio/webm", Container.WEBM, 3),
    "MPEG-TS with AAC": (*AAC_TS, "video/mp2t", Container.MPEG_TS, 3),
    "MPEG-TS with Opus": ("-c:a libopus -f mpegts", "ts", "video/mp2t", Container.MPEG_TS, 188),
    "MPEG-TS with a picture": (
        f"{VIDEO} -c:a aac -b:a 96k -ar 48000 -f mpegts",
        "ts",
        "video/mp2t",
        Container.MPEG_TS,
        1_000,
    ),
    "fragmented MP4": (
        "-c:a aac -b:a 96k -movflags frag_keyframe+empty_moov -frag_duration 200000",
        "mp4",
        "video/mp4",
        Container.MP4,
        3,
    ),
    "faststart M4A": ("-b:a 96k -movflags +faststart", "m4a", "audio/x-m4a", Container.MP4, 100),
    "AAC": ("-c:a aac -b:a 96k", "aac", "audio/aac", Container.AAC, 100),
    "WAV at 44.1 kHz, stereo": ("-ar 44100 -ac 2", "wav", "audio/wav", Container.WAV, 1_001),
    "WAV of 24 bits": ("-c:a pcm_s24le", "wav", "audio/wav", Container.WAV, 1_001),
    "WAV of floats": ("-c:a pcm_f32le", "wav", "audio/wav", Container.WAV, 1_001),
    "WAV with ADPCM": ("-c:a adpcm_ms", "wav", "audio/wav", Container.WAV, 1_001),
    "WAV of our own format": ("", "wav", "audio/wav", Container.WAV, 101),
    "AIFF": ("", "aiff", "audio/aiff", Container.AIFF, 1_001),
    "CAF": ("", "caf", "audio/x-caf", Container.CAF, 1_001),
    "FLV with AAC": ("-c:a aac -b:a 96k -ar 44100 -f flv", "flv", "video/x-flv", Container.FLV, 99),
}
RAW = {
    "audio/l16;rate=8000": "-f s16le -ar 8000",
    "audio/l16;rate=44100;channels=2": "-f s16le -ar 44100 -ac 2",
    "audio/l16;endianness=big-endian": "-f s16be",
    "audio/pcm;format=f32le;rate=48000": "-f f32le -ar 48000",
    "audio/pcmu": "-f mulaw -ar 8000",
}


@asynccontextmanager
async def open_decoder(
    audio_format: AudioFormat, ffmpeg_path: str | None = None
) -> AsyncIterator[Decoder]:
    decoder = await Decoder.start(audio_format, ffmpeg_path)
    try:
        yield decoder
    finally:
        await decoder.close()


async def feed(source: AudioSource | Decoder, data: bytes, chunk_bytes: int = 4_096) -> None:
    for start in range(0, len(data), chunk_bytes):
        await source.send(data[start : start + chunk_bytes])
    await source.send_eof()


@asynccontextmanager
async def fed(
    source: AudioSource | Decoder, data: bytes, chunk_bytes: int = 4_096
) -> AsyncIterator[None]:
    sender = asyncio.ensure_future(feed(source, data, chunk_bytes))
    try:
        async with asyncio.timeout(30):
            yield
    finally:
        sender.cancel()
        await asyncio.wait({sender})


async def collect(source: AudioSource | Decoder) -> Samples:
    blocks = [block async for block in source]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


async def decode(
    data: bytes, declared: AudioFormat | None = None, chunk_bytes: int = 4_096
) -> Samples:
    async with open_source(declared) as source, fed(source, data, chunk_bytes):
        return await collect(source)


def samples_of(native: bytes) -> Samples:
    return np.frombuffer(native, "<i2").astype(np.float32) / np.float32(32_768)


def likeness(found: Samples, expected: Samples) -> float:
    """The best correlation at any shift of up to 0.1 s, which codecs need."""
    size = 1 << (found.size + expected.size).bit_length()
    product = np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size))
    shifts = np.fft.irfft(product, size)
    most = SAMPLE_RATE // 10
    near = max(shifts[:most].max(), shifts[-most:].max())
    return float(near / np.linalg.norm(found) / np.linalg.norm(expected))


def assert_same_speech(found: Samples, speech: bytes, least: float = 0.9) -> None:
    expected = samples_of(speech)
    assert found.dtype == np.float32
    assert abs(found.size - expected.size) < 0.15 * SAMPLE_RATE
    assert likeness(found, expected) > least


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# Formats


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


# Bodies that cannot be decoded, or only a part of them


@pytest.mark.parametrize("label", ["FLAC", "MP3", "Ogg Opus", "WebM Opus", "MPEG-TS with AAC"])
async def test_a_body_that_is_cut_gives_what_it_holds(
    label: str, make: Make, speech: bytes
) -> None:
    arguments, suffix, *_ = FORMATS[label]
    data = make(arguments, suffix)
    samples = await decode(data[: len(data) // 2 - 77])
    assert 0.3 < samples.size / (len(speech) // 2) < 0.7


CONTAINERS = [pytest.param(container, id=container.label) for container in Container]


@pytest.mark.parametrize("container", CONTAINERS)
async def test_noise_is_not_audio(container: Container) -> None:
    noise = np.random.default_rng(1).bytes(20_000)
    with pytest.raises(UnsupportedAudio):
        await decode(noise, container)


@pytest.mark.parametrize("container", CONTAINERS)
async def test_nothing_is_not_audio_to_a_decoder(container: Container) -> None:
    with pytest.raises(UnsupportedAudio, match=r"^audio is empty, expected"):
        async with open_decoder(container) as decoder, fed(decoder, b""):
            await collect(decoder)


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


@pytest.mark.parametrize("container", CONTAINERS)
async def test_no_playlist_opens_a_file(container: Container, make: Make, tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(make("", "wav"))
    # The 0x80 has it pass for audio here, so that it is ffmpeg that must refuse it.
    playlists = (
        f"\x80#EXTM3U\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n",
        f"\x80ffconcat version 1.0\nfile '{secret}'\n",
    )
    for playlist in playlists:
        for offset in (0, 1):
            async with open_decoder(container) as decoder:
                with pytest.raises(UnsupportedAudio):
                    async with fed(decoder, playlist.encode("latin-1")[offset:] * 20):
                        await collect(decoder)


def test_the_command_forces_the_format_and_allows_only_pipes() -> None:
    for audio_format, demuxer in ((Container.MP4, "mp4"), (Pcm(Encoding.S16BE), "s16be")):
        command = ffmpeg_command(audio_format, "ffmpeg")
        options = command[: command.index("-i")]
        assert options[options.index("-f") + 1] == demuxer
        assert options[options.index("-protocol_whitelist") + 1] == "pipe"
        assert "h264" not in options[options.index("-codec_whitelist") + 1].split(",")
        assert "-nostdin" in command


async def test_a_flood_of_complaints_blocks_nothing(make: Make) -> None:
    arguments, suffix, *_ = FORMATS["MP3"]
    data = make(arguments, suffix)[:20_000] + np.random.default_rng(2).bytes(3_000_000)
    samples = await decode(data, Container.MP3)
    assert samples.size > SAMPLE_RATE


async def test_an_ffmpeg_that_is_killed_is_an_error_after_its_samples(make: Make) -> None:
    arguments, suffix, *_ = FORMATS["WebM Opus"]
    data = make(arguments, suffix)
    async with asyncio.timeout(20), open_decoder(Container.WEBM) as decoder:
        await decoder.send(data[: len(data) // 2])
        await anext(decoder)
        os.kill(decoder.pid, signal.SIGKILL)
        with pytest.raises(UnsupportedAudio, match="killed by signal 9"):
            await collect(decoder)
        await decoder.send(data)  # dropped: no hang, no error
        await decoder.send_eof()


# Processes, tasks, memory


async def test_the_process_is_gone_after_the_end(make: Make) -> None:
    async with open_decoder(Container.FLAC) as decoder, fed(decoder, make("", "flac")):
        await collect(decoder)
    assert is_gone(decoder.pid)


async def test_the_process_is_gone_when_the_body_is_left_early(make: Make) -> None:
    """Its pipes are full then."""
    async with open_decoder(Pcm(rate=8_000)) as decoder, fed(decoder, bytes(2_000_000), 1 << 16):
        await anext(decoder)
        assert not is_gone(decoder.pid)
    assert is_gone(decoder.pid)


async def test_the_process_is_gone_after_an_error() -> None:
    async def fail() -> None:
        async with open_decoder(Container.OGG) as decoder:
            pids.append(decoder.pid)
            raise KeyError("in the body of the context")

    pids: list[int] = []
    with pytest.raises(KeyError):
        await fail()
    assert is_gone(pids[0])


@pytest.mark.parametrize("waits_for", ["samples", "space"])
async def test_the_process_is_gone_when_its_task_is_cancelled(waits_for: str) -> None:
    started = asyncio.Event()
    pids: list[int] = []

    async def run() -> None:
        async with open_decoder(Pcm(rate=8_000)) as decoder:
            pids.append(decoder.pid)
            started.set()
            if waits_for == "samples":
                await collect(decoder)
            else:
                await decoder.send(bytes(10_000_000))

    task = asyncio.ensure_future(run())
    async with asyncio.timeout(20):
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert is_gone(pids[0])


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


# The program


async def test_an_ffmpeg_that_cannot_be_run_is_the_operators_matter(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="ffmpeg cannot be run"):
        async with open_decoder(Container.FLAC, "/no/ffmpeg"):
            pass
    async with open_source(ffmpeg_path="/no/ffmpeg") as source, fed(source, make("", "flac")):
        with pytest.raises(ConfigurationError):
            await collect(source)


def test_the_systems_ffmpeg_goes_before_the_one_in_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "imageio_ffmpeg" in find_ffmpeg()
    program = tmp_path / "ffmpeg"
    program.touch(0o755)
    assert find_ffmpeg() == str(program)
