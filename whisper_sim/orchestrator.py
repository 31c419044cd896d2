"""A scripted orchestrator with its gateway: real channels over real sockets, and the watchdogs that
end a stream, with their times scaled down (docs/wire.md).

`Orchestrator` owns the trickle server and the capabilities that were registered; `Stream` is one
stream through it, with what its gateway has read and which watchdog has ended it.
"""

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from whisper_byoc.cli import Server
from whisper_byoc.doors.requests import MODEL_HEADER
from whisper_sim.trickle_server import TrickleServer

MAX_LINE = 64 * 1024
"""Bytes of a data line that go-livepeer's scanner does not take any more."""
RING = 5
"""Data lines that go-livepeer keeps for its reader."""
_CHANNELS = {
    "control_url": ("-control", "application/json"),
    "events_url": ("-events", "application/json"),
    "subscribe_url": ("", "video/MP2T"),
    "publish_url": ("-out", "video/MP2T"),
    "data_url": ("-data", "application/jsonl"),
}
"""By their names in the call that starts a stream: what follows the stream's id in the name of the
channel, and the content type of its segments."""


class Watchdog(StrEnum):
    """Why a gateway ended a stream, or cut a client's connection off."""

    EVENTS = "timeout waiting for events"
    OUTPUT = "timeout waiting for segments"
    DATA_CLOSED = "data channel closed"
    LINE = "data line of 64 KiB or more"
    BURST = "more than five lines before the reader took them"


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds, as go-livepeer has them; tests scale some down.

    events, output: how long a gateway waits for an event, for a segment back. input_within: it asks
    for segments back only where input came so recently. control: between two keepalives on the
    control channel. stop: for the worker to answer a stop. idle, sweep: see TrickleServer.
    reader_delay: before a gateway begins to read. line_reader: what its reader takes for a line.
    """

    events: float = 30.0
    output: float = 30.0
    input_within: float = 15.0
    control: float = 10.0
    stop: float = 10.0
    idle: float = 300.0
    sweep: float = 60.0
    reader_delay: float = 0.2
    line_reader: float = 0.02


@dataclass
class Capability:
    """What a worker has registered. token: what calls to it carry as a Bearer token, if any.
    fields: the whole body of the registration (docs/wire.md)."""

    name: str
    url: str
    token: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


class Orchestrator:
    """The trickle server and the registered capabilities; made by `open_orchestrator`.

    All is changed in the event loop that serves it. deletions: names of channels that were deleted.
    registered, unregistered: set when a worker has done so for the first time.
    """

    def __init__(self, times: Times, secret: str) -> None:
        self.times = times
        self.secret = secret
        self.url = ""
        self.deletions: list[str] = []
        self.trickle = TrickleServer(
            idle_seconds=times.idle,
            sweep_seconds=times.sweep,
            before_delete=self.deletions.append,
        )
        self.capabilities: dict[str, Capability] = {}
        self.registered = asyncio.Event()
        self.unregistered = asyncio.Event()
        self.routes = [
            Mount("/ai/trickle", routes=self.trickle.routes),
            Route("/capability/register", self._register, methods=["POST"]),
            Route("/capability/unregister", self._unregister, methods=["POST"]),
            Route("/live/video-to-video", self._video_to_video, methods=["POST"]),
        ]

    async def call_worker(
        self,
        capability: Capability,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        seconds: float,
    ) -> tuple[int, bytes]:
        """One short call, as an orchestrator makes them: a connection of its own. Status and body
        of the answer; a capability that answers 401 is forgotten. Raises aiohttp.ClientError, and
        TimeoutError after `seconds`."""
        sent = dict(headers)
        if capability.token:
            sent["Authorization"] = f"Bearer {capability.token}"
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.post(capability.url + path, data=body, headers=sent) as response,
        ):
            if response.status == 401:
                self.capabilities.pop(capability.name, None)
            return response.status, await response.read()

    def channel_url(self, name: str) -> str:
        return f"{self.url}/ai/trickle/{name}"

    async def _register(self, request: Request) -> Response:
        if request.headers.get("Authorization", "") != self.secret:
            return Response("invalid authorization", 400)
        try:
            fields = json.loads(await request.body())
            capability = Capability(fields["name"], fields["url"], fields.get("token", ""), fields)
        except (ValueError, KeyError) as error:
            return Response(f"Error registering capability: {error}", 400)
        self.capabilities[capability.name] = capability
        self.registered.set()
        return Response("ok", media_type="application/json")

    async def _unregister(self, request: Request) -> Response:
        if request.headers.get("Authorization", "") != self.secret:
            return Response("invalid authorization", 400)
        self.capabilities.pop((await request.body()).decode(), None)
        self.unregistered.set()
        return Response("ok", media_type="application/json")

    async def _video_to_video(self, request: Request) -> Response:
        """The tutorial's call: one payload in, one out. No gateway has it."""
        capability = next(iter(self.capabilities.values()), None)
        if capability is None:
            return JSONResponse({"error": "no capability is registered"}, 503)
        headers = {"Content-Type": request.headers.get("Content-Type", "application/octet-stream")}
        if MODEL_HEADER in request.headers:
            headers[MODEL_HEADER] = request.headers[MODEL_HEADER]
        if token := capability.token:
            headers["Authorization"] = f"Bearer {token}"
        job = f"{capability.url}/live/gateway-{id(request):x}"
        async with aiohttp.ClientSession() as http:
            async with http.put(
                f"{job}/source", data=io.BytesIO(await request.body()), headers=headers
            ) as answer:
                if answer.status >= 400:
                    return Response(
                        await answer.read(), answer.status, media_type=answer.content_type
                    )
            async with http.get(f"{job}/output") as answer:
                body, media_type = await answer.read(), answer.content_type
            async with http.delete(job):
                return Response(body, media_type=media_type)


