"""The script as users run it, against the real service, for every kind of audio."""

import asyncio
import signal
import sys
import wave
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Speak, pcm, serve_app
from tests.orchestrator.scripted_channel import self_signed_context
from whisper_byoc.audio.ffmpeg import find_ffmpeg
from whisper_sim.live_runner import LiveRunner, open_live_runner

pytestmark = [pytest.mark.anyio, pytest.mark.model]
TIMEOUT = 300
APP = "live-transcription/tiny.en"
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


@pytest.fixture
async def orchestrator(url: str) -> AsyncIterator[LiveRunner]:
    """Before the service."""
    async with asyncio.timeout(TIMEOUT), open_live_runner() as it:
        it.add_static("whisper", url, APP)
        yield it


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


@pytest.mark.parametrize("door", [[], ["--no-socket"]], ids=["by default", "by put and get"])
async def test_through_an_orchestrator(
    orchestrator: LiveRunner, clip: Path, door: list[str]
) -> None:
    """In one session for all files, which is stopped."""
    status, output, errors = await script(
        str(clip), str(clip), "--orchestrator", orchestrator.url, *door
    )
    assert (status, output, errors) == (0, (SENTENCE + "\n") * 2, "")
    assert len(orchestrator.records.to("/apps/whisper/session")) == 1
    assert not orchestrator.registry.sessions
    used = {exchange.path for exchange in orchestrator.records.finished}
    assert (used == {b"/transcribe"}) == (not door)


async def test_a_file_that_fails_in_a_session_does_not_stop_the_others(
    orchestrator: LiveRunner, clip: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.wav"
    page.write_text("<!DOCTYPE html>" + "x" * 1000)
    status, output, errors = await script(str(page), str(clip), "--orchestrator", orchestrator.url)
    assert (status, output) == (1, SENTENCE + "\n")
    assert "page.wav: audio is" in errors
    assert "Traceback" not in errors
    assert not orchestrator.registry.sessions


async def test_what_an_orchestrator_has_not_got_is_told(
    orchestrator: LiveRunner, clip: Path
) -> None:
    status, _, errors = await script(
        str(clip), "--orchestrator", orchestrator.url, "--app", "nobody/nothing"
    )
    assert status == 1
    assert "app nobody/nothing (persistent) is not listed, or has no place left" in errors
    assert APP in errors
    status, _, errors = await script(str(clip), "--orchestrator", "http://127.0.0.1:9")
    assert status == 1
    assert "http://127.0.0.1:9" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_session_is_stopped_when_the_script_is(
    orchestrator: LiveRunner, number: signal.Signals
) -> None:
    """While it waits for a microphone that gives nothing more."""
    path = str(REPOSITORY / "scripts" / "stream_wav.py")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, path, "-", "--orchestrator", orchestrator.url),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        # Whoever runs the tests may have it ignored, as nohup has, and a process inherits that.
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),
    )
    assert process.stdin is not None
    process.stdin.write(b"\0" * 64_000)
    records = orchestrator.records
    await records.until(lambda: any(it.uploaded >= 64_000 for it in records.running))
    process.send_signal(number)
    await records.until(lambda: not orchestrator.registry.sessions)
    assert process.stderr is not None
    assert await process.stderr.read() == b""
    assert await process.wait() == -number


async def test_a_self_signed_orchestrator_is_trusted_when_told(
    url: str, clip: Path, tmp_path: Path
) -> None:
    certificate = str(tmp_path / "certificate.pem")
    tls = self_signed_context(tmp_path)
    async with asyncio.timeout(TIMEOUT), open_live_runner(tls=tls) as it:
        it.add_static("whisper", url, APP)
        command = [str(clip), "--orchestrator", it.url]
        status, output, errors = await script(*command)
        assert (status, output) == (1, "")
        assert "certificate is not trusted" in errors
        for trust in (["--ca-file", certificate], ["--insecure"]):
            status, output, errors = await script(*command, *trust)
            assert (status, output, errors) == (0, SENTENCE + "\n", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--url", "http://a", "--orchestrator", "http://b"], "--url and --orchestrator"),
        (["--app", "a/b"], "--app without --orchestrator"),
        (["--insecure", "--ca-file", __file__], "--ca-file and --insecure"),
        (["--ca-file", __file__], "expected certificates as PEM"),
    ],
)
async def test_arguments_that_do_not_go_together(
    clip: Path, arguments: list[str], text: str
) -> None:
    status, output, errors = await script(str(clip), *arguments)
    assert (status, output) == (2, "")
    assert text in errors


async def test_the_example_prints_captions(orchestrator: LiveRunner, clip: Path) -> None:
    example = str(REPOSITORY / "examples" / "network_client.py")
    status, output, errors = await run(sys.executable, example, orchestrator.url, str(clip))
    assert (status, output, errors) == (0, SENTENCE + "\n", "")
    assert not orchestrator.registry.sessions
