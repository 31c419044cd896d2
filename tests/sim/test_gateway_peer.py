"""livepeer-gateway against the double: its client with this service behind it, and its runner."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import REPOSITORY, Speak, gateway_python, pcm, serve_app, wav
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.settings import CapabilitySettings, OrchestratorSettings, Settings
from whisper_sim.live_runner import open_live_runner

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        gateway_python() is None, reason="livepeer-gateway needs Python 3.12: run make gateway-peer"
    ),
]
TIMEOUT = 60.0
PEER = REPOSITORY / "tests" / "sim" / "live_gateway_peer.py"


@asynccontextmanager
async def peer(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        gateway_python() or sys.executable, str(PEER), *arguments, stdin=PIPE, stdout=PIPE
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def told(process: Process, what: str) -> Any:
    """The value of the peer's next line, which says `what`."""
    assert process.stdout is not None
    line = json.loads(await process.stdout.readline())
    assert line["what"] == what, line
    return line["value"]


async def test_its_client_discovers_reserves_calls_and_stops(
    speak: Speak, tmp_path: Path, unused_tcp_port: int
) -> None:
    (tmp_path / "talk.wav").write_bytes(wav(pcm(speak("A bottle of water."))))
    async with open_live_runner(heartbeat_interval="200ms") as it:
        settings = Settings(
            orchestrator=OrchestratorSettings.model_validate(
                {"urls": it.url, "secret": "secret", "interfaces": "live-runner"}
            ),
            capability=CapabilitySettings(url=f"http://127.0.0.1:{unused_tcp_port}"),
        )
        engine = scripted_engine(ScriptedModel())
        async with serve_app(engine, settings, port=unused_tcp_port):
            runner = await it.registered()
            app = runner.fields.app
            async with peer("client", it.url, app, str(tmp_path / "talk.wav")) as process:
                session_url = f"{it.url}/apps/{runner.runner_id}/session"
                assert await told(process, "candidates") == [[app, "persistent", session_url]]
                session_id, app_url, control_url = await told(process, "session")
                assert app_url == f"{session_url}/{session_id}/app"
                assert control_url == f"{session_url}/{session_id}"
                assert (await told(process, "json"))["text"].startswith("w0")
                kind, lines = await told(process, "stream")
                assert kind == "text/event-stream"
                assert [line for line in lines if line.strip()][-1] == "data: [DONE]"
                assert "session not found" in await told(process, "after")
                assert await process.wait() == 0
            assert not runner.sessions
    assert not it.records.cuts
    assert [exchange.status for exchange in it.records.finished] == [200, 200]


async def test_its_runner_registers_and_hears_of_sessions() -> None:
    async with open_live_runner(heartbeat_interval="100ms", heartbeat_ttl="30s") as it:
        async with peer("runner", it.url, "secret") as process, aiohttp.ClientSession() as http:
            runner_id = await told(process, "registered")
            runner = await it.registered()
            assert (runner.runner_id, runner.fields.app) == (runner_id, "peer/app")
            async with http.post(f"{it.url}/apps/{runner_id}/session") as answer:
                session = await answer.json()
            assert await told(process, "reserved") == session["session_id"]
            async with http.get(f"{session['app_url']}/hello") as answer:
                assert await answer.json() == {"path": "/hello"}
            async with http.post(f"{session['app_url']}/channel") as answer:
                [channel] = await answer.json()
            async with http.post(f"{channel['url']}/0", data=b"text") as answer:
                assert answer.status == 200
            beats = len(it.records.beats)
            await it.records.until(lambda: len(it.records.beats) >= beats + 2)
            # It cuts the very request that asks.
            async with http.post(f"{session['app_url']}/stop") as answer:
                assert answer.status == 502
            assert await told(process, "released") == session["session_id"]
            async with http.get(f"{channel['url']}/next") as answer:
                assert answer.status == 404
            assert process.stdin is not None
            process.stdin.write(b"\n")
            await it.records.until(lambda: bool(it.records.departures))
            assert await process.wait() == 0
        assert [departure.status for departure in it.records.departures] == [200]
        assert not it.registry.runners
