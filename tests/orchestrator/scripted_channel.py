"""A server of channels whose every answer is written by a test, byte by byte: faults included.

A test gives each path its answers, one for each request, the last for all that follow. Without
one a GET waits, `/next` says 0, and a POST is taken.
"""

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

TIMEOUT = 20.0
"""s for anything that is expected to come."""

_RST = struct.pack("ii", 1, 0)
_HOP = "127.0.0.1"


class Exchange:
    """One request and its answer on the wire. `began` is in s of the event loop."""

    def __init__(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.method, self.path, self.headers = method, path, headers
        self.body = b""
        self.began = asyncio.get_running_loop().time()
        self.answered = False
        self.open = True
        self._read = False
        self._reader, self._writer = reader, writer

    @property
    def channel(self) -> str:
        return self.path.split("/")[1]

    @property
    def seq(self) -> str:
        return self.path.rpartition("/")[2]

    async def read_body(self) -> bytes:
        """All of it, once."""
        if not self._read:
            self._read = True
            if self.headers.get("transfer-encoding") == "chunked":
                await self._read_chunks()
            else:
                length = int(self.headers.get("content-length", 0))
                self.body = await self._reader.readexactly(length)
        return self.body

    async def interim(self) -> None:
        await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} status code {status}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        """The connection breaks, and what was sent before has arrived."""
        self.open = False
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self._writer.transport.abort()

    async def _read_chunks(self) -> None:
        while size := int(await self._reader.readline(), 16):
            self.body += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)


Play = Callable[[Exchange], Awaitable[None]]


def answer(status: int = 200, *chunks: bytes, **headers: str) -> Play:
    """A whole answer. Headers are trickle's: seq, latest, closed; what is None is left out."""
    named = {f"Lp-Trickle-{name.title()}": value for name, value in headers.items()}

    async def play(exchange: Exchange) -> None:
        await exchange.read_body()
        if not chunks:
            await exchange.head(status, {**named, "Content-Length": "0"})
            return
        await exchange.head(status, {**named, "Transfer-Encoding": "chunked"})
        for chunk in chunks:
            await exchange.chunk(chunk)
        await exchange.send(b"0\r\n\r\n")

    return play


def segment(seq: int, *chunks: bytes) -> Play:
    return answer(200, *chunks, seq=str(seq), latest=str(seq + 1))


def redirect(location: str) -> Play:
    async def play(exchange: Exchange) -> None:
        await exchange.head(307, {"Location": location, "Content-Length": "0"})

    return play


def text(status: int, body: bytes) -> Play:
    """A whole answer of text, as `/next` gives it."""

    async def play(exchange: Exchange) -> None:
        length = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
        await exchange.head(status, length)
        await exchange.send(body)

    return play


def breaks_off(seq: int, *chunks: bytes, after: asyncio.Event | None = None) -> Play:
    """A segment whose connection is reset in mid-body, when `after` is set."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Lp-Trickle-Seq": str(seq), "Transfer-Encoding": "chunked"})
        for chunk in chunks:
            await exchange.chunk(chunk)
        if after is not None:
            await after.wait()
        exchange.reset()

    return play


async def takes_and_breaks_off(exchange: Exchange) -> None:
    """A POST whose body is read, and whose answer never comes."""
    await exchange.read_body()
    exchange.reset()


async def waits(exchange: Exchange) -> None:
    """No answer at all while the server is there."""
    await exchange.read_body()
    await asyncio.Event().wait()


async def takes(exchange: Exchange) -> None:
    """A POST as the real server takes it."""
    await exchange.read_body()
    await exchange.head(200, {"Lp-Trickle-Seq": exchange.seq, "Content-Length": "0"})


class _Reader(asyncio.StreamReader):
    """Tells when the client has closed the connection, or lost it."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.ended.set()


class ScriptedChannels:
    """Use `open_channels`. `exchanges` are all requests in order of their arrival, `num_open` the
    connections that are open now."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.exchanges: list[Exchange] = []
        self.num_open = 0
        self.problems: list[Exception] = []
        self.port = 0
        self._tls = tls
        self._plays: dict[tuple[str, str], list[Play]] = defaultdict(list)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._server: asyncio.Server | None = None

    def url(self, channel: str = "c") -> str:
        return f"{'https' if self._tls else 'http'}://{_HOP}:{self.port}/{channel}"

    def script(self, request: str, *plays: Play) -> None:
        """What is answered to `request`, such as "GET c/4"."""
        method, _, path = request.partition(" ")
        self._plays[method, f"/{path}"] += plays

    def asked(self, method: str, channel: str = "c") -> list[str]:
        """The last part of every path that was asked for, in order."""
        return [it.seq for it in self.exchanges if (it.method, it.channel) == (method, channel)]

    def posted(self, channel: str) -> list[bytes]:
        return [it.body for it in self.exchanges if (it.method, it.channel) == ("POST", channel)]

    async def until(self, reached: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        async with asyncio.timeout(seconds):
            while not reached():
                await self._changed.wait()

    async def listen(self) -> None:
        """On the same port, when it had one."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: asyncio.StreamReaderProtocol(_Reader(), self._begin),
            _HOP,
            self.port,
            ssl=self._tls,
            reuse_address=True,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        self.refuse()
        self._closing.set()
        await asyncio.sleep(0)  # what was accepted before has begun
        await asyncio.gather(*self._tasks)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, _Reader)
        self._notify(+1)
        serving = asyncio.ensure_future(self._answer_all(reader, writer))
        # A client that goes away while its answer waits is noticed as well.
        leaving = asyncio.ensure_future(reader.ended.wait())
        closing = asyncio.ensure_future(self._closing.wait())
        tasks = (serving, leaving, closing)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        self.problems += [it for it in results if isinstance(it, Exception)]
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        self._notify(-1)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            while line := await reader.readline():
                method, path, _ = line.decode("latin-1").split()
                exchange = Exchange(method, path, await _headers(reader), reader, writer)
                if method == "POST" and not self._plays[method, path]:
                    await exchange.read_body()
                self.exchanges.append(exchange)
                self._notify()
                await self._play(exchange)(exchange)
                exchange.answered = True
                self._notify()
                if not exchange.open or exchange.headers.get("connection") == "close":
                    return

    def _play(self, exchange: Exchange) -> Play:
        plays = self._plays[exchange.method, exchange.path]
        if plays:
            return plays.pop(0) if len(plays) > 1 else plays[0]
        if exchange.method == "POST":
            return takes
        return text(200, b"0") if exchange.seq == "next" else waits

    def _notify(self, opened: int = 0) -> None:
        self.num_open += opened
        self._changed.set()
        self._changed = asyncio.Event()


async def _headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    while (line := (await reader.readline()).decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return headers


@asynccontextmanager
async def open_channels(tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedChannels]:
    channels = ScriptedChannels(tls)
    await channels.listen()
    try:
        yield channels
    finally:
        await channels.close()
    assert not channels.problems


def self_signed_context(folder: Path) -> ssl.SSLContext:
    """For a server that nobody vouches for, as orchestrators are."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl, which makes the certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
