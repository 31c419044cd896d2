"""The simulation as an operator runs it: a process, a recording, captions on the terminal."""

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from examples.green_tint import GreenTint
from tests.conftest import REPOSITORY, Speak, pcm, serve_app, wav
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.client import ClientError, ProcessorClient
from whisper_byoc.settings import CapabilitySettings, OrchestratorSettings, Settings
from whisper_sim.rehearsal import main

pytestmark = pytest.mark.anyio
TIMEOUT = 180.0
SCRIPT = REPOSITORY / "scripts" / "run_orchestrator_sim.py"


@asynccontextmanager
async def simulation(*arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """The script, and the URL of its orchestrator; stopped at exit."""
    async with asyncio.timeout(TIMEOUT):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), "--port", "0", *arguments, stdout=PIPE, stderr=PIPE
        )
        try:
            first = await said(process, "orchestrator on ")
            yield process, first.split()[-1]
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.communicate()


async def said(process: Process, words: str) -> str:
    """The next line of its standard error that begins so."""
    assert process.stderr is not None
    async for line in process.stderr:
        if line.decode().startswith(words):
            return line.decode().strip()
    raise AssertionError(f"it has ended, expected a line that begins with {words!r}")


def registering(orchestrator: str, port: int, **changes: Any) -> Settings:
    return Settings(
        orchestrator=OrchestratorSettings.model_validate(
            {"urls": orchestrator, "secret": "secret", "interval": 0.2, **changes}
        ),
        capability=CapabilitySettings(url=f"http://127.0.0.1:{port}"),
    )


async def answered(gateway: ProcessorClient, data: bytes) -> bytes | None:
    """None while no worker is there."""
    try:
        return await gateway.process_frame(data)
    except ClientError as error:
        if error.status != 503:
            raise
        return None


@pytest.fixture
def talk(speak: Speak, tmp_path: Path) -> str:
    """A recording of a sentence."""
    path = tmp_path / "talk.wav"
    path.write_bytes(wav(pcm(speak("We are going to need another bottle of water."))))
    return str(path)


def captions(output: bytes) -> list[str]:
    return " ".join(line[10:] for line in output.decode().splitlines()).split()


@pytest.mark.model
@pytest.mark.parametrize("kind", [(), ("--http",)], ids=["websocket", "put and get"])
async def test_a_worker_registers_and_a_recording_is_streamed_through_it(
    talk: str, unused_tcp_port: int, kind: tuple[str, ...]
) -> None:
    async with simulation(*kind, talk) as (process, orchestrator):
        assert "ORCH_SECRET=secret make run" in await said(process, "waiting for a worker")
        settings = registering(orchestrator, unused_tcp_port)
        async with serve_app(settings=settings, port=unused_tcp_port):
            output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert captions(output)[-2:] == ["of", "water."]
    told = errors.decode()
    assert "1 sessions, 0 left open" in told
    assert "0 left open, 0 cut" in told
    assert "ended: eof" in told


async def test_a_worker_that_does_not_register_is_named(talk: str) -> None:
    async with (
        serve_app(scripted_engine(ScriptedModel())) as (url, _),
        simulation("--worker", url + "/", "--json", talk) as (process, _),
    ):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    lines = [json.loads(line) for line in output.splitlines()]
    assert lines[-1]["type"] == "end"
    assert "static; 1 sessions" in errors.decode()


async def test_what_is_cut_is_told_and_fails(talk: str, unused_tcp_port: int) -> None:
    """A worker that leaves in mid-stream."""
    async with simulation("--json", *[talk] * 20) as (process, orchestrator):
        settings = registering(orchestrator, unused_tcp_port)
        engine = scripted_engine(ScriptedModel())
        async with serve_app(engine, settings, port=unused_tcp_port):
            assert process.stdout is not None
            assert await process.stdout.readline()
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert "problem: " in errors.decode()


async def test_runners_are_shown_with_what_calls_them(unused_tcp_port: int) -> None:
    """The tutorial's steps behind a Live Runner: a frame in, a frame out."""
    async with simulation() as (process, orchestrator), aiohttp.ClientSession() as http:
        settings = registering(orchestrator, unused_tcp_port)
        async with serve_app(settings=settings, processor=GreenTint(), port=unused_tcp_port):
            assert "(persistent), at http://127.0.0.1" in await said(process, "registered: ")
            reserve = (await said(process, "  session: ")).split()[-1]
            async with http.post(reserve) as answer:
                session = await answer.json()
            async with http.post(f"{session['app_url']}/process", data=bytes(3)) as answer:
                assert await answer.read() == bytes([0, 80, 0])
            async with http.post(f"{session['control_url']}/stop") as answer:
                assert answer.status == 200
        await said(process, "gone: ")
        body = {"runner_url": orchestrator, "app": "a/b", "mode": "single-shot"}
        headers = {"Authorization": "secret"}
        async with http.post(f"{orchestrator}/runners/heartbeat", json=body, headers=headers) as it:
            runner_id = (await it.json())["runner_id"]
        line = await said(process, "  single shot: ")
        assert line.endswith(f"{orchestrator}/apps/{runner_id}/app/process")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--egress"], "--egress is of the BYOC kind"),
        (["--byoc", "--http"], "--http is of the Live Runner kind"),
    ],
)
def test_options_are_of_one_kind(arguments: list[str], problem: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert problem in result.output


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["--port", str(port)])
    assert result.exit_code == 2
    assert "Invalid value for --port: Address already in use" in result.output
    assert str(port) in result.output


# BYOC


@pytest.mark.model
async def test_a_recording_goes_in_and_captions_come_out(talk: str) -> None:
    async with (
        serve_app() as (url, _),
        simulation("--byoc", "--worker", url, "--egress", talk) as (process, _),
    ):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert captions(output)[-2:] == ["of", "water."]
    assert "state ONLINE" in errors.decode()
    assert "0 skipped, 0 dropped" in errors.decode()


async def test_a_worker_registers_and_answers_the_tutorials_call(unused_tcp_port: int) -> None:
    """The tutorial's steps: one frame in, one out, and 404 with the name that is served."""
    async with simulation("--byoc") as (_, orchestrator):
        settings = registering(orchestrator, unused_tcp_port, interfaces="byoc")
        async with serve_app(settings=settings, processor=GreenTint(), port=unused_tcp_port):
            gateway = ProcessorClient(orchestrator, "/live/video-to-video", model_id="GreenTint")
            while (tinted := await answered(gateway, bytes([10, 100, 200]))) is None:
                pass  # it has not registered yet
            assert tinted == bytes([10, 180, 200])
            other = ProcessorClient(orchestrator, "/live/video-to-video", model_id="other")
            with pytest.raises(ClientError, match="expected one that is served: GreenTint") as it:
                await other.process_frame(b"abc")
            assert it.value.status == 404
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{orchestrator}/live/video-to-video", data=b"abc") as answer,
        ):
            assert answer.status == 503  # it has left
