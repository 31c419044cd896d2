"""Door 3 over a real socket, with real voice activity and scripted words."""

import asyncio
import base64
import io
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, direct, pcm, serve_app, wav
from tests.scripted import ScriptedModel, scripted_engine, spoken, whole_seconds
from whisper_byoc.decode import DecodeRequest, Hypothesis
from whisper_byoc.doors.openai import DeltaWriter
from whisper_byoc.errors import DecodeError
from whisper_byoc.jobs.processing import Processor
from whisper_byoc.service import Service
from whisper_byoc.settings import (
    CapabilitySettings,
    JobSettings,
    ModelSettings,
    OrchestratorSettings,
    Settings,
    WorkerSettings,
)
from whisper_byoc.transcript import DONE, MAX_LINE_BYTES, End, EndReason, Failure, Final, Word

pytestmark = pytest.mark.anyio
TIMEOUT = 60
PLAIN = ("/", "/whisper-byoc", "/transcribe", "/run", "/process")
DIALECTS = ("/transcribe", "/audio-to-text", "/v1/audio/transcriptions")
RAW = {"Content-Type": "audio/pcm"}
STREAMED = pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions"])


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The message of an error, whatever shape it has."""
        document = self.document
        return str(
            document["detail"]["msg"] if "detail" in document else document["error"]["message"]
        )

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events, of which the last is `[DONE]` and no other has it."""
        data = [line[6:] for line in self.text.splitlines() if line.startswith("data: ")]
        assert data.pop() == DONE
        assert self.text.count(DONE) == 1
        assert self.text.endswith(f"data: {DONE}\n\n")
        assert all(len(line) < 65536 for line in self.body.splitlines())
        return [json.loads(line) for line in data]


class Client:
    """One caller of one server."""

    def __init__(self, url: str, service: Service, model: ScriptedModel) -> None:
        self.url, self.service, self.model = url, service, model
        self._session = aiohttp.ClientSession()

    async def close(self) -> None:
        await self._session.close()

    async def ask(
        self, method: str, path: str, data: Any = None, *, fields: Any = None, **headers: str
    ) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.request(
            method, self.url + path, data=data, json=fields, headers=named
        ) as answer:
            return Answer(answer.status, await answer.read(), answer.headers)

    async def post(self, path: str, data: Any = None, **more: Any) -> Answer:
        if isinstance(data, bytes) and "Content_Type" not in more:
            more["Content_Type"] = "audio/pcm"
        return await self.ask("POST", path, data, **more)

    def connect(self, head: str, body: bytes = b"") -> socket.socket:
        """A connection with the beginning of a request, for those who vanish."""
        host, port = urlsplit(self.url).netloc.split(":")
        connection = socket.create_connection((host, int(port)))
        connection.sendall(f"{head}\r\nHost: x\r\n\r\n".encode() + body)
        return connection

    async def until_free(self) -> float:
        """Seconds until the only place among the jobs is free; needs no decode."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (await self.post("/", bytes(3200))).status == 503:
            pass
        return loop.time() - began


@asynccontextmanager
async def open_client(
    model: ScriptedModel | None = None, settings: Settings | None = None, **jobs: Any
) -> AsyncIterator[Client]:
    """A server and a client of it, within a limit on time. jobs: settings of them."""
    model = model or ScriptedModel()
    settings = settings or settings_of(**jobs)
    async with (
        asyncio.timeout(TIMEOUT),
        serve_app(scripted_engine(model), settings) as (url, service),
    ):
        client = Client(url, service, model)
        try:
            yield client
        finally:
            model.gate.set()
            await client.close()


def settings_of(
    *,
    worker: WorkerSettings | None = None,
    capability: CapabilitySettings | None = None,
    orchestrator: OrchestratorSettings | None = None,
    **jobs: Any,
) -> Settings:
    return Settings(
        model=ModelSettings(directory=MODELS),
        jobs=JobSettings(**jobs),
        worker=worker or WorkerSettings(),
        capability=capability or CapabilitySettings(),
        orchestrator=orchestrator or OrchestratorSettings(),
    )


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with open_client() as opened:
        yield opened


def silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(round(seconds * 16_000), dtype=np.float32)


def twice(sentence: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two utterances, and so far apart that each has a window of its own."""
    return np.concatenate([sentence, silence(5), sentence])


def form(
    speech: bytes | None,
    field: str = "audio",
    content_type: str | None = "audio/wav",
    **fields: str,
) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        data.add_field(name.replace("__", "[]"), value)
    if speech is not None:
        file = io.BytesIO(speech)  # aiohttp warns of large bytes
        data.add_field(field, file, filename="speech.wav", content_type=content_type)
    return data


def base64_of(audio: bytes) -> str:
    return base64.b64encode(audio).decode()


