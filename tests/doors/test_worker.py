"""Door 2 over real sockets, as an orchestrator uses it: the cases 66 to 88 of docs/wire.md,
F.3, and what goes beyond them. Voice activity is real, words are scripted but for one test."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from pydantic import SecretStr
from yarl import URL

from tests.conftest import LOOPBACK, MODELS, serve_app
from tests.conftest import pcm as as_pcm
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.app import build_app
from whisper_byoc.cli import Server
from whisper_byoc.doors.worker import MAX_MESSAGE_BYTES
from whisper_byoc.inference.engine import Engine
from whisper_byoc.jobs.jobs import Jobs
from whisper_byoc.jobs.options import Options, ProcessorOptions
from whisper_byoc.jobs.processing import Host, Processing, Processings
from whisper_byoc.jobs.work import Chunks, Owner
from whisper_byoc.metrics import Metrics
from whisper_byoc.orchestrator.messages import StartRequest
from whisper_byoc.orchestrator.sessions import Sessions
from whisper_byoc.service import OpenEngine, Service
from whisper_byoc.settings import (
    CapabilitySettings,
    Interface,
    JobSettings,
    ModelSettings,
    OrchestratorSettings,
    Settings,
    WorkerSettings,
)
from whisper_byoc.transcript import EndReason
from whisper_sim.orchestrator import (
    Capability,
    Orchestrator,
    Stream,
    open_orchestrator,
    open_stream,
)
from whisper_sim.transport import transport_segments

pytestmark = pytest.mark.anyio
TIMEOUT = 30
ORCHESTRATOR_WAITS: Final = 10.0
"""s for the answer to a stop; then it closes the channels whatever the worker does."""

Samples = NDArray[np.float32]

each_prefix = pytest.mark.parametrize(
    "prefix",
    [
        pytest.param("", id="bare"),
        pytest.param("/api", id="api"),
        pytest.param("/", id="doubled slash"),
        pytest.param("//api", id="doubled slash before api"),
        pytest.param("/api/", id="doubled slash behind api"),
    ],
)
"""Where orchestrators come out when they append their path, as text, to the URL that was given."""


@dataclass(frozen=True)
class Answer:
    status: int
    document: Any
    headers: Mapping[str, str]


class Worker:
    """What an orchestrator calls on one worker."""

    def __init__(self, url: str, service: Service, model: ScriptedModel) -> None:
        self.url, self.service, self.model = url, service, model

    async def ask(
        self, method: str, path: str, body: Any = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request with the body as it is, or JSON of it, and no header that is not given."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession(skip_auto_headers=("Content-Type",)) as http,
            http.request(
                method, URL(self.url + path, encoded=True), data=data, headers=headers
            ) as answer,
        ):
            return Answer(answer.status, await answer.json(), answer.headers)

    async def start(self, stream_id: str | None = "s", prefix: str = "", **fields: Any) -> Answer:
        """Of a stream without channels, unless fields name some."""
        body = {"gateway_request_id": stream_id, "params": None, **fields}
        return await self.ask("POST", f"{prefix}/stream/start", body)

    async def stop(
        self, stream_id: str | None = "s", prefix: str = "", body: bytes = b"stream ended"
    ) -> Answer:
        headers = None if stream_id is None else {"X-Stream-Id": stream_id}
        return await self.ask("POST", f"{prefix}/stream/stop", body, headers)

    async def update(
        self, body: Any, stream_id: str | None = "s", path: str = "/stream/params"
    ) -> Answer:
        headers = None if stream_id is None else {"X-Stream-Id": stream_id}
        return await self.ask("POST", path, body, headers)

    async def status(self, prefix: str = "") -> Any:
        answer = await self.ask("GET", f"{prefix}/stream/status")
        assert answer.status == 200
        return answer.document

    async def health(self) -> str:
        answer = await self.ask("GET", "/health")
        assert answer.status == 200
        assert answer.document.keys() == {"status"}
        word: str = answer.document["status"]
        return word

    async def running(self) -> list[str]:
        """Ids of the streams that run."""
        return [stream["stream_id"] for stream in (await self.status())["streams"]]

    async def until(self, reached: Callable[[Any], bool]) -> Any:
        """The status document, once it is so: asked again and again."""
        while True:
            document = await self.status()
            if reached(document):
                return document

    def capability(self, prefix: str = "") -> Capability:
        return Capability("whisper-byoc", self.url + prefix)


@asynccontextmanager
async def open_worker(
    model: ScriptedModel | None = None, open_engine: OpenEngine | None = None, **groups: Any
) -> AsyncIterator[Worker]:
    """A service with its groups of settings, and a limit on how long a test may take."""
    model = model or ScriptedModel()
    settings = Settings(
        model=ModelSettings(directory=MODELS), **{"orchestrator": LOOPBACK, **groups}
    )
    async with (
        asyncio.timeout(TIMEOUT),
        serve_app(open_engine or scripted_engine(model), settings) as (url, service),
    ):
        try:
            yield Worker(url, service, model)
        finally:
            model.gate.set()


@pytest.fixture
async def orchestrator() -> AsyncIterator[Orchestrator]:
    async with open_orchestrator() as opened:
        yield opened


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    """Behind `orchestrator` where a test has both: it is stopped while that still answers."""
    async with open_worker() as opened:
        yield opened


@pytest.fixture(scope="module")
async def refusing() -> AsyncIterator[Worker]:
    """One worker for many requests that leave nothing behind."""
    engine, model = scripted_engine(ScriptedModel()), ModelSettings(directory=MODELS)
    async with serve_app(engine, Settings(model=model, orchestrator=LOOPBACK)) as (url, service):
        yield Worker(url, service, ScriptedModel())


@asynccontextmanager
async def serve_loading(loaded: asyncio.Event) -> AsyncIterator[Worker]:
    """A worker whose model is loading until `loaded` is set."""
    model = ScriptedModel()

    @asynccontextmanager
    async def open_engine(settings: ModelSettings) -> AsyncIterator[Engine]:
        await loaded.wait()
        async with scripted_engine(model)(settings) as engine:
            yield engine

    service = Service(Settings(model=ModelSettings(directory=MODELS)), open_engine)
    server = Server(uvicorn.Config(build_app(service), log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve([listener]))
            try:
                yield Worker(f"http://127.0.0.1:{listener.getsockname()[1]}", service, model)
            finally:
                loaded.set()
                await service.settled()
                await service.drain()
                server.stop()
                await serving


class HungServer:
    """Takes connections and never answers. `accepted` is set when it has `expected` of them."""

    def __init__(self, expected: int) -> None:
        self.url = ""
        self.accepted = asyncio.Event()
        self.gone = asyncio.Event()
        self._expected = expected
        self._num_accepted = self._num_open = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["HungServer"]:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_accepted += 1
        self._num_open += 1
        self.gone.clear()
        if self._num_accepted >= self._expected:
            self.accepted.set()
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        finally:
            writer.close()
            self._num_open -= 1
            if not self._num_open:
                self.gone.set()


def make_channels(orchestrator: Orchestrator, stream_id: str) -> dict[str, str]:
    """The five of B.3, and what a start calls their URLs."""
    suffixes = {
        "subscribe_url": ("", "video/MP2T"),
        "publish_url": ("-out", "video/MP2T"),
        "control_url": ("-control", "application/json"),
        "events_url": ("-events", "application/json"),
        "data_url": ("-data", "application/jsonl"),
    }
    for suffix, mime in suffixes.values():
        orchestrator.trickle.create(stream_id + suffix, mime)
    return {
        name: orchestrator.channel_url(stream_id + suffix) for name, (suffix, _) in suffixes.items()
    }


def published(orchestrator: Orchestrator, channel_name: str) -> list[Any]:
    """The messages that a channel has taken whole and still keeps, oldest first."""
    channel = orchestrator.trickle.channels[channel_name]
    kept = (channel.find(seq) for seq in range(max(0, channel.next_write - 5), channel.next_write))
    return [json.loads(it.read()) for it in kept if it is not None and it.closed and len(it)]


def speech_stream(
    orchestrator: Orchestrator, worker: Worker, prefix: str = "", stream_id: str = "stream"
) -> Any:
    """A stream whose segments are raw audio: no decoder stands between them and the words."""
    params = {"content_type": "audio/pcm;rate=16000"}
    capability = worker.capability(prefix)
    return open_stream(orchestrator, capability, stream_id, params=params)


def has_received(num_segments: int) -> Callable[[Any], bool]:
    """Of a status document: whether the only stream has come so far."""

    def reached(document: Any) -> bool:
        received: int = document["streams"][0]["input_status"]["segments_received"]
        return received == num_segments

    return reached


def paused(samples: Samples) -> Samples:
    """With a pause at the end, so that it is decoded however fast it came."""
    return np.pad(samples, (0, 24_000))


async def publish_speech(stream: Stream, samples: Samples, num_segments: int = 3) -> None:
    """Fewer segments than a channel keeps, so that none is missed."""
    for part in np.array_split(samples, num_segments):
        await stream.publish(as_pcm(part))


# Start


@each_prefix
async def test_case_066_start_with_all_urls_is_answered_at_once(
    orchestrator: Orchestrator, worker: Worker, prefix: str
) -> None:
    answer = await worker.start("s", prefix, **make_channels(orchestrator, "s"))
    assert answer.status == 200
    assert answer.document["status"] == "success"
    assert answer.document["request_id"] == "s"
    assert answer.document["current_state"] == "OK"
    assert isinstance(answer.document["message"], str)
    assert await worker.running() == ["s"]


async def test_case_066_start_waits_for_no_channel() -> None:
    async with (
        HungServer(1).serve() as hung,
        open_worker(worker=WorkerSettings(stop_seconds=0.1)) as worker,
    ):
        urls = ("subscribe_url", "publish_url", "control_url", "events_url", "data_url")
        answer = await worker.start("s", **{name: f"{hung.url}/{name}" for name in urls})
        assert answer.status == 200
        await hung.accepted.wait()


@each_prefix
async def test_case_067_start_with_the_least_and_params_null(
    orchestrator: Orchestrator, worker: Worker, prefix: str
) -> None:
    channels = make_channels(orchestrator, "s")
    least = {name: channels[name] for name in ("control_url", "events_url")}
    answer = await worker.start("s", prefix, **least, params=None)
    assert (answer.status, answer.document["request_id"]) == (200, "s")


@each_prefix
async def test_case_068_start_with_unknown_keys(worker: Worker, prefix: str) -> None:
    answer = await worker.start("s", prefix, model_id="x", enable_audio_ingress=True, deep=[{}])
    assert answer.status == 200


async def test_a_start_without_params_or_with_empty_urls_is_taken(worker: Worker) -> None:
    body = {"gateway_request_id": "s", "subscribe_url": "", "data_url": None}
    assert (await worker.ask("POST", "/stream/start", body)).status == 200


async def test_the_header_names_a_stream_whose_body_does_not(worker: Worker) -> None:
    answer = await worker.ask("POST", "/stream/start", {"params": {}}, {"X-Stream-Id": "named"})
    assert (answer.status, answer.document["request_id"]) == (200, "named")


@each_prefix
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"not json", "body is 'not json', expected a JSON object", id="no JSON"),
        pytest.param(b"[]", "body is '[]', expected a JSON object", id="an array"),
        pytest.param(b"", "body is empty, expected a JSON object", id="an empty body"),
        pytest.param(b"null", "body is 'null', expected a JSON object", id="null"),
        pytest.param(b"{}", "body is without an id, expected gateway_request_id", id="no id"),
        pytest.param(b"\xff\xfe\x00", "expected a JSON object", id="bytes that are no text"),
    ],
)
async def test_case_069_a_start_that_is_none_is_named(
    refusing: Worker, prefix: str, body: bytes, expected: str
) -> None:
    answer = await refusing.ask("POST", f"{prefix}/stream/start", body)
    assert answer.status == 400
    assert answer.document["status"] == "error"
    assert expected in answer.document["message"]
    assert answer.document["current_state"] == "IDLE"
    assert answer.document["error"] == {
        "code": "bad_message",
        "message": answer.document["message"],
    }
    assert await refusing.health() == "IDLE"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"NaN", id="not a number"),
        pytest.param(b"-Infinity", id="infinity"),
        pytest.param(b"1e999", id="a number that is too large"),
        pytest.param(b'"\\ud800"', id="half of a surrogate pair"),
        pytest.param(b"1" * 5000, id="a number of 5000 digits"),
        pytest.param(b"[" * 50_000 + b"]" * 50_000, id="a deep nest"),
    ],
)
async def test_what_is_no_json_for_a_gateway_is_no_json(worker: Worker, value: bytes) -> None:
    """It would come back in status documents, which a gateway then cannot read."""
    body = b'{"gateway_request_id": "s", "params": {"x": ' + value + b"}}"
    assert (await worker.ask("POST", "/stream/start", body)).status == 400
    assert (await worker.start("s")).status == 200
    update = b'{"x": ' + value + b"}"
    assert (await worker.update(update)).status == 400
    assert await worker.running() == ["s"]


@each_prefix
async def test_case_070_bad_params_are_named_and_a_good_start_follows(
    worker: Worker, prefix: str
) -> None:
    answer = await worker.start("s", prefix, params={"language": 5})
    assert answer.status == 400
    assert answer.document["message"] == "language is '5', expected a valid string"
    assert await worker.health() == "IDLE"
    assert (await worker.start("s", prefix, params={"language": "en"})).status == 200
    assert await worker.running() == ["s"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"params": []}, "params is '[]', expected a JSON object or null"),
        ({"params": "{}"}, "params is '\"{}\"', expected a JSON object or null"),
        ({"params": {"language": "de"}}, "language is 'de', expected"),
        ({"params": {"mode": "fast"}}, "mode is 'fast', expected"),
        ({"params": {"content_type": 5}}, "content_type is '5', expected a text"),
        ({"params": {"content_type": "text/html"}}, "content_type is 'text/html', expected"),
        ({"params": {"content_type": "audio/pcm;rate=x"}}, "content_type is 'audio/pcm;rate=x'"),
        ({"gateway_request_id": 5}, "gateway_request_id is '5', expected a text"),
        ({"gateway_request_id": "x" * 513}, "gateway_request_id is"),
        ({"data_url": 5}, "data_url is '5', expected a URL"),
    ],
)
async def test_a_start_that_cannot_be_served_names_found_and_expected(
    refusing: Worker, fields: Any, expected: str
) -> None:
    answer = await refusing.ask("POST", "/stream/start", {"gateway_request_id": "s"} | fields)
    assert answer.status == 400
    assert expected in answer.document["message"]
    assert await refusing.running() == []
    assert refusing.service.jobs.num_running == 0


@pytest.mark.parametrize("allowed", [("orchestrator.example", "Other.Example"), ()])
@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://orchestrator.example/s",
        "//orchestrator.example/s",
        "orchestrator.example/s",
        "http:///s",
        "http://orchestrator.example:99999/s",
        "http://[::1/s",
        "http://elsewhere.example\\@orchestrator.example/s",
        "http://orchestrator.example /s",
    ],
)
async def test_a_url_that_is_none_of_a_channel_is_refused(
    url: str, allowed: tuple[str, ...]
) -> None:
    async with open_worker(orchestrator=OrchestratorSettings(allowed_hosts=allowed)) as worker:
        for name in ("subscribe_url", "publish_url", "control_url", "events_url", "data_url"):
            answer = await worker.start("s", **{name: url})
            assert (answer.status, answer.document["error"]["code"]) == (400, "forbidden_url")
            assert answer.document["message"].startswith(f"{name} is {url!r}, expected ")
        assert await worker.running() == []


@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere.example/s",
        "http://169.254.169.254/latest",
        "http://orchestrator.example.elsewhere.example/s",
        "http://orchestrator.example@elsewhere.example/s",
        "http://elsewhere.example#@orchestrator.example/s",
    ],
)
async def test_a_host_that_is_not_allowed_is_refused(url: str) -> None:
    allowed = OrchestratorSettings(allowed_hosts=("Orchestrator.Example", "10.0.0.1"))
    async with open_worker(orchestrator=allowed) as worker:
        answer = await worker.start("s", events_url=url)
        assert (answer.status, answer.document["error"]["code"]) == (400, "forbidden_url")
        expected = "expected a host that is allowed: 10.0.0.1, orchestrator.example"
        assert answer.document["message"] == f"events_url is {url!r}, {expected}"


async def test_hosts_that_are_allowed_are_those_of_the_orchestrators(
    orchestrator: Orchestrator,
) -> None:
    registered = OrchestratorSettings(urls=(orchestrator.url,), interfaces=(Interface.BYOC,))
    async with open_worker(orchestrator=registered) as worker:
        answer = await worker.start("s", data_url="http://localhost:1/s")
        assert answer.document["message"].endswith("expected a host that is allowed: 127.0.0.1")
        answer = await worker.start("s", **make_channels(orchestrator, "s"))
        assert answer.status == 200


# How many


@each_prefix
async def test_case_071_a_start_at_capacity_is_told_when_to_come_back(prefix: str) -> None:
    async with open_worker(jobs=JobSettings(max_jobs=1)) as worker:
        await worker.start("first", prefix)
        answer = await worker.start("second", prefix)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert (answer.document["status"], answer.document["current_state"]) == ("error", "OK")
        assert answer.document["error"]["code"] == "too_many_jobs"
        assert await worker.running() == ["first"]
        assert (await worker.stop("first")).status == 200
        assert (await worker.start("second", prefix)).status == 200


async def test_what_orchestrators_were_told_bounds_the_streams() -> None:
    async with open_worker(capability=CapabilitySettings(capacity=2)) as worker:
        answers = [await worker.start(name) for name in ("a", "b", "c")]
        assert [answer.status for answer in answers] == [200, 200, 503]
        answer = await worker.ask("PUT", "/live/direct/source?final=false", b"\0\0" * 800)
        assert answer.status == 200  # the other door has the rest of the jobs


@each_prefix
async def test_case_072_a_second_start_of_a_running_stream_makes_no_second_one(
    worker: Worker, prefix: str
) -> None:
    params = {"prompt": "Hello."}
    assert (await worker.start("s", prefix, params=params)).status == 200
    again = await worker.start("s", prefix, params=params)
    assert (again.status, again.document["request_id"]) == (200, "s")
    other = await worker.start("s", prefix, params={"prompt": "Other."})
    assert (other.status, other.document["error"]["code"]) == (503, "stream_exists")
    assert int(other.headers["Retry-After"]) > 0
    assert await worker.running() == ["s"]
    assert worker.service.jobs.num_running == 1


async def test_a_stream_that_is_stopping_does_not_count_as_started(sentence: Samples) -> None:
    async with (
        open_orchestrator() as orchestrator,
        open_worker() as worker,
        speech_stream(orchestrator, worker) as stream,
        asyncio.TaskGroup() as group,
    ):
        worker.model.gate.clear()
        await publish_speech(stream, paused(sentence))
        await asyncio.to_thread(worker.model.asked.wait, TIMEOUT)
        stopping = group.create_task(worker.stop("stream"))
        await worker.service.sessions.running[0].stopping.wait()
        answer = await worker.start("stream")
        assert (answer.status, answer.document["error"]["code"]) == (503, "stream_exists")
        worker.model.gate.set()
        assert (await stopping).status == 200


@each_prefix
async def test_case_073_of_two_simultaneous_starts_one_is_taken(prefix: str) -> None:
    async with open_worker(capability=CapabilitySettings(capacity=1)) as worker:
        answers = await asyncio.gather(*(worker.start(name, prefix) for name in ("a", "b")))
        assert sorted(answer.status for answer in answers) == [200, 503]
        assert len(await worker.running()) == 1


@each_prefix
async def test_case_074_a_start_while_the_model_loads(prefix: str) -> None:
    loaded = asyncio.Event()
    async with serve_loading(loaded) as worker:
        answer = await worker.start("s", prefix)
        assert answer.status == 503
        assert answer.document["current_state"] == "LOADING"
        assert answer.document["status"] == "error"
        assert int(answer.headers["Retry-After"]) > 0
        loaded.set()
        await worker.service.settled()
        assert (await worker.start("s", prefix)).status == 200


# Stop


@each_prefix
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"stream ended", None, id="a reason without a type"),
        pytest.param(b"stream ended", "text/plain", id="a reason"),
        pytest.param(b"{}", "application/json", id="an object"),
        pytest.param(b"{", "application/json", id="no JSON called JSON"),
        pytest.param(b"\xff\x00", "audio/pcm", id="anything"),
    ],
)
async def test_case_075_stop_takes_any_body(
    worker: Worker, prefix: str, body: bytes, content_type: str | None
) -> None:
    await worker.start("s", prefix)
    headers = {"X-Stream-Id": "s"} | ({"Content-Type": content_type} if content_type else {})
    answer = await worker.ask("POST", f"{prefix}/stream/stop", body, headers)
    assert answer.status == 200
    assert answer.document == {
        "status": "success",
        "message": "stream stopped",
        "request_id": "s",
        "current_state": "IDLE",
    }
    assert await worker.running() == []


@each_prefix
async def test_case_076_stop_twice_and_for_an_unknown_stream(worker: Worker, prefix: str) -> None:
    await worker.start("s", prefix)
    assert (await worker.stop("s", prefix)).status == 200
    for named in ("s", "never", None):
        answer = await worker.stop(named, prefix)
        assert (answer.status, answer.document["status"]) == (200, "success")
        assert "nothing was stopped" in answer.document["message"]


async def test_case_076_two_stops_at_once_are_both_answered(worker: Worker) -> None:
    await worker.start("s")
    answers = await asyncio.gather(worker.stop("s"), worker.stop("s"))
    assert [answer.status for answer in answers] == [200, 200]
    assert worker.service.jobs.num_running == 0


async def test_case_076_stop_is_answered_while_the_model_loads() -> None:
    async with serve_loading(asyncio.Event()) as worker:
        answer = await worker.stop("s")
        assert (answer.status, answer.document["current_state"]) == (200, "LOADING")


@each_prefix
async def test_case_077_stop_is_answered_when_the_last_words_are_published(
    orchestrator: Orchestrator, worker: Worker, sentence: Samples, prefix: str
) -> None:
    async with (
        speech_stream(orchestrator, worker, prefix) as stream,
        asyncio.TaskGroup() as group,
    ):
        worker.model.gate.clear()
        await publish_speech(stream, paused(sentence))
        await worker.until(has_received(3))
        await asyncio.to_thread(worker.model.asked.wait, TIMEOUT)
        stopping = group.create_task(worker.stop("stream", prefix))
        await worker.service.sessions.running[0].stopping.wait()
        assert not any(
            it["type"] in ("final", "end") for it in published(orchestrator, "stream-data")
        )
        worker.model.gate.set()
        assert (await stopping).status == 200
        # Nothing was awaited since the answer: this is what was there before it.
        lines = published(orchestrator, "stream-data")
        assert [line["type"] for line in lines][-3:] == ["final", "endpoint", "end"]
        assert lines[-1]["reason"] == "stopped"
        events = published(orchestrator, "stream-events")
        assert {"event": {"type": "stream_stopped", "reason": "stopped"}} in [
            {"event": event["event"]} for event in events
        ]
        [last_status] = [it["event"] for it in events if it["event"]["type"] == "status"][-1:]
        assert last_status["words"] > 0


@pytest.mark.model
async def test_case_077_the_last_words_of_real_speech_are_published_before_the_answer(
    orchestrator: Orchestrator, sentence: Samples
) -> None:
    settings = Settings(
        model=ModelSettings(directory=MODELS),
        orchestrator=LOOPBACK,
        worker=WorkerSettings(stop_seconds=60),
    )
    segments = await transport_segments(sentence)
    assert len(segments) <= 5, "a channel would forget the first"
    async with (
        asyncio.timeout(4 * TIMEOUT),
        serve_app(settings=settings) as (url, service),
        open_stream(orchestrator, Capability("whisper-byoc", url)) as stream,
    ):
        for segment in segments:
            await stream.publish(segment)
        worker = Worker(url, service, ScriptedModel())
        await worker.until(has_received(len(segments)))
        assert (await worker.stop("stream")).status == 200
        lines = published(orchestrator, "stream-data")
        assert lines[-1]["type"] == "end"
        text = " ".join(line["text"] for line in lines if line["type"] == "final")
        assert re.search(r"leaves at (nine|9)\W*$", text), text


async def test_case_077_stop_ends_in_time_when_no_channel_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = WorkerSettings(stop_seconds=0.5)
    async with HungServer(3).serve() as hung, open_worker(worker=settings) as worker:
        urls = ("subscribe_url", "publish_url", "control_url", "events_url", "data_url")
        await worker.start("s", **{name: f"{hung.url}/{name}" for name in urls})
        await hung.accepted.wait()
        async with asyncio.timeout(ORCHESTRATOR_WAITS):
            assert (await worker.stop("s")).status == 200
        assert "not flushed within 0.5 s" in caplog.text
        await hung.gone.wait()
        assert await worker.health() == "IDLE"
        assert (await worker.start("s")).status == 200


async def test_case_077_stop_ends_in_time_when_speech_finds_no_way_out(sentence: Samples) -> None:
    settings = WorkerSettings(stop_seconds=0.5)
    async with (
        HungServer(3).serve() as hung,
        open_orchestrator() as orchestrator,
        open_worker(worker=settings) as worker,
    ):
        channels = make_channels(orchestrator, "s")
        hanging = dict.fromkeys(("control_url", "events_url", "data_url"), f"{hung.url}/s")
        params = {"content_type": "audio/pcm"}
        await worker.start("s", **(channels | hanging), params=params)
        async with aiohttp.ClientSession() as http:
            await http.post(f"{channels['subscribe_url']}/0", data=as_pcm(paused(sentence)))
        await asyncio.to_thread(worker.model.asked.wait, TIMEOUT)
        await hung.accepted.wait()
        async with asyncio.timeout(ORCHESTRATOR_WAITS):
            assert (await worker.stop("s")).status == 200
        await hung.gone.wait()


async def test_case_077_stop_ends_in_time_when_the_decoder_hangs(sentence: Samples) -> None:
    async with (
        open_orchestrator() as orchestrator,
        open_worker(worker=WorkerSettings(stop_seconds=0.5)) as worker,
        speech_stream(orchestrator, worker) as stream,
    ):
        worker.model.gate.clear()
        await publish_speech(stream, paused(sentence))
        await asyncio.to_thread(worker.model.asked.wait, TIMEOUT)
        async with asyncio.timeout(ORCHESTRATOR_WAITS):
            assert (await worker.stop("stream")).status == 200
        assert worker.service.jobs.num_running == 0
        assert (await worker.start("stream")).status == 200
        worker.model.gate.set()


async def test_a_stop_does_not_wait_for_the_next_heartbeat(orchestrator: Orchestrator) -> None:
    """Without data there is nothing to flush: all is over while the stop is still being told."""
    settings = WorkerSettings(heartbeat_seconds=25, stop_seconds=60)
    async with open_worker(worker=settings) as worker:
        channels = make_channels(orchestrator, "s")
        await worker.start("s", events_url=channels["events_url"])
        async with asyncio.timeout(ORCHESTRATOR_WAITS):
            assert (await worker.stop("s")).status == 200
        last = [it["event"]["type"] for it in published(orchestrator, "s-events")][-3:]
        assert sorted(last) == ["heartbeat", "status", "stream_stopped"]


def test_case_077_a_stop_has_time_to_be_answered() -> None:
    assert WorkerSettings().stop_seconds <= 8.75 < 9 < ORCHESTRATOR_WAITS


@each_prefix
async def test_case_078_stop_of_one_stream_leaves_another(worker: Worker, prefix: str) -> None:
    for name in ("a", "b"):
        await worker.start(name, prefix)
    answer = await worker.stop("a", prefix)
    assert (answer.status, answer.document["request_id"]) == (200, "a")
    assert await worker.running() == ["b"]
    assert (await worker.stop("c", prefix)).status == 200
    assert await worker.running() == ["b"]


@pytest.mark.parametrize("named", [None, ""], ids=["no header", "an empty header"])
async def test_a_stop_that_names_no_stream_means_the_only_one(
    worker: Worker, named: str | None
) -> None:
    await worker.start("a")
    await worker.start("b")
    assert (await worker.stop(named)).status == 200
    assert await worker.running() == ["a", "b"]
    await worker.stop("a")
    answer = await worker.stop(named)
    assert (answer.status, answer.document["request_id"]) == (200, "b")
    assert await worker.running() == []


async def test_the_same_stream_again_begins_anew(
    orchestrator: Orchestrator, worker: Worker, sentence: Samples
) -> None:
    """As after a swap and back."""
    for _ in range(2):
        async with speech_stream(orchestrator, worker) as stream:
            await publish_speech(stream, sentence)
            document = await worker.until(has_received(3))
            [running] = document["streams"]
            await stream.stop()
            assert stream.stopped_with is not None
            assert stream.stopped_with[0] == 200
            assert stream.text == ("w0 w1" if len(sentence) < 48_000 else "w0 w1 w2")
            assert [line["type"] for line in stream.lines].count("end") == 1
    answer = await worker.ask("GET", f"/live/{running['job_id']}")
    assert answer.document["audio_seconds"] == pytest.approx(len(sentence) / 16_000, abs=0.01)


# Params


@each_prefix
async def test_case_079_params_of_a_running_stream(worker: Worker, prefix: str) -> None:
    path = f"{prefix}/stream/params"
    answer = await worker.update({"language": "en"}, "s", path)
    assert (answer.status, answer.document["error"]["code"]) == (404, "unknown_stream")
    await worker.start("s", prefix)
    answer = await worker.update({"prompt": "Hello.", "keyterms": ["Livepeer"]}, "s", path)
    assert (answer.status, answer.document["status"]) == (200, "success")
    assert answer.document["request_id"] == "s"
    answer = await worker.update({"language": 5}, "s", path)
    assert answer.status == 400
    assert answer.document["message"] == "language is '5', expected a valid string"
    [stream] = (await worker.status())["streams"]
    assert stream["inference_status"]["last_params"]["prompt"] == "Hello."
    assert "language" not in stream["inference_status"]["last_params"]


async def test_case_079_the_only_stream_is_meant_whatever_the_id(worker: Worker) -> None:
    await worker.start("a")
    for named in (None, "", "wrong", "a"):
        assert (await worker.update({"prompt": "Hello."}, named)).document["request_id"] == "a"
    await worker.start("b")
    assert (await worker.update({"prompt": "b"}, "b")).document["request_id"] == "b"
    wrong = await worker.update({"prompt": "x"}, "wrong")
    assert wrong.status == 404
    assert wrong.document["message"] == (
        "no stream 'wrong' is running, expected one that was started"
    )
    for named in (None, ""):
        none = await worker.update({"prompt": "x"}, named)
        assert none.status == 404
        assert none.document["message"] == (
            "no stream is named and 2 are running, expected X-Stream-Id"
        )


async def test_case_079_params_reach_the_next_decode(
    orchestrator: Orchestrator, worker: Worker, sentence: Samples
) -> None:
    async with speech_stream(orchestrator, worker) as stream:
        status, _ = await stream.update(b'{"keyterms": ["Livepeer"]}')
        assert status == 200
        await publish_speech(stream, sentence)
        await stream.stop()
    assert worker.model.requests[-1].prompt == "Livepeer."


@pytest.mark.parametrize("body", [b"", b"[]", b"x", b"5"])
async def test_params_that_are_none_are_named(worker: Worker, body: bytes) -> None:
    await worker.start("s")
    answer = await worker.update(body)
    assert (answer.status, answer.document["error"]["code"]) == (400, "bad_message")
    assert await worker.running() == ["s"]


@each_prefix
async def test_case_080_params_of_other_pipelines_are_left_alone(
    worker: Worker, prefix: str
) -> None:
    params = {"width": 640, "anything": {"deep": []}}
    assert (await worker.start("s", prefix, params=params)).status == 200
    assert (
        await worker.update(params | {"height": -1}, "s", f"{prefix}/stream/params")
    ).status == 200
    assert await worker.running() == ["s"]


@each_prefix
async def test_case_081_update_is_an_alias_of_params(worker: Worker, prefix: str) -> None:
    await worker.start("s", prefix)
    path = f"{prefix}/stream/update"
    assert (await worker.update({"prompt": "Hello."}, "s", path)).status == 200
    assert (await worker.update({"prompt": 5}, "s", path)).status == 400
    [stream] = (await worker.status())["streams"]
    assert stream["inference_status"]["last_params"] == {"prompt": "Hello."}


# The token


PATHS = {"start": "POST", "stop": "POST", "params": "POST", "update": "POST", "status": "GET"}


@each_prefix
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer secre",
        "Bearer secrett",
        "Basic secret",
        "secret",
    ],
)
async def test_case_082_a_wrong_token_is_refused(
    name: str, prefix: str, authorization: str | None, guarded: Worker
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    body = {"gateway_request_id": "s"}
    answer = await guarded.ask(PATHS[name], f"{prefix}/stream/{name}", body, headers)
    assert (answer.status, answer.document["status"]) == (401, "error")
    assert answer.document["error"]["code"] == "unauthorized"
    assert guarded.service.sessions.running == []


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[Worker]:
    """One worker for many refusals."""
    async with serve_app(
        scripted_engine(ScriptedModel()),
        Settings(
            model=ModelSettings(directory=MODELS),
            orchestrator=OrchestratorSettings(token=SecretStr("secret")),
        ),
    ) as (url, service):
        yield Worker(url, service, ScriptedModel())


@each_prefix
@pytest.mark.parametrize("authorization", ["Bearer secret", "bearer secret", "Bearer  secret "])
async def test_case_082_the_right_token_is_taken(
    guarded: Worker, prefix: str, authorization: str
) -> None:
    headers = {"Authorization": authorization, "X-Stream-Id": "s"}
    for name, method in PATHS.items():
        if name != "stop":
            body = {"gateway_request_id": "s"} if name == "start" else {}
            answer = await guarded.ask(method, f"{prefix}/stream/{name}", body, headers)
            assert answer.status == 200, name
    answer = await guarded.ask("POST", f"{prefix}/stream/stop", b"", headers)
    assert answer.document["message"] == "stream stopped"


async def test_case_082_without_a_token_any_header_is_taken(worker: Worker) -> None:
    for authorization in ("", "Bearer", "Bearer x", "Basic eA==", "\u00e4"):
        headers = {"Authorization": authorization}
        assert (await worker.ask("GET", "/stream/status", b"", headers)).status == 200


# What can be asked


@each_prefix
async def test_case_083_status_idle_and_running(
    orchestrator: Orchestrator, worker: Worker, prefix: str
) -> None:
    idle = await worker.status(prefix)
    assert idle["client_active"] is idle["client_running"] is False
    assert (idle["active_streams"], idle["current_params"], idle["streams"]) == (0, None, [])
    assert (idle["state"], idle["pipeline_ready"]) == ("IDLE", True)
    channels = make_channels(orchestrator, "s")
    await worker.start("s", prefix, **channels)
    running = await worker.status(prefix)
    assert running["client_active"] is running["client_running"] is True
    assert (running["active_streams"], running["state"]) == (1, "OK")
    assert running["current_params"] == {
        "gateway_request_id": "s",
        "subscribe_url": channels["subscribe_url"],
        "publish_url": channels["publish_url"],
    }
    [stream] = running["streams"]
    assert (stream["stream_id"], stream["state"], stream["rtf"]) == ("s", "OFFLINE", None)
    assert stream["input_status"]["segments_received"] == 0
    assert stream["audio_seconds"] == 0
    await worker.stop("s", prefix)
    again = await worker.status(prefix)
    assert again["active_streams"] == 0


async def test_case_083_status_is_answered_while_the_model_loads() -> None:
    async with serve_loading(asyncio.Event()) as worker:
        document = await worker.status()
        assert (document["state"], document["pipeline_ready"]) == ("LOADING", False)
        assert document["client_active"] is False


async def test_status_has_the_figures_of_a_real_stream(
    orchestrator: Orchestrator, worker: Worker, sentence: Samples
) -> None:
    async with speech_stream(orchestrator, worker) as stream:
        before = asyncio.get_running_loop().time()
        await publish_speech(stream, sentence)
        seconds = len(sentence) / 16_000
        document = await worker.until(
            lambda it: it["streams"][0]["audio_seconds"] == pytest.approx(seconds, abs=0.04)
        )
        [figures] = document["streams"]
        assert figures["state"] == "ONLINE"
        assert figures["input_status"]["segments_received"] == 3
        assert figures["input_status"]["segments_skipped"] == 0
        assert figures["input_status"]["segments_dropped"] == 0
        assert figures["input_status"]["segments_left_out"] == 0
        heard = figures["input_status"]["last_input_time"] - figures["start_time"]
        assert 0 <= heard <= 1000 * (asyncio.get_running_loop().time() - before + 1)
        await stream.stop()
        last = stream.status
        assert last["words"] == len(stream.text.split()) > 0
        assert last["audio_seconds"] == pytest.approx(seconds, abs=0.001)
        assert last["rtf"] == pytest.approx(last["decode_seconds"] / seconds, abs=0.001)
        assert last["inference_status"]["last_output_time"] >= last["start_time"]
        assert last["inference_status"]["last_error"] is None
        assert last["lag_seconds"] == 0
    assert (await worker.status())["streams"] == []


@each_prefix
async def test_case_084_health_across_a_stream(prefix: str) -> None:
    loaded = asyncio.Event()
    async with serve_loading(loaded) as worker:
        assert await worker.health() == "LOADING"
        loaded.set()
        await worker.service.settled()
        assert await worker.health() == "IDLE"
        await worker.start("s", prefix)
        assert await worker.health() == "OK"
        await worker.stop("s", prefix)
        assert await worker.health() == "IDLE"


async def test_case_084_health_after_a_stream_that_failed() -> None:
    """Its channels refuse connections, as when the orchestrator has crashed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with open_worker(worker=WorkerSettings(retry_seconds=0.2)) as worker:
        urls = ("subscribe_url", "control_url", "events_url", "data_url")
        await worker.start("s", **{name: f"{nobody}/{name}" for name in urls})
        await worker.until(lambda it: not it["streams"])
        assert await worker.health() == "IDLE"
        assert (await worker.start("s")).status == 200
        assert await worker.health() == "OK"


