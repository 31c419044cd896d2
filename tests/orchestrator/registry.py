"""An orchestrator's registry of BYOC that does what a test tells it. It answers as go-livepeer does
(docs/wire.md). Real sockets, port 0. Live Runner's is `whisper_sim.live_runner`."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from ssl import SSLContext
from typing import Any

from aiohttp import web

SECRET = "orchestrators-know-us-by-this"
TIMEOUT = 60.0


class Mishap(Enum):
    HANG = auto()
    """No answer until the registry closes."""
    DROP = auto()
    """The connection is reset, as when a handler of go-livepeer panics."""


Told = int | tuple[int, str] | Mishap
"""A status, a status with a text, or worse."""


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came; `time` is the monotonic clock's."""

    time: float
    method: str
    path: str
    headers: dict[str, str]
    body: str

    @property
    def authorization(self) -> str:
        return self.headers.get("Authorization", "")

    @property
    def fields(self) -> dict[str, Any]:
        fields = json.loads(self.body)
        assert isinstance(fields, dict)
        return fields


@dataclass
class Registry:
    """Owned by the test; the handlers run in the test's own loop.

    `next_answers` of a path are used up first. What `before` has for a path is awaited between
    the arrival of a request and its answer.
    """

    secret: str = SECRET
    url: str = ""
    requests: list[Received] = field(default_factory=list)
    capabilities: dict[str, dict[str, Any]] = field(default_factory=dict)
    next_answers: dict[str, list[Told]] = field(default_factory=dict)
    before: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)

    def to(self, path: str) -> list[Received]:
        """The requests to this path, in order."""
        return [request for request in self.requests if request.path == path]

    async def received(self, path: str, count: int = 1) -> list[Received]:
        """The requests to `path` once so many have arrived; not all may be answered."""
        await self.until(lambda: len(self.to(path)) >= count)
        return self.to(path)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until requests, or our answers to them, have made `holds` true."""
        async with asyncio.timeout(TIMEOUT), self._changed:
            await self._changed.wait_for(holds)

    def restart(self) -> None:
        """Forget everyone, as an orchestrator that restarts does."""
        self.capabilities.clear()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = (await request.read()).decode()
        path = request.path
        received = Received(time.monotonic(), request.method, path, dict(request.headers), body)
        self.requests.append(received)
        await self._notify()
        if path in self.before:
            await self.before[path]()
        told = self.next_answers.get(path)
        answer = await self._misbehave(request, told.pop(0)) if told else self._answer(received)
        await self._notify()
        return answer

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _misbehave(self, request: web.Request, told: Told) -> web.Response:
        match told:
            case Mishap.HANG:
                await self._closing.wait()
                return _text(500, "closing")
            case Mishap.DROP:
                assert request.transport is not None
                request.transport.abort()
                return _text(500, "dropped")
            case int(status):
                return _text(status, "as told")
            case (status, text):
                return _text(status, text)

    def _answer(self, request: Received) -> web.Response:
        if request.method != "POST":
            return _text(405, "method not allowed")
        match request.path.strip("/").split("/"):
            case ["capability", "register"]:
                return self._register(request)
            case ["capability", "unregister"]:
                return self._unregister(request)
        return _text(404, "page not found")

    def _register(self, request: Received) -> web.Response:
        if request.authorization != self.secret:
            return _text(400, "invalid authorization")
        try:
            capability = json.loads(request.body)
            name = capability["name"]
            numbers = [capability.get(n, 0) for n in ("capacity", "price_per_unit")]
            if not all(type(number) is int for number in numbers):
                raise ValueError("a number is not an integer")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _text(400, f"Error registering capability: {error}")
        self.capabilities[name] = capability
        return web.Response(text="ok", content_type="application/json")

    def _unregister(self, request: Received) -> web.Response:
        if request.authorization != self.secret:
            return _text(400, "invalid authorization")
        self.capabilities.pop(request.body, None)
        return web.Response(text="ok", content_type="application/json")

    def close(self) -> None:
        self._closing.set()


def _text(status: int, text: str) -> web.Response:
    """As Go's http.Error writes it."""
    return web.Response(status=status, text=text + "\n")


@asynccontextmanager
async def serve_registry(
    tls: SSLContext | None = None, listener: socket.socket | None = None, **fields: Any
) -> AsyncIterator[Registry]:
    """On `listener`, which is closed at the end, or on a port of its own."""
    registry = Registry(**fields)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", registry.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        listener = listener or socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener, ssl_context=tls).start()
        host, port = listener.getsockname()
        registry.url = f"{'https' if tls else 'http'}://{host}:{port}"
        yield registry
    finally:
        registry.close()
        await runner.cleanup()
