"""The clients, against the real service and against servers that do what real ones may do."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import Any

import pytest
from aiohttp.http_websocket import WS_KEY

from tests.client.conftest import Send, ignore, never_read, pieces, refusal, silent_behind
from tests.conftest import MODELS, Speak, direct, pcm, serve_app
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.client import ClientError, LiveClient
from whisper_byoc.errors import DecodeError, ProcessorError
from whisper_byoc.settings import JobSettings, ModelSettings, Settings
from whisper_byoc.transcript import EndReason, Format

pytestmark = pytest.mark.anyio
TIMEOUT = 60
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
PAGE = b"<!DOCTYPE html>" + b"x" * 1000


@asynccontextmanager
async def serve(model: ScriptedModel | None = None, max_jobs: int = 64) -> AsyncIterator[Any]:
    settings = Settings(model=ModelSettings(directory=MODELS), jobs=JobSettings(max_jobs=max_jobs))
    engine = scripted_engine(model or ScriptedModel())
    async with asyncio.timeout(TIMEOUT), serve_app(engine, settings) as (url, service):
        yield url, service


@asynccontextmanager
async def answering(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The URL of a server that does no more than `answer`."""
    async with asyncio.timeout(TIMEOUT), await asyncio.start_server(answer, "127.0.0.1", 0) as it:
        yield f"http://127.0.0.1:{it.sockets[0].getsockname()[1]}"


async def broken(error: Exception) -> AsyncIterator[bytes]:
    yield b"\0" * 3200
    raise error


async def test_a_client_reads_any_number_of_outputs_at_once() -> None:
    """Of 150 readers none is answered before all have asked."""
    readers = 150
    everyone = asyncio.Barrier(readers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await everyone.wait()
        writer.write(EMPTY)
        await writer.drain()
        writer.close()

    async def read(client: LiveClient, number: int) -> list[str]:
        return [text async for text in client.output(f"job-{number}")]

    async with answering(answer) as url, LiveClient(url) as client:
        outputs = await asyncio.gather(*(read(client, number) for number in range(readers)))
    assert outputs == [[] for _ in range(readers)]


async def test_both_ways_give_the_text_and_say_how_it_ended(speak: Speak) -> None:
    audio = pcm(speak("Please keep your ticket."))
    by_put: list[str] = []
    by_socket: list[str] = []
    async with serve() as (url, _), LiveClient(url) as client:
        answer = await client.transcribe("a", pieces(audio), by_put.append, output=Format.TEXT)
        end = await client.converse(pieces(audio), by_socket.append, output=Format.TEXT)
    assert "".join(by_socket) == "".join(by_put) != ""
    assert answer["bytes"] == len(audio)
    assert end.reason is EndReason.EOF
    assert end.audio_seconds == pytest.approx(len(audio) / 32_000, abs=0.001)


@pytest.mark.parametrize("words", ["true", "false"])
@pytest.mark.parametrize("output", Format)
async def test_a_socket_gives_every_format_as_the_live_door_does(
    speak: Speak, output: Format, words: str
) -> None:
    """Later readers see fewer partials, so there are none."""
    audio = pcm(speak("There is a small garden behind the old house."))
    said: list[str] = []
    async with serve() as (url, _), LiveClient(url) as client:
        options: dict[str, Any] = {"job": "a", "mode": "finals_only", "words": words}
        await client.converse(pieces(audio), said.append, output=output, **options)
        read = [text async for text in client.output("a", output)]
    assert "".join(said) == "".join(read) != ""


async def test_options_are_texts_as_in_a_query(send: Send, speak: Speak) -> None:
    options: dict[str, Any] = {
        "language": "auto",
        "keyterms": "Livepeer, BYOC",
        "words": "false",
        "endpoint_silence": "0.3",
        "max_utterance": "9",
    }
    async with serve() as (url, service), LiveClient(url) as client:
        audio = pieces(pcm(speak("Good morning.")))
        await client.transcribe("a", audio, ignore, **options)
        audio = pieces(pcm(speak("Good morning.")))
        await client.converse(audio, ignore, job="b", **options)
        taken = [service.jobs.get(direct(job_id)).options for job_id in "ab"]
    assert taken[0] == taken[1]
    assert taken[0].model_dump(exclude_unset=True) == {
        "language": None,
        "keyterms": ("Livepeer", "BYOC"),
        "words": False,
        "endpoint_silence": 0.3,
        "max_utterance": 9.0,
    }


@pytest.mark.parametrize(
    ("problem", "text"),
    [("full", "1 jobs are running"), ("option", "mode is 'fast', expected")],
)
async def test_a_job_that_cannot_be_had_is_refused_before_audio_is_read(
    problem: str, text: str
) -> None:
    options: dict[str, Any] = {"mode": "fast"} if problem == "option" else {}
    async with serve(max_jobs=1) as (url, service), LiveClient(url) as client:
        if problem == "full":
            await client.start("first")
        with pytest.raises(ClientError, match=text) as refused:
            await client.transcribe("second", never_read(), ignore, **options)
        assert refused.value.status == (503 if problem == "full" else 400)
        code = 1013 if problem == "full" else 1008
        with pytest.raises(ClientError, match=f"closed with {code} .*{text}"):
            await client.converse(silent_behind(), ignore, **options)
        assert service.jobs.find(direct("second")) is None


async def test_an_id_that_is_taken_is_refused_and_its_job_goes_on() -> None:
    async with serve() as (url, service), LiveClient(url) as client:
        await client.start("job")
        with pytest.raises(ClientError, match="job job exists") as refused:
            await client.transcribe("job", never_read(), ignore)
        assert refused.value.status == 409
        assert service.jobs.num_running == 1


async def test_a_job_that_fails_ends_a_stream_that_has_fallen_silent(send: Send) -> None:
    async with serve() as (url, service), LiveClient(url) as client:
        with pytest.raises(ClientError, match=r"audio is .*, expected"):
            await send(client, silent_behind(PAGE), ignore)
        assert service.jobs.num_running == 0


async def test_a_failed_decode_is_told(speak: Speak) -> None:
    model = ScriptedModel(lambda request: DecodeError("no luck"))
    audio = pcm(speak("Good morning."))
    async with serve(model) as (url, _), LiveClient(url) as client:
        with pytest.raises(ClientError, match="decoding failed: no luck"):
            await client.converse(pieces(audio), ignore)


async def test_a_job_that_others_end_is_no_success(send: Send, speak: Speak) -> None:
    heard = asyncio.Event()
    audio = pcm(speak("Good morning. " * 3)) + b"\0" * 96_000
    async with serve() as (url, _), LiveClient(url) as client, asyncio.TaskGroup() as group:
        sending = group.create_task(
            refusal(send(client, silent_behind(audio), lambda text: heard.set()))
        )
        await heard.wait()
        await client.delete("job")
    assert "took a part of its audio" in str(sending.result())


async def test_no_audio_is_an_error_and_leaves_no_job(send: Send) -> None:
    async with serve() as (url, service), LiveClient(url) as client:
        with pytest.raises(ClientError, match="0 bytes"):
            await send(client, pieces(), ignore)
        assert service.jobs.num_running == 0


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(5, "no disk"), "the audio broke off: .*no disk"),
        (ProcessorError("mixer", "no cable"), "^processor mixer: no cable$"),
    ],
    ids=["another's error", "a ServiceError"],
)
async def test_audio_that_breaks_off_is_told_and_leaves_no_job(
    send: Send, error: Exception, text: str
) -> None:
    async with serve() as (url, service), LiveClient(url) as client:
        expected = type(error) if isinstance(error, ProcessorError) else ClientError
        with pytest.raises(expected, match=text):
            await send(client, broken(error), ignore)
        await asyncio.wait_for(ended(service), TIMEOUT)


