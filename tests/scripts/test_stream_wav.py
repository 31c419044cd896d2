"""The script as users run it, against the real service, for every kind of audio."""

import asyncio
import sys
import wave
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Speak, pcm, serve_app
from whisper_byoc.audio.ffmpeg import find_ffmpeg

pytestmark = [pytest.mark.anyio, pytest.mark.model]
TIMEOUT = 300
SENTENCE = "Please keep your ticket until the end of the journey."
KINDS = {
    "wav": ["-f", "wav"],
    "44100-stereo.wav": ["-ar", "44100", "-ac", "2", "-f", "wav"],
    "flac": ["-f", "flac"],
    "mp3": ["-f", "mp3"],
    "ts": ["-c:a", "aac", "-f", "mpegts"],
    "webm": ["-c:a", "libopus", "-f", "webm"],
    "pcm": ["-f", "s16le"],
}


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    async with asyncio.timeout(TIMEOUT), serve_app() as (address, _):
        yield address


@pytest.fixture(scope="module")
def clip(speak: Speak, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(pcm(speak(SENTENCE)))
    return path


async def run(*command: str, standard_input: bytes = b"") -> tuple[int | None, str, str]:
    """Exit status, output and errors of a program."""
    async with asyncio.timeout(TIMEOUT):
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        output, errors = await process.communicate(standard_input)
        return process.returncode, output.decode(), errors.decode()


async def script(*arguments: str, standard_input: bytes = b"") -> tuple[int | None, str, str]:
    path = str(REPOSITORY / "scripts" / "stream_wav.py")
    return await run(sys.executable, path, *arguments, standard_input=standard_input)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_audio_gives_the_text(
    url: str, clip: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"clip.{kind}"
    converter = [find_ffmpeg(), "-v", "error", "-i", str(clip), *KINDS[kind], str(path)]
    assert (await run(*converter))[0] == 0
    status, output, errors = await script(str(path), "--url", url)
    assert (status, output, errors) == (0, SENTENCE + "\n", "")


async def test_standard_input_may_be_raw_pcm(url: str, clip: Path) -> None:
    audio = (await asyncio.to_thread(clip.read_bytes))[44:]
    status, output, _ = await script("-", "--url", url, standard_input=audio)
    assert (status, output) == (0, SENTENCE + "\n")


async def test_real_time_takes_as_long_as_the_speech(url: str, clip: Path) -> None:
    loop = asyncio.get_running_loop()
    seconds = (len(await asyncio.to_thread(clip.read_bytes)) - 44) / 32_000
    began = loop.time()
    status, output, _ = await script(
        str(clip), "--url", url, "--realtime", "--chunk-ms", "50", "--format", "ndjson"
    )
    assert status == 0
    assert '"type":"final"' in output
    assert loop.time() - began > seconds


async def test_a_file_that_fails_does_not_stop_the_others(
    url: str, clip: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.wav"
    page.write_text("<!DOCTYPE html>" + "x" * 1000)
    status, output, errors = await script(str(page), str(clip), "--url", url)
    assert (status, output) == (1, SENTENCE + "\n")
    assert "page.wav" in errors
    assert "HTTP 415" in errors
    assert "Traceback" not in errors


async def test_a_service_that_is_not_there_is_named(clip: Path) -> None:
    status, output, errors = await script(str(clip), "--url", "http://127.0.0.1:9")
    assert (status, output) == (1, "")
    assert "http://127.0.0.1:9" in errors
    assert "Traceback" not in errors


async def test_an_empty_file_is_an_error(url: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.wav"
    empty.touch()
    status, output, errors = await script(str(empty), "--url", url)
    assert (status, output) == (1, "")
    assert "0 bytes" in errors


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that opens unreadable")
@pytest.mark.parametrize("pace", [[], ["--realtime"]], ids=["at once", "in real time"])
async def test_a_file_that_cannot_be_read_is_named(url: str, pace: list[str]) -> None:
    status, output, errors = await script("/proc/self/mem", "--url", url, *pace)
    assert (status, output) == (1, "")
    [line] = errors.splitlines()
    assert line.startswith("stream_wav: /proc/self/mem: ")
    assert "[Errno 5]" in line


async def test_options_of_the_job(url: str, clip: Path) -> None:
    options = ["--option", "words=false", "--option", "keyterms=harbour"]
    status, output, _ = await script(str(clip), "--url", url, "--format", "ndjson", *options)
    assert status == 0
    assert '"type":"final"' in output
    assert '"words"' not in output
    status, _, errors = await script(str(clip), "--url", url, "--option", "mode=fast")
    assert status == 1
    assert "mode is 'fast'" in errors
    status, _, errors = await script(str(clip), "--url", url, "--option", "mode")
    assert status == 2
    assert "expected NAME=VALUE" in errors
