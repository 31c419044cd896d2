"""One end of an HTTP/1.1 connection: events of h11 over asyncio's streams.

Bodies are passed on as they come, and connections closed to the moment, which a library's server
or client would not let us.
"""

import asyncio
import ssl
from contextlib import suppress
from typing import Final

import h11

MAX_HEAD_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 16
CONNECT_SECONDS: Final = 10.0
LINGER_SECONDS: Final = 0.5
"""Go's wait before it closes a connection of which it has not read everything: closed at once, it
would be reset, and the answer lost."""


class Gone(Exception):
    """The connection is closed, or what comes over it is no HTTP."""


class Abandoned(Exception):
    """There is no answer, or no more of it: its connection is closed when the rest is sent."""


class End:
    """Owned by whoever serves the connection, or uses it for a request at a time.

    `next` is called by one task at a time, and so is `send`; `abort` by anyone.
    """

    def __init__(
        self,
        role: type[h11.CLIENT] | type[h11.SERVER],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.http = h11.Connection(role, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._reader = reader
        self._writer = writer
        self._took_trailing = False

    @property
    def peer(self) -> str:
        """Its address, without the port."""
        name = self._writer.get_extra_info("peername")
        return str(name[0]) if name else ""

    @property
    def closed(self) -> bool:
        """Whether either side has closed it, as far as is known here."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def next(self) -> h11.Event:
        """What comes next. Raises Gone."""
        if self.http.our_role is h11.SERVER and self.http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                self.http.receive_data(await self._reader.read(_PIECE_BYTES))
        except (OSError, h11.RemoteProtocolError) as error:
            raise Gone(str(error)) from error
        if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise Gone("closed")
        assert isinstance(event, h11.Event)
        return event

    async def send(self, event: h11.Event) -> None:
        """Raises Gone."""
        try:
            await self.write(self.http.send(event) or b"")
        except h11.LocalProtocolError as error:
            raise Gone(str(error)) from error

    async def write(self, data: bytes) -> None:
        """As it is, behind an upgrade. Raises Gone."""
        if self._writer.is_closing():
            raise Gone("closed")
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Gone(str(error)) from error

    async def read(self) -> bytes:
        """What comes, behind an upgrade; empty at the end. Raises Gone."""
        if not self._took_trailing:
            self._took_trailing = True
            if trailing := self.http.trailing_data[0]:
                return trailing
        try:
            return await self._reader.read(_PIECE_BYTES)
        except OSError as error:
            raise Gone(str(error)) from error

    async def until_closed(self) -> bool:
        """True when the other side has closed; False when it sends more instead, which is kept."""
        try:
            data = await self._reader.read(_PIECE_BYTES)
        except OSError:
            return True
        if data:
            self.http.receive_data(data)
        return not data

    def again(self) -> bool:
        """Whether the connection is ready for another request."""
        try:
            self.http.start_next_cycle()
        except h11.LocalProtocolError:
            return False
        return not self.closed

    def abort(self) -> None:
        """Close at once; what was not sent yet is lost."""
        self._writer.transport.abort()

    async def linger(self) -> None:
        """Close behind an answer to a request that was not read to its end."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while await self._reader.read(_PIECE_BYTES):
                    pass
        self.abort()

    async def close(self) -> None:
        """Close when what was written has been sent."""
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        self.abort()


async def connect(host: str, port: int, tls: ssl.SSLContext | None) -> End:
    """Raises Gone where nobody answers."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    except (OSError, TimeoutError) as error:
        raise Gone(str(error)) from error
    return End(h11.CLIENT, reader, writer)


class Pool:
    """Idle connections to runners, by address.

    keep_seconds: how long one is kept. Of more than `MAX_IDLE` to one address the oldest is closed.
    """

    MAX_IDLE: Final = 16

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._idle: dict[tuple[str, int], list[End]] = {}

    def take(self, host: str, port: int) -> End | None:
        """The one that was used last, of those that are open as far as is known here."""
        idle = self._idle.get((host, port), [])
        while idle:
            end = idle.pop()
            if not end.closed:
                return end
            end.abort()
        return None

    def put(self, host: str, port: int, end: End) -> None:
        """The request is over, and the connection may be used for the next one."""
        idle = self._idle.setdefault((host, port), [])
        idle.append(end)
        asyncio.get_running_loop().call_later(self._keep_seconds, self._drop, idle, end)
        if len(idle) > self.MAX_IDLE:
            idle.pop(0).abort()

    @staticmethod
    def _drop(idle: list[End], end: End) -> None:
        if end in idle:
            idle.remove(end)
            end.abort()

    def close(self) -> None:
        for idle in self._idle.values():
            while idle:
                idle.pop().abort()
