"""A trickle server over HTTP, as an orchestrator has one: channels by name, to post to and read."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from whisper_byoc.doors.requests import Vanished, answer_vanished, while_connected
from whisper_byoc.doors.trickle import (
    LAST,
    answer_next,
    answer_post,
    invalid_seq,
    no_channel,
    no_segment,
    refusal,
)
from whisper_byoc.trickle.channel import NEXT, Segment
from whisper_byoc.trickle.local import LocalChannel
from whisper_byoc.trickle.protocol import (
    CLOSED,
    EXPECT_CONTENT,
    LATEST,
    SEQ,
    TERMINATED,
    parse_seq,
)
from whisper_sim import node_trickle

_LOWEST = {"POST": NEXT}
"""By method, the lowest seq that go-livepeer takes."""


class Refused(Exception):
    """A hook does not allow it; a status that is not of the 4xx is sent as 400."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status, self.text = status, text


Hook = Callable[[str], None]


class ServedChannel(LocalChannel):
    """As an orchestrator keeps one: with the media type that its readers are told, and with when
    it was last written to. clock: in s, from any beginning."""

    def __init__(self, mime: str, clock: Callable[[], float]) -> None:
        super().__init__()
        self.mime = mime
        self._clock = clock
        self._write_time = clock()

    def receive_first_byte(self, segment: Segment) -> None:
        super().receive_first_byte(segment)
        self._write_time = self._clock()

    def is_idle(self, seconds: float) -> bool:
        """Whether no segment has begun for so long; one that is still written does not count."""
        return self._clock() - self._write_time > seconds


async def answer_get(
    request: Request, channel: ServedChannel, asked: int, *, node: bool
) -> Response:
    """One segment, as it is and as it grows; nothing is sent before its first byte. node: whether
    that is waited for even when the client has gone."""
    latest = channel.next_write
    segment = channel.find(asked)
    if segment is None:
        return no_segment(channel.resolve(asked), latest)
    headers = {SEQ: str(segment.seq)}
    if latest != segment.seq:
        headers[LATEST] = str(latest)
    waiting = _has_begun(channel, segment)
    try:
        await (waiting if node else while_connected(request, waiting))
    except Vanished as error:
        return await answer_vanished(request, error)
    if not len(segment):
        if channel.closed:
            headers[CLOSED] = TERMINATED
        headers.setdefault(LATEST, str(channel.next_write))
        return Response(headers=headers)
    headers["Content-Type"] = channel.mime
    return StreamingResponse(channel.chunks(segment), headers=headers)


class TrickleServer:
    """Channels by name, as an orchestrator keeps them. `routes` may be mounted anywhere.

    autocreate: whether a POST makes a channel. idle_seconds, sweep_seconds: when a channel that
    nobody writes to is closed, and how often that is looked for. before_create, before_delete:
    called with the name of a channel; they raise Refused to say no. node: whether it answers as
    livepeer/node's, which also sweeps nothing, instead of go-livepeer's.
    Its state is changed by its handlers and by `serve`'s sweep, all in one event loop.
    """

    def __init__(
        self,
        *,
        autocreate: bool = False,
        idle_seconds: float = 300.0,
        sweep_seconds: float = 60.0,
        before_create: Hook | None = None,
        before_delete: Hook | None = None,
        node: bool = False,
    ) -> None:
        self.channels: dict[str, ServedChannel] = {}
        self.node = node
        self._autocreate = autocreate
        self._idle_seconds, self._sweep_seconds = idle_seconds, sweep_seconds
        self._before_create, self._before_delete = before_create, before_delete

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/{name}/next", self._next, methods=["GET"]),
            Route("/{name}/{seq}", self._segment, methods=["GET", "POST", "DELETE"]),
            Route("/{name}", self._channel, methods=["POST", "DELETE"]),
        ]

    def create(self, name: str, mime: str) -> ServedChannel:
        """The channel of this name, made when there is none; no hook is asked."""
        clock = asyncio.get_running_loop().time
        return self.channels.setdefault(name, ServedChannel(mime, clock))

    def delete(self, name: str) -> bool:
        """Close and forget a channel; False where there is none. No hook is asked."""
        channel = self.channels.pop(name, None)
        if channel is not None:
            channel.close()
        return channel is not None

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Sweep idle channels while inside; leaving closes every channel."""
        async with asyncio.TaskGroup() as group:
            sweeping = group.create_task(self._sweep())
            try:
                yield
            finally:
                sweeping.cancel()
                for name in list(self.channels):
                    self.delete(name)

    async def _sweep(self) -> None:
        while not self.node:
            await asyncio.sleep(self._sweep_seconds)
            for name, channel in list(self.channels.items()):
                if not name.startswith("_") and channel.is_idle(self._idle_seconds):
                    self.delete(name)

    async def _channel(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "DELETE":
            if name not in self.channels:
                return refusal("invalid stream" if self.node else "Invalid stream", 400)
            return _asked(self._before_delete, name) or self._deleted(name)
        if name in self.channels:
            return Response()
        return self._created(name, request.headers.get(EXPECT_CONTENT, "")) or Response()

    async def _segment(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.channels:
            refused = self._missing(request, name)
            if refused is not None:
                return refused
        seq = parse_seq(request.path_params["seq"])
        channel = self.channels[name]
        lowest = node_trickle.LOWEST if self.node else _LOWEST
        if seq is None or seq < lowest.get(request.method, seq):
            return invalid_seq()
        if request.method == "DELETE":
            return Response() if channel.delete(seq) else refusal("Nonexistent segment", 400)
        if request.method == "POST":
            answer = node_trickle.answer_post if self.node else answer_post
            return await answer(request, channel, seq)
        return await answer_get(request, channel, seq, node=self.node)

    async def _next(self, request: Request) -> Response:
        channel = self.channels.get(request.path_params["name"])
        return no_channel() if channel is None else answer_next(channel.next_write)

    def _missing(self, request: Request, name: str) -> Response | None:
        """The refusal of a segment whose channel is missing; None when it is there now."""
        if request.method != "POST":
            return no_channel()
        if not self._autocreate:
            return no_channel(LAST)
        return self._created(name, request.headers.get("Content-Type", ""))

    def _created(self, name: str, mime: str) -> Response | None:
        """The refusal to make a channel; None when it was made."""
        if not self._autocreate:
            return no_channel()
        refused = _asked(self._before_create, name)
        if refused is None:
            self.create(name, mime)
        return refused

    def _deleted(self, name: str) -> Response:
        self.delete(name)
        return Response()


def _asked(hook: Hook | None, name: str) -> Response | None:
    if hook is None:
        return None
    try:
        hook(name)
    except Refused as refused:
        return refusal(refused.text, refused.status if 400 <= refused.status < 500 else 400)
    except Exception as error:  # a hook is not ours, and its fault is an answer
        return refusal(str(error), 500)
    return None


async def _has_begun(channel: LocalChannel, segment: Segment) -> None:
    while not (len(segment) or segment.closed):
        await channel.changes.wait()
