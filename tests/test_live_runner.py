"""The service behind a Live Runner's orchestrator, livepeer/node's double: the cases R26 to R40 of
docs/wire.md that concern the doors. Voice activity is real, words are scripted."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak, pcm, serve_app, wav
from tests.doors.test_live import Door
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.jobs.job import JobKey
from whisper_byoc.service import Service
from whisper_byoc.settings import JobSettings, ModelSettings, OrchestratorSettings, Settings
from whisper_byoc.transcript import EndReason
from whisper_sim.live_runner import LiveRunner, open_live_runner
from whisper_sim.runner_entries import Session
from whisper_sim.runner_proxy import Exchange

pytestmark = pytest.mark.anyio
TIMEOUT = 60.0

Samples = NDArray[np.float32]


@dataclass
class Network:
    """A service, directly and as an orchestrator's static runner `r`. Use `open_network`."""

    door: Door
    orchestrator: LiveRunner
    clients: list[Door]

    @property
    def service(self) -> Service:
        return self.door.service

    def client(self) -> tuple[Door, Session]:
        """The doors as they are below a new session's URL."""
        session = self.orchestrator.reserve("r")
        url = f"{self.orchestrator.url}/apps/r/session/{session.session_id}/app"
        self.clients.append(Door(url, self.door.service, self.door.model))
        return self.clients[-1], session

    def running(self, ending: str) -> Exchange:
        """The request through the orchestrator whose path ends so."""
        running = self.orchestrator.records.running
        [found] = [it for it in running if it.path.endswith(ending.encode())]
        return found


@asynccontextmanager
async def open_network(
    model: ScriptedModel | None = None, settings: Settings | None = None, **jobs: Any
) -> AsyncIterator[Network]:
    model = model or ScriptedModel()
    settings = settings or settings_of(**jobs)
    async with (
        asyncio.timeout(TIMEOUT),
        serve_app(scripted_engine(model), settings) as (url, service),
        open_live_runner(sweeps=False) as orchestrator,
        Door(url, service, model) as door,
    ):
        orchestrator.add_static("r", url, "app", capacity=1000)
        network = Network(door, orchestrator, [])
        try:
            yield network
        finally:
            model.gate.set()
            for client in network.clients:
                await client.__aexit__()


def settings_of(**jobs: Any) -> Settings:
    return Settings(model=ModelSettings(directory=MODELS), jobs=JobSettings(**jobs))


@pytest.fixture(scope="module")
def sentence(speak: Speak) -> Samples:
    """About 3 s of speech, 16 kHz."""
    return speak("The train to the harbour leaves at nine.")


def form_of(samples: Samples) -> aiohttp.FormData:
    data = aiohttp.FormData()
    file = io.BytesIO(wav(pcm(samples)))
    data.add_field("file", file, filename="speech.wav", content_type="audio/wav")
    return data


async def held_body(audio: bytes, held: asyncio.Event) -> AsyncIterator[bytes]:
    """Audio whose end does not come before `held` is set."""
    yield audio
    await held.wait()


async def test_case_r28_one_job_id_in_two_sessions_and_in_none_is_three_jobs(
    sentence: Samples,
) -> None:
    audios = [pcm(sentence[:24_000]), pcm(sentence), pcm(np.concatenate([sentence, sentence]))]
    async with open_network() as network:
        doors = [network.client()[0], network.client()[0], network.door]
        together = asyncio.Barrier(len(doors))

        async def body(audio: bytes) -> AsyncIterator[bytes]:
            yield audio[:16_000]
            await together.wait()
            yield audio[16_000:]

        for number, audio in enumerate(audios):
            await network.door.put(f"alone{number}", audio)
        alone = [(await network.door.ask("GET", f"/live/alone{n}/output"))[1] for n in range(3)]
        assert len(set(alone)) == 3
        puts = [door.put("j", body(audio)) for door, audio in zip(doors, audios, strict=True)]
        answers = await asyncio.gather(*puts)
        assert [status for status, _ in answers] == [200] * 3
        assert [document["bytes"] for _, document in answers] == [len(it) for it in audios]
        texts = [(await door.ask("GET", "/live/j/output"))[1] for door in doors]
        assert texts == alone


async def test_case_r28_a_session_does_not_touch_jobs_of_another(sentence: Samples) -> None:
    held = asyncio.Event()
    async with open_network(output_grace_seconds=0.05) as network, asyncio.TaskGroup() as group:
        (ours, session), (theirs, _) = network.client(), network.client()
        sending = group.create_task(ours.put("j", held_body(pcm(sentence[:16_000]), held)))
        await ours.first_event("j")
        for stranger in (theirs, network.door):
            for method, path, body, status in (
                ("GET", "/live/j", None, 404),
                ("GET", "/live/j/output", None, 404),
                ("GET", "/live/j/output/0", None, 404),
                ("GET", "/live/j/output/next", None, 404),
                ("DELETE", "/live/j/source", None, 400),
                ("DELETE", "/live/j", None, 404),
                ("POST", "/live/j/control", b'{"type": "close"}', 404),
                ("POST", "/live/j/control", b'{"type": "finalize"}', 404),
            ):
                assert (await stranger.ask(method, path, body))[0] == status, (method, path)
            assert (await stranger.ask("GET", "/live/j/source/next"))[1] == "0"
        assert (await ours.ask("GET", "/live/j"))[1]["state"] == "receiving"
        held.set()
        assert (await sending)[0] == 200
        assert (await ours.events("j"))[-1]["reason"] == "eof"
        job = network.service.jobs.get(JobKey("j", session.session_id))
        assert job.document()["job_id"] == "j"