def words_of(sentence: NDArray[np.float32]) -> str:
    """What `whole_seconds` gives for one utterance of it."""
    return "w0 w1 w2" if len(sentence) >= 48_000 else "w0 w1"


# F.4


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("kind", ["raw", "untyped", "wav", "form", "form with the audio as file"])
async def test_case_089_every_path_takes_audio_and_answers_json(
    client: Client, sentence: NDArray[np.float32], path: str, kind: str
) -> None:
    audio = pcm(sentence)
    match kind:
        case "raw":
            answer = await client.post(path, audio)
        case "untyped":
            answer = await client.post(path, audio, Content_Type="application/octet-stream")
        case "wav":
            answer = await client.post(path, wav(audio), Content_Type="audio/wav")
        case "form":
            answer = await client.post(path, form(wav(audio)))
        case _:
            answer = await client.post(path, form(wav(audio), "file", None))
    assert answer.status == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.document["text"] == words_of(sentence)
    assert answer.document["reason"] == "eof"
    assert answer.document["duration"] == pytest.approx(len(sentence) / 16_000, abs=0.04)
    assert [it["word"] for it in answer.document["segments"][0]["words"]] == (
        words_of(sentence).split()
    )
    assert client.service.jobs.num_running == 0


@pytest.mark.parametrize("name", ["whisper", "openai/whisper-tiny.en", "speech to text", "größer"])
async def test_case_089_the_capability_is_a_path_whatever_its_name(
    sentence: NDArray[np.float32], name: str
) -> None:
    async with open_client(
        settings=settings_of(capability=CapabilitySettings(name=name))
    ) as client:
        answer = await client.post("/" + quote(name), pcm(sentence))
        assert answer.document["text"] == words_of(sentence)
        assert (await client.post("/whisper-byoc", pcm(sentence))).status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/unknown", 404),
        ("POST", "/unknown", 404),
        ("POST", "/transcribe/more", 404),
        ("GET", "/transcribe", 405),
        ("GET", "/", 405),
        ("GET", "/whisper-byoc", 405),
        ("PUT", "/audio-to-text", 405),
    ],
)
async def test_case_089_other_paths_are_answered_as_ever(
    client: Client, method: str, path: str, status: int
) -> None:
    answer = await client.ask(method, path)
    assert answer.status == status
    assert path in answer.problem


@pytest.mark.parametrize(
    ("wanted", "chunks"),
    [
        ("", []),
        ("false", []),
        ("true", ["w0 w1 w2", "w0 w1 w2"]),
        ("sentence", ["w0 w1 w2", "w0 w1 w2"]),
        ("word", ["w0", "w1", "w2"] * 2),
        (None, ["w0 w1 w2", "w0 w1 w2"]),
    ],
)
async def test_case_090_audio_to_text_has_the_pipelines_shape(
    sentence: NDArray[np.float32], wanted: str | None, chunks: list[str]
) -> None:
    fields = {"model_id": "openai/whisper-large-v3", "metadata": '{"duration": 3}'}
    if wanted is not None:
        fields["return_timestamps"] = wanted

    def three(request: DecodeRequest) -> Hypothesis:
        return spoken("w0", "w1", "w2", seconds=len(request.samples) / 16_000)

    async with open_client(ScriptedModel(three)) as client:
        answer = await client.post("/audio-to-text", form(wav(pcm(twice(sentence))), **fields))
    assert answer.status == 200
    assert answer.document["text"] == "w0 w1 w2 w0 w1 w2"
    assert [chunk["text"] for chunk in answer.document["chunks"]] == chunks
    times = [time for chunk in answer.document["chunks"] for time in chunk["timestamp"]]
    assert times == sorted(times)
    assert set(answer.document) == {"text", "chunks"}


async def test_case_090_what_is_wrong_has_the_pipelines_shape(
    sentence: NDArray[np.float32],
) -> None:
    worker = WorkerSettings(max_upload_bytes=1024 * 1024)
    path = "/audio-to-text"
    async with open_client(settings=settings_of(worker=worker)) as client:
        for body in (form(None, model_id="x"), form(b"", "speech")):
            missing = await client.post(path, body)
            assert (missing.status, "file named audio" in missing.problem) == (400, True)
        empty = await client.post(path, b"")
        assert (empty.status, "file named audio" in empty.problem) == (400, True)
        page = await client.post(path, form(b"<!DOCTYPE html>" + b"x" * 600))
        assert (page.status, "text" in page.problem) == (415, True)
        image = await client.post(path, form(b"x" * 600, content_type="image/png"))
        assert (image.status, "image/png" in image.problem) == (415, True)
        large = await client.post(path, form(bytes(1024 * 1024)))
        assert (large.status, "expected at most 1048576" in large.problem) == (413, True)
        wanted = await client.post(path, form(wav(pcm(sentence)), return_timestamps="maybe"))
        assert (wanted.status, "return_timestamps is 'maybe'" in wanted.problem) == (400, True)
        assert client.service.jobs.num_running == 0


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("kind", ["no samples", "silence", "half a sample", "an empty string"])
async def test_case_091_empty_audio_gives_an_empty_text(
    client: Client, path: str, kind: str
) -> None:
    match kind:
        case "no samples":
            answer = await client.post(path, form(b"", content_type="audio/pcm"))
        case "silence":
            answer = await client.post(path, pcm(silence(2)))
        case "half a sample":
            answer = await client.post(path, b"\0")
        case _:
            answer = await client.post(path, fields={"audio": ""})
    assert (answer.status, answer.document["text"]) == (200, "")
    assert client.model.requests == []


