"""Which requests form the next batch: earliest deadline first (pure)."""

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Request = TypeVar("Request")


@dataclass(order=True, slots=True)
class _Entry(Generic[Request]):
    deadline: float
    number: int
    request: Request = field(compare=False)
    key: Hashable = field(compare=False)
    cancelled: bool = field(default=False, compare=False)


class Scheduler(Generic[Request]):
    """Requests waiting for one thread; owned by that thread's `BatchThread`.

    Only requests of the same `key` (the same weights) may go together. Equal deadlines keep the
    order of arrival, so requests that all say 0 are served first come, first served.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._heap: list[_Entry[Request]] = []
        self._entries: dict[int, _Entry[Request]] = {}
        self._received = 0

    def __len__(self) -> int:
        return len(self._entries)

    def receive_request(self, request: Request, deadline: float, key: Hashable = None) -> int:
        """Let a request wait; returns its number, by which it may be cancelled."""
        number = self._received
        self._received += 1
        entry = _Entry(deadline, number, request, key)
        self._entries[number] = entry
        heapq.heappush(self._heap, entry)
        return number

    def receive_cancel(self, number: int) -> None:
        """Forget a waiting request; one that is no longer waiting is none of ours."""
        entry = self._entries.pop(number, None)
        if entry is not None:
            entry.cancelled = True

    def next_batch(self) -> dict[int, Request]:
        """Take the most urgent request and what may go with it: number to request, in order."""
        batch: dict[int, Request] = {}
        passed: list[_Entry[Request]] = []
        key: Hashable = None
        while self._heap and len(batch) < self._max_batch:
            entry = heapq.heappop(self._heap)
            if entry.cancelled:
                continue
            if batch and entry.key != key:
                passed.append(entry)
                continue
            key = entry.key
            batch[entry.number] = entry.request
            del self._entries[entry.number]
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return batch
