"""The whole service behind a Live Runner orchestrator: sessions that end, orchestrators that fail,
clients that meet. Cases are numbered as in docs/live-runner.md."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak, pcm, serve_app
from tests.scripted import ScriptedModel, scripted_engine
from tests.test_deploy import app_url
from whisper_byoc.client import LiveClient, reserve
from whisper_byoc.jobs.job import JobKey
from whisper_byoc.service import Service
from whisper_byoc.settings import (
    CapabilitySettings,
    JobSettings,
    ModelSettings,
    OrchestratorSettings,
    RunnerSettings,
    Settings,
)
from whisper_byoc.transcript import Format
from whisper_sim.live_runner import LiveRunner, open_live_runner
from whisper_sim.orchestrator import open_orchestrator, open_stream

pytestmark = pytest.mark.anyio
TIMEOUT = 60.0
APP = "live-transcription/tiny.en"
SCRIPTED = "live-transcription/scripted"

each_dialect = pytest.mark.parametrize("node", [True, False], ids=["node", "go-livepeer"])


def settings_for(it: LiveRunner, port: int, **groups: Any) -> Settings:
    given: dict[str, Any] = {
        "model": ModelSettings(directory=MODELS),
        "orchestrator": OrchestratorSettings.model_validate(
            {"urls": it.url, "secret": it.options.secret}
        ),
        "capability": CapabilitySettings(url=f"http://127.0.0.1:{port}"),
    }
    return Settings(**{**given, **groups})


@asynccontextmanager
async def behind(
    port: int, node: bool = True, model: ScriptedModel | None = None, **groups: Any
) -> AsyncIterator[tuple[LiveRunner, Service]]:
    """A registered service with scripted words, and its orchestrator with short times."""
    times: dict[str, Any] = {
        "heartbeat_interval": "200ms",
        "heartbeat_ttl": "2s",
        "keepalive_seconds": 0.2,
    }
    async with asyncio.timeout(TIMEOUT), open_live_runner(node=node, **times) as it:
        opened = serve_app(
            scripted_engine(model or ScriptedModel()), settings_for(it, port, **groups), port=port
        )
        async with opened as (_, service):
            await it.registered()
            yield it, service


@asynccontextmanager
async def open_job(it: LiveRunner, app: str, audio: bytes) -> AsyncIterator[aiohttp.ClientSession]:
    """A job `j` of a session that has taken a body and waits for more."""
    async with aiohttp.ClientSession() as http:
        url = f"{app}/live/j/source?final=false"
        async with http.put(url, data=audio, headers={"Content-Type": "audio/pcm"}) as answer:
            assert answer.status == 200, await answer.text()
        yield http


@pytest.fixture(scope="module")
def clip(speak: Speak) -> NDArray[np.float32]:
    return speak("The ferry leaves at seven.")


async def test_case_r01_and_r02_with_two_variables_it_registers_when_it_is_ready(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    async with asyncio.timeout(TIMEOUT), open_live_runner() as it:
        monkeypatch.setenv("ORCH_URL", it.url)
        monkeypatch.setenv("ORCH_SECRET", it.options.secret)
        gate = asyncio.Event()

        @asynccontextmanager
        async def slow(settings: ModelSettings) -> AsyncIterator[Any]:
            await gate.wait()
            async with scripted_engine(ScriptedModel())(settings) as engine:
                yield engine

        service = Service(Settings(), slow)
        async with service.serve():
            assert not service.ready
            assert not it.records.requests
            gate.set()
            runner = await it.registered()
            assert service.ready
            await service.leave()
    assert runner.fields.app == SCRIPTED
    assert not [r.path for r in it.records.requests if "capability" in r.path]


@each_dialect
@pytest.mark.parametrize("how", ["o2r", "list", "restart"])
async def test_case_r05_r23_r24_the_jobs_of_a_session_that_is_over_are_flushed_and_gone(
    node: bool, how: str, unused_tcp_port: int, clip: NDArray[np.float32]
) -> None:
    async with behind(unused_tcp_port, node, jobs=JobSettings(max_jobs=1)) as (it, service):
        (runner_id,) = it.registry.runners
        session = it.reserve(runner_id)
        if how == "list":
            it.trickle.delete(it.registry.runners[runner_id].o2r)
        async with open_job(it, app_url(it, session), pcm(clip)):
            job = service.jobs.get(JobKey("j", session.session_id))
            await it.records.until(lambda: service.runner_sessions.knows(session.session_id))
            if how == "restart":
                it.restart()
            else:
                it.release(session)
            await job.until_ended()
            finals = [event for event in job.log.after(-1) if event.type == "final"]
            assert finals, "what was heard is flushed"
            assert job.log.end_reason == "released"
        async with aiohttp.ClientSession() as http:  # its place is free
            direct = f"http://127.0.0.1:{unused_tcp_port}/live/other/control"
            async with http.post(direct, json={"type": "start"}) as answer:
                assert answer.status == 200, await answer.text()


async def test_an_outage_of_half_the_time_to_live_cuts_no_session(
    unused_tcp_port: int, clip: NDArray[np.float32]
) -> None:
    """The orchestrator is not there for beats; what runs through it goes on."""
    async with behind(unused_tcp_port) as (it, _):
        (runner_id,) = it.registry.runners
        app = app_url(it, it.reserve(runner_id))
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{app}/transcribe") as socket:
            await socket.send_bytes(pcm(clip))
            num = len(it.records.beats)
            async with it.refusing():
                await asyncio.sleep(1.0)  # the outage
            await it.records.until(lambda: len(it.records.beats) > num + 1)
            await socket.send_str("eos")
            events = [json.loads(message.data) async for message in socket]
        assert events[-1]["reason"] == "eof"
        assert not it.records.cuts
        assert list(it.registry.runners) == [runner_id]
        assert not it.records.late_beats


@pytest.mark.model
async def test_case_r28_four_sessions_use_one_job_id_and_each_gets_its_own_text(
    speak: Speak, unused_tcp_port: int
) -> None:
    sentences = (
        "The first train leaves before sunrise.",
        "Nobody expected such a quiet afternoon.",
        "Please bring seven green apples.",
        "The library closes at nine tonight.",
    )

    async def hear(it: LiveRunner, sentence: str) -> str:
        texts: list[str] = []

        async def audio() -> AsyncIterator[bytes]:
            data = pcm(speak(sentence))
            for start in range(0, len(data), 3200):
                await asyncio.sleep(0.05)  # the pace: twice that of speech
                yield data[start : start + 3200]

        async with reserve(it.url, APP) as session, LiveClient(session.app_url) as client:
            await client.transcribe(
                "my-job", audio(), texts.append, output=Format.TEXT, content_type="audio/pcm"
            )
        return "".join(texts)

    async with asyncio.timeout(2 * TIMEOUT), open_live_runner() as it:
        settings = settings_for(it, unused_tcp_port)
        async with serve_app(settings=settings, port=unused_tcp_port):
            await it.registered()
            texts = await asyncio.gather(*(hear(it, sentence) for sentence in sentences))
            await it.records.until(lambda: not it.registry.sessions)
    for text, sentence in zip(texts, sentences, strict=True):
        words = [word.strip(".").lower() for word in text.split()]
        expected = [word.strip(".").lower() for word in sentence.split()]
        assert words[-1] == expected[-1], texts
        assert len(set(words) & set(expected)) >= len(set(expected)) - 2, texts


async def test_case_r31_a_silent_session_is_given_back(
    unused_tcp_port: int, clip: NDArray[np.float32]
) -> None:
    runner = RunnerSettings(session_idle_seconds=0.4)
    async with behind(unused_tcp_port, runner=runner) as (it, service):
        (runner_id,) = it.registry.runners
        session = it.reserve(runner_id)
        async with open_job(it, app_url(it, session), pcm(clip)):
            job = service.jobs.get(JobKey("j", session.session_id))
        await job.until_ended()
        await it.records.until(lambda: not it.registry.sessions)
        stops = [r for r in it.records.requests if r.path.endswith("/stop")]
        assert [r.headers["livepeer-session-token"] for r in stops] == [session.token]
        assert not service.jobs.num_running


async def test_an_orchestrator_of_byoc_that_came_back_is_registered_with_at_once(
    unused_tcp_port: int,
) -> None:
    """It has forgotten the capability and every channel; the next registration is a minute off."""
    async with asyncio.timeout(TIMEOUT), open_orchestrator() as it:
        byoc = {"urls": it.url, "secret": "secret", "interfaces": "byoc"}
        settings = Settings(
            model=ModelSettings(directory=MODELS),
            orchestrator=OrchestratorSettings.model_validate(byoc),
            capability=CapabilitySettings(url=f"http://127.0.0.1:{unused_tcp_port}"),
        )
        serving = serve_app(scripted_engine(ScriptedModel()), settings, port=unused_tcp_port)
        async with serving as (_, service):
            await it.registered.wait()
            (capability,) = it.capabilities.values()
            async with open_stream(it, capability):
                (session,) = service.sessions.running
                it.registered.clear()
                it.capabilities.clear()
                for name in list(it.trickle.channels):
                    it.trickle.delete(name)
                await session.stopping.wait()
                await it.registered.wait()
            assert it.capabilities
