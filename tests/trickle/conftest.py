"""The trickle server under test: ours in the test's event loop, or the one at TRICKLE_BASE.

On an external server channels are made by the shell command in TRICKLE_CREATE, where {channel}
and {mime} are put in; without it, by `POST {base}{channel}`, so the server must autocreate.
"""

import asyncio
import itertools
import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.trickle.double import BASE, serve
from tests.trickle.wire import TIMEOUT, Answer, Client, Exchange
from whisper_sim.trickle_server import TrickleServer

EXTERNAL_BASE = os.environ.get("TRICKLE_BASE")
EXTERNAL_CREATE = os.environ.get("TRICKLE_CREATE")

_numbers = itertools.count()

Create = Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True)
class Trickle:
    """A trickle server and a client of it; paths are below `base`, such as `channel/0`."""

    client: Client
    base: str
    external: bool
    autocreate: bool
    make_channel: Create
    node: bool = False
    channels: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.client.host

    @property
    def port(self) -> int:
        return self.client.port

    def url(self, channel: str) -> str:
        """For other clients than ours."""
        return f"{'https' if self.client.tls else 'http'}://{self.host}:{self.port}{self.base}{channel}"

    def new_name(self) -> str:
        """The name of a channel that does not exist; it is removed after the test if it does."""
        name = f"c{next(_numbers)}-{uuid4().hex[:8]}"
        self.channels.append(name)
        return name

    async def create(self, mime: str = "video/MP2T") -> str:
        channel = self.new_name()
        await self.make_channel(channel, mime)
        return channel

    async def start(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        streamed: bool = False,
    ) -> Exchange:
        return await self.client.start(
            method, self.base + path, headers=headers, body=body, streamed=streamed
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """A whole request and its whole answer."""
        exchange = await self.start(method, path, headers=headers, body=body)
        answer = await exchange.answer()
        await exchange.close()
        return answer

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path)

    async def delete(self, path: str) -> Answer:
        return await self.request("DELETE", path)

    async def publish(
        self, channel: str, seq: int, body: bytes, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A segment in one piece; an external server may be held to it like ours."""
        answer = await self.request("POST", f"{channel}/{seq}", headers=headers, body=body)
        assert answer.status == 200
        return answer

    async def next_write(self, channel: str) -> int:
        answer = await self.get(f"{channel}/next")
        assert answer.status == 200
        assert answer.headers["lp-trickle-latest"] == answer.body.decode()
        return int(answer.body)

    async def arrived(self, channel: str) -> None:
        """Give the requests sent so far the time to arrive: a round trip that began after them.

        A waiting request shows nothing on the wire. Our server takes requests in the order of
        their connections; an external one may not, so it gets some more round trips.
        """
        for _ in range(5 if self.external else 1):
            await self.next_write(channel)


@pytest.fixture
async def trickle() -> AsyncIterator[Trickle]:
    """A server where channels are made beforehand; ours does not autocreate."""
    async with AsyncExitStack() as stack:
        if EXTERNAL_BASE is not None:
            yield await _connect(stack, EXTERNAL_BASE)
        else:
            yield await _start(stack, TrickleServer())


@pytest.fixture
async def node() -> AsyncIterator[Trickle]:
    """As livepeer/node has it. (Which dialect an external server speaks is not known here.)"""
    if EXTERNAL_BASE is not None:
        pytest.skip("needs a server that is known to be node's")
    async with AsyncExitStack() as stack:
        yield await _start(stack, TrickleServer(node=True))


@pytest.fixture(params=["go-livepeer", "node"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[Trickle]:
    """A server of either dialect: for what changes with it."""
    node = request.param == "node"
    async with AsyncExitStack() as stack:
        if EXTERNAL_BASE is None:
            yield await _start(stack, TrickleServer(node=node))
        elif node:
            pytest.skip("needs a server that is known to be node's")
        else:
            yield await _connect(stack, EXTERNAL_BASE)


@pytest.fixture
async def autocreating() -> AsyncIterator[Trickle]:
    """A server that makes a channel at its first POST."""
    async with AsyncExitStack() as stack:
        if EXTERNAL_BASE is None:
            yield await _start(stack, TrickleServer(autocreate=True), autocreate=True)
        elif EXTERNAL_CREATE is None:
            yield await _connect(stack, EXTERNAL_BASE)
        else:
            pytest.skip("needs a server that autocreates, so TRICKLE_CREATE unset")


StartDouble = Callable[[TrickleServer], Awaitable[Trickle]]


@pytest.fixture
async def start_double() -> AsyncIterator[StartDouble]:
    """Starts our server with settings or hooks that an external one cannot be given."""
    if EXTERNAL_BASE is not None:
        pytest.skip("needs settings or hooks that the server at TRICKLE_BASE cannot be given")
    async with AsyncExitStack() as stack:

        async def start(server: TrickleServer) -> Trickle:
            return await _start(stack, server)

        yield start


async def _start(
    stack: AsyncExitStack, server: TrickleServer, *, autocreate: bool = False
) -> Trickle:
    port = await stack.enter_async_context(serve(server))
    client = await stack.enter_async_context(Client("127.0.0.1", port))

    async def create(channel: str, mime: str) -> None:
        server.create(channel, mime)

    return Trickle(client, BASE, False, autocreate, create, server.node)


async def _connect(stack: AsyncExitStack, base: str) -> Trickle:
    url = urlsplit(base)
    assert url.hostname is not None, f"TRICKLE_BASE is {base}, expected a URL"
    tls = url.scheme == "https"
    port = url.port or (443 if tls else 80)
    client = await stack.enter_async_context(Client(url.hostname, port, tls=tls))
    path = url.path.rstrip("/") + "/"

    async def create(channel: str, mime: str) -> None:
        if EXTERNAL_CREATE is not None:
            await _run(EXTERNAL_CREATE, channel, mime)
            return
        exchange = await client.start(
            "POST", path + channel, headers={"Expect-Content": mime}, body=b""
        )
        answer = await exchange.answer()
        assert answer.status == 200, f"no channel without autocreate or TRICKLE_CREATE: {answer}"

    trickle = Trickle(client, path, True, EXTERNAL_CREATE is None, create)
    stack.push_async_callback(_remove_channels, trickle)
    return trickle


async def _run(command: str, channel: str, mime: str) -> None:
    # Not str.format: a command may hold JSON.
    command = command.replace("{channel}", shlex.quote(channel))
    command = command.replace("{mime}", shlex.quote(mime))
    process = await asyncio.create_subprocess_shell(command)
    async with asyncio.timeout(TIMEOUT):
        assert await process.wait() == 0, f"{command} failed"


async def _remove_channels(trickle: Trickle) -> None:
    for channel in trickle.channels:
        await trickle.delete(channel)
