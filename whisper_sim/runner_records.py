"""What a scripted orchestrator has seen, what it is told to do wrong, and waiting for either."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from whisper_sim.runner_proxy import Exchange

_KEPT: Final = 50_000
"""Requests and beats; the oldest give way."""
TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Told:
    """An answer in place of the right one. plain: whether its text is no JSON in any dialect."""

    status: int
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer for so many seconds, and then the right one; None: before the caller leaves or the
    orchestrator closes."""

    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Lose:
    """The call is carried out, but its connection is closed in place of an answer."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection is closed, and nothing is carried out."""


Fault = Told | Hang | Lose | Drop


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came. time: the event loop's. path: without the query. headers: names in
    lower case. body: of a control call; None of what is streamed."""

    time: float
    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None = None

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")

    @property
    def fields(self) -> dict[str, Any]:
        fields = json.loads(self.body or b"")
        assert isinstance(fields, dict)
        return fields


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat and its answer. runner_id: of the answer, or else of the request. late: whether
    the accepted one before it was longer ago than the time to live."""

    request: Received
    runner_id: str
    status: int
    late: bool

    @property
    def time(self) -> float:
        return self.request.time


@dataclass(frozen=True, slots=True)
class Departure:
    """An unregistration. open: the requests that were running through the orchestrator then."""

    time: float
    runner_id: str
    open: tuple[Exchange, ...]
    status: int


@dataclass
class Records:
    """Written by the orchestrator alone.

    requests: all, in order of arrival. beats: heartbeats that were answered. stale: requests with a
    heartbeat secret that was no longer valid. running, finished: requests through the orchestrator.
    cuts: those that were running when their session ended, in node's dialect. denied: those that
    were answered 503 for want of a place.
    """

    requests: deque[Received] = field(default_factory=lambda: deque(maxlen=_KEPT))
    beats: deque[Beat] = field(default_factory=lambda: deque(maxlen=_KEPT))
    stale: list[Received] = field(default_factory=list)
    departures: list[Departure] = field(default_factory=list)
    running: list[Exchange] = field(default_factory=list)
    finished: deque[Exchange] = field(default_factory=lambda: deque(maxlen=_KEPT))
    cuts: list[Exchange] = field(default_factory=list)
    denied: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def to(self, path: str) -> list[Received]:
        """The requests to this path, in order."""
        return [request for request in self.requests if request.path == path]

    def gaps(self, runner_id: str) -> list[float]:
        """Seconds between one accepted heartbeat of a runner and the next."""
        times = [it.time for it in self.beats if it.runner_id == runner_id and it.status == 200]
        return [after - before for before, after in pairwise(times)]

    @property
    def late_beats(self) -> list[Beat]:
        return [beat for beat in self.beats if beat.late]

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, holds: Callable[[], bool], seconds: float | None = TIMEOUT) -> None:
        """Wait until what the orchestrator has seen or done makes `holds` true. seconds: None is
        without limit. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not holds():
                await self._changed.wait()
