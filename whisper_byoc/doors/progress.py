"""How far a recording has come, for its caller and for the log (pure)."""

from dataclasses import dataclass

LOGGED_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of a recording at one moment.

    heard_seconds: up to where its transcript is there. received_seconds: of audio that came out of
    its bytes so far. num_bytes: of those. complete: whether they were the last.
    """

    heard_seconds: float
    received_seconds: float
    num_bytes: int
    complete: bool


class Progress:
    """The percentage of one recording that is heard; owned by its exchange. It never falls."""

    def __init__(self, num_bytes: int | None) -> None:
        """num_bytes: of the whole recording, where its sender has told."""
        self._num_bytes = num_bytes
        self._percent = 0
        self._logged = 0

    def receive_place(self, place: Place) -> int | None:
        """Percent, rounded down; None while the length cannot be known. Until all bytes are there
        the length is judged by them: as the audio so far to its bytes."""
        if not place.complete and not self._num_bytes:
            return None
        share = 1.0
        if not place.complete and self._num_bytes:
            share = min(1.0, place.num_bytes / self._num_bytes)
        heard = place.heard_seconds / place.received_seconds if place.received_seconds else 0.0
        self._percent = max(self._percent, int(100 * min(1.0, heard) * share))
        return self._percent

    def percent_to_log(self) -> int | None:
        """The percentage, when it is time to log it once more."""
        if self._percent < self._logged + LOGGED_PERCENT:
            return None
        self._logged = self._percent // LOGGED_PERCENT * LOGGED_PERCENT
        return self._percent