@asynccontextmanager
async def open_orchestrator(
    times: Times | None = None, secret: str = "secret", port: int = 0
) -> AsyncIterator[Orchestrator]:
    """An orchestrator that listens on loopback."""
    orchestrator = Orchestrator(times or Times(), secret)
    server = Server(
        uvicorn.Config(
            Starlette(routes=orchestrator.routes),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
    )
    with socket.create_server(("127.0.0.1", port)) as listener:
        # asyncio does it for sockets of its own making only; else every answer in two pieces
        # waits 40 ms for an acknowledgement, and a reader of segments falls behind.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        orchestrator.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with asyncio.TaskGroup() as group, orchestrator.trickle.serve():
            serving = group.create_task(server.serve([listener]))
            try:
                yield orchestrator
            finally:
                for name in list(orchestrator.trickle.channels):
                    orchestrator.trickle.delete(name)
                server.stop()
                await serving


class Stream:
    """One stream, seen from its gateway; made by `open_stream`, which also runs `read`.

    channels: their names by what the start of a stream calls them, such as `data_url`. lines,
    events, outputs: what the gateway has read of each channel, with the event loop's times of the
    first two. status: the newest event of this type. stopped_with: status and body of the worker's
    answer to the stop.
    """

    def __init__(
        self,
        orchestrator: Orchestrator,
        capability: Capability,
        stream_id: str,
        channels: Mapping[str, str],
        receive: Callable[[dict[str, Any]], None],
    ) -> None:
        self.stream_id = stream_id
        self.channels = channels
        self.lines: list[dict[str, Any]] = []
        self.line_times: list[float] = []
        self.events: list[dict[str, Any]] = []
        self.event_times: list[float] = []
        self.outputs: list[bytes] = []
        self.status: dict[str, Any] = {}
        self.watchdog: Watchdog | None = None
        self.ended = asyncio.Event()
        self.changed = asyncio.Event()
        self.stopped_with: tuple[int, bytes] | None = None
        self._orchestrator = orchestrator
        self._capability = capability
        self._receive = receive
        self._times = orchestrator.times
        self._loop = asyncio.get_running_loop()
        self._last_event = self._last_output = self._loop.time()
        self._last_input: float | None = None
        self._seq = orchestrator.trickle.channels[channels["subscribe_url"]].next_write
        self._line_queue: asyncio.Queue[bytes] = asyncio.Queue(RING)

    async def publish(self, segment: bytes) -> None:
        """One segment of input, over HTTP as the gateway's publisher sends it."""
        url = f"{self._orchestrator.channel_url(self.channels['subscribe_url'])}/{self._seq}"
        self._seq += 1
        headers = {"Content-Type": "video/MP2T"}
        async with (
            aiohttp.ClientSession() as http,
            http.post(url, data=io.BytesIO(segment), headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()
        self._last_input = self._loop.time()

    async def control(self, message: bytes) -> None:
        channel = self._orchestrator.trickle.channels.get(self.channels["control_url"])
        if channel is None:  # swept
            return
        segment = channel.begin(-1)
        channel.receive_first_byte(segment)
        channel.write(segment, message)
        channel.end(segment)

    async def update(self, message: bytes) -> tuple[int, bytes]:
        """As a client's update arrives."""
        headers = {"Content-Type": "application/json", "X-Stream-Id": self.stream_id}
        return await self._orchestrator.call_worker(
            self._capability, "/stream/params", message, headers, 10
        )

    async def stop(self, body: bytes = b"stream ended") -> None:
        """As a client's stop: the worker first, then every channel is closed upon its answer."""
        if self.ended.is_set():
            return
        with suppress(aiohttp.ClientError, TimeoutError):
            self.stopped_with = await self._orchestrator.call_worker(
                self._capability,
                "/stream/stop",
                body,
                {"X-Stream-Id": self.stream_id},
                self._times.stop,
            )
        # What was published before the answer is read before the channels go.
        await asyncio.sleep(self._times.line_reader * RING)
        self.close()

    def close(self) -> None:
        for name in self.channels.values():
            self._orchestrator.trickle.delete(name)
        self.ended.set()

    @property
    def text(self) -> str:
        return " ".join(line["text"] for line in self.lines if line["type"] == "final")

    async def until(self, reached: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until `reached` answers true, asked whenever the gateway has read something.

        Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not reached():
                await self.changed.wait()

    async def read(self) -> None:
        """The gateway's readers and watchdogs, until the stream is over or this is cancelled."""
        await asyncio.sleep(self._times.reader_delay)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._read_events()),
                group.create_task(self._keep_control()),
                group.create_task(self._watch()),
                group.create_task(self._tick()),
                group.create_task(self._read_data()),
                group.create_task(self._take_lines()),
            ]
            if "publish_url" in self.channels:
                tasks.append(group.create_task(self._read_output()))
            await self.ended.wait()
            for task in tasks:
                task.cancel()

    async def _segments(self, name: str) -> AsyncIterator[bytes]:
        """Whole segments from the live edge on, by plain requests."""
        url, seq = self._orchestrator.channel_url(name), "-1"
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                async with http.get(f"{url}/{seq}") as answer:
                    if answer.status == 470:
                        seq = answer.headers["Lp-Trickle-Latest"]
                        continue
                    if answer.status != 200 or "Lp-Trickle-Closed" in answer.headers:
                        return
                    seq = str(int(answer.headers["Lp-Trickle-Seq"]) + 1)
                    body = await answer.read()
                if body:
                    yield body

    async def _read_events(self) -> None:
        async for body in self._segments(self.channels["events_url"]):
            try:
                message = json.loads(body)
            except ValueError:
                continue  # does not count as an event
            event = message.get("event", message)
            self._last_event = self._loop.time()
            self.event_times.append(self._last_event)
            self.events.append(message)
            if event.get("type") == "status":
                self.status = event
            self._notify()

    @property
    def reading_data(self) -> bool:
        """Whether the gateway's reader waits at the live edge of the data channel."""
        channel = self._orchestrator.trickle.channels.get(self.channels["data_url"])
        return channel is not None and channel.first_from(0) is not None

    async def _read_data(self) -> None:
        async for body in self._segments(self.channels["data_url"]):
            for line in body.splitlines():
                if len(line) >= MAX_LINE:
                    self._fire(Watchdog.LINE)
                    return
                try:
                    self._line_queue.put_nowait(line)
                except asyncio.QueueFull:
                    self._fire(Watchdog.BURST)
                    return
        if not self.ended.is_set():
            self._fire(Watchdog.DATA_CLOSED)

    async def _take_lines(self) -> None:
        while True:
            line = await self._line_queue.get()
            self.lines.append(json.loads(line))
            self.line_times.append(self._loop.time())
            self._receive(self.lines[-1])
            self._notify()
            await asyncio.sleep(self._times.line_reader)

    async def _read_output(self) -> None:
        async for body in self._segments(self.channels["publish_url"]):
            self._last_output = self._loop.time()
            self.outputs.append(body)
            self._notify()

    async def _keep_control(self) -> None:
        while True:
            await self.control(b'{"keep":"alive"}')
            await asyncio.sleep(self._times.control)

    async def _watch(self) -> None:
        step = min(self._times.events, self._times.output) / 3
        while True:
            await asyncio.sleep(step)
            now = self._loop.time()
            if now - self._last_event > self._times.events:
                self._fire(Watchdog.EVENTS)
            fed = self._last_input is not None and now - self._last_input < self._times.input_within
            late = now - self._last_output > self._times.output
            if "publish_url" in self.channels and fed and late:
                self._fire(Watchdog.OUTPUT)

    async def _tick(self) -> None:
        """Wake `until` every 20 ms: what it waits for may be a channel's state, of which no
        reader tells."""
        while True:
            self._notify()
            await asyncio.sleep(0.02)

    def _fire(self, watchdog: Watchdog) -> None:
        if self.watchdog is None and not self.ended.is_set():
            self.watchdog = watchdog
            self.close()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


@asynccontextmanager
async def open_stream(
    orchestrator: Orchestrator,
    capability: Capability,
    stream_id: str = "stream",
    *,
    egress: bool = False,
    params: Mapping[str, Any] | None = None,
    receive: Callable[[dict[str, Any]], None] = lambda line: None,
) -> AsyncIterator[Stream]:
    """A stream that the worker has accepted, with its readers running; closed at exit.

    stream_id: also the name of its input channel, which may be there already: the stream then goes
    on with its next segment. egress: whether the worker is to send segments back. params: of the
    call that starts it. receive: called with every line of the data channel.
    Raises AssertionError when the worker refuses the stream.
    """
    channels = {name: stream_id + suffix for name, (suffix, _) in _CHANNELS.items()}
    if not egress:
        del channels["publish_url"]
    for name, channel in channels.items():
        orchestrator.trickle.create(channel, _CHANNELS[name][1])
    stream = Stream(orchestrator, capability, stream_id, channels, receive)
    urls = {name: orchestrator.channel_url(channel) for name, channel in channels.items()}
    body = json.dumps({"gateway_request_id": stream_id, "params": params, **urls}).encode()
    headers = {"Content-Type": "application/json", "X-Stream-Id": stream_id}
    status, answer = await orchestrator.call_worker(
        capability, "/stream/start", body, headers, seconds=10
    )
    if status >= 400:
        stream.close()
        raise AssertionError(f"start was refused with {status}: {answer!r}")
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(stream.read())
        try:
            yield stream
        finally:
            await stream.stop()
            reading.cancel()
