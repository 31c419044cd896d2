"""One request through a scripted orchestrator to a runner, as Go's ReverseProxy does it.

Bodies stream both ways. `Exchange.cut` is what the end of a session does to it in node.
"""

import asyncio
import ssl
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import h11

from whisper_sim.go_rules import (
    Headers,
    address_of,
    request_headers,
    response_headers,
    target_of,
    upgrade_of,
)
from whisper_sim.http_ends import Abandoned, End, Gone, Pool, connect

HELD_BYTES: Final = 256 << 10
"""Of a chunked body that nobody reads any more, which Go reads before it lets an answer go."""
_CLOSE_SECONDS: Final = 0.05
"""Between a runner's early answer and the end of its connection."""
_MAX_EARLY_BYTES: Final = 1 << 16
UNAVAILABLE: Final = "runner destination unavailable"


class Unavailable(Exception):
    """The answer is 502: no connection, no head in time, or the session has ended before one."""


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """In seconds. head_seconds: from the request's last byte to the answer's head. hold_early:
    whether answers before the end of a chunked upload wait as Go's do. grants: `host:port` of the
    runners that may be connected to; None allows all. tls: for runners with https."""

    head_seconds: float = 60.0
    idle_seconds: float = 90.0
    hold_early: bool = True
    grants: frozenset[str] | None = None
    tls: ssl.SSLContext | None = None


