"""Door 1 over a real socket, with real voice activity and scripted words."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak, direct, pcm, serve_app, wav
from tests.scripted import ScriptedModel, scripted_engine, spoken, whole_seconds
from whisper_byoc.decode import DecodeRequest, Hypothesis
from whisper_byoc.errors import DecodeError
from whisper_byoc.jobs.options import JobOptions
from whisper_byoc.service import Service
from whisper_byoc.settings import JobSettings, ModelSettings, Settings
from whisper_byoc.transcript import EndReason

pytestmark = pytest.mark.anyio
TIMEOUT = 30
SENTENCE = "The train to the harbour leaves at nine."


def settings(**jobs: Any) -> Settings:
    return Settings(model=ModelSettings(directory=MODELS), jobs=JobSettings(**jobs))


class Door:
    """A client of one server, in the words of the contract."""

    def __init__(self, url: str, service: Service, model: ScriptedModel) -> None:
        self.url, self.service, self.model = url, service, model
        self._session = aiohttp.ClientSession()

    async def __aenter__(self) -> "Door":
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._session.close()

    async def ask(
        self, method: str, path: str, data: Any = None, **headers: str
    ) -> tuple[int, Any, Any]:
        """Status, body (parsed when it is JSON) and headers of one request."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.request(
            method, self.url + path, data=data, headers=named
        ) as answer:
            text = await answer.text()
            is_json = answer.content_type == "application/json"
            return answer.status, json.loads(text) if is_json else text, answer.headers

    def request(self, method: str, path: str, data: Any = None) -> Any:
        """An answer that is read as it comes; use it as a context."""
        return self._session.request(method, self.url + path, data=data)

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def socket(
        self, query: str = "", path: str = "/transcribe", headers: dict[str, str] | None = None
    ) -> Any:
        """A WebSocket as a context."""
        return self._session.ws_connect(self.url + path + query, headers=headers)

    async def events(self, job: str) -> list[dict[str, Any]]:
        _, text, _ = await self.ask("GET", f"/live/{job}/output?format=ndjson")
        return [json.loads(line) for line in text.splitlines() if line]

    async def put(self, job: str, audio: Any, query: str = "", **headers: str) -> tuple[int, Any]:
        headers.setdefault("Content_Type", "audio/pcm")
        status, document, _ = await self.ask("PUT", f"/live/{job}/source{query}", audio, **headers)
        return status, document

    async def first_event(self, job: str) -> dict[str, Any]:
        """The first event that the job sends; waits for the job and for the event."""
        path = f"/live/{job}/output?format=ndjson"
        async with self._session.get(self.url + path) as answer:
            document: dict[str, Any] = json.loads(await answer.content.readline())
            return document

    async def until_ended(self, job: str) -> None:
        await self.service.jobs.get(direct(job)).stop(EndReason.STOPPED)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with open_door() as opened:
        yield opened


def open_door(*, model: ScriptedModel | None = None, **jobs: Any) -> "OpenDoor":
    return OpenDoor(model or ScriptedModel(), settings(**jobs))


class OpenDoor:
    """A server with its client, and a limit on how long a test may take."""

    def __init__(self, model: ScriptedModel, service_settings: Settings) -> None:
        self._model, self._settings = model, service_settings

    async def __aenter__(self) -> Door:
        self._timeout = asyncio.timeout(TIMEOUT)
        await self._timeout.__aenter__()
        self._serving = serve_app(scripted_engine(self._model), self._settings)
        url, service = await self._serving.__aenter__()
        self._door = Door(url, service, self._model)
        return self._door

    async def __aexit__(self, *args: Any) -> None:
        self._model.gate.set()
        await self._door.__aexit__()
        await self._serving.__aexit__(*args)
        await self._timeout.__aexit__(*args)


@pytest.fixture(scope="session")
def sentence(speak: Speak) -> NDArray[np.float32]:
    return speak(SENTENCE)


def silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(round(seconds * 16_000), dtype=np.float32)


