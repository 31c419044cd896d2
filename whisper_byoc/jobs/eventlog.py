"""The events of one job, kept for any number of readers."""

import asyncio
import math
from bisect import bisect_right
from collections.abc import AsyncIterator
from operator import attrgetter

from whisper_byoc.errors import SlowReader
from whisper_byoc.transcript import End, Endpoint, EndReason, Event, Final, Partial, Payload


class EventLog:
    """Written by its job alone; every reader follows at its own pace and holds nothing up.

    Of partials only the newest is kept, so a slow reader misses some. Of the other events
    `max_events` are kept, with payloads of `max_bytes` in all; then the oldest give way, and a
    reader that had not come to them yet is cut off.
    """

    def __init__(self, max_events: int, max_bytes: float = math.inf) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.num_bytes = 0
        """Bytes of the payloads that are kept."""
        self.dropped_seq = -1
        """Seq of the newest event that has given way; -1 for none."""
        self.next_seq = 0
        """The seq that the next event will have."""
        self._events: list[Event] = []
        self._partial: Partial | None = None
        self._num_dropped = 0
        self._changed = asyncio.Event()

    @property
    def end_reason(self) -> EndReason | None:
        """Why the job has ended; None while it runs."""
        last = self._events[-1] if self._events else None
        return last.reason if isinstance(last, End) else None

    @property
    def ended(self) -> bool:
        return self.end_reason is not None

    def append(self, event: Event) -> None:
        """Take the next event, and wake the readers."""
        if isinstance(event, Partial):
            self._partial = event
        else:
            if isinstance(event, Final | Endpoint):
                self._partial = None
            self._events.append(event)
            self.num_bytes += _num_bytes(event)
            self._trim()
        self.next_seq = event.seq + 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Until there is another event."""
        await self._changed.wait()

    def after(self, seq: int) -> list[Event]:
        """What is kept of the events behind `seq`, in order."""
        events = self._events[bisect_right(self._events, seq, key=attrgetter("seq")) :]
        if self._partial is not None and self._partial.seq > seq:
            events.append(self._partial)
            events.sort(key=attrgetter("seq"))
        return events

    async def read(
        self, after: int = -1, idle_seconds: float | None = None
    ) -> AsyncIterator[Event | None]:
        """The events whose seq is above `after`, as far as they are kept, and those that follow, to
        the job's end; None whenever nothing has come for `idle_seconds`.

        Raises SlowReader when events have given way that were still to be yielded.
        """
        seq = max(after, self.dropped_seq)
        num_dropped = self._num_dropped
        while True:
            changed = self._changed
            if self.dropped_seq > seq:
                raise SlowReader(self._num_dropped - num_dropped)
            for event in self.after(seq):
                yield event
                seq = event.seq
                if isinstance(event, End):
                    return
            if self.ended and not self.after(seq):
                return  # it was asked to begin behind the end
            try:
                async with asyncio.timeout(idle_seconds):
                    await changed.wait()
            except TimeoutError:
                yield None

    def _trim(self) -> None:
        """Drop a tenth at once, so that a full log does not move its list at every event."""
        if len(self._events) > self._max_events:
            self._drop(max(1, self._max_events // 10))
        # The newest stays, however large.
        while len(self._events) > 1 and self.num_bytes > self._max_bytes:
            self._drop(1)

    def _drop(self, count: int) -> None:
        self.dropped_seq = self._events[count - 1].seq
        self._num_dropped += count
        self.num_bytes -= sum(map(_num_bytes, self._events[:count]))
        del self._events[:count]


def _num_bytes(event: Event) -> int:
    return len(event.data) if isinstance(event, Payload) else 0
