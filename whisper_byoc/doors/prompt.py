"""Answers that begin in time, whatever they wait for.

An orchestrator waits 60 s from a request's last byte to the head of the answer, and then answers
502 in our place. So a handler that may take long promises a head, which is sent when the time has
come; what is answered then follows. An answer never begins within the body: Go's server would throw
away up to 256 KiB of what is still to come. Nor may the end of a body wait behind a job that is
busy, so bodies are read ahead.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

READ_AHEAD_BYTES = 8 * 1024**2
"""More than sockets hold on the way to us, commonly 5 MB: of a body that has been sent whole, the
end is seen."""
_PIECE_BYTES = 64 * 1024
_KEY = "whisper_byoc.answer"


class PromptAnswers:
    """Lets handlers `promise` (ASGI middleware). seconds: from the end of a request's body to the
    head of its answer."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._seconds)
        scope = {**scope, _KEY: exchange}
        await exchange.run(lambda: self._app(scope, exchange.receive, exchange.send))


def promise(request: Request, headers: Mapping[str, str]) -> None:
    """The answer will have these headers and status 200, if it takes so long that its head is sent
    before anything else of it is known. An error after that is the end of the body, and the
    connection is broken off, so that nobody takes it for an answer."""
    exchange: _Exchange = request.scope[_KEY]
    exchange.promise(headers)


class _Exchange:
    """One request and its answer. `run` is driven by the server's task for the request; the task
    that reads ahead begins with the first read, since before it a request can be refused without a
    byte of its body, and ends with `run`. A sender that is further ahead waits."""

    def __init__(self, receive: Receive, send: Send, seconds: float) -> None:
        self._receive = receive
        self._send = send
        self._seconds = seconds
        self._promised: Headers | None = None
        self._begun = False
        """Whether a head has been sent."""
        self._kept_promise = False
        """Whether it was the promised one."""
        self._failed = False
        """Whether what came behind the promised head is an error."""
        self._ahead = bytearray()
        self._complete = False
        self._told_end = False
        self._gone = False
        self._changed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def run(self, app: Callable[[], Awaitable[None]]) -> None:
        failure: Exception | None = None
        async with asyncio.TaskGroup() as self._group:
            try:
                await app()
            except Exception as error:  # the server shall see it by itself, in no group
                failure = error
            finally:
                if self._reading is not None:
                    self._reading.cancel()
        if failure is not None:
            raise failure

    def promise(self, headers: Mapping[str, str]) -> None:
        self._promised = Headers(headers)
        self._read()

    async def receive(self) -> Message:
        self._read()
        while not (self._ahead or self._gone or (self._complete and not self._told_end)):
            await self._changed.wait()
        if self._ahead:
            piece = bytes(self._ahead[:_PIECE_BYTES])
            del self._ahead[:_PIECE_BYTES]
            self._notify()
            return {"type": "http.request", "body": piece, "more_body": True}
        if self._complete and not self._told_end:
            self._told_end = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._kept_promise:
                self._failed = message["status"] >= 400
                if self._failed:
                    logger.warning("broke off an answer that had begun: %d", message["status"])
                return
            self._begun = True
        elif self._failed:
            message = {**message, "more_body": True}
        await self._send(message)

    def _read(self) -> None:
        if self._reading is None:
            self._reading = self._group.create_task(self._read_ahead())

    async def _read_ahead(self) -> None:
        while not (self._complete or self._gone):
            while len(self._ahead) >= READ_AHEAD_BYTES:
                await self._changed.wait()
            self._take(await self._receive())
        while not self._gone:
            try:
                async with asyncio.timeout(None if self._begun else self._seconds):
                    self._take(await self._receive())
            except TimeoutError:
                await self._begin()

    def _take(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self._gone = True
        else:
            self._ahead += message.get("body", b"")
            self._complete = not message.get("more_body", False)
        self._notify()

    async def _begin(self) -> None:
        if self._promised is not None and not self._begun:
            self._begun = self._kept_promise = True
            head = {"type": "http.response.start", "status": 200, "headers": self._promised.raw}
            await self._send(head)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