async def test_case_091_an_empty_body_is_a_keepalive() -> None:
    async with open_client(max_jobs=1) as client:
        client.service.jobs.open(direct("other"), client.service.jobs.kind.options())
        for path in PLAIN:
            answer = await client.post(path, b"")
            assert (answer.status, answer.document["text"]) == (200, "")
        answer = await client.post("/", b"", Accept="text/event-stream")
        assert [event["type"] for event in answer.events] == ["end"]
        assert (await client.post("/", b"", Accept="text/plain")).text == ""
        assert (await client.post("/?mode=fast", b"")).status == 400


async def test_case_091_a_wav_without_samples_is_no_failure_of_ours(client: Client) -> None:
    assert (await client.post("/", wav(b""), Content_Type="audio/wav")).status in (200, 415)


BAD = [
    pytest.param(b"{", "application/json", 400, "expected a JSON object", id="half a document"),
    pytest.param(b"[]", "application/json", 400, "expected a JSON object", id="a list"),
    pytest.param(b"[" * 99_999, "application/json", 400, "JSON object", id="a deep list"),
    pytest.param(b"\xff\xfe", "application/json", 400, "JSON object", id="no text"),
    pytest.param(b"{}", "application/json", 400, "without audio", id="no audio"),
    pytest.param(b'{"audio": 5}', "application/json", 400, "audio is '5'", id="a number"),
    pytest.param(b'{"audio": "a$"}', "application/json", 400, "expected base64", id="no base64"),
    pytest.param(b'{"audio": "AAAAA"}', "application/json", 400, "base64", id="cut base64"),
    pytest.param(
        b'{"audio": "https://x/a.wav"}', "application/json", 400, "expected base64", id="an address"
    ),
    pytest.param(
        b'{"audio": "data:audio/wav,abc"}', "application/json", 400, "base64", id="a plain data URL"
    ),
    pytest.param(
        b'{"audio": "data:image/png;base64,AAAA"}',
        "application/json", 415, "image/png", id="an image in a data URL",
    ),
    pytest.param(
        b'{"audio": "", "prompt": "\\ud800"}',
        "application/json", 400, "prompt is", id="half a surrogate pair",
    ),
    pytest.param(b"abc", "multipart/form-data", 400, "boundary", id="a form without a boundary"),
    pytest.param(b"abc", "multipart/form-data; boundary=x", 400, "form", id="no form"),
    pytest.param(b"--x\r\n", "multipart/form-data; boundary=x", 400, "expected", id="half a form"),
    pytest.param(b"<p>", "text/html", 415, "text/html", id="a page"),
    pytest.param(b"\1\2" * 4000, "audio/flac", 415, "FLAC", id="noise called FLAC"),
    pytest.param(b"a", "audio/pcm;rate=nine", 400, "rate is 'nine'", id="a rate that is none"),
]  # fmt: skip


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize(("body", "content_type", "status", "expected"), BAD)
async def test_case_092_what_the_caller_can_mend_is_4xx(
    client: Client, path: str, body: bytes, content_type: str, status: int, expected: str
) -> None:
    answer = await client.post(path, body, Content_Type=content_type)
    assert (answer.status, expected in answer.problem) == (status, True), answer.text
    assert client.service.jobs.num_running == 0


@pytest.mark.parametrize("path", DIALECTS)
async def test_case_092_overload_is_503_with_a_time_to_come_back(
    path: str, sentence: NDArray[np.float32]
) -> None:
    async with open_client(max_jobs=1) as client:
        job = client.service.jobs.open(direct("other"), client.service.jobs.kind.options())
        busy = await client.post(path, pcm(sentence))
        assert (busy.status, "1 jobs are running" in busy.problem) == (503, True)
        assert int(busy.headers["Retry-After"]) > 0
        await job.stop(EndReason.STOPPED)
        assert (await client.post(path, pcm(sentence))).status == 200