async def ended(service: Any) -> None:
    job = service.jobs.find(direct("job"))
    if job is not None:
        await job.until_ended()


async def test_a_stream_that_is_cancelled_leaves_no_job(send: Send) -> None:
    taken = asyncio.Event()

    async def audio() -> AsyncIterator[bytes]:
        yield b"\0" * 3200
        taken.set()
        await asyncio.Event().wait()

    async with serve() as (url, service), LiveClient(url) as client:
        sending = asyncio.create_task(send(client, audio(), ignore))
        await taken.wait()
        sending.cancel()
        await asyncio.wait({sending})
        assert sending.cancelled()
        await asyncio.wait_for(ended(service), TIMEOUT)


async def test_an_output_that_breaks_off_is_told() -> None:
    """The job starts, its output is cut in the middle, and the upload is never answered."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        elif head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        else:
            await reader.read()
        await writer.drain()
        writer.close()

    async with answering(answer) as url, LiveClient(url + "/secret") as client:
        with pytest.raises(ClientError, match=f"GET {url}/…/live/job/output: ") as error:
            await client.transcribe("job", silent_behind(b"\0" * 3200), ignore)
    assert "secret" not in str(error.value)


async def test_a_socket_that_breaks_off_is_told() -> None:
    """No close frame: 1006."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        await reader.read(100)
        writer.transport.abort()

    async with answering(answer) as url, LiveClient(url) as client:
        with pytest.raises(ClientError, match="closed with 1006"):
            await client.converse(silent_behind(b"\0" * 3200), ignore)


async def test_frames_that_are_no_events_are_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(b"\x81\x05hello")
        await reader.read()
        writer.close()

    async with answering(answer) as url, LiveClient(url) as client:
        with pytest.raises(ClientError, match="answered 'hello', expected an event"):
            await client.converse(silent_behind(b"\0" * 3200), ignore)


async def shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = (line.partition(": ") for line in head.splitlines())
    key = next(value for name, _, value in lines if name.lower() == "sec-websocket-key")
    accept = b64encode(sha1(key.encode() + WS_KEY).digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("application/json", '{"error": {"code": "a", "message": "ours"}}', "ours"),
        ("application/json", '{"error": "node\'s"}', "node's"),
        ("text/plain; charset=utf-8", "go-livepeer's\n", "go-livepeer's"),
        ("text/html", "<html>a proxy's</html>", "the server answered Not Found"),
        ("application/json", "[]", "the server answered Not Found"),
    ],
)
async def test_errors_are_read_in_every_dialect(kind: str, body: str, text: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 404 Not Found\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with answering(answer) as url, LiveClient(url) as client:
        with pytest.raises(ClientError) as error:
            await client.delete("a")
    assert (error.value.message, error.value.status) == (text, 404)


async def test_an_answer_that_is_no_json_is_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with answering(answer) as url, LiveClient(url) as client:
        with pytest.raises(ClientError, match="answered b'hi', expected JSON"):
            await client.start("a")
