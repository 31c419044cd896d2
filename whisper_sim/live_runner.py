"""A scripted orchestrator of Live Runners, livepeer/node's or go-livepeer's, on a socket.

    async with open_live_runner(heartbeat_interval="200ms", heartbeat_ttl="1s") as it:
        ORCH_URL=it.url ORCH_SECRET=it.options.secret …       # the worker
        await it.registered()                                 # -> Runner, of it.registry.runners
        await it.records.until(lambda: len(it.records.beats) > 3)

Any field of `runner_hub.Options` is a keyword: `node=False`, `on_chain=True`, `service_url=`,
`runner_service_url=`, `keepalive_seconds=`, `sweeps=False`, `proxy=ProxyOptions(head_seconds=1,
hold_early=False, grants=frozenset())`, …; besides, `port=` and `tls=` (a server's ssl.SSLContext).

What it saw is in `it.records` (runner_records.Records): requests, beats, gaps(id), late_beats,
stale, departures (with what was open), running, finished, cuts (Exchange: session_id, path,
uploaded, downloaded, status, upgraded, reused, was_cut).

What goes wrong: `it.next_answers["heartbeat"] = [Told(503, "server busy"), Hang(0.6), Lose(),
Drop()]`, by the name of the call (heartbeat, unregister, channels, proxy, stop, discovery, reserve,
client-stop, app, single, run, trickle, register); `async with it.refusing()`: connections refused;
`async with it.silent()`: no answers; `it.sweep()`, `it.restart()`, `it.close()`. Options of the
registry, such as `it.registry.heartbeat_interval = "1m0s"`, count from the next beat on.

Below `it.url`: /discovery, /apps/{id}/session, /apps/{id}/session/{sid}/app/…, …/stop,
/apps/{id}/app/…, /run/{proxy}/…, as in the wire reference. `it.reserve(runner_id)` gives a test a
session without a client, `it.add_static(id, runner_url, app)` a runner that does not register.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

import h11
from starlette.applications import Starlette

from whisper_sim import asgi_end
from whisper_sim.go_rules import Headers, clean_path, climbs, decode_path
from whisper_sim.http_ends import Abandoned, End, Gone, Pool
from whisper_sim.runner_calls import answer_call
from whisper_sim.runner_entries import Answer, Refused, Runner, Session
from whisper_sim.runner_front import Front
from whisper_sim.runner_hub import Hub, Options
from whisper_sim.runner_proxy import UNAVAILABLE, Exchange, Unavailable
from whisper_sim.runner_records import TIMEOUT, Drop, Fault, Hang, Lose, Received, Told
from whisper_sim.runner_routes import STREAMING, Route, find_route, is_streaming, strip_base

_BODY_SECONDS: Final = 5.0
_MAX_BODY_BYTES: Final = (1 << 20) + 1
_NOT_FOUND: Final = Answer(404, text="404 page not found", plain=True)
_NO_ROUTE: Final = Answer(404, text="route not found")
_BUSY: Final = Answer(503, text="server busy")


class LiveRunner(Hub):
    """Owns its front and its pool, beside what a `Hub` owns; made by `open_live_runner`.

    next_answers: by the name of a call, what it is answered with next in place of the right answer.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.url = ""
        self.next_answers: dict[str, list[Fault]] = {}
        self._pool = Pool(options.proxy.idle_seconds)
        self._channels = Starlette(routes=self.trickle.routes)
        self._front = Front(self._take)
        self._awake = asyncio.Event()
        self._awake.set()
        self._closing = asyncio.Event()
        self._places = {True: 0, False: 0}

    async def listen(self, port: int, tls: ssl.SSLContext | None) -> None:
        """Raises OSError where the port is taken."""
        self.url = await self._front.listen(port, tls)
        self.registry.service_url = self.options.service_url or self.url
        inner = self.options.runner_service_url or self.registry.service_url
        self.registry.runner_service_url = inner

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Connections are refused, and those that wait for a request are closed."""
        async with self._front.refusing():
            yield

    @asynccontextmanager
    async def silent(self) -> AsyncIterator[None]:
        """No call is answered before this is left; then each is, where the caller still waits."""
        self._awake = asyncio.Event()
        try:
            yield
        finally:
            self._awake.set()

    async def registered(self, num_runners: int = 1, seconds: float = TIMEOUT) -> Runner:
        """The newest runner, once so many are there. Raises TimeoutError."""
        await self.records.until(lambda: len(self.registry.runners) >= num_runners, seconds)
        return list(self.registry.runners.values())[-1]

    @property
    def places_taken(self) -> int:
        """By requests that are being answered now."""
        return sum(self._places.values())

    async def shut(self) -> None:
        """Close every connection. Raises ExceptionGroup where a request has met a fault of ours."""
        self._closing.set()
        self._awake.set()
        try:
            await self._front.shut()
        finally:
            self._pool.close()

    async def _take(self, end: End, request: h11.Request) -> None:
        """Raises Gone and Abandoned."""
        path, _, query = request.target.decode("latin-1").partition("?")
        method = request.method.decode()
        refusal, route = self._routed(method, path, query)
        streams = route.name in STREAMING or is_streaming(path)
        limit = self.options.streaming_places if streams else self.options.control_places
        if self._places[streams] >= limit:
            self.records.denied += 1
            refusal = _BUSY
        headers = {n.decode(): v.decode("latin-1") for n, v in request.headers}
        received = Received(self.now(), method, path, headers)
        self._places[streams] += 1
        try:
            if route.name in STREAMING and refusal is None:
                await self._stream(end, request, received, route)
            else:
                await self._control(end, received, route, refusal)
        finally:
            self._places[streams] -= 1
            self.records.notify()

    def _routed(self, method: str, path: str, query: str) -> tuple[Answer | None, Route]:
        """The call, or what is answered in its place."""
        bases = (self.registry.service_url, self.registry.runner_service_url)
        below = strip_base(path, tuple(urlsplit(base).path.rstrip("/") for base in bases))
        try:
            decoded = decode_path(path.encode())
        except ValueError:
            return Answer(400, text="400 Bad Request", plain=True, last=True), Route()
        if self.options.node and climbs(decoded):
            return Answer(400, text="invalid path"), Route()
        if below is None:
            return (_NO_ROUTE if self.options.node else _NOT_FOUND), Route()
        route = find_route(method, below)
        cleaned = clean_path(path)
        if not self.options.node and route is not None and below.endswith("/app"):
            cleaned += "/"
        if cleaned != path:
            return Answer(307), Route(rest=cleaned + (f"?{query}" if query else ""))
        if route is None:
            return _NOT_FOUND, Route("register" if below.startswith("/capability/") else "")
        if route.allowed:
            return Answer(405, text="Method Not Allowed", plain=True), route
        return None, route

    def _record(self, received: Received) -> None:
        self.records.requests.append(received)
        if received.authorization and received.authorization in self.registry.retired:
            self.records.stale.append(received)
        self.records.notify()

    async def _control(
        self, end: End, received: Received, route: Route, refusal: Answer | None
    ) -> None:
        """A short call, its body read whole. refusal: what it is answered whatever it says."""
        if refusal is None:
            received = replace(received, body=await _read_body(end))
        self._record(received)
        fault = await self._next_fault(end, route.name)
        if isinstance(fault, Drop):
            raise Abandoned("told to")
        if isinstance(fault, Told):
            await self._tell(end, fault)
            return
        answer = refusal or answer_call(self, route.name, received, route.ids)
        if isinstance(fault, Lose):
            raise Abandoned("told to")
        headers: Headers = []
        if answer.status == 307:
            headers.append((b"Location", route.rest.encode()))
        if route.allowed:
            headers.append((b"Allow", ", ".join(sorted(route.allowed)).encode()))
        await self._send(end, answer, headers)

    async def _next_fault(self, end: End, name: str) -> Fault | None:
        """What is to go wrong with this call; waits where nothing is to be answered now. Raises
        Gone when the caller leaves meanwhile."""
        faults = self.next_answers.get(name)
        fault = faults.pop(0) if faults else None
        if not self._awake.is_set():
            await _hold(end, self._awake, None)
        if isinstance(fault, Hang):
            await _hold(end, self._closing, fault.seconds)
        return fault

    async def _tell(self, end: End, told: Told) -> None:
        headers = [(n.encode(), v.encode()) for n, v in told.headers.items()]
        await self._send(end, Answer(told.status, text=told.text, plain=told.plain), headers)

    async def _send(self, end: End, answer: Answer, headers: Headers) -> None:
        """Raises Gone."""
        kind, body = _rendered(answer, self.options.node)
        headers = list(headers)
        if kind:
            headers.append((b"Content-Type", kind))
        if answer.status != 204:
            headers.append((b"Content-Length", str(len(body)).encode()))
        if answer.last or end.http.their_state is not h11.DONE:
            headers.append((b"Connection", b"close"))
        await end.send(h11.Response(status_code=answer.status, headers=headers))
        if body:
            await end.send(h11.Data(data=body))
        await end.send(h11.EndOfMessage())

    # What is streamed

    async def _stream(
        self, end: End, request: h11.Request, received: Received, route: Route
    ) -> None:
        self._record(received)
        fault = await self._next_fault(end, route.name)
        if isinstance(fault, Told):
            await self._tell(end, fault)
        elif isinstance(fault, Drop | Lose):
            raise Abandoned("told to")
        elif route.name == "trickle":
            _, mark, query = request.target.decode("latin-1").partition("?")
            await asgi_end.answer(self._channels, end, request, route.rest + mark + query)
        else:
            await self._proxied(end, request, route)

    async def _proxied(self, end: End, request: h11.Request, route: Route) -> None:
        session: Session | None = None
        single = True
        try:
            runner, session, url = self._find(route)
            if single := session is None:
                session = self.registry.reserve_single(runner.runner_id, self.now())
                self.carry_out()
            await self._exchange(end, request, self._between(end, request, route, session, url))
        except Refused as refused:
            await self._send(end, refused.answer, [])
        except Unavailable:
            await self._send(end, Answer(502, text=UNAVAILABLE), [])
        finally:
            if single and session is not None:
                self.release(session)

    def _find(self, route: Route) -> tuple[Runner, Session | None, str]:
        """Runner, session (None where it is one shot) and URL. Raises Refused."""
        if route.name == "run":
            return self.registry.proxy_target(route.ids[0], self.now())
        if route.name == "app":
            runner, session = self.registry.session_target(*route.ids[:2], now=self.now())
            return runner, session, runner.fields.runner_url
        found = self.registry.runners.get(route.ids[0])
        if found is None:
            raise Refused(404, "runner unavailable")
        return found, None, found.fields.runner_url

    def _between(
        self, end: End, request: h11.Request, route: Route, session: Session, url: str
    ) -> Exchange:
        own = {
            "Livepeer-Runner-Route": session.runner_id,
            "Livepeer-Session-Id": session.session_id,
            "Livepeer-Session-Token": session.token,
            "Livepeer-Session-Control": self.registry.control_url(session),
        }
        if self.options.node:
            host = dict(request.headers).get(b"host", b"").decode("latin-1")
            forwarded = {"For": end.peer, "Host": host, "Proto": "http"}
            own |= {f"X-Forwarded-{name}": value for name, value in forwarded.items()}
        return Exchange(
            client=end,
            request=request,
            url=url,
            path=decode_path(route.rest.encode()),
            query=request.target.decode("latin-1").partition("?")[2],
            own=[(n.encode(), v.encode("latin-1")) for n, v in own.items()],
            options=self.options.proxy,
            pool=self._pool,
            session_id=session.session_id,
            notify=self.records.notify,
        )

    async def _exchange(self, end: End, request: h11.Request, exchange: Exchange) -> None:
        """Raises Unavailable and Abandoned."""
        self.records.running.append(exchange)
        self.records.notify()
        try:
            await exchange.run()
        finally:
            self.records.running.remove(exchange)
            self.records.finished.append(exchange)
            self.records.notify()


def _rendered(answer: Answer, node: bool) -> tuple[bytes, bytes]:
    """Content type and body."""
    if answer.text is None:
        if answer.document is None:
            return b"", b""
        return b"application/json", json.dumps(answer.document).encode()
    if node and not answer.plain:
        return b"application/json", json.dumps({"error": answer.text}).encode()
    return b"text/plain; charset=utf-8", answer.text.encode() + b"\n"


async def _read_body(end: End) -> bytes:
    """What comes within the time that control calls have, and not much more than is allowed. Raises
    Gone."""
    body = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(_BODY_SECONDS):
            while isinstance(event := await end.next(), h11.Data):
                body += bytes(event.data)
                if len(body) >= _MAX_BODY_BYTES:
                    break
    return body


async def _hold(end: End, until: asyncio.Event, seconds: float | None) -> None:
    """Wait for one of both, or raise Gone when the caller leaves."""
    waiting = asyncio.create_task(until.wait())
    leaving = asyncio.create_task(end.until_closed())
    try:
        await asyncio.wait({waiting, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done() and leaving.result():
            raise Gone("the caller has left")
    finally:
        for task in (waiting, leaving):
            task.cancel()
        await asyncio.wait({waiting, leaving})


@asynccontextmanager
async def open_live_runner(
    port: int = 0, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[LiveRunner]:
    """An orchestrator that listens on loopback; at exit it cuts what there is.

    port: 0 for any. options: of `runner_hub.Options`. Raises OSError where the port is taken.
    """
    live = LiveRunner(Options(**options))
    async with live.serve():
        await live.listen(port, tls)
        try:
            yield live
        finally:
            await live.shut()
