"""Listens, and serves connections one request after the other, as Go's server does."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import h11

from whisper_sim.http_ends import Abandoned, End, Gone

_IDLE_SECONDS: Final = 90.0


class Front:
    """Owns its listener and its connections. handle: answers one request; what it raises, Gone or
    Abandoned, ends the connection."""

    def __init__(self, handle: Callable[[End, h11.Request], Awaitable[None]]) -> None:
        self._handle = handle
        self._tasks: dict[asyncio.Task[None], End] = {}
        self._waiting: set[End] = set()
        self._faults: list[Exception] = []
        self._server: asyncio.Server | None = None
        self._address = ("127.0.0.1", 0)
        self._tls: ssl.SSLContext | None = None

    async def listen(self, port: int, tls: ssl.SSLContext | None) -> str:
        """The URL. Raises OSError where the port is taken."""
        self._tls = tls
        await self._start(("127.0.0.1", port))
        return f"{'https' if tls else 'http'}://127.0.0.1:{self._address[1]}"

    async def _start(self, address: tuple[str, int]) -> None:
        listener = socket.create_server(address)
        # asyncio does it for sockets of its own making only.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._address = listener.getsockname()
        self._server = await asyncio.start_server(self._serve, sock=listener, ssl=self._tls)

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Connections are refused, and those that wait for a request are closed."""
        assert self._server is not None
        self._server.close()
        for end in list(self._waiting):
            end.abort()
        try:
            yield
        finally:
            await self._start(self._address)

    async def shut(self) -> None:
        """Close every connection. Raises ExceptionGroup where a request has met a fault of ours."""
        if self._server is not None:
            self._server.close()
        while self._tasks:
            for task, end in list(self._tasks.items()):
                end.abort()
                task.cancel()
            await asyncio.wait(self._tasks)
        if self._faults:
            faults, self._faults = self._faults, []
            raise ExceptionGroup("requests could not be answered", faults)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        end = self._tasks[task] = End(h11.SERVER, reader, writer)
        try:
            while await self._next_request(end):
                pass
        except (Gone, asyncio.CancelledError):
            pass  # asyncio's streams would report a cancelled task
        except Exception as error:  # a fault of ours: told when it closes, and not only logged
            self._faults.append(error)
        finally:
            end.abort()
            del self._tasks[task]

    async def _next_request(self, end: End) -> bool:
        """False where the connection is not to be used again. Raises Gone."""
        self._waiting.add(end)
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                request = await end.next()
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(end)
        assert isinstance(request, h11.Request)
        try:
            await self._handle(end, request)
        except Abandoned:
            await end.close()
            return False
        if end.again():
            return True
        await end.linger()
        return False
