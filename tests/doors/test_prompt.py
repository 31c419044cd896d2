"""Answers that begin in time, between a scripted server and scripted handlers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_byoc.doors.prompt import READ_AHEAD_BYTES, PromptAnswers, promise

pytestmark = pytest.mark.anyio
TIMEOUT = 30.0
SECONDS = 0.05
HEAD = {"Content-Type": "text/plain", "X-Model-Id": "m"}
GONE: Message = {"type": "http.disconnect"}

Handler = Callable[[Request], Awaitable[Response]]


def part(body: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


class Server:
    """What an ASGI server is to one request: `bring` messages, and wait for what is `sent`."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self._changed = asyncio.Event()
        self.num_received = 0
        self.sent: list[Message] = []

    def bring(self, *messages: Message) -> None:
        self._messages += messages
        self._notify()

    async def until_sent(self, count: int) -> None:
        while len(self.sent) < count:
            await self._changed.wait()

    async def until_received(self, count: int) -> None:
        while self.num_received < count:
            await self._changed.wait()

    async def receive(self) -> Message:
        while not self._messages:
            await self._changed.wait()
        self.num_received += 1
        self._notify()
        return self._messages.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self._notify()

    async def answer(self, handler: Handler, seconds: float = SECONDS) -> None:
        """Have a handler answer, as Starlette does."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await handler(Request(scope, receive))
            await response(scope, receive, send)

        await self.run(app, seconds)

    async def run(self, app: ASGIApp, seconds: float = SECONDS) -> None:
        scope: dict[str, Any] = {"type": "http", "method": "POST", "headers": []}
        async with asyncio.timeout(TIMEOUT):
            await PromptAnswers(app, seconds)(scope, self.receive, self.send)

    @property
    def statuses(self) -> list[int]:
        return [it["status"] for it in self.sent if it["type"] == "http.response.start"]

    @property
    def body(self) -> bytes:
        return b"".join(it.get("body", b"") for it in self.sent)

    @property
    def complete(self) -> bool:
        return not self.sent[-1].get("more_body", False)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def slow(
    response: Response, until: asyncio.Event, promised: dict[str, str] | None = HEAD
) -> Handler:
    """Reads its body, and answers when it is told to."""

    async def handler(request: Request) -> Response:
        if promised is not None:
            promise(request, promised)
        await request.body()
        await until.wait()
        return response

    return handler


async def test_a_promised_head_is_sent_when_the_time_is_over() -> None:
    server, told = Server(part(b"abc")), asyncio.Event()
    answering = asyncio.ensure_future(server.answer(slow(Response("words"), told)))
    async with asyncio.timeout(TIMEOUT):
        await server.until_sent(1)
    assert server.statuses == [200]
    assert (b"x-model-id", b"m") in server.sent[0]["headers"]
    told.set()
    await answering
    assert (server.statuses, server.body, server.complete) == ([200], b"words", True)


async def test_an_answer_in_time_has_its_own_head() -> None:
    server, told = Server(part(b"abc")), asyncio.Event()
    told.set()
    await server.answer(slow(JSONResponse({"error": 1}, 404), told), seconds=TIMEOUT)
    assert (server.statuses, server.body, server.complete) == ([404], b'{"error":1}', True)


async def test_an_error_behind_the_promised_head_is_broken_off() -> None:
    server, told = Server(part(b"abc")), asyncio.Event()
    answering = asyncio.ensure_future(server.answer(slow(JSONResponse({"error": 1}, 503), told)))
    async with asyncio.timeout(TIMEOUT):
        await server.until_sent(1)
    told.set()
    await answering
    assert (server.statuses, server.body, server.complete) == ([200], b'{"error":1}', False)


async def test_no_answer_begins_within_a_body() -> None:
    server, told = Server(part(b"a", more=True)), asyncio.Event()
    answering = asyncio.ensure_future(server.answer(slow(Response("words"), told)))
    await asyncio.wait({answering}, timeout=4 * SECONDS)
    assert server.sent == []
    server.bring(part(b"b", more=True), part())
    async with asyncio.timeout(TIMEOUT):
        await server.until_sent(1)
    told.set()
    await answering


async def test_nothing_begins_that_was_not_promised() -> None:
    server, told = Server(part(b"abc")), asyncio.Event()
    answering = asyncio.ensure_future(server.answer(slow(Response("words"), told, None)))
    await asyncio.wait({answering}, timeout=4 * SECONDS)
    assert server.sent == []
    told.set()
    await answering
    assert server.statuses == [200]


async def test_the_end_of_a_body_is_seen_though_nobody_takes_it() -> None:
    server = Server(*[part(bytes(65536), more=True)] * 64, part())
    taken: list[bytes] = []

    async def handler(request: Request) -> Response:
        promise(request, HEAD)
        await server.until_sent(1)
        taken.append(await request.body())
        return Response("words")

    await server.answer(handler)
    assert taken == [bytes(64 * 65536)]
    assert (server.body, server.complete) == (b"words", True)


async def test_what_is_read_ahead_is_bounded() -> None:
    num_parts = 2 * READ_AHEAD_BYTES // 65536
    server = Server(*[part(bytes(65536), more=True)] * num_parts, part())

    async def handler(request: Request) -> Response:
        promise(request, HEAD)
        await server.until_received(num_parts // 2)
        for _ in range(100):
            await asyncio.sleep(0)
        assert server.num_received == num_parts // 2
        return Response(str(len(await request.body())))

    await server.answer(handler)
    assert server.body == str(2 * READ_AHEAD_BYTES).encode()


async def test_a_request_can_be_refused_without_a_byte_of_its_body() -> None:
    server = Server(part(b"abc"))

    async def handler(request: Request) -> Response:
        return Response(status_code=503)

    await server.answer(handler)
    assert (server.statuses, server.num_received) == ([503], 0)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([part(b"ab"), GONE], [b"ab", b"", GONE, GONE]),
        ([part(b"a", more=True), GONE], [b"a", GONE, GONE]),
        ([part(), GONE], [b"", GONE, GONE]),
    ],
    ids=["behind its body", "within it", "without one"],
)
async def test_a_client_that_goes_is_told_of_behind_what_it_sent(
    messages: list[Message], expected: list[bytes | Message]
) -> None:
    server = Server(*messages)
    found: list[bytes | Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        promise(Request(scope, receive), HEAD)
        await server.until_received(len(messages))
        for _ in expected:
            message = await receive()
            found.append(message["body"] if message["type"] == "http.request" else message)

    await server.run(app, seconds=TIMEOUT)
    assert found == expected


async def test_an_error_comes_out_by_itself() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise LookupError("bug")

    with pytest.raises(LookupError):
        await Server(part()).run(app)


async def test_other_scopes_pass() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    server = Server()
    await PromptAnswers(app, SECONDS)({"type": "websocket"}, server.receive, server.send)
    assert scopes == [{"type": "websocket"}]
