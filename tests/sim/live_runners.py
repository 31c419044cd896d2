"""Small runners for the tests of the double, and a client that shows the wire."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from tests.trickle.wire import TIMEOUT, Client, Exchange
from whisper_sim.live_runner import LiveRunner
from whisper_sim.runner_entries import Runner


@dataclass
class Seen:
    """What a runner has received. pieces: of bodies, as they came."""

    requests: list[web.Request] = field(default_factory=list)
    pieces: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    ended: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    transports: set[int] = field(default_factory=set)

    async def piece(self) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            return await self.pieces.get()

    async def end(self) -> str:
        """How a request has ended: `whole`, or `broken`."""
        async with asyncio.timeout(TIMEOUT):
            return await self.ended.get()


Handler = Callable[[web.Request, Seen], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serve_runner(handler: Handler) -> AsyncIterator[tuple[str, Seen]]:
    """Its URL, and what it has seen."""
    seen = Seen()

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.requests.append(request)
        seen.transports.add(id(request.transport))
        try:
            answer = await handler(request, seen)
        except (aiohttp.ClientError, ConnectionError, asyncio.CancelledError):
            seen.ended.put_nowait("broken")
            raise
        seen.ended.put_nowait("whole")
        return answer

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=1, keepalive_timeout=99
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site.name, seen
    finally:
        await runner.cleanup()


async def echo(request: web.Request, seen: Seen) -> web.StreamResponse:
    """What came, told."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "target": request.raw_path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": body.decode("latin-1"),
        }
    )


async def stream(request: web.Request, seen: Seen) -> web.StreamResponse:
    """Each piece of the body is answered as it comes."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    await answer.write(b"begun")
    async for piece in request.content.iter_any():
        seen.pieces.put_nowait(piece)
        await answer.write(piece.upper())
    return answer


async def swallow(request: web.Request, seen: Seen) -> web.StreamResponse:
    """The body is read, then there is an answer."""
    async for piece in request.content.iter_any():
        seen.pieces.put_nowait(piece)
    return web.Response(text="read")


async def refuse(request: web.Request, seen: Seen) -> web.StreamResponse:
    """Before the body is read."""
    return web.json_response({"error": "not this"}, status=415)


async def never(request: web.Request, seen: Seen) -> web.StreamResponse:
    """The body is read, and nothing is answered."""
    async for piece in request.content.iter_any():
        seen.pieces.put_nowait(piece)
    await asyncio.Event().wait()
    raise AssertionError


async def socket(request: web.Request, seen: Seen) -> web.StreamResponse:
    """A WebSocket that echoes and answers no ping by itself."""
    answer = web.WebSocketResponse(autoping=False, protocols=("speech",))
    await answer.prepare(request)
    async for message in answer:
        if message.type is aiohttp.WSMsgType.PING:
            await answer.pong(message.data + b"!")
        else:
            await answer.send_str(message.data.upper())
    if answer.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE or answer.close_code is None:
        raise ConnectionError
    seen.pieces.put_nowait(str(answer.close_code).encode())
    return answer


async def join(it: LiveRunner, url: str, **fields: Any) -> Runner:
    """Register a runner by hand; it beats no more."""
    body = {"runner_url": url, "app": "a/b", "capacity": 8} | fields
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{it.url}/runners/heartbeat", json=body, headers={"Authorization": "secret"}
        ) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return it.registry.runners[(await answer.json())["runner_id"]]


@dataclass
class Call:
    """Requests to a double, each on a connection of its own."""

    client: Client
    base: str = ""

    async def __call__(
        self, method: str, path: str, **arguments: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        exchange = await self.start(method, path, **arguments)
        answer = await exchange.answer()
        return answer.status, dict(answer.headers), answer.body

    async def start(self, method: str, path: str, **arguments: Any) -> Exchange:
        return await self.client.start(method, self.base + path, **arguments)


@asynccontextmanager
async def calls(url: str) -> AsyncIterator[Call]:
    """To what is below `url`."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with Client(parts.hostname, parts.port, tls=parts.scheme == "https") as client:
        yield Call(client, parts.path)