async def pieces(audio: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(audio), size):
        yield audio[start : start + size]


@pytest.mark.parametrize("job", ["a", "A-b_c.d~9", "x" * 128, "..a"])
async def test_usual_job_ids_are_taken(door: Door, job: str, sentence: NDArray[np.float32]) -> None:
    assert (await door.put(job, pcm(sentence[:8000])))[0] == 200


async def raw_statuses(url: str, *requests: str) -> list[int]:
    """Statuses of requests that no client would send as they are."""
    host, port = urlsplit(url).netloc.split(":")
    statuses = []
    for request in requests:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request.encode())
        statuses.append(int((await reader.readline()).split()[1]))
        writer.close()
        await writer.wait_closed()
    return statuses


async def test_several_bodies_are_one_stream(door: Door, sentence: NDArray[np.float32]) -> None:
    half = len(sentence) // 2
    audio = pcm(sentence)
    assert (await door.put("j", audio[: half + 1], "?final=false"))[1]["state"] == "receiving"
    assert (await door.put("j", b""))[1]["state"] == "receiving"
    status, document = await door.put("j", audio[half + 1 :])
    assert status == 200
    assert document["audio_seconds"] == pytest.approx(len(sentence) / 16_000, abs=0.001)
    events = await door.events("j")
    assert [event["type"] for event in events if event["type"] != "partial"] == [
        "final", "endpoint", "end",
    ]  # fmt: skip
    whole = door.model.requests[-1].samples
    assert np.array_equal(whole, np.frombuffer(audio, "<i2").astype(np.float32) / 32768)


