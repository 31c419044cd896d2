"""Which requests form the next batch: earliest deadline first, in two lanes (pure)."""

import math
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
    order of arrival, so requests that all say 0 are served first come, first served. Those that
    have no deadline, which is to say infinity, are patient: a lane of their own, in batches of at
    most `max_patient`, behind all others.
    """

    def __init__(self, max_batch: int, max_patient: int = 1) -> None:
        self._max_batch, self._max_patient = max_batch, max_patient
        self._numbers = count()
        self._urgent: dict[int, _Entry[Request]] = {}  # in order of arrival
        self._patient: dict[int, _Entry[Request]] = {}

    def __len__(self) -> int:
        return len(self._urgent) + len(self._patient)

    @property
    def has_urgent(self) -> bool:
        """May be asked from any thread."""
        return bool(self._urgent)

    def receive_request(self, request: Request, deadline: float, key: Hashable = None) -> int:
        """Let a request wait; returns its number, by which it may be cancelled."""
        number = next(self._numbers)
        lane = self._patient if math.isinf(deadline) else self._urgent
        lane[number] = _Entry(request, deadline, key)
        return number

    def receive_cancel(self, number: int) -> None:
        """Forget a waiting request; the number of one that is no longer waiting does nothing."""
        self._urgent.pop(number, None)
        self._patient.pop(number, None)

    def next_batch(self) -> dict[int, Request]:
        """Take the most urgent request and what may go with it: number to request, in order."""
        return _take(self._urgent, self._max_batch)

    def next_patient_batch(self) -> dict[int, Request]:
        """Likewise of those without a deadline, for when none is urgent."""
        return _take(self._patient, self._max_patient)


def _take(lane: dict[int, _Entry[Request]], most: int) -> dict[int, Request]:
    # Sorted anew each time: a batch takes tens of milliseconds, and a hundred wait at most.
    urgent = sorted(lane.items(), key=lambda item: item[1].deadline)
    batch = [number for number, entry in urgent if entry.key == urgent[0][1].key]
    return {number: lane.pop(number).request for number in batch[:most]}
