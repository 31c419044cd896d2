"""The simulation as an operator runs it: a process, a recording, captions on the terminal."""

import asyncio
import signal
import sys
import wave
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from examples.green_tint import GreenTint
from tests.conftest import REPOSITORY, Speak, pcm, serve_app
from whisper_byoc.client import ClientError, ProcessorClient
from whisper_byoc.settings import CapabilitySettings, OrchestratorSettings, Settings

pytestmark = pytest.mark.anyio
TIMEOUT = 60.0
SCRIPT = REPOSITORY / "scripts" / "run_orchestrator_sim.py"


@asynccontextmanager
async def simulation(*arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """The script, and the URL of its orchestrator; stopped at exit."""
    async with asyncio.timeout(TIMEOUT):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), "--port", "0", *arguments, stdout=PIPE, stderr=PIPE
        )
        assert process.stderr is not None
        try:
            first = (await process.stderr.readline()).decode()
            assert first.startswith("orchestrator on "), first
            yield process, first.split()[-1]
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.communicate()


def registering(orchestrator: str, port: int) -> Settings:
    return Settings(
        orchestrator=OrchestratorSettings.model_validate(
            {
                "urls": orchestrator,
                "secret": "secret",
                "interval": 0.2,
                "interfaces": "byoc",
            }
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


@pytest.mark.model
async def test_a_recording_goes_in_and_captions_come_out(speak: Speak, tmp_path: Path) -> None:
    path = tmp_path / "talk.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(pcm(speak("We are going to need another bottle of water.")))
    async with (
        serve_app() as (url, _),
        simulation("--worker", url, "--egress", str(path)) as (process, _),
    ):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    words = " ".join(line[10:] for line in output.decode().splitlines())
    assert words.split()[-2:] == ["of", "water."]
    assert "state ONLINE" in errors.decode()
    assert "0 skipped, 0 dropped" in errors.decode()


async def test_a_worker_registers_and_answers_the_tutorials_call(unused_tcp_port: int) -> None:
    """The tutorial's steps: one frame in, one out, and 404 with the name that is served."""
    async with simulation() as (_, orchestrator):
        settings = registering(orchestrator, unused_tcp_port)
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