async def test_a_stream_whose_channels_are_gone_ends_by_itself(
    orchestrator: Orchestrator, worker: Worker
) -> None:
    channels = make_channels(orchestrator, "s")
    await worker.start("s", **channels)
    orchestrator.trickle.delete("s-control")
    await worker.until(lambda it: not it["streams"])
    assert await worker.health() == "IDLE"


async def test_case_085_ready_says_when_the_model_is_loaded() -> None:
    loaded = asyncio.Event()
    async with serve_loading(loaded) as worker:
        answer = await worker.ask("GET", "/ready")
        assert (answer.status, answer.document) == (503, {"ready": False, "status": "LOADING"})
        loaded.set()
        await worker.service.settled()
        answer = await worker.ask("GET", "/ready")
        assert (answer.status, answer.document) == (200, {"ready": True, "status": "IDLE"})


@pytest.mark.parametrize("slash", ["/", "//"], ids=["bare", "doubled slash"])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("version", {"pipeline": "speech", "model_id": "scripted"}),
        ("app-version", {"pipeline": "speech", "model_id": "scripted"}),
        ("hardware/info", {"pipeline": "speech", "model_id": "scripted", "gpu_info": {}}),
        ("hardware/stats", {"pipeline": "speech", "model_id": "scripted", "gpu_stats": {}}),
    ],
)
async def test_case_086_version_and_hardware(slash: str, name: str, keys: Any) -> None:
    async with open_worker(capability=CapabilitySettings(pipeline="speech")) as worker:
        answer = await worker.ask("GET", slash + name)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.document.items() >= keys.items()
        assert name not in ("version", "app-version") or answer.document["version"]