@pytest.mark.parametrize("door_of", ["segments", "socket"])
async def test_case_r28_segments_and_sockets_are_apart_too(sentence: Samples, door_of: str) -> None:
    async with open_network() as network:
        doors = [network.client()[0], network.client()[0], network.door]
        for number, door in enumerate(doors, start=1):
            audio = pcm(np.concatenate([sentence] * number))
            if door_of == "segments":
                assert (await door.ask("POST", "/live/j/source/0", audio))[0] == 200
                assert (await door.ask("DELETE", "/live/j/source"))[0] == 200
            else:
                async with door.socket("?job=j") as websocket:
                    await websocket.send_bytes(audio)
                    await websocket.send_str("eos")
                    assert [it async for it in websocket]
        ends = [(await door.events("j"))[-1] for door in doors]
        seconds = [len(sentence) / 16_000 * number for number in (1, 2, 3)]
        assert [end["audio_seconds"] for end in ends] == pytest.approx(seconds, abs=0.01)


async def test_a_session_id_that_is_none_is_refused_at_every_door() -> None:
    async with open_network() as network:
        door = network.door
        for method, path in (
            ("GET", "/live/j"),
            ("PUT", "/live/j/source"),
            ("POST", "/live/j/source/0"),
            ("POST", "/transcribe"),
            ("POST", "/v1/audio/transcriptions"),
            ("GET", "/health"),
            ("GET", "/metrics"),
            ("POST", "/stream/start"),
        ):
            status, document, _ = await door.ask(method, path, b"x", Livepeer_Session_Id="a.b")
            assert (status, document["error"]["code"]) == (400, "invalid_session"), path
            assert "a.b" not in document["error"]["message"]
        async with door.socket(headers={"Livepeer-Session-Id": "a" * 129}) as websocket:
            message = await websocket.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)
            assert "129 characters" in (message.extra or "")
        assert network.service.runner_sessions.in_use == []


ELSEWHERE = (
    ("GET", "/metrics"),
    ("GET", "/stream/status"),
    ("POST", "/stream/start"),
    ("POST", "/stream/params"),
    ("POST", "/stream/update"),
    ("GET", "/api/stream/status"),
    ("POST", "/api/stream/start"),
    ("GET", "/hardware/info"),
    ("GET", "/hardware/stats"),
    ("POST", "/live-video-to-video"),
    ("POST", "/stream/stop"),
)


async def test_case_r29_through_a_session_there_are_the_doors_of_clients_only() -> None:
    async with open_network() as network:
        client, session = network.client()
        for method, path in ELSEWHERE:
            start = json.dumps({"gateway_request_id": "s"}).encode()
            status, document, _ = await client.ask(method, path, start)
            assert (status, document["error"]["code"]) == (404, "not_found"), path
            assert (await network.door.ask(method, path, start))[0] == 200, path
            doubled = await network.door.ask(
                method, "/" + path, start, Livepeer_Session_Id=session.session_id
            )
            assert doubled[0] == 404, path
        for path in ("/health", "/ready", "/version", "/app-version"):
            assert (await client.ask("GET", path))[0] == 200
        assert (await client.ask("GET", "/live/j"))[1]["error"]["code"] == "unknown_job"
        with pytest.raises(aiohttp.WSServerHandshakeError):
            async with client.socket(path="/stream/start"):
                pass


