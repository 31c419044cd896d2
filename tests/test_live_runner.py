"""The doors behind a Live Runner's orchestrator, livepeer/node's double. Cases are numbered as in
docs/live-runner.md. Voice activity is real, words are scripted."""

import asyncio
import base64
import io
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from tests.conftest import MODELS, Speak, pcm, serve_app, wav
from tests.doors.test_live import Door
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.app import build_app
from whisper_byoc.cli import Server, listen
from whisper_byoc.errors import DecodeError
from whisper_byoc.jobs.job import JobKey
from whisper_byoc.service import Service
from whisper_byoc.settings import (
    JobSettings,
    ModelSettings,
    OrchestratorSettings,
    ServerSettings,
    Settings,
)
from whisper_byoc.transcript import EndReason
from whisper_sim.live_runner import LiveRunner, open_live_runner
from whisper_sim.runner_entries import Session
from whisper_sim.runner_proxy import Exchange, ProxyOptions

pytestmark = pytest.mark.anyio
TIMEOUT = 60.0
HEAD_SECONDS = 20.0
"""How long the orchestrator waits for the head of an answer: 60 s in truth."""

Samples = NDArray[np.float32]


@dataclass
class Network:
    """A service, directly and as an orchestrator's static runner `r`. Use `open_network`."""

    door: Door
    orchestrator: LiveRunner
    clients: list[Door] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)

    @property
    def service(self) -> Service:
        return self.door.service

    def client(self) -> tuple[Door, Session]:
        """The doors as they are below a new session's URL."""
        session = self.orchestrator.reserve("r")
        self.sessions.append(session)
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
        open_live_runner(sweeps=False, proxy=ProxyOptions(HEAD_SECONDS)) as orchestrator,
        Door(url, service, model) as door,
    ):
        orchestrator.add_static("r", url, "app", capacity=1000)
        network = Network(door, orchestrator)
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


# Answers that begin in time. The model does not answer before its gate is opened.

PROMPT = {"answer_seconds": 0.2, "keepalive_seconds": 0.2}
FORMATS = ("text", "ndjson", "sse", "json", "vtt", "srt")


@asynccontextmanager
async def open_held(**jobs: Any) -> AsyncIterator[tuple[Network, Door]]:
    model = ScriptedModel()
    async with open_network(model, **(PROMPT | jobs)) as network:
        model.gate.clear()
        yield network, network.client()[0]


@pytest.mark.parametrize(
    ("path", "content_type", "expected"),
    [
        ("/transcribe", "application/json", '"text": "w0 w1"'),
        ("/transcribe?response_format=text", "text/plain", "w0 w1\n"),
        ("/transcribe?response_format=vtt", "text/vtt", "WEBVTT"),
        ("/v1/audio/transcriptions", "application/json", '{"text": "w0 w1"'),
        ("/audio-to-text", "application/json", '"chunks"'),
    ],
)
async def test_case_r35_a_whole_answer_begins_before_it_is_there(
    sentence: Samples, path: str, content_type: str, expected: str
) -> None:
    async with (
        open_held() as (network, client),
        client.request("POST", path, form_of(sentence)) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, content_type)
        assert answer.headers["X-Model-Id"] == "scripted"
        assert "Content-Length" not in answer.headers
        assert network.service.jobs.num_running == 1
        network.door.model.gate.set()
        assert expected in await answer.text()


async def read_into(body: bytearray, answer: aiohttp.ClientResponse) -> None:
    async for chunk in answer.content.iter_any():
        body += chunk


@pytest.mark.parametrize("direct_caller", [True, False], ids=["directly", "through a session"])
async def test_case_r35_what_fails_after_its_beginning_is_broken_off(
    sentence: Samples, direct_caller: bool
) -> None:
    async with open_held() as (network, client):
        network.door.model.answer = lambda _: DecodeError("no memory")
        door = network.door if direct_caller else client
        async with door.request("POST", "/transcribe", form_of(sentence)) as answer:
            assert answer.status == 200
            network.door.model.gate.set()
            body = bytearray()
            with pytest.raises(aiohttp.ClientPayloadError):
                await read_into(body, answer)
        assert json.loads(body)["error"]["code"] == "decode_failed"