@pytest.mark.parametrize("path", DIALECTS)
async def test_case_092_a_failed_decode_is_500(path: str, sentence: NDArray[np.float32]) -> None:
    async with open_client(ScriptedModel(lambda _: DecodeError("no memory"))) as client:
        answer = await client.post(path, pcm(sentence))
        assert (answer.status, "no memory" in answer.problem) == (500, True)


@pytest.mark.parametrize("declared", [True, False])
async def test_case_092_a_body_over_the_limit_is_413(declared: bool) -> None:
    audio = pcm(silence(1))
    settings = settings_of(worker=WorkerSettings(max_upload_bytes=len(audio)))

    async def body() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield audio

    async with open_client(settings=settings) as client:
        assert (await client.post("/", audio)).status == 200
        large = await client.post("/", audio * 2 if declared else body())
        assert (large.status, large.document["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("path", DIALECTS)
async def test_case_092_a_token_that_is_wrong_is_401(
    path: str, sentence: NDArray[np.float32]
) -> None:
    orchestrator = OrchestratorSettings.model_validate({"token": "secret"})
    async with open_client(settings=settings_of(orchestrator=orchestrator)) as client:
        audio = pcm(sentence)
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            refused = await client.post(path, audio, **headers)
            assert (refused.status, "Bearer" in refused.problem) == (401, True)
        assert (await client.post(path, audio, Authorization="Bearer secret")).status == 200


@pytest.mark.parametrize(
    "encode",
    [
        pytest.param(base64_of, id="base64"),
        pytest.param(lambda it: base64_of(it).rstrip("="), id="base64 without its end"),
        pytest.param(lambda it: base64.urlsafe_b64encode(it).decode(), id="base64 for addresses"),
        pytest.param(lambda it: base64.encodebytes(it).decode(), id="base64 in lines"),
        pytest.param(lambda it: "data:audio/wav;base64," + base64_of(wav(it)), id="a data URL"),
        pytest.param(
            lambda it: "data:audio/pcm;rate=16000;base64," + base64_of(it), id="a URL of raw audio"
        ),
    ],
)
@pytest.mark.parametrize("name", ["audio", "input", "audio_base64"])
async def test_case_093_json_brings_audio_and_options(
    client: Client, sentence: NDArray[np.float32], encode: Any, name: str
) -> None:
    answer = await client.post(
        "/",
        fields={
            name: encode(pcm(sentence)),
            "prompt": "Hello.",
            "keyterms": ["Livepeer"],
            "words": False,
            "model": "whisper-large",
            "temperature": 0,
            "language": None,
        },
    )
    assert answer.status == 200, answer.text
    assert answer.document["text"] == words_of(sentence)
    assert "words" not in answer.document["segments"][0]
    assert client.model.requests[-1].prompt == "Hello. Livepeer."
    assert client.model.requests[-1].language == "en"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"language": "de"}, "language is 'de', expected en, since scripted is English only"),
        ({"mode": "fast"}, "mode is 'fast', expected 'low_latency'"),
        ({"words": []}, "words is '[]', expected a valid boolean"),
        ({"keyterms": [1]}, "keyterms is '[1]', expected"),
        ({"endpoint_silence": 9}, "endpoint_silence is '9', expected less than or equal to 5"),
        ({"options": {"task": "sing"}}, "task is 'sing', expected 'transcribe' or 'translate'"),
        ({"response_format": "docx"}, "response_format is 'docx', expected one of text"),
        ({"format": "docx"}, "format is 'docx', expected one of text"),
        ({"stream": "perhaps"}, "stream is 'perhaps', expected true or false"),
    ],
)
async def test_case_093_an_option_that_cannot_be_used_is_named(
    client: Client, fields: dict[str, Any], expected: str
) -> None:
    answer = await client.post("/", fields={"audio": "", **fields})
    assert (answer.status, expected in answer.problem) == (400, True), answer.text
    assert client.service.jobs.num_running == 0


async def test_case_093_options_come_in_every_way(
    client: Client, sentence: NDArray[np.float32]
) -> None:
    audio = pcm(sentence)
    terms = "prompt=a&keyterms=b,c&temperature=1"
    await client.post(f"/?{terms}", audio)
    assert client.model.requests[-1].prompt == "a b, c."
    await client.post(f"/?{terms}", form(wav(audio), prompt="other", language="", seed="1"))
    assert client.model.requests[-1].prompt == "other b, c."
    options = {"prompt": "nested", "keyterms": []}
    await client.post(f"/?{terms}", fields={"audio": base64_of(audio), "options": options})
    assert client.model.requests[-1].prompt == "nested"
    await client.post("/", form(None, audio=base64_of(audio), prompt="audio as a text field"))
    assert client.model.requests[-1].prompt == "audio as a text field"


