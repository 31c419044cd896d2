"""Door 4 over a real WebSocket, with real voice activity and scripted words."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from tests.conftest import MODELS, direct, pcm, serve_app, wav
from tests.doors.test_batch import Shouting, serve_processor
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.app import build_app
from whisper_byoc.cli import Server
from whisper_byoc.errors import DecodeError
from whisper_byoc.jobs.job import JobState
from whisper_byoc.service import Service
from whisper_byoc.settings import JobSettings, ModelSettings, Settings
from whisper_byoc.transcript import EndReason

pytestmark = pytest.mark.anyio
TIMEOUT = 60
SECOND = 32_000
"""Bytes of raw audio."""


class Line:
    """A client's end of one WebSocket."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket

    async def send(self, *messages: bytes | str | dict[str, Any]) -> None:
        for message in messages:
            if isinstance(message, bytes):
                await self._websocket.send_bytes(message)
            else:
                text = message if isinstance(message, str) else json.dumps(message)
                await self._websocket.send_str(text)

    async def next(self, kind: str | None = None) -> dict[str, Any]:
        """The next document, or the next of a kind."""
        while True:
            document: dict[str, Any] = json.loads(await self._websocket.receive_str())
            if kind is None or document["type"] == kind:
                return document

    async def rest(self) -> list[dict[str, Any]]:
        """All documents until the other end closes."""
        documents = []
        async for message in self._websocket:
            assert message.type is aiohttp.WSMsgType.TEXT
            documents.append(json.loads(message.data))
        return documents

    async def bytes(self) -> bytes:
        return await self._websocket.receive_bytes()

    async def closed(self) -> tuple[int, str]:
        """Code and reason of what has to be a close frame."""
        message = await self._websocket.receive()
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return message.data, message.extra or ""

    def vanish(self) -> None:
        """Without a word: the other end sees a reset connection."""
        connection = self._websocket._writer.transport  # aiohttp offers no way to be rude
        assert connection is not None
        connection.abort()

    @property
    def code(self) -> int | None:
        return self._websocket.close_code


class Door:
    def __init__(self, url: str, service: Service, model: ScriptedModel) -> None:
        self.url, self.service, self.model = url, service, model
        self.session = aiohttp.ClientSession()

    @asynccontextmanager
    async def line(self, query: str = "", **headers: str) -> AsyncIterator[Line]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        address = f"{self.url}/transcribe{query}"
        async with self.session.ws_connect(address, headers=named) as websocket:
            yield Line(websocket)

    async def get(self, path: str) -> str:
        async with self.session.get(self.url + path) as answer:
            return await answer.text()

    async def events(self, job: str) -> list[dict[str, Any]]:
        text = await self.get(f"/live/{job}/output?format=ndjson")
        return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def open_door(model: ScriptedModel | None = None, **jobs: Any) -> AsyncIterator[Door]:
    model = model or ScriptedModel()
    settings = Settings(model=ModelSettings(directory=MODELS), jobs=JobSettings(**jobs))
    async with (
        asyncio.timeout(TIMEOUT),
        serve_app(scripted_engine(model), settings) as (url, service),
    ):
        door = Door(url, service, model)
        try:
            yield door
        finally:
            model.gate.set()
            await door.session.close()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with open_door() as opened:
        yield opened


def silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(round(seconds * 16_000), dtype=np.float32)


def frames(audio: bytes, size: int = 3200) -> list[bytes]:
    return [audio[start : start + size] for start in range(0, len(audio), size)]