@pytest.mark.parametrize("slash", ["/", "//"], ids=["bare", "doubled slash"])
async def test_case_087_live_video_to_video_is_a_start(
    orchestrator: Orchestrator, worker: Worker, slash: str
) -> None:
    body = {
        "gateway_request_id": "s",
        "stream_id": "other",
        "manifest_id": "m",
        "model_id": "whisper",
        "params": {},
        **make_channels(orchestrator, "s"),
    }
    answer = await worker.ask("POST", slash + "live-video-to-video", body)
    assert (answer.status, answer.document["status"]) == (200, "success")
    assert answer.document["request_id"] == "s"
    assert await worker.running() == ["s"]
    assert (await worker.ask("POST", slash + "live-video-to-video", b"")).status == 400


@each_prefix
@pytest.mark.parametrize("name", ["start", "params"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
async def test_case_088_a_body_over_the_limit_is_refused(
    worker: Worker, prefix: str, name: str, chunked: bool
) -> None:
    host, port = urlsplit(worker.url).netloc.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    piece, num_pieces = b" " * 65536, MAX_MESSAGE_BYTES // 65536 + 1
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {num_pieces * 65536}"
    head = f"POST {prefix}/stream/{name} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"
    writer.write(head.encode())
    for _ in range(num_pieces):
        writer.write(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
        await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")
    assert b" 413 " in await reader.readline()
    fields = dict(
        line.decode().lower().strip().split(": ", 1)
        for line in (await reader.readuntil(b"\r\n\r\n")).splitlines()
        if line
    )
    document = json.loads(await reader.readexactly(int(fields["content-length"])))
    assert document["error"]["code"] == "body_too_large"
    assert f"expected at most {MAX_MESSAGE_BYTES}" in document["message"]
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    rest = await reader.read()  # its connection survives, or is closed without a fault
    assert rest == b"" or b" 200 " in rest.splitlines()[0]
    writer.close()
    await writer.wait_closed()
    assert await worker.health() == "IDLE"


# Ids


@pytest.mark.parametrize(
    "stream_id",
    [
        "plain",
        "a b",
        "a/b",
        "../../etc/passwd",
        "..",
        ".",
        "\u00e4\u20ac",
        "x" * 512,
        "%2e%2e",
        "a?b#c",
        "-",
    ],
)
async def test_an_odd_stream_id_has_a_job_id_of_its_own(worker: Worker, stream_id: str) -> None:
    assert (await worker.start(stream_id)).status == 200
    assert (await worker.start(stream_id.replace(" ", "_") + "_")).status in (200, 400)
    stream = (await worker.status())["streams"][0]
    assert stream["stream_id"] == stream_id
    assert re.fullmatch(r"(?!\.+\Z)[A-Za-z0-9._~-]{1,128}", stream["job_id"])
    assert (await worker.ask("GET", f"/live/{stream['job_id']}")).document["state"] == "receiving"
    answer = await worker.stop(stream_id)
    assert (answer.status, answer.document["request_id"]) == (200, stream_id)
    assert stream_id not in await worker.running()


async def test_ids_that_look_alike_are_told_apart(worker: Worker) -> None:
    ids = ["a b", "a_b", "a/b", "x" * 101, "x" * 102]
    assert [(await worker.start(it)).status for it in ids] == [200] * len(ids)
    streams = (await worker.status())["streams"]
    assert len({stream["job_id"] for stream in streams}) == len(ids)


# Faults


class Broken(Processing):
    """A work with a fault of our own in it."""

    def bodies(self, segments: AsyncIterator[Chunks], audio_format: Any) -> AsyncIterator[Chunks]:
        raise RuntimeError("a fault")


class SomeBroken(Processings):
    """Makes jobs that fail where a caller asks for it."""

    def make(self, options: Options, owner: Owner, *, recording: bool = False) -> Processing:
        assert isinstance(options, ProcessorOptions)
        kind = Broken if (options.model_extra or {}).get("broken") else Processing
        return kind(options, owner, self._host, self._max_bytes)


class Echo:
    async def initialize(self) -> None: ...
    async def process(self, data: bytes) -> bytes:
        return data

    async def shutdown(self) -> None: ...


async def test_a_stream_with_a_fault_harms_no_other() -> None:
    settings, metrics = Settings(), Metrics()
    jobs = Jobs(SomeBroken(Host(Echo(), "echo"), max_bytes=1024), settings, metrics)
    sessions = Sessions(jobs, settings, metrics)
    async with asyncio.timeout(TIMEOUT), jobs.serve(), sessions.serve():
        good = sessions.start(StartRequest("good"))
        sessions.start(StartRequest("bad", params={"broken": True}))
        await sessions.stop("bad")
        assert sessions.running == [good]
        await good.stop(EndReason.STOPPED)
        assert sessions.running == []


async def test_a_stream_leaves_no_task_behind(
    orchestrator: Orchestrator, worker: Worker, sentence: Samples
) -> None:
    def tasks() -> set[str]:
        names = {str(getattr(it.get_coro(), "__qualname__", "")) for it in asyncio.all_tasks()}
        ours = ("Session.", "Sessions._run", "Subscriber.", "Publisher.", "Jobs._run", "Job.")
        return {name for name in names if name.startswith(ours)}

    async with speech_stream(orchestrator, worker) as stream:
        await publish_speech(stream, sentence)
        await worker.until(has_received(3))
        assert tasks() >= {"Session._guard", "Sessions._run", "Subscriber._open", "Jobs._run"}
    assert tasks() == set()


URL_FIELDS = ("subscribe_url", "publish_url", "control_url", "events_url", "data_url")
STARTS = ("/stream/start", "/api/stream/start", "/live-video-to-video")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(OrchestratorSettings(), id="by default"),
        pytest.param(OrchestratorSettings(urls=("http://127.0.0.1:1",)), id="of a Live Runner"),
    ],
)
async def test_case_r30_a_start_names_no_host_that_nobody_allowed(
    settings: OrchestratorSettings,
) -> None:
    """An open container must not fetch what strangers name."""
    async with (
        open_worker(orchestrator=settings) as worker,
        HungServer(expected=1).serve() as listener,
    ):
        for host in (listener.url, "http://169.254.169.254", "http://localhost", "http://[::1]"):
            for field in URL_FIELDS:
                for path in STARTS:
                    body = {"gateway_request_id": "s", "params": None, field: f"{host}/latest"}
                    answer = await worker.ask("POST", path, body)
                    found = (answer.status, answer.document["error"]["code"])
                    assert found == (400, "forbidden_url"), (field, path)
                    assert field in answer.document["message"]
        assert not listener.accepted.is_set()
        for number, path in enumerate(STARTS):  # what names no URL is as before
            body = {"gateway_request_id": f"s{number}", "params": None}
            assert (await worker.ask("POST", path, body)).status == 200
        assert len(await worker.running()) == len(STARTS)
        assert not listener.accepted.is_set()
