"""How often the partials of one stream are made (pure)."""

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.settings import StreamingSettings

_FIRST_PARTIAL = round(0.4 * SAMPLE_RATE)
"""Samples from the start of an utterance to its first partial."""

_STRETCH = 1.5
"""A stream waits at least so many times as long between two partials as the last answer took, so
that streams which share an engine leave it time for the finals of one another."""


class PartialPace:
    """When the next partial is due, and how many were made; owned by the stream's transcriber.

    Places are in samples of the stream.
    """

    def __init__(self, settings: StreamingSettings) -> None:
        self.num_made = 0
        self.num_dropped = 0
        """Partials that were due by the settings and were not made, the engine being busy."""
        self._answer_seconds = 0.0
        self._due = 0
        self.receive_settings(settings, 0)

    def receive_settings(self, settings: StreamingSettings, place: int) -> None:
        """Go on by other settings, from the newest audio, at `place`, on."""
        self._chosen = settings.partial_interval
        self._previous: int | None = None
        self.make_due(place + self._interval)

    def receive_answer(self, seconds: float) -> None:
        """The engine has taken so long for the last window of this stream."""
        self._answer_seconds = seconds

    def begin(self, start: int) -> None:
        """An utterance begins at place `start`."""
        self._due = start + _FIRST_PARTIAL

    def make_due(self, place: int) -> None:
        """The next partial is due at `place`, if it is not due before."""
        self._due = min(self._due, place)

    def is_due(self, place: int) -> bool:
        """Whether a partial of the audio up to `place` should be made."""
        return place >= self._due

    def receive_partial(self, place: int, start: int) -> None:
        """A partial is made of the window from place `start` to `place`."""
        # Before `start` lies another utterance, or what has been cut off: silence in between makes
        # no partial due.
        if self._previous is not None and self._previous >= start:
            passed = (place - self._previous) / SAMPLE_RATE
            self.num_dropped += max(0, round(passed / self._chosen) - 1)
        self.num_made += 1
        self._previous = place
        self._due = place + self._interval

    @property
    def _interval(self) -> int:
        """Samples between two partials."""
        return round(max(self._chosen, _STRETCH * self._answer_seconds) * SAMPLE_RATE)