@dataclass
class Exchange:
    """One request; owned by the connection that it came over.

    own: headers that are set over the client's. uploaded, downloaded: bytes of bodies that were
    handed to either side, or of an upgraded connection. status: of the answer that the client got,
    0 before. over: whether there is no more to pass on, but connections to be closed.
    """

    client: End
    request: h11.Request
    url: str
    path: bytes
    query: str
    own: Headers
    options: ProxyOptions
    pool: Pool
    session_id: str = ""
    notify: Callable[[], None] = lambda: None
    uploaded: int = 0
    downloaded: int = 0
    status: int = 0
    upgraded: bool = False
    over: bool = False
    was_cut: bool = False
    reused: bool = False
    _runner: End | None = None
    _sent_all: bool = False
    _discarding: bool = False
    _discarded: int = 0
    _client_gone: bool = False
    _enough: asyncio.Event = field(default_factory=asyncio.Event)
    _limit: asyncio.Timeout | None = None

    def cut(self) -> None:
        """The session has ended: both connections are closed at once; before the answer's head the
        client still gets 502."""
        self.was_cut = True
        if self._runner is not None:
            self._runner.abort()
        if self.status:
            self.client.abort()

    async def run(self) -> None:
        """Until the answer has been passed on whole. Raises Unavailable and Abandoned."""
        uploading: asyncio.Task[None] | None = None
        try:
            runner = await self._connect(self._kept())
            uploading = asyncio.create_task(self._upload())
            try:
                head = await self._head(runner)
            except Gone as error:
                runner = await self._connect_again(error)
                head = await self._head(runner)
            if head.status_code == 101:
                await self._tunnel(runner, head)
            else:
                await self._pass_on(runner, head, await self._early(runner))
        except Gone as error:
            raise Abandoned(str(error)) from error
        finally:
            if uploading is not None:
                uploading.cancel()
                await asyncio.wait([uploading])
            self._give_back()

    # Towards the runner

    def _kept(self) -> End | None:
        host, port, _ = address_of(self.url)
        kept = self.pool.take(host, port)
        self.reused = kept is not None
        return kept

    async def _connect(self, kept: End | None) -> End:
        """A connection on which the request's head was sent. Raises Unavailable."""
        host, port, tls = address_of(self.url)
        grants = self.options.grants
        if grants is not None and f"{host}:{port}" not in grants:
            raise Unavailable(f"{host}:{port} is not granted")
        context = (self.options.tls or ssl.create_default_context()) if tls else None
        try:
            self._runner = kept or await connect(host, port, context)
            if self.was_cut:
                raise Gone("the session has ended")
            await self._send(self._request(host, port))
        except Gone as error:
            raise Unavailable(str(error)) from error
        return self._runner

    async def _connect_again(self, error: Gone) -> End:
        """Where a kept connection turns out to be closed: for requests without a body only, as Go
        does it."""
        if self._client_gone:
            raise Abandoned("the client has left") from error
        if not (self.reused and self._repeatable and self._sent_all) or self.was_cut:
            await self._swallow()
            raise Unavailable(str(error)) from error
        self.reused = False
        if self._runner is not None:
            self._runner.abort()
        runner = await self._connect(None)
        await self._send(h11.EndOfMessage())
        return runner

    @property
    def _repeatable(self) -> bool:
        return self.request.method in (b"GET", b"HEAD", b"OPTIONS", b"TRACE") and not self.uploaded

    @property
    def _asks_gzip(self) -> bool:
        """Go does where the client has said nothing."""
        names = {name for name, _ in self.request.headers}
        return self.request.method != b"HEAD" and not names & {b"accept-encoding", b"range"}

    def _request(self, host: str, port: int) -> h11.Request:
        named = f"[{host}]" if ":" in host else host
        headers = request_headers(
            self.request.headers.raw_items(), self.own, f"{named}:{port}", gzip=self._asks_gzip
        )
        target = target_of(self.url, self.path, self.query)
        return h11.Request(method=self.request.method, target=target, headers=headers)

    async def _upload(self) -> None:
        """The client's body, and what follows it: nothing, or its leaving."""
        try:
            while not isinstance(event := await self.client.next(), h11.EndOfMessage):
                assert isinstance(event, h11.Data)
                await self._hand(event)
        except Gone:
            self._leave()
            return
        if not self._discarding:
            await self._send(event)
        self._sent_all = True
        self._enough.set()
        if self._limit is not None:
            self._limit.reschedule(self._latest_head())
        if not self._upgrades and await self.client.until_closed():
            self._leave()

    @property
    def _upgrades(self) -> bool:
        return upgrade_of(self.request.headers.raw_items()) is not None

    async def _hand(self, data: h11.Data) -> None:
        if self._discarding:
            self._discarded += len(data.data)
            if self._discarded > HELD_BYTES:
                self._enough.set()
        elif await self._send(data):
            self.uploaded += len(data.data)
            self.notify()

    async def _send(self, event: h11.Event) -> bool:
        """False where the runner reads no more: its answer may be there all the same."""
        try:
            assert self._runner is not None
            await self._runner.send(event)
        except Gone:
            return False
        return True

    def _leave(self) -> None:
        self._client_gone = True
        self._enough.set()
        if self._runner is not None:
            self._runner.abort()

    # Towards the client

    def _latest_head(self) -> float:
        return asyncio.get_running_loop().time() + self.options.head_seconds

    async def _head(self, runner: End) -> h11.Response | h11.InformationalResponse:
        """The final answer's head, or that of an upgrade. Raises Gone, also when it is not there in
        time."""
        try:
            async with asyncio.timeout(None) as self._limit:
                if self._sent_all:
                    self._limit.reschedule(self._latest_head())
                while True:
                    event = await runner.next()
                    if isinstance(event, h11.Response):
                        return event
                    if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                        return event
        except TimeoutError as error:
            self.reused = False  # not to be tried again
            raise Gone("no answer in time") from error
        finally:
            self._limit = None

    async def _early(self, runner: End) -> list[h11.Event] | None:
        """Of an answer that came before a chunked upload has ended: what of it came while it was
        held back. None for any other, which is passed on as it comes."""
        if self._sent_all or not self._holds:
            return None
        events: list[h11.Event] = []
        self._discarding = True
        num_bytes = 0
        while num_bytes < _MAX_EARLY_BYTES:
            event = await runner.next()
            events.append(event)
            if isinstance(event, h11.EndOfMessage):
                asyncio.get_running_loop().call_later(_CLOSE_SECONDS, runner.abort)
                break
            assert isinstance(event, h11.Data)
            num_bytes += len(event.data)
        await self._enough.wait()
        if self._client_gone:
            raise Abandoned("the client has left")
        return events

    async def _swallow(self) -> None:
        """Before an error that is our own: Go reads so much of the upload first."""
        if self._holds and not self._sent_all:
            self._discarding = True
            await self._enough.wait()
            if self._client_gone:
                raise Abandoned("the client has left")

    @property
    def _holds(self) -> bool:
        if not self.options.hold_early:
            return False
        length = dict(self.request.headers).get(b"content-length")
        return length is None or int(length) - self.uploaded < HELD_BYTES

    async def _pass_on(
        self,
        runner: End,
        head: h11.Response | h11.InformationalResponse,
        early: list[h11.Event] | None,
    ) -> None:
        zipped = dict(head.headers).get(b"content-encoding", b"").lower() == b"gzip"
        unzip = zlib.decompressobj(31) if zipped and self._asks_gzip else None
        headers = response_headers(head.headers.raw_items(), unzipped=unzip is not None)
        if not self._sent_all:
            headers.append((b"Connection", b"close"))
        if self.was_cut:
            raise Unavailable("the session has ended")
        self.status = head.status_code
        await self.client.send(
            h11.Response(status_code=head.status_code, headers=headers, reason=head.reason)
        )
        self.notify()
        for event in early or []:
            await self._answer(event, unzip)
        while not (early and isinstance(early[-1], h11.EndOfMessage)):
            event = await runner.next()
            await self._answer(event, unzip)
            if isinstance(event, h11.EndOfMessage):
                return

    async def _answer(self, event: h11.Event, unzip: "zlib._Decompress | None") -> None:
        if isinstance(event, h11.Data):
            data = unzip.decompress(event.data) if unzip is not None else bytes(event.data)
            if data:
                await self.client.send(h11.Data(data=data))
            self.downloaded += len(data)
        else:
            self.over = True
            await self.client.send(event)
        self.notify()

    async def _tunnel(self, runner: End, head: h11.Response | h11.InformationalResponse) -> None:
        """Behind an upgrade: bytes, both ways, until either side closes."""
        kept = response_headers(head.headers.raw_items(), unzipped=False)
        protocol = upgrade_of(head.headers.raw_items()) or b""
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", protocol)]
        self.status, self.upgraded = 101, True
        await self.client.send(
            h11.InformationalResponse(status_code=101, headers=kept, reason=head.reason)
        )
        self.notify()
        ways = [
            asyncio.create_task(self._copy(self.client, runner, up=True)),
            asyncio.create_task(self._copy(runner, self.client, up=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
        await self.client.close()
        await runner.close()

    async def _copy(self, source: End, sink: End, *, up: bool) -> None:
        try:
            while data := await source.read():
                await sink.write(data)
                if up:
                    self.uploaded += len(data)
                else:
                    self.downloaded += len(data)
                self.notify()
        except Gone:
            pass
        finally:
            self.over = True

    def _give_back(self) -> None:
        """Keep the runner's connection for the next request where that is possible."""
        if self._runner is None:
            return
        if self._sent_all and not self.upgraded and self._runner.again():
            host, port, _ = address_of(self.url)
            self.pool.put(host, port, self._runner)
        else:
            self._runner.abort()
        self._runner = None