async def test_an_empty_final_body_ends_the_stream(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    await door.put("j", pcm(sentence), "?final=false")
    status, document = await door.put("j", b"", "?final=true")
    assert (status, document["state"]) == (200, "ended")
    assert (await door.events("j"))[-1]["reason"] == "eof"


async def test_an_ended_job_takes_no_more_audio_until_it_is_deleted(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    await door.put("j", pcm(sentence))
    await door.events("j")
    status, document = await door.put("j", pcm(sentence))
    assert status == 409
    assert "DELETE /live/j" in document["error"]["message"]
    assert (await door.ask("DELETE", "/live/j"))[1]["forgotten"] is True
    assert (await door.put("j", pcm(sentence)))[0] == 200


async def test_two_bodies_at_once_are_refused(door: Door, sentence: NDArray[np.float32]) -> None:
    held = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield pcm(sentence[:16_000])
        await held.wait()

    async with asyncio.TaskGroup() as group:
        first = group.create_task(door.put("j", body()))
        await door.first_event("j")
        status, document = await door.put("j", pcm(sentence))
        assert (status, document["error"]["code"]) == (409, "source_busy")
        held.set()
    assert first.result()[0] == 200


async def test_delete_stops_a_running_job_and_keeps_its_words(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    held = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield pcm(sentence[:16_000])
        await held.wait()

    async with asyncio.TaskGroup() as group:
        source = group.create_task(door.put("j", body()))
        await door.first_event("j")
        status, document, _ = await door.ask("DELETE", "/live/j")
        assert status == 200
        assert (document["state"], document["reason"]) == ("ended", "stopped")
        assert document["words"] > 0
        assert document["forgotten"] is False
        assert (await source)[1]["state"] in ("flushing", "ended")
        held.set()
    assert (await door.ask("GET", "/live/j/output"))[1].startswith("w0")


async def test_a_client_that_vanishes_leaves_its_words_and_no_job_running(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    host, port = urlsplit(door.url).netloc.split(":")
    audio = pcm(sentence[:16_000])
    with socket.create_connection((host, int(port))) as client:
        head = f"PUT /live/j/source HTTP/1.1\r\nHost: x\r\nContent-Length: {len(audio) * 2}\r\n\r\n"
        client.sendall(head.encode() + audio)
        await door.first_event("j")
    events = await door.events("j")
    assert events[-1]["reason"] == "disconnected"
    assert [event["type"] for event in events][-3:] == ["final", "endpoint", "end"]
    await door.until_ended("j")
    assert door.service.jobs.num_running == 0


async def test_a_stop_before_the_body_has_begun_ends_the_job(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    """The task that reads the body is cancelled before its first step."""
    job = door.service.jobs.open(direct("j"), JobOptions())

    async def body() -> AsyncIterator[bytes]:
        yield pcm(sentence)

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(job.receive_body(body(), None, final=True))
        group.create_task(job.stop(EndReason.STOPPED))
    assert job.state == "ended"
    assert door.service.jobs.num_running == 0


@pytest.mark.parametrize(
    "request_text",
    [
        "Content-Length: 9999\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["no byte of its body", "a chunk header that is none"],
)
async def test_a_client_that_vanishes_before_its_first_byte_leaves_nothing(
    door: Door, request_text: str, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = urlsplit(door.url).netloc.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"PUT /live/j/source HTTP/1.1\r\nHost: x\r\n" + request_text.encode())
    assert (await door.ask("GET", "/health"))[1] == {"status": "IDLE"}
    assert door.service.jobs.find(direct("j")) is None
    assert "Traceback" not in caplog.text


async def test_a_body_whose_first_byte_never_comes_is_let_go() -> None:
    async with open_door(idle_seconds=0.1) as door:
        held = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            await held.wait()
            yield b""

        host, port = urlsplit(door.url).netloc.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PUT /live/j/source HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert b" 408 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_a_reader_that_vanishes_harms_nothing(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    host, port = urlsplit(door.url).netloc.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"GET /live/j/output HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await door.put("j", pcm(sentence)))[0] == 200
    assert (await door.events("j"))[-1]["reason"] == "eof"


async def test_a_reader_that_vanishes_before_its_job_begins_is_let_go() -> None:
    async with asyncio.timeout(5), serve_app(scripted_engine(ScriptedModel())) as (url, _):
        host, port = urlsplit(url).netloc.split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /live/j/output HTTP/1.1\r\nHost: x\r\n\r\n")
    # Leaving waits for every request: the grace time would be 10 s.


async def test_an_idle_job_is_ended_and_reported(sentence: NDArray[np.float32]) -> None:
    async with open_door(idle_seconds=0.3) as door:
        await door.put("j", pcm(sentence), "?final=false")
        events = await door.events("j")
        assert events[-1]["reason"] == "idle"
        assert "final" in [event["type"] for event in events]


async def test_a_body_that_falls_silent_is_idle_too(sentence: NDArray[np.float32]) -> None:
    held = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield pcm(sentence)
        await held.wait()

    async with open_door(idle_seconds=0.3) as door, asyncio.TaskGroup() as group:
        source = group.create_task(door.put("j", body()))
        assert (await door.events("j"))[-1]["reason"] == "idle"
        assert (await source)[0] == 200
        held.set()


async def test_one_job_too_many_is_told_when_to_come_back(sentence: NDArray[np.float32]) -> None:
    async with open_door(max_jobs=1) as door:
        await door.put("first", pcm(sentence), "?final=false")
        status, document, headers = await door.ask("PUT", "/live/second/source", pcm(sentence))
        assert (status, document["error"]["code"]) == (503, "too_many_jobs")
        assert int(headers["Retry-After"]) > 0
        assert (await door.put("first", pcm(sentence)))[0] == 200


async def test_a_body_over_the_limit_is_refused(sentence: NDArray[np.float32]) -> None:
    audio = pcm(sentence)
    async with open_door(max_body_bytes=len(audio)) as door:
        status, document = await door.put("declared", audio + b"ab")
        assert (status, document["error"]["code"]) == (413, "body_too_large")
        assert door.service.jobs.find(direct("declared")) is None
        status, document = await door.put("streamed", pieces(audio * 2, 3200))
        assert (status, document["error"]["code"]) == (413, "body_too_large")
        assert [event["type"] for event in await door.events("streamed")] == [
            "final", "endpoint", "error", "end",
        ]  # fmt: skip
        assert (await door.put("fits", audio))[0] == 200


@pytest.mark.parametrize(
    ("content_type", "body", "found"),
    [
        pytest.param("text/html", b"<p>", "text/html", id="a type that is no audio"),
        pytest.param("audio/flac", b"\x01\x02" * 4000, "FLAC", id="noise called FLAC"),
        pytest.param("", b"<!DOCTYPE html><html>" + b"x" * 600, "text", id="a page"),
        pytest.param("audio/wav", b"RIFF\x00\x00\x00\x00WAVEfmt ", "WAV", id="half a header"),
    ],
)
async def test_what_is_not_audio_is_refused_and_leaves_nothing(
    door: Door, content_type: str, body: bytes, found: str
) -> None:
    answer = await door.put("j", body, Content_Type=content_type)
    assert answer[0] == 415, answer
    assert answer[1]["error"]["code"] == "unsupported_audio"
    assert found in answer[1]["error"]["message"]
    assert door.service.jobs.num_running == 0
    assert door.service.jobs.find(direct("j")) is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?language=de", "language is 'de', expected en, since scripted is English only"),
        (
            "?mode=fast",
            "mode is 'fast', expected 'low_latency', 'balanced' or 'finals_only'",
        ),
        ("?task=sing", "task is 'sing', expected 'transcribe' or 'translate'"),
        ("?task=translate", "task is 'translate', expected transcribe"),
        ("?final=maybe", "final is 'maybe', expected true or false"),
    ],
)
async def test_an_option_that_cannot_be_used_is_named(
    door: Door, query: str, expected: str
) -> None:
    status, document = await door.put("j", b"\0\0", query)
    assert status == 400
    assert expected in document["error"]["message"]
    assert door.service.jobs.num_running == 0


async def test_a_sampling_rate_that_is_no_number_is_named(door: Door) -> None:
    status, document = await door.put("j", b"\0\0", Content_Type="audio/pcm;rate=nine")
    assert status == 400
    assert "rate is 'nine', expected a whole number" in document["error"]["message"]


async def test_a_compressed_body_is_refused(door: Door) -> None:
    status, document = await door.put("j", b"\x1f\x8b" * 50, Content_Encoding="gzip")
    assert status == 415
    assert "Content-Encoding 'gzip'" in document["error"]["message"]


@pytest.mark.parametrize("position", ["99999999", "9" * 5000, "-1", "1.5", "x", "¹"])
async def test_any_position_to_go_on_from_gives_an_answer(
    door: Door, sentence: NDArray[np.float32], position: str
) -> None:
    await door.put("j", pcm(sentence))
    await door.events("j")
    status, text, _ = await door.ask(
        "GET", "/live/j/output", Accept="text/event-stream", Last_Event_ID=position
    )
    assert status == 200
    assert text == "" if position == "99999999" else text.endswith("[DONE]\n\n")


async def test_a_further_body_may_be_of_another_kind(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    audio = pcm(sentence)
    await door.put("j", audio + b"\1", "?final=false", Content_Type="application/octet-stream")
    await door.put("j", wav(audio), "?final=false", Content_Type="application/octet-stream")
    stereo = np.repeat(np.frombuffer(audio, "<i2"), 2).tobytes()
    await door.put("j", stereo + b"\1\2\3", "?final=false", Content_Type="audio/pcm;channels=2")
    _, document = await door.put("j", audio)
    assert document["audio_seconds"] == pytest.approx(4 * len(sentence) / 16_000, abs=0.02)
    await door.events("j")
    last = door.model.requests[-1].samples[-8000:]
    assert np.allclose(last, np.frombuffer(audio, "<i2")[-8000:] / 32768, atol=1e-4)


async def test_an_unknown_format_is_named(door: Door) -> None:
    status, document, _ = await door.ask("GET", "/live/j/output?format=docx")
    assert (status, document["error"]["code"]) == (400, "invalid_option")


async def test_a_failed_decode_ends_its_job_and_no_other(sentence: NDArray[np.float32]) -> None:
    def answer(request: DecodeRequest) -> Hypothesis | DecodeError:
        return DecodeError("no memory") if request.prompt == "fail" else whole_seconds(request)

    async with open_door(model=ScriptedModel(answer)) as door:
        audio = pcm(np.concatenate([sentence, silence(2), sentence]))
        bad, good = await asyncio.gather(
            door.put("bad", audio, "?prompt=fail"), door.put("good", audio)
        )
        assert good[0] == 200
        assert bad[0] in (200, 500)  # 200 when the body had been taken before the decode failed
        assert [event["type"] for event in await door.events("good")].count("final") == 2
        events = await door.events("bad")
        assert events[-2]["code"] == "decode_failed"
        assert "no memory" in events[-2]["message"]
        assert events[-1]["reason"] == "error"


async def test_a_sender_is_told_at_once_that_its_job_has_failed(
    sentence: NDArray[np.float32],
) -> None:
    held = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield pcm(np.concatenate([sentence, silence(1.5)]))
        await held.wait()

    async with open_door(model=ScriptedModel(lambda _: DecodeError("no memory"))) as door:
        status, document = await door.put("j", body())
        assert (status, document["error"]["code"]) == (500, "decode_failed")
        held.set()


async def test_a_slow_engine_holds_the_sender_and_nothing_is_lost(
    sentence: NDArray[np.float32],
) -> None:
    model = ScriptedModel()
    async with open_door(model=model) as door, asyncio.TaskGroup() as group:
        model.gate.clear()
        audio = pcm(np.concatenate([np.concatenate([sentence, silence(1.5)])] * 12))
        source = group.create_task(door.put("j", pieces(audio, 16_000)))
        await asyncio.to_thread(model.asked.wait, TIMEOUT)
        done, _ = await asyncio.wait({source}, timeout=1)
        assert not done
        assert door.service.jobs.get(direct("j")).work.audio_seconds < len(audio) / 32_000 - 10
        model.gate.set()
        assert (await source)[0] == 200
        finals = [event for event in await door.events("j") if event["type"] == "final"]
        assert len(finals) == 12


async def test_shutdown_flushes_the_running_jobs(sentence: NDArray[np.float32]) -> None:
    async with open_door() as door, asyncio.TaskGroup() as group:
        await door.put("j", pcm(sentence), "?final=false")
        reading = group.create_task(door.events("j"))
        await door.service.drain()
        events = await reading
        assert events[-1]["reason"] == "shutdown"
        assert "final" in [event["type"] for event in events]
        status, document = await door.put("new", pcm(sentence))
        assert (status, document["error"]["code"]) == (503, "draining")
        assert (await door.ask("GET", "/ready"))[0] == 503


async def test_an_sse_reader_goes_on_where_it_was_cut_off(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    await door.put("j", pcm(np.concatenate([sentence, silence(1.5), sentence])))
    await door.events("j")
    _, whole, headers = await door.ask("GET", "/live/j/output", Accept="text/event-stream")
    assert headers["Content-Type"].startswith("text/event-stream")
    blocks = whole.split("\n\n")
    first = int(blocks[0].splitlines()[0].removeprefix("id: "))
    _, rest, _ = await door.ask(
        "GET", "/live/j/output", Accept="text/event-stream", Last_Event_ID=str(first)
    )
    assert rest.split("\n\n") == blocks[1:]


@pytest.mark.parametrize(("output", "line"), [("sse", b": keepalive\n"), ("ndjson", b"\n")])
async def test_a_silent_output_is_kept_alive(output: str, line: bytes) -> None:
    async with open_door(keepalive_seconds=0.02) as door:
        await door.put("j", pcm(silence(0.5)), "?final=false")
        async with (
            aiohttp.ClientSession() as session,
            session.get(door.url + f"/live/j/output?format={output}") as answer,
        ):
            assert await answer.content.readline() == line


async def test_case_115_answers_behind_a_proxy_name_no_address(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    status, document, headers = await door.ask(
        "PUT", "/live/j/source", pcm(sentence), Livepeer_Session="s", X_Forwarded_Prefix="/apps/x"
    )
    assert status == 200
    assert "Location" not in headers
    assert "http" not in json.dumps(document)


async def test_ended_jobs_are_forgotten_oldest_first(sentence: NDArray[np.float32]) -> None:
    async with open_door(max_ended_jobs=2) as door:
        for job in ("a", "b", "c"):
            await door.put(job, pcm(sentence[:8000]))
            await door.until_ended(job)
        assert [door.service.jobs.find(direct(job)) is None for job in ("a", "b", "c")] == [
            True, False, False,
        ]  # fmt: skip


async def test_the_state_of_a_job_can_be_asked(door: Door, sentence: NDArray[np.float32]) -> None:
    await door.put("j", pcm(sentence), "?final=false")
    _, document, _ = await door.ask("GET", "/live/j")
    assert document["state"] == "receiving"
    assert document["audio_seconds"] == pytest.approx(len(sentence) / 16_000, abs=0.001)
    assert document["lag_seconds"] > 0
    assert document["reason"] is None


@pytest.mark.parametrize("method", ["PATCH", "OPTIONS"])
async def test_a_method_that_is_not_served_is_answered_in_our_shape(
    door: Door, method: str
) -> None:
    status, document, _ = await door.ask(method, "/live/j/source")
    assert status in (400, 405)
    assert "message" in document["error"]


async def control(door: Door, job: str, message: Any) -> tuple[int, Any]:
    body = message if isinstance(message, str) else json.dumps(message)
    status, document, _ = await door.ask("POST", f"/live/{job}/control", body.encode())
    return status, document


class Microphone:
    """A body that goes on until it is told to end."""

    def __init__(self, audio: NDArray[np.float32]) -> None:
        self._audio = audio
        self._end = asyncio.Event()

    async def body(self) -> AsyncIterator[bytes]:
        yield pcm(self._audio)
        await self._end.wait()
        yield pcm(self._audio)

    def end(self) -> None:
        self._end.set()


async def test_finalize_makes_final_what_was_said_and_the_stream_goes_on(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    speech = sentence[:16_000]
    microphone = Microphone(speech)
    async with asyncio.TaskGroup() as group:
        source = group.create_task(door.put("j", microphone.body()))
        await door.first_event("j")
        status, document = await control(door, "j", {"type": "finalize"})
        microphone.end()
    assert (status, document["state"]) == (200, "receiving")
    assert document["words"] > 0
    assert document["lag_seconds"] == 0
    assert source.result()[0] == 200
    types = [it["type"] for it in await door.events("j") if it["type"] != "partial"]
    assert types.count("endpoint") >= 2
    assert types[-2:] == ["endpoint", "end"]


async def test_finalize_in_silence_answers_at_once(door: Door) -> None:
    await door.put("j", bytes(32_000), "?final=false")
    assert (await control(door, "j", {"type": "finalize"}))[0] == 200
    await door.put("j", b"", "?final=true")
    assert [event["type"] for event in await door.events("j")] == ["end"]


async def test_close_flushes_and_ends(door: Door, sentence: NDArray[np.float32]) -> None:
    await door.put("j", pcm(sentence), "?final=false")
    status, document = await control(door, "j", {"type": "close"})
    assert (status, document["state"], document["reason"]) == (200, "ended", "stopped")
    assert document["words"] > 0
    for kind in ("finalize", "keepalive", "options"):
        assert (await control(door, "j", {"type": kind}))[0] == 409


async def test_keepalive_puts_off_the_idle_limit(sentence: NDArray[np.float32]) -> None:
    async with open_door(idle_seconds=0.5) as door:
        await door.put("j", pcm(sentence), "?final=false")
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 1.2:
            assert (await control(door, "j", {"type": "keepalive"}))[0] == 200
        assert (await door.events("j"))[-1]["reason"] == "idle"


async def test_options_of_a_job_begin_and_change_it(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    start = {"keyterms": ["Livepeer"], "mode": "finals_only", "words": False}
    status, document = await control(door, "j", {"type": "start", "options": start})
    assert (status, document["options"]["keyterms"]) == (200, ["Livepeer"])
    assert (await control(door, "j", {"type": "start"}))[0] == 409
    await door.put("j", pcm(sentence), "?final=false&endpoint_silence=0.4")
    await control(door, "j", {"type": "finalize"})
    assert door.model.requests[-1].prompt == "Livepeer."
    change = {"prompt": "Hello.", "keyterms": []}
    _, document = await control(door, "j", {"type": "options", "options": change})
    assert document["options"]["endpoint_silence"] == 0.4
    await door.put("j", pcm(sentence))
    events = await door.events("j")
    assert door.model.requests[-1].prompt == "Hello."
    assert {it["type"] for it in events} == {"final", "endpoint", "end"}
    assert not any("words" in event for event in events)


@pytest.mark.parametrize(
    ("message", "status", "expected"),
    [
        ("finalize", 400, "control message is 'finalize', expected a JSON object"),
        ("[]", 400, "expected a JSON object"),
        ("[" * 60_000, 400, "expected a JSON object"),
        ("x" * 70_000, 400, "expected at most 65536 bytes"),
        ({}, 400, "type is 'None', expected one of start, options, finalize"),
        ({"type": "stop"}, 400, "type is 'stop', expected one of"),
        ({"type": "finalize", "now": 1}, 400, "control message is 'now', expected no more"),
        ({"type": "options", "options": 1}, 400, "options is '1', expected a JSON object"),
        ({"type": "start", "options": {"mode": "fast"}}, 400, "mode is 'fast', expected"),
        ({"type": "start", "options": {"language": "de"}}, 400, "language is 'de', expected"),
        ({"type": "finalize"}, 404, "expected"),
    ],
)
async def test_a_bad_control_message_is_named(
    door: Door, message: Any, status: int, expected: str
) -> None:
    found, document = await control(door, "j", message)
    assert found == status
    assert expected in document["error"]["message"]
    assert door.service.jobs.num_running == 0


async def test_lag_and_dropped_partials_can_be_seen(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    door.model.answer = lambda request: spoken(f"answer{len(door.model.requests)}")
    # One second in all, which is live however fast it comes.
    pieces = np.split(sentence[:16_000], [10_000])
    for number, piece in enumerate(pieces, start=1):
        await door.put("j", pcm(piece), "?final=false&partial_interval=0.1")
        log = door.service.jobs.get(direct("j")).log
        while log.next_seq < number:
            await log.wait()
    await control(door, "j", {"type": "finalize"})
    document = (await door.ask("GET", "/live/j"))[1]
    assert document["final_lag_seconds"] >= 0
    assert document["partials"] >= 1
    _, metrics, _ = await door.ask("GET", "/metrics")
    dropped = float(metrics.split("\nwhisper_partials_dropped_total ")[1].split()[0])
    assert dropped == document["partials_dropped"] > 0
    assert "whisper_final_lag_seconds_bucket" in metrics


async def test_finalize_counts_what_is_still_on_its_way(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    """All that a body brought before, also while the decoder is busy with its beginning."""
    microphone = Microphone(sentence[:16_000])
    door.model.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(door.put("j", microphone.body()))
        await asyncio.to_thread(door.model.asked.wait, TIMEOUT)
        finalizing = group.create_task(control(door, "j", {"type": "finalize"}))
        door.model.gate.set()
        status, document = await finalizing
        microphone.end()
    assert status == 200
    assert document["lag_seconds"] == 0
    assert document["words"] >= 1