async def test_case_r35_a_put_is_answered_though_the_model_is_far_behind(sentence: Samples) -> None:
    """More audio than the job takes before it has to wait for the model."""
    audio = pcm(np.concatenate([sentence, np.zeros(24_000, np.float32)] * 40))
    async with (
        open_held() as (network, client),
        client.request("PUT", "/live/j/source", io.BytesIO(audio)) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "application/json")
        job = network.service.jobs.get(JobKey("j", network.sessions[0].session_id))
        assert job.num_bytes < len(audio)
        network.door.model.gate.set()
        document = await answer.json()
        assert (document["bytes"], job.num_bytes) == (len(audio), len(audio))
        assert document["audio_seconds"] == pytest.approx(len(audio) / 32_000, abs=0.001)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/live/j", None),
        ("POST", "/live/j/control", b'{"type": "finalize"}'),
        ("POST", "/live/j/control", b'{"type": "close"}'),
        ("PUT", "/live/j/source?final=true", b""),
    ],
    ids=["delete", "finalize", "close", "end"],
)
async def test_case_r35_what_waits_for_the_last_words_begins_before_them(
    sentence: Samples, method: str, path: str, body: bytes | None
) -> None:
    async with open_held() as (network, client):
        assert (await client.put("j", pcm(sentence), "?final=false"))[0] == 200
        async with client.request(method, path, body) as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
            network.door.model.gate.set()
            assert (await answer.json())["job_id"] == "j"
        if "finalize" in str(body):
            assert (await client.ask("DELETE", "/live/j"))[0] == 200
        assert [it["text"] for it in await client.events("j") if it["type"] == "final"]


async def test_case_r35_an_event_that_is_waited_for_begins_without_it(sentence: Samples) -> None:
    async with open_held() as (network, client):
        assert (await client.put("j", pcm(sentence), "?final=false"))[0] == 200
        async with client.get("/live/j/output/0") as answer:
            assert (answer.status, answer.headers["Lp-Trickle-Seq"]) == (200, "0")
            assert answer.content_type == "application/x-ndjson"
            network.door.model.gate.set()
            deleting = asyncio.ensure_future(client.ask("DELETE", "/live/j"))
            assert json.loads(await answer.read())["seq"] == 0
            assert (await deleting)[0] == 200


async def test_case_r35_where_no_event_comes_the_answer_is_empty(sentence: Samples) -> None:
    async with open_held() as (network, client):
        network.door.model.gate.set()
        assert (await client.ask("POST", "/live/j/control", b'{"type": "start"}'))[0] == 200
        async with client.get("/live/j/output/1") as answer:  # the one behind the next
            assert (answer.status, answer.headers["Lp-Trickle-Seq"]) == (200, "1")
            assert (await client.ask("DELETE", "/live/j"))[0] == 200
            assert await answer.read() == b""
        async with client.get("/live/j/output/1") as answer:
            assert answer.headers["Lp-Trickle-Closed"] == "terminated"


async def test_case_r35_a_segment_that_waits_for_its_place_is_answered(sentence: Samples) -> None:
    """Each brings an utterance, until the job takes no more."""
    audio = pcm(np.concatenate([sentence, np.zeros(24_000, np.float32)]))
    async with open_held() as (network, client):
        answers = []
        for seq in range(12):
            answers.append(await client.request("POST", f"/live/j/source/{seq}", audio))
            assert answers[-1].status == 200
            assert answers[-1].headers["Lp-Trickle-Seq"] == str(seq)
        network.door.model.gate.set()
        assert [await answer.read() for answer in answers] == [b""] * 12
        assert (await client.ask("DELETE", "/live/j/source"))[0] == 200
        end = (await client.events("j"))[-1]
        assert end["audio_seconds"] == pytest.approx(12 * len(audio) / 32_000, abs=0.01)


@pytest.mark.parametrize("output", FORMATS)
async def test_case_r35_an_output_has_its_head_at_once(sentence: Samples, output: str) -> None:
    async with open_held() as (network, client):
        assert (await client.put("j", pcm(sentence), "?final=false"))[0] == 200
        async with client.get(f"/live/j/output?format={output}") as answer:
            assert answer.status == 200
            job = network.service.jobs.get(JobKey("j", network.sessions[0].session_id))
            assert job.log.next_seq == 0


