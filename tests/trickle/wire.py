"""A small HTTP/1.1 client that shows the wire: pieces, their order, interim answers, ends."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

TIMEOUT = 10.0
"""s for anything that is expected to come; what comes in time is not measured."""

_PIECE_BYTES = 1 << 16


class BrokenOff(Exception):
    """The connection ended before the answer did."""


@dataclass(frozen=True)
class Answer:
    """A complete answer; header names are in lower case, repeated ones joined by a comma."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Exchange:
    """One request on a connection of its own, and its answer as it comes.

    Owned by the test that started it and closed by its `Client`; `close` in the middle of a body
    breaks the request off.
    """

    def __init__(
        self, method: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.num_interim = 0
        self._method = method
        self._reader = reader
        self._writer = writer
        self._chunked = False
        self._left = 0
        self._ended = False

    async def write(self, data: bytes) -> None:
        """Bytes as they are, without a chunk's frame."""
        self._writer.write(data)
        async with asyncio.timeout(TIMEOUT):
            await self._writer.drain()

    async def send(self, piece: bytes) -> None:
        """One chunk of a streamed request body."""
        await self.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def finish(self) -> None:
        """The end of a streamed request body."""
        await self.write(b"0\r\n\r\n")

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            async with asyncio.timeout(TIMEOUT):
                await self._writer.wait_closed()

    async def assert_silent(self, seconds: float = 0.0) -> None:
        """Nothing has come, not even the connection's end, and nothing does for `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                found = await self._reader.read(_PIECE_BYTES)
        except TimeoutError:
            return
        raise AssertionError(f"found {found!r}, expected nothing for {seconds} s")

    async def interim(self, seconds: float) -> int:
        """The status of one interim answer, which comes within `seconds`."""
        async with asyncio.timeout(seconds):
            status, _ = await self._head()
        assert 100 <= status < 200, f"status {status}, expected an interim answer"
        self.num_interim += 1
        return status

    async def head(self) -> Self:
        """Wait for the status line and the headers; interim answers are counted."""
        if self.status:
            return self
        async with asyncio.timeout(TIMEOUT):
            status, headers = await self._head()
            while 100 <= status < 200:
                self.num_interim += 1
                status, headers = await self._head()
        self.status, self.headers = status, headers
        self._chunked = headers.get("transfer-encoding") == "chunked"
        if self._method == "HEAD" or status in (204, 304):
            self._ended = True
        elif not self._chunked:
            assert "content-length" in headers, f"no framing in {headers}"
            self._left = int(headers["content-length"])
            self._ended = self._left == 0
        return self

    async def piece(self) -> bytes:
        """What comes next of the body, b"" at its clean end. Raises BrokenOff at any other."""
        await self.head()
        async with asyncio.timeout(TIMEOUT):
            if self._chunked and self._left == 0 and not self._ended:
                await self._next_chunk()
            if self._ended:
                return b""
            data = await self._reader.read(min(self._left, _PIECE_BYTES))
            if not data:
                raise BrokenOff(f"{self._left} bytes before a chunk's or the body's end")
            self._left -= len(data)
            if self._left == 0:
                if self._chunked:
                    assert await self._line() == b""
                else:
                    self._ended = True
        return data

    async def until(self, num_bytes: int) -> bytes:
        """The body's next bytes, as many as come until `num_bytes` are there."""
        received = b""
        while len(received) < num_bytes:
            data = await self.piece()
            assert data, f"body ended after {received!r}, expected {num_bytes} bytes"
            received += data
        return received

    async def rest(self) -> bytes:
        """The body to its clean end."""
        pieces = []
        while data := await self.piece():
            pieces.append(data)
        return b"".join(pieces)

    async def answer(self) -> Answer:
        await self.head()
        return Answer(self.status, self.headers, await self.rest())

    async def assert_closed_by_server(self) -> None:
        """`Connection: close` is said and done."""
        assert self.headers.get("connection", "").lower() == "close"
        # A server that closes with some of the request unread resets the connection.
        with suppress(ConnectionResetError):
            async with asyncio.timeout(TIMEOUT):
                assert await self._reader.read() == b""

    async def _next_chunk(self) -> None:
        line = await self._line()
        self._left = int(line.partition(b";")[0], 16)
        if self._left == 0:
            while await self._line():
                pass
            self._ended = True

    async def _head(self) -> tuple[int, dict[str, str]]:
        version, status, *_ = (await self._line()).split(maxsplit=2)
        assert version == b"HTTP/1.1"
        headers: dict[str, str] = {}
        while line := await self._line():
            name, _, value = line.decode("latin-1").partition(":")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return int(status), headers

    async def _line(self) -> bytes:
        line = await self._reader.readline()
        if not line.endswith(b"\r\n"):
            raise BrokenOff(f"found {line!r}, expected a line")
        return line[:-2]


class Client:
    """Starts exchanges with one server and closes those that are left at its own end."""

    def __init__(self, host: str, port: int, *, tls: bool = False) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self._ssl = _unverified() if tls else None
        self._exchanges: list[Exchange] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for exchange in self._exchanges:
            await exchange.close()

    async def start(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        streamed: bool = False,
    ) -> Exchange:
        """Send a request with a body of known length or, `streamed`, one that is sent later."""
        lines = {"Host": f"{self.host}:{self.port}", **(headers or {})}
        if streamed:
            lines["Transfer-Encoding"] = "chunked"
        elif body is not None:
            lines["Content-Length"] = str(len(body))
        head = f"{method} {path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self._ssl)
        exchange = Exchange(method, reader, writer)
        self._exchanges.append(exchange)
        # In one piece, so that a server that answers before the body cannot reset what is unsent.
        await exchange.write(head.encode("latin-1") + b"\r\n" + (body or b""))
        return exchange


def _unverified() -> ssl.SSLContext:
    """Orchestrators have self-signed certificates."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
