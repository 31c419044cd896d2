"""Which requests form the next batch: earliest deadline first (pure)."""

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

Request = TypeVar("Request")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Request]):
    request: Request
    deadline: float
    key: Hashable


class Scheduler(Generic[Request]):
    """Requests waiting for one thread; owned by that thread's `BatchThread`.

    Only requests of the same `key` (the same weights) may go together. Equal deadlines keep the
    order of arrival, so requests that all say 0 are served first come, first served.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._numbers = count()
        self._waiting: dict[int, _Entry[Request]] = {}  # in order of arrival

    def __len__(self) -> int:
        return len(self._waiting)

    def receive_request(self, request: Request, deadline: float, key: Hashable = None) -> int:
        """Let a request wait; returns its number, by which it may be cancelled."""
        number = next(self._numbers)
        self._waiting[number] = _Entry(request, deadline, key)
        return number

    def receive_cancel(self, number: int) -> None:
        """Forget a waiting request; the number of one that is no longer waiting does nothing."""
        self._waiting.pop(number, None)

    def next_batch(self) -> dict[int, Request]:
        """Take the most urgent request and what may go with it: number to request, in order."""
        # Sorted anew each time: a batch takes tens of milliseconds, and a hundred wait at most.
        urgent = sorted(self._waiting.items(), key=lambda item: item[1].deadline)
        batch = [number for number, entry in urgent if entry.key == urgent[0][1].key]
        return {number: self._waiting.pop(number).request for number in batch[: self._max_batch]}