async def test_case_117_audio_in_partials_and_a_final_out(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    audio = pcm(sentence)
    async with door.line() as line:
        await line.send(*frames(audio[:SECOND]))
        partial = await line.next()
        assert (partial["type"], partial["final"], partial["text"]) == ("partial", False, "w0")
        await line.send(*frames(audio[SECOND:]), "eos")
        events = await line.rest()
        assert line.code == 1000
    finals = [event for event in events if event["final"]]
    assert [event["type"] for event in finals] == ["final"]
    assert finals[0]["text"].startswith("w0 w1")
    assert 0 <= finals[0]["start"] < finals[0]["end"] <= len(sentence) / 16_000 + 0.1
    assert finals[0]["words"][0]["word"] == "w0"
    assert [event["type"] for event in events[-2:]] == ["endpoint", "end"]
    assert events[-1]["reason"] == "eof"
    assert all({"text", "final", "start", "end", "seq"} <= set(event) for event in events)
    assert door.service.jobs.num_running == 0


@pytest.mark.model
async def test_case_117_real_words(sentence: NDArray[np.float32]) -> None:
    async with asyncio.timeout(400), serve_app() as (url, service):
        door = Door(url, service, ScriptedModel())
        try:
            async with door.line("?endpoint_silence=0.5") as line:
                audio = pcm(np.concatenate([sentence, silence(1), sentence]))
                await line.send(*frames(audio), "eos")
                events = await line.rest()
        finally:
            await door.session.close()
    texts = [event["text"].lower() for event in events if event["final"]]
    assert " ".join(texts).count("train to the harbor") == 2


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("eos", "eof"),
        (" EOS\n", "eof"),
        ({"type": "eos"}, "eof"),
        ({"type": "close"}, "stopped"),
    ],
)
async def test_what_ends_a_stream_flushes_it(
    door: Door, sentence: NDArray[np.float32], message: Any, reason: str
) -> None:
    async with door.line() as line:
        await line.send(pcm(sentence), message)
        events = await line.rest()
        assert line.code == 1000
    assert events[-1]["reason"] == reason
    assert any(event["final"] for event in events)


async def test_a_container_is_found_out(door: Door, sentence: NDArray[np.float32]) -> None:
    async with door.line("?words=false") as line:
        await line.send(*frames(wav(pcm(sentence)), 1001), {"type": "finalize"}, "eos")
        events = await line.rest()
    assert events[-1]["audio_seconds"] == pytest.approx(len(sentence) / 16_000, abs=0.05)
    assert not any("words" in event for event in events)