async def test_case_r27_what_a_session_is_known_by_is_told_to_nobody(
    sentence: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with open_network() as network:
            network.orchestrator.add_static("secret-route", network.door.url, "app", capacity=9)
            session = network.orchestrator.reserve("secret-route")
            sid = session.session_id
            url = f"{network.orchestrator.url}/apps/secret-route/session/{sid}/app"
            told: list[Any] = []
            async with Door(url, network.service, network.door.model) as door:
                told += await door.put("j", pcm(sentence))
                told += await door.put("j", pcm(sentence))  # refused: it has ended
                for path in ("", "/output?format=ndjson", "/output?format=json", "/nowhere"):
                    told += await door.ask("GET", "/live/j" + path)
                told += await door.ask("POST", "/transcribe", pcm(sentence))
                told += await door.ask("GET", "/version")
                async with door.socket("?job=k") as websocket:
                    await websocket.send_bytes(pcm(sentence))
                    await websocket.send_str("eos")
                    told += [it.data async for it in websocket]
            told += await network.door.ask("GET", "/metrics")
            network.orchestrator.release(session)
            await network.service.jobs.end_session(sid)
    logged = [it.getMessage() for it in caplog.records if it.name.startswith("whisper_byoc")]
    assert any("job j of session " in line for line in logged)
    for secret in (sid, session.token, "secret-route", "/runner/"):
        assert secret not in str(told)
        assert secret not in str(logged)


async def test_a_token_is_for_those_who_come_through_no_session(sentence: Samples) -> None:
    """Orchestrators bring none. Worker doors are not below a session at all."""
    settings = Settings(
        model=ModelSettings(directory=MODELS),
        orchestrator=OrchestratorSettings.model_validate({"token": "secret"}),
    )
    paths = ("/transcribe", "/v1/audio/transcriptions", "/audio-to-text")
    async with open_network(settings=settings) as network:
        (client, session), (stranger, _) = network.client(), network.client()
        sessions = network.service.runner_sessions
        sessions.ask_now = lambda: sessions.reconcile("r", [session.session_id])
        for door, headers, expected in (
            (client, {}, 200),
            (stranger, {"Authorization": "Bearer secret"}, 200),
            (network.door, {}, 401),
            (network.door, {"Authorization": "Bearer secret"}, 200),
        ):
            for path in paths:
                answer = await door.ask("POST", path, form_of(sentence), **headers)
                assert answer[0] == expected, (path, headers, answer)
        forged = {"Livepeer_Session_Id": "forged", "Livepeer_Runner_Route": "r"}
        for door, headers in ((stranger, {}), (network.door, forged)):
            answer = await door.ask("POST", paths[0], form_of(sentence), **headers)
            assert answer[0] == 401, answer
        assert (await client.put("j", pcm(sentence)))[0] == 200


async def test_case_r32_a_put_that_is_cut_ends_its_job_flushed(sentence: Samples) -> None:
    held = asyncio.Event()
    async with open_network() as network:
        client, session = network.client()
        sending = asyncio.ensure_future(client.put("j", held_body(pcm(sentence[:16_000]), held)))
        await client.first_event("j")
        network.running("/source").cut()
        job = network.service.jobs.get(JobKey("j", session.session_id))
        await job.until_ended()
        assert job.log.end_reason is EndReason.DISCONNECTED
        events = await client.events("j")
        assert "final" in [event["type"] for event in events]
        held.set()
        assert (await sending)[0] == 502  # the orchestrator's


async def test_case_r32_a_get_that_is_cut_harms_nothing(sentence: Samples) -> None:
    held = asyncio.Event()
    async with open_network() as network, asyncio.TaskGroup() as group:
        client, _ = network.client()
        sending = group.create_task(client.put("j", held_body(pcm(sentence[:16_000]), held)))
        async with client.get("/live/j/output?format=ndjson") as output:
            await output.content.readline()
            network.running("/output").cut()
            with pytest.raises(aiohttp.ClientError):
                await output.read()
        held.set()
        assert (await sending)[0] == 200
        events = await client.events("j")
        assert events[-1]["reason"] == "eof"
        assert "final" in [event["type"] for event in events]


async def test_case_r32_a_websocket_that_is_cut_frees_its_place(sentence: Samples) -> None:
    async with open_network(max_jobs=1) as network:
        client, session = network.client()
        async with client.socket("?job=j") as websocket:
            await websocket.send_bytes(pcm(sentence[:16_000]))
            await client.first_event("j")
            job = network.service.jobs.get(JobKey("j", session.session_id))
            network.running("/transcribe").cut()
            await job.until_ended()  # far below its idle limit
        assert job.log.end_reason is EndReason.DISCONNECTED
        assert "final" in [event["type"] for event in await client.events("j")]
        assert (await client.put("k", pcm(sentence)))[0] == 200


async def test_the_end_of_a_session_ends_its_jobs_and_no_other(sentence: Samples) -> None:
    """What `RunnerSessions` does when the orchestrator says so; readers get the last words."""
    async with open_network() as network, asyncio.TaskGroup() as group:
        (ours, session), (theirs, _) = network.client(), network.client()
        assert (await theirs.put("j", pcm(sentence), "?final=false"))[0] == 200
        assert (await ours.put("j", pcm(sentence[:16_000]), "?final=false"))[0] == 200
        held = asyncio.Event()
        sending = group.create_task(ours.put("k", held_body(pcm(sentence[:16_000]), held)))
        await ours.first_event("k")
        async with (
            ours.get("/live/j/output?format=ndjson") as first,
            ours.get("/live/k/output?format=ndjson") as second,
        ):
            network.service.runner_sessions.release(session.session_id)
            for output in (first, second):
                events = [json.loads(line) for line in (await output.text()).splitlines()]
                assert (events[-1]["type"], events[-1]["reason"]) == ("end", "released")
                assert "final" in [event["type"] for event in events]
        held.set()
        assert await sending == (200, sending.result()[1])
        assert sending.result()[1]["bytes"] == 32_000
        while network.service.jobs.num_running > 1:
            await ours.ask("GET", "/health")
        assert (await ours.ask("GET", "/live/j"))[0] == 404
        assert (await theirs.ask("GET", "/live/j"))[1]["state"] == "receiving"