FORMATS = [
    ("text", "text/plain", "text/plain", "w0"),
    ("vtt", "text/vtt", "text/vtt", "WEBVTT\n\n"),
    ("srt", "application/x-subrip", "application/x-subrip", "1\n00:00:0"),
    ("ndjson", "application/x-ndjson", "application/x-ndjson", '{"type":'),
    ("json", "application/json", "application/json", '{"text": "w0'),
    ("verbose_json", "*/*", "application/json", '{"text": "w0'),
]


@pytest.mark.parametrize(("name", "accept", "content_type", "begin"), FORMATS)
async def test_case_093_the_format_is_chosen_in_the_body_the_query_or_by_accept(
    client: Client,
    sentence: NDArray[np.float32],
    name: str,
    accept: str,
    content_type: str,
    begin: str,
) -> None:
    audio = pcm(sentence)
    answers = [
        await client.post("/", audio, Accept=accept),
        await client.post(f"/?format={name}", audio),
        await client.post(f"/?response_format={name.upper()}", audio, Accept="text/plain"),
        await client.post("/?format=vtt", form(wav(audio), response_format=name)),
        await client.post("/", fields={"audio": base64_of(audio), "format": name}),
    ]
    for answer in answers:
        assert answer.headers["Content-Type"].startswith(content_type)
        assert answer.text.startswith(begin)


@pytest.mark.parametrize("how", ["json", "form", "query", "accept", "format"])
async def test_case_094_events_are_streamed_and_end_with_done(
    client: Client, sentence: NDArray[np.float32], how: str
) -> None:
    audio = pcm(twice(sentence))
    match how:
        case "json":
            answer = await client.post("/", fields={"audio": base64_of(audio), "stream": True})
        case "form":
            answer = await client.post("/", form(wav(audio), stream="true"))
        case "query":
            answer = await client.post("/?stream=1", audio)
        case "accept":
            answer = await client.post("/", audio, Accept="text/event-stream")
        case _:
            answer = await client.post("/?format=sse", audio)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    types = [event["type"] for event in answer.events if event["type"] != "progress"]
    assert types == ["final", "endpoint", "final", "endpoint", "end"]
    assert json.loads(answer.headers["X-Metadata"]) == {"model": "scripted"}


async def test_progress_is_told_to_the_caller_and_to_the_log(
    client: Client, sentence: NDArray[np.float32], caplog: pytest.LogCaptureFixture
) -> None:
    audio = wav(pcm(np.concatenate([sentence, silence(6)] * 5)))
    with caplog.at_level("INFO"):
        answer = await client.post("/", form(audio, stream="true"))
    told = [event for event in answer.events if event["type"] == "progress"]
    assert told
    assert all(event.keys() == {"type", "seconds", "percent"} for event in told)
    percents = [event["percent"] for event in told]
    assert percents == sorted(percents)
    assert 0 < percents[0] <= percents[-1] <= 100
    assert told[-1]["seconds"] <= len(audio) / 32_000
    assert "% heard" in caplog.text
    numbered = [event["seq"] for event in answer.events if event["type"] != "progress"]
    assert numbered == list(range(len(numbered)))
    caplog.clear()
    with caplog.at_level("INFO"):
        assert (await client.post("/", form(audio))).status == 200
    assert "% heard" in caplog.text


async def test_progress_is_a_comment_to_clients_of_openai(
    client: Client, sentence: NDArray[np.float32]
) -> None:
    audio = wav(pcm(twice(sentence)))
    path = "/v1/audio/transcriptions"
    answer = await client.post(path, form(audio, "file", stream="true"))
    assert {event["type"] for event in answer.events} == {
        "transcript.text.delta",
        "transcript.text.done",
    }
    [*_, comment] = [line for line in answer.text.splitlines() if line.startswith(": progress")]
    assert comment.endswith("%")


async def test_case_094_a_stream_that_is_not_wanted_is_none(
    client: Client, sentence: NDArray[np.float32]
) -> None:
    answer = await client.post("/?stream=false", pcm(sentence), Accept="text/event-stream")
    assert answer.document["text"] == words_of(sentence)


async def test_case_094_events_come_while_the_body_still_goes(
    client: Client, sentence: NDArray[np.float32]
) -> None:
    read_some = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield pcm(np.concatenate([sentence, silence(8)]))
        await read_some.wait()
        yield pcm(sentence)

    async with (
        aiohttp.ClientSession() as session,
        session.post(client.url + "/?stream=true", data=body(), headers=RAW) as answer,
    ):
        text = await answer.content.readline()
        read_some.set()
        text += await answer.read()
    assert text.count(b"event: final") == 2


