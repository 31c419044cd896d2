"""The real ffmpeg as a pipe: what it may open, and no process left behind."""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.audio.media import CONTAINERS, FORMATS, Make, collect, decode, fed, is_gone, open_decoder
from whisper_byoc.audio.ffmpeg import ffmpeg_command, find_ffmpeg
from whisper_byoc.audio.formats import SAMPLE_RATE, Container, Encoding, Pcm
from whisper_byoc.audio.source import open_source
from whisper_byoc.errors import ConfigurationError, UnsupportedAudio

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("container", CONTAINERS)
async def test_nothing_is_not_audio_to_a_decoder(container: Container) -> None:
    with pytest.raises(UnsupportedAudio, match=r"^audio is empty, expected"):
        async with open_decoder(container) as decoder, fed(decoder, b""):
            await collect(decoder)


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