async def test_finalize_makes_final_all_that_was_sent_before(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    """Also the last frame, which the job may not have looked at yet; and half a sample waits for
    its other half."""
    audio = pcm(sentence)
    rest = bytes(SECOND - 1)
    async with door.line("?endpoint_silence=5") as line:
        for _ in range(2):
            door.model.requests.clear()
            await line.send(audio + b"\0", {"type": "finalize"})
            assert (await line.next("final"))["text"].startswith("w0 w1")
            await line.next("endpoint")
            heard = [(it.samples * 32768).astype("<i2").tobytes() for it in door.model.requests]
            assert any(audio[SECOND : 2 * SECOND] in samples for samples in heard)
            await line.send(rest)
        await line.send("eos")
        events = await line.rest()
    assert [event["type"] for event in events] == ["end"]
    assert events[-1]["audio_seconds"] == pytest.approx(2 * (len(audio) / SECOND + 1), abs=0.04)


async def test_finalize_before_the_audio_does_not_decide_what_it_is(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    async with door.line() as line:
        await line.send({"type": "finalize"}, wav(pcm(sentence)), "eos")
        events = await line.rest()
    assert events[-1]["audio_seconds"] == pytest.approx(len(sentence) / 16_000, abs=0.05)


async def test_options_come_in_the_query_and_change(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    change = {"type": "options", "options": {"prompt": "Other.", "keyterms": []}}
    async with door.line("?prompt=Hello.&keyterms=Livepeer&temperature=1") as line:
        await line.send(pcm(sentence), {"type": "finalize"})
        await line.next("endpoint")
        assert door.model.requests[-1].prompt == "Hello. Livepeer."
        await line.send(change, pcm(sentence), {"type": "keepalive"}, "eos")
        await line.rest()
    assert door.model.requests[-1].prompt == "Other."


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("finalise", "expected a JSON object"),
        ("", "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ("[" * 60_000, "expected a JSON object"),
        ("x" * 70_000, "expected at most 65536"),
        ({"type": "stop"}, "type is 'stop', expected one of"),
        ({"type": "finalize", "now": 1}, "expected no more"),
        ({"type": "options", "options": {"mode": "fast"}}, "mode is 'fast', expected"),
        ({"type": "options", "options": {"language": "de"}}, "language is 'de', expected"),
    ],
)
async def test_a_bad_control_message_is_told_and_the_stream_goes_on(
    door: Door, sentence: NDArray[np.float32], message: Any, expected: str
) -> None:
    async with door.line() as line:
        await line.send(message)
        refused = await line.next()
        assert refused["type"] == "refused"
        assert expected in refused["message"]
        assert (refused["text"], refused["final"]) == ("", False)
        await line.send(pcm(sentence), "eos")
        events = await line.rest()
    assert any(event["final"] for event in events)
    assert events[-1]["reason"] == "eof"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?mode=fast", "mode is 'fast', expected"),
        ("?language=de", "language is 'de', expected"),
        ("?job=a%2Fb", "job id is 'a/b'"),
        ("?language=klingon", "language is"),
        ("?language=" + "%C3%9F" * 100, "language is"),
    ],
)
async def test_a_bad_query_closes_with_its_reason(door: Door, query: str, expected: str) -> None:
    async with door.line(query) as line:
        code, reason = await line.closed()
    assert (code, expected in reason) == (1008, True)
    assert len(reason.encode()) <= 123
    assert door.service.jobs.num_running == 0


async def test_another_model_is_refused(door: Door) -> None:
    async with door.line(X_Model_Id="whisper-large") as line:
        code, reason = await line.closed()
    assert (code, "expected one that is served: scripted" in reason) == (1008, True)


async def test_one_stream_too_many_is_told_to_try_later(sentence: NDArray[np.float32]) -> None:
    async with open_door(max_jobs=1) as door, door.line() as first:
        await first.send({"type": "nothing"})
        await first.next("refused")
        async with door.line() as second:
            code, reason = await second.closed()
        assert (code, "1 jobs are running" in reason) == (1013, True)
        await first.send(pcm(sentence), "eos")
        assert (await first.rest())[-1]["reason"] == "eof"


class Loading:
    """A processor that is not ready until it is told."""

    def __init__(self) -> None:
        self.loaded = asyncio.Event()

    async def initialize(self) -> None:
        await self.loaded.wait()

    async def process(self, data: bytes) -> bytes:
        return data[::-1]

    async def shutdown(self) -> None: ...


async def test_while_models_load_clients_are_told_to_try_later() -> None:
    processor = Loading()
    service = Service(Settings(), processor=processor)
    server = Server(uvicorn.Config(build_app(service), log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve([listener]))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            door = Door(url, service, ScriptedModel())
            async with door.line() as line:
                code, reason = await line.closed()
            assert (code, "still loading" in reason) == (1013, True)
            processor.loaded.set()
            await service.settled()
            await door.session.close()
            await service.drain()
            server.stop()
            await serving


async def test_a_client_that_vanishes_leaves_its_words(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    async with door.line("?job=j") as line:
        await line.send(pcm(sentence[:16_000]))
        await line.next("partial")
        line.vanish()
        events = await door.events("j")
    assert events[-1]["reason"] == "disconnected"
    assert "final" in [event["type"] for event in events]
    await door.service.jobs.get(direct("j")).stop(EndReason.STOPPED)
    assert door.service.jobs.num_running == 0


async def test_a_client_that_vanishes_while_its_words_are_made_leaves_them_too(
    sentence: NDArray[np.float32],
) -> None:
    model = ScriptedModel()
    model.gate.clear()
    async with open_door(model) as door:
        async with door.line("?job=j") as line:
            await line.send(pcm(sentence), "eos")
            assert await asyncio.to_thread(model.asked.wait, TIMEOUT)
            line.vanish()
        model.gate.set()
        events = await door.events("j")
    assert events[-1]["reason"] == "eof"
    assert "final" in [event["type"] for event in events]


async def test_the_transcript_is_read_at_the_live_door_too(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    async with door.line("?job=j") as line:
        await line.send(pcm(sentence))
        await line.send("eos")
        events = await line.rest()
    text = "".join(event["text"] for event in events if event["final"])
    assert await door.get("/live/j/output") == text + "\n"
    async with door.line("?job=j") as line:
        code, reason = await line.closed()
    assert (code, "job j has ended" in reason) == (1008, True)


async def test_two_sources_of_one_job_are_refused(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    async with door.line("?job=j") as first:
        await first.send(pcm(sentence[:16_000]))
        await first.next("partial")
        async with door.line("?job=j") as second:
            code, reason = await second.closed()
        assert (code, "receiving another body" in reason) == (1008, True)
        await first.send("eos")
        assert (await first.rest())[-1]["reason"] == "eof"


async def test_a_job_that_is_stopped_elsewhere_is_closed_here(
    door: Door, sentence: NDArray[np.float32]
) -> None:
    async with door.line("?job=j") as line:
        await line.send(pcm(sentence[:16_000]))
        await line.next("partial")
        async with door.session.delete(door.url + "/live/j") as answer:
            assert answer.status == 200
        events = await line.rest()
        assert line.code == 1000
    assert events[-1]["reason"] == "stopped"
    assert any(event["final"] for event in events)


async def test_a_shutdown_flushes_and_says_so(door: Door, sentence: NDArray[np.float32]) -> None:
    async with door.line() as line:
        await line.send(pcm(sentence[:16_000]))
        await line.next("partial")
        await door.service.drain()
        events = await line.rest()
    assert events[-1]["reason"] == "shutdown"
    assert any(event["final"] for event in events)


async def test_a_silent_client_is_let_go() -> None:
    async with open_door(idle_seconds=0.2) as door, door.line() as line:
        assert (await line.next())["reason"] == "idle"
        assert (await line.closed())[0] == 1000


async def test_what_is_not_audio_closes_with_an_error(door: Door) -> None:
    async with door.line() as line:
        await line.send(b"<!DOCTYPE html><html>" + b"x" * 600, "eos")
        error, end = await line.rest()
        assert line.code == 1008
    assert (error["type"], error["code"]) == ("error", "unsupported_audio")
    assert end["reason"] == "error"


async def test_a_failed_decode_closes_with_an_error(sentence: NDArray[np.float32]) -> None:
    async with open_door(ScriptedModel(lambda _: DecodeError("no memory"))) as door:
        async with door.line() as line:
            await line.send(pcm(sentence), "eos")
            error, end = await line.rest()
            assert line.code == 1011
        assert (error["code"], end["reason"]) == ("decode_failed", "error")


async def test_a_sender_that_is_too_fast_waits(sentence: NDArray[np.float32]) -> None:
    """The job takes its 30 s window and four utterances, whatever is offered."""
    model = ScriptedModel()
    model.gate.clear()
    offered = pcm(np.concatenate([sentence] * 400))
    async with open_door(model) as door, door.line("?job=j") as line:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(line.send(*frames(offered, SECOND)))
            assert await asyncio.to_thread(model.asked.wait, TIMEOUT)
            for _ in range(100):
                await door.get("/health")
            taken = door.service.jobs.get(direct("j")).num_bytes
            assert taken < 200 * SECOND < len(offered)
            assert not sending.done()
            line.vanish()
            sending.cancel()
        model.gate.set()
        await door.service.jobs.get(direct("j")).stop(EndReason.STOPPED)
        assert door.service.jobs.get(direct("j")).state is JobState.ENDED


async def test_a_processor_gets_every_frame_and_gives_one() -> None:
    processor = Loading()
    processor.loaded.set()
    async with serve_processor(processor, Settings()) as client:
        door = Door(client.url, client.service, ScriptedModel())
        async with door.line() as line:
            for data in (b"abc", b"\1\2", b"RIFF...."):
                await line.send(data)
                assert await line.bytes() == data[::-1]
            await line.send("eos")
            assert (await line.rest())[-1]["reason"] == "eof"
        await door.session.close()


async def test_a_frame_that_a_processor_fails_on_is_told_and_the_stream_goes_on() -> None:
    async with serve_processor(Shouting(), Settings()) as client:
        door = Door(client.url, client.service, ScriptedModel())
        async with door.line() as line:
            await line.send(b"fail")
            refused = await line.next("refused")
            assert (refused["code"], "ValueError: no" in refused["message"]) == (
                "processor_failed",
                True,
            )
            await line.send(b"abc")
            assert await line.bytes() == b"ABC"
            await line.send("eos")
            assert (await line.rest())[-1]["reason"] == "eof"
        await door.session.close()