@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions"])
async def test_case_r35_streamed_events_have_their_head_before_the_first(
    sentence: Samples, path: str
) -> None:
    async with (
        open_held(answer_seconds=50) as (network, client),
        client.request("POST", path + "?stream=true", form_of(sentence)) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        network.door.model.gate.set()
        assert (await answer.text()).endswith("data: [DONE]\n\n")


async def test_case_r35_a_websocket_begins_whatever_the_model_does(sentence: Samples) -> None:
    async with open_held() as (network, client):
        assert (await client.put("j", pcm(sentence), "?final=false"))[0] == 200
        async with client.socket() as websocket:
            network.door.model.gate.set()
            await websocket.send_str("eos")
            assert [json.loads(it.data)["type"] async for it in websocket] == ["end"]


# Refusals


async def refused_head(url: str, method: str, path: str) -> tuple[int, str]:
    """Status and Retry-After of the answer to a request whose body is announced and never comes:
    more than Go would wait for."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        head = f"{method} {parts.path}{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        writer.write(head.encode())
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
    finally:
        writer.close()
        await writer.wait_closed()
    [retry] = [line.partition(": ")[2] for line in lines if line.startswith("retry-after")] or [""]
    return int(lines[0].split()[1]), retry


WITH_A_BODY = (
    ("PUT", "/live/new/source"),
    ("POST", "/live/new/source"),
    ("POST", "/live/new/source/0"),
    ("POST", "/transcribe"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/audio-to-text"),
)


@pytest.mark.parametrize("draining", [False, True], ids=["full", "draining"])
async def test_case_r37_a_new_job_is_refused_before_its_body(
    sentence: Samples, draining: bool
) -> None:
    async with open_network(max_jobs=1) as network:
        client, _ = network.client()
        assert (await client.put("j", pcm(sentence[:16_000]), "?final=false"))[0] == 200
        if draining:
            await network.service.jobs.drain(TIMEOUT)
        for door in (network.door, client):
            for method, path in WITH_A_BODY:
                assert await refused_head(door.url, method, path) == (503, "5"), path
            async with door.socket() as websocket:
                assert (await websocket.receive()).data == 1013
            start = await door.ask("POST", "/live/new/control", b'{"type": "start"}')
            assert (start[0], start[2]["Retry-After"]) == (503, "5")
        if not draining:  # the job that runs goes on
            assert (await client.put("j", pcm(sentence[16_000:])))[0] == 200


async def test_case_r37_as_many_sessions_as_jobs_are_all_served(sentence: Samples) -> None:
    async with open_network(max_jobs=4) as network:
        clients = [network.client()[0] for _ in range(5)]
        puts = (client.put("j", pcm(sentence), "?final=false") for client in clients[:4])
        assert [status for status, _ in await asyncio.gather(*puts)] == [200] * 4
        assert (await refused_head(clients[4].url, "PUT", "/live/j/source"))[0] == 503
        assert (await clients[0].ask("DELETE", "/live/j"))[0] == 200
        assert (await clients[4].put("j", pcm(sentence)))[0] == 200


async def test_case_r38_a_start_is_refused_without_audio() -> None:
    start = b'{"type": "start"}'
    async with open_network(max_jobs=2) as network:
        (ours, _), (theirs, _) = network.client(), network.client()
        assert (await ours.ask("POST", "/live/j/control", start))[0] == 200
        status, document, _ = await ours.ask("POST", "/live/j/control", start)
        assert (status, document["error"]["code"]) == (409, "job_exists")
        assert (await theirs.ask("POST", "/live/j/control", start))[0] == 200
        status, document, headers = await theirs.ask("POST", "/live/k/control", start)
        assert (status, document["error"]["code"]) == (503, "too_many_jobs")
        assert headers["Retry-After"] == "5"


# Paths, shapes and readiness


@asynccontextmanager
async def below_a_base(service: Service) -> AsyncIterator[str]:
    """The service's doors behind an operator's proxy that takes `/base` away, and their URL."""
    app = build_app(service)

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"].startswith("/base/"), scope["path"]
        path = scope["path"].removeprefix("/base")
        await app({**scope, "path": path, "raw_path": path.encode()}, receive, send)

    config = uvicorn.Config(front, lifespan="off", log_config=None, access_log=False)
    server = Server(config)
    with listen(ServerSettings(host="127.0.0.1", port=0)) as listener:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve([listener]))
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}/base"
            finally:
                server.stop()
                await serving


async def test_case_r33_every_door_of_clients_works_below_any_prefix(sentence: Samples) -> None:
    audio = pcm(sentence)
    doors: tuple[tuple[str, str, Any], ...] = (
        ("POST", "/live/j/control", b'{"type": "start"}'),
        ("PUT", "/live/j/source?final=false", audio),
        ("POST", "/live/j/control", b'{"type": "finalize"}'),
        ("GET", "/live/j", None),
        ("PUT", "/live/j/source", audio),
        *(("GET", f"/live/j/output?format={name}", None) for name in FORMATS),
        ("GET", "/live/j/output/0", None),
        ("GET", "/live/j/output/next", None),
        ("DELETE", "/live/j", None),
        ("POST", "/live/k/source/0", audio),
        ("GET", "/live/k/source/next", None),
        ("DELETE", "/live/k/source", None),
        ("GET", "/live/k/output", None),
        *(("POST", path, audio) for path in ("/", "/transcribe", "/run", "/process")),
        ("POST", "/whisper-byoc", audio),
        ("POST", "/transcribe?stream=true", audio),
        ("POST", "/audio-to-text", form_of),
        ("POST", "/v1/audio/transcriptions", form_of),
        ("GET", "/health", None),
        ("GET", "/ready", None),
        ("GET", "/version", None),
    )
    async with open_network() as network, below_a_base(network.service) as base:
        network.orchestrator.add_static("based", base, "app", capacity=9)
        session = network.orchestrator.reserve("based")
        url = f"{network.orchestrator.url}/apps/based/session/{session.session_id}/app"
        async with Door(url, network.service, network.door.model) as door:
            for method, path, body in doors:
                data = body(sentence) if callable(body) else body
                status, answer, headers = await door.ask(method, path, data)
                assert status == 200, (path, answer)
                assert not {"Location", "Content-Location", "Link"} & set(headers), path
                assert not re.search(r"[a-z]+://|127\.0\.0\.1|\"/|/apps/", str(answer)), path
            async with door.socket() as websocket:
                await websocket.send_bytes(audio)
                await websocket.send_str("eos")
                kinds = [json.loads(it.data)["type"] async for it in websocket]
            assert (kinds[-1], "final" in kinds) == ("end", True)


async def test_case_r34_paths_are_taken_as_directly(sentence: Samples) -> None:
    async with open_network() as network:
        client, session = network.client()
        assert (await client.put("j", pcm(sentence)))[0] == 200
        for method, path in (
            *(("POST", path) for path in ("", "/", "/transcribe/", "/run")),
            *(("GET", path) for path in ("/health", "/health/", "/live/j", "/live/j/")),
            *(("GET", f"/live/{job}") for job in ("a%25b", "a%2525b", "a%2fb", "a%20b", "%c3%a4")),
            ("GET", "/live/j/output/"),
            ("GET", "/live/j/output;x?format=text;y"),
        ):
            body = pcm(sentence) if method == "POST" else None
            status, through, _ = await client.ask(method, path, body)
            sid = session.session_id
            expected, direct, _ = await network.door.ask(
                method, path, body, Livepeer_Session_Id=sid
            )
            assert status == expected, (path, through, direct)
            assert through == direct, path
        for path in ("", "/"):
            status, document, _ = await client.ask("POST", path, pcm(sentence))
            assert (status, document["text"]) == (200, "w0 w1")


@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions"])
async def test_case_r39_a_single_shot_is_one_answer_and_leaves_no_job(
    sentence: Samples, path: str
) -> None:
    async with open_network(max_jobs=1) as network:
        network.orchestrator.add_static(
            "single", network.door.url, "app", mode="single-shot", capacity=9
        )
        url = f"{network.orchestrator.url}/apps/single/app"
        audio = base64.b64encode(wav(pcm(sentence))).decode()
        async with Door(url, network.service, network.door.model) as door:
            for _ in range(2):  # of one place, which is free again
                for body in (json.dumps({"audio": audio}).encode(), form_of(sentence)):
                    kind = {"Content_Type": "application/json"} if isinstance(body, bytes) else {}
                    status, document, _ = await door.ask("POST", path, body, **kind)
                    assert (status, document["text"]) == (200, "w0 w1")
                    assert network.service.jobs.num_running == 0
            body = json.dumps({"audio": audio, "stream": True}).encode()
            status, text, _ = await door.ask("POST", path, body, Content_Type="application/json")
            assert (status, text.endswith("data: [DONE]\n\n")) == (200, True)
            assert (await door.ask("GET", "/health"))[1] == {"status": "IDLE"}


async def test_case_r40_ready_never_flaps_before_the_drain(sentence: Samples) -> None:
    async with open_held(max_jobs=3) as (network, client):
        for job in "abc":
            assert (await client.put(job, pcm(sentence), "?final=false"))[0] == 200
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(client.ask("POST", "/transcribe", pcm(sentence)))
                group.create_task(client.ask("POST", "/live/a/control", b'{"type": "finalize"}'))
            statuses = {(await network.door.ask("GET", "/ready"))[0] for _ in range(1000)}
            assert statuses == {200}
            network.door.model.gate.set()
        await network.service.jobs.drain(TIMEOUT)
        assert (await network.door.ask("GET", "/ready"))[0] == 503