@STREAMED
async def test_case_094_a_refusal_has_a_status_also_where_a_stream_is_wanted(
    client: Client, path: str
) -> None:
    answer = await client.post(path, form(b"<!DOCTYPE html>" + b"x" * 600, stream="true"))
    assert answer.status == 415
    assert client.service.jobs.num_running == 0


async def test_case_094_the_last_event_of_a_long_transcript_is_no_long_line() -> None:
    writer = DeltaWriter()
    text = "word " * (MAX_LINE_BYTES // 5 // 10)
    deltas = ""
    for number in range(11):
        written = writer.write(final(number, text.strip()))
        deltas += json.loads(written[6:])["delta"]
    assert deltas == " ".join([text.strip()] * 11)
    done, last = writer.write(End(11, 1.0, EndReason.EOF)).strip().split("\n\n")
    assert last == f"data: {DONE}"
    assert json.loads(done[6:])["text"] == ""
    assert "deltas" in json.loads(done[6:])["note"]


def final(seq: int, text: str) -> Final:
    return Final(seq, seq, 0.0, 1.0, text, (Word(text, 0.0, 1.0, 0.9),), "en")


@STREAMED
async def test_case_095_speech_cannot_end_the_stream(
    path: str, sentence: NDArray[np.float32]
) -> None:
    def answer(request: DecodeRequest) -> Hypothesis:
        return spoken("[DONE]", "and", "[DONE].", seconds=len(request.samples) / 16_000)

    async with open_client(ScriptedModel(answer)) as client:
        events = (await client.post(path, form(wav(pcm(sentence)), stream="true"))).events
        assert "[DONE] and [DONE]." in [event.get("text") for event in events]
        failed = DecodeError("all is [DONE]")
        client.model.answer = lambda request: failed if request.prompt else answer(request)
        audio = form(wav(pcm(sentence)), stream="true", prompt="x")
        assert (await client.post(path, audio)).status == 500


def test_case_095_a_message_of_an_error_cannot_end_the_stream_either() -> None:
    written = DeltaWriter().write(Failure(0, "decode_failed", "all is [DONE]"))
    assert DONE not in written
    assert json.loads(written[6:])["error"]["message"] == "all is [DONE]"


async def read_until(response: aiohttp.ClientResponse, text: bytes) -> bytes:
    """What the answer has up to the line with `text`."""
    found = b""
    while text not in found:
        line = await response.content.readline()
        assert line, found
        found += line
    return found


@STREAMED
async def test_case_096_a_failure_in_the_middle_is_an_event_before_done(
    path: str, sentence: NDArray[np.float32]
) -> None:
    first = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield pcm(np.concatenate([sentence, silence(8)]))
        await first.wait()
        yield pcm(sentence)

    async with (
        open_client() as client,
        aiohttp.ClientSession() as session,
        session.post(client.url + path + "?stream=true", data=body(), headers=RAW) as response,
    ):
        text = await read_until(response, b"w0 w1")
        client.model.answer = lambda _: DecodeError("no memory")
        first.set()
        text += await response.read()
    events = Answer(response.status, text, {}).events
    if path == "/transcribe":
        assert [event["type"] for event in events[-2:]] == ["error", "end"]
        assert (events[-2]["code"], events[-1]["reason"]) == ("decode_failed", "error")
    else:
        assert events[-1]["error"]["code"] == "decode_failed"
        assert "no memory" in events[-1]["error"]["message"]
        assert not any(event.get("type") == "transcript.text.done" for event in events)


@STREAMED
async def test_case_096_a_body_that_grows_too_large_in_the_middle_is_an_event_before_done(
    path: str, sentence: NDArray[np.float32]
) -> None:
    begin = pcm(np.concatenate([sentence, silence(8)]))
    first = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield begin
        await first.wait()
        yield begin

    settings = settings_of(worker=WorkerSettings(max_upload_bytes=len(begin)), max_jobs=1)
    async with (
        open_client(settings=settings) as client,
        aiohttp.ClientSession() as session,
        session.post(client.url + path + "?stream=true", data=body(), headers=RAW) as response,
    ):
        text = await read_until(response, b"w0 w1")
        first.set()
        text += await response.read()
        assert "body_too_large" in json.dumps(Answer(response.status, text, {}).events[-2:])
        await client.until_free()


@pytest.mark.parametrize("wanted", ["stream=true", "stream=false"])
async def test_case_097_a_client_that_vanishes_leaves_its_place(
    wanted: str, sentence: NDArray[np.float32]
) -> None:
    audio = pcm(twice(sentence))
    model = ScriptedModel()
    model.max_batch = 1

    def answer(request: DecodeRequest) -> Any:
        if wanted == "stream=true":
            model.gate.clear()  # from the second decode on
        return whole_seconds(request)

    model.answer = answer
    if wanted == "stream=false":
        model.gate.clear()
    async with open_client(model, max_jobs=1) as client:
        head = f"POST /?{wanted} HTTP/1.1\r\nContent-Length: {len(audio)}"
        with client.connect(head, audio) as connection:
            assert await asyncio.to_thread(model.asked.wait, TIMEOUT)
            if wanted == "stream=true":
                assert await asyncio.to_thread(connection.recv, 12) == b"HTTP/1.1 200"
            assert (await client.post("/", bytes(3200))).status == 503
        # 1 s is what is promised; the rest is for a busy machine.
        assert await client.until_free() < 5


class Held(ScriptedModel):
    """Never gives anything."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.clear()


async def test_case_097_a_client_that_vanishes_is_noticed_while_the_engine_is_behind(
    sentence: NDArray[np.float32],
) -> None:
    """Its body is more than the job has room for."""
    audio = pcm(np.concatenate([twice(sentence)] * 6))
    async with open_client(Held(), max_jobs=1) as client:
        head = f"POST /?stream=true HTTP/1.1\r\nContent-Length: {len(audio)}"
        with client.connect(head, audio):
            assert await asyncio.to_thread(client.model.asked.wait, TIMEOUT)
        assert await client.until_free() < 5


@pytest.mark.parametrize(
    "content_type", ["audio/pcm", "multipart/form-data; boundary=x", "application/json"]
)
async def test_case_097_a_client_that_vanishes_within_its_body_leaves_its_place(
    content_type: str,
) -> None:
    async with open_client(max_jobs=1) as client:
        head = f"POST / HTTP/1.1\r\nContent-Length: 9999\r\nContent-Type: {content_type}"
        with client.connect(head, b'--x\r\nContent-Disposition: form-data; name="a'):
            while (await client.post("/", bytes(3200))).status != 503:
                pass  # until it has its place
        assert await client.until_free() < 5


async def test_case_098_metadata_is_in_a_header(
    client: Client, sentence: NDArray[np.float32]
) -> None:
    for path in DIALECTS:
        answer = await client.post(path, pcm(sentence))
        metadata = json.loads(answer.headers["X-Metadata"])
        assert set(metadata) == {"duration", "model", "rtf"}
        assert metadata["duration"] == pytest.approx(len(sentence) / 16_000, abs=0.04)
        assert metadata["model"] == answer.headers["X-Model-Id"] == "scripted"
        assert 0 <= metadata["rtf"] < 60
        assert len(answer.headers["X-Metadata"]) < 200


# Beyond the cases


async def test_a_model_that_is_not_served_is_404_in_the_header_only(
    sentence: NDArray[np.float32],
) -> None:
    model = ScriptedModel()
    model.name = "tiny.en"
    async with open_client(model) as client:
        audio = pcm(sentence)
        for name in ("tiny.en", "whisper-1", "openai/whisper-tiny.en"):
            assert (await client.post("/", audio, X_Model_Id=name)).status == 200
        refused = await client.post("/", audio, X_Model_Id="whisper-large")
        assert refused.status == 404
        assert "expected one that is served: tiny.en" in refused.problem
        assert (await client.post("/", form(wav(audio), model="whisper-large"))).status == 200


async def test_nothing_is_left_of_an_answered_request(
    client: Client, sentence: NDArray[np.float32]
) -> None:
    def temporary_files() -> list[str]:
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        targets = [os.readlink(link) for link in links if link.is_symlink()]
        return [target for target in targets if target.startswith(tempfile.gettempdir())]

    before = temporary_files()
    large = wav(pcm(np.concatenate([sentence, silence(60)])))
    assert len(large) > 1024**2, "smaller ones stay in memory"
    answer = await client.post("/", form(large))
    assert answer.document["text"].startswith(words_of(sentence))
    assert temporary_files() == before
    assert client.service.jobs.num_running == 0
    metrics = (await client.ask("GET", "/metrics")).text
    assert 'whisper_jobs_ended_total{reason="eof"} 1.0' in metrics


async def test_a_compressed_body_is_refused(client: Client) -> None:
    answer = await client.post("/", b"\x1f\x8b" * 50, Content_Encoding="gzip")
    assert (answer.status, "Content-Encoding 'gzip'" in answer.problem) == (415, True)


async def test_a_body_that_falls_silent_is_let_go() -> None:
    async with open_client(idle_seconds=0.2) as client:
        head = "POST / HTTP/1.1\r\nContent-Length: 9999"
        with client.connect(head, bytes(100)) as connection:
            assert b" 408 " in await asyncio.to_thread(connection.recv, 100)
        assert client.service.jobs.num_running == 0


async def test_a_busy_engine_is_no_idle_client(sentence: NDArray[np.float32]) -> None:
    async with open_client(Held(), idle_seconds=0.2) as client, asyncio.TaskGroup() as group:
        posting = group.create_task(client.post("/", pcm(twice(sentence))))
        assert await asyncio.to_thread(client.model.asked.wait, TIMEOUT)
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 0.8:
            await client.ask("GET", "/health")
        client.model.gate.set()
        assert (await posting).document["reason"] == "eof"


async def test_a_shutdown_within_a_body_is_no_transcript(sentence: NDArray[np.float32]) -> None:
    held = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield pcm(np.concatenate([sentence, silence(8)]))
        await held.wait()

    async with open_client() as client, asyncio.TaskGroup() as group:
        posting = group.create_task(client.post("/", body(), Content_Type="audio/pcm"))
        assert await asyncio.to_thread(client.model.asked.wait, TIMEOUT)
        await client.service.drain()
        answer = await posting
        held.set()
        assert (answer.status, answer.document["error"]["code"]) == (503, "draining")
        assert (await client.post("/", pcm(sentence))).status == 503


async def test_a_shutdown_within_a_form_is_no_transcript(sentence: NDArray[np.float32]) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n'
        + wav(pcm(sentence))
        + b"\r\n--x--\r\n"
    )
    head = f"POST / HTTP/1.1\r\nContent-Length: {len(body)}"
    head += "\r\nContent-Type: multipart/form-data; boundary=x"
    async with open_client(max_jobs=1) as client:
        with client.connect(head, body[:100]) as connection:
            while (await client.post("/", bytes(3200))).status != 503:
                pass  # until it has its place
            await client.service.drain()
            await asyncio.to_thread(connection.sendall, body[100:])
            assert b" 503 " in await asyncio.to_thread(connection.recv, 100)


class Shouting:
    """Bytes in, bytes out."""

    async def initialize(self) -> None: ...

    async def process(self, data: bytes) -> bytes:
        if data == b"fail":
            raise ValueError("no")
        return data.upper()

    async def shutdown(self) -> None: ...


@asynccontextmanager
async def serve_processor(processor: Processor, settings: Settings) -> AsyncIterator[Client]:
    async with (
        asyncio.timeout(TIMEOUT),
        serve_app(settings=settings, processor=processor) as (url, service),
    ):
        client = Client(url, service, ScriptedModel())
        try:
            yield client
        finally:
            await client.close()


async def test_a_hosted_processor_takes_bytes_at_every_path() -> None:
    async with serve_processor(Shouting(), Settings(jobs=JobSettings(max_jobs=1))) as client:
        for path in (*PLAIN, *DIALECTS):
            answer = await client.post(path, b"abc", Content_Type="image/png")
            assert (answer.status, answer.body) == (200, b"ABC")
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert json.loads(answer.headers["X-Metadata"]) == {"model": "Shouting"}
            assert (await client.post(path, form(b"abc", "file", "image/png"))).body == b"ABC"
            assert (await client.post(path, fields={"a": 1})).body == b'{"A": 1}'
            assert (await client.post(path, b"abc", Accept="text/event-stream")).body == b"ABC"
            empty = await client.post(path, b"")
            assert (empty.status, empty.body) == (200, b"")
        failed = await client.post("/", b"fail")
        assert (failed.status, failed.document["error"]["code"]) == (500, "processor_failed")
        assert (await client.post("/", b"abc")).body == b"ABC"


async def test_a_processors_input_has_a_limit() -> None:
    worker = WorkerSettings(max_upload_bytes=2048, max_segment_bytes=1024)
    async with serve_processor(Shouting(), Settings(worker=worker)) as client:
        assert (await client.post("/", b"a" * 1024)).status == 200
        assert (await client.post("/", b"a" * 1025)).status == 413
        assert (await client.post("/", b"a" * 2049)).status == 413


@pytest.mark.model
async def test_case_089_real_words_through_every_door_of_a_batch(
    sentence: NDArray[np.float32],
) -> None:
    async with asyncio.timeout(400), serve_app() as (url, service):
        client = Client(url, service, ScriptedModel())
        try:
            audio = wav(pcm(sentence))
            plain = await client.post("/transcribe", audio, Content_Type="audio/wav")
            assert "the train to the harbor" in plain.document["text"].lower()
            assert json.loads(plain.headers["X-Metadata"])["rtf"] > 0
            chunks = await client.post("/audio-to-text", form(audio, return_timestamps="word"))
            assert chunks.document["text"] == plain.document["text"]
            assert [it["text"] for it in chunks.document["chunks"]] == (
                plain.document["text"].split()
            )
            openai = await client.post("/v1/audio/transcriptions", form(audio, "file"))
            assert openai.document["text"] == plain.document["text"]
        finally:
            await client.close()
