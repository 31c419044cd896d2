"""What Prometheus reads; one registry per service, so tests do not share counters."""

from collections.abc import Callable
from functools import partial

import prometheus_client as prometheus

from whisper_byoc.decode import Hypothesis
from whisper_byoc.transcript import Event, Final

# A second series for every counter, with the time since which it counts, would tell nothing here.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
# Upper ends, in seconds, closest where live streams were measured to be (docs/streaming.md).
_DECODE_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_LAG_BUCKETS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0)


class Metrics:
    """Counters of one service, written by its jobs and read by `GET /metrics`."""

    def __init__(self) -> None:
        self._registry = prometheus.CollectorRegistry()
        counter = partial(prometheus.Counter, registry=self._registry)
        self.jobs_started = counter("whisper_jobs_started_total", "Jobs begun")
        self.jobs_ended = counter("whisper_jobs_ended_total", "Jobs ended", ["reason"])
        self.jobs_refused = counter(
            "whisper_jobs_refused_total", "Jobs refused because too many were running"
        )
        self._open_decoding(counter)
        self._events = counter("whisper_events_total", "Events sent", ["type"])
        self._words = counter("whisper_final_words_total", "Final words")
        self.segments_received = counter(
            "whisper_segments_received_total", "Trickle segments read from orchestrators"
        )
        self.segments_skipped = counter(
            "whisper_segments_skipped_total",
            "Trickle segments that were gone before we came to them",
        )
        self.segments_dropped = counter(
            "whisper_segments_dropped_total",
            "Trickle segments read and given up because the engine was too slow",
        )
        self.slow_readers = counter(
            "whisper_slow_readers_total", "Readers of output cut off because they fell behind"
        )

    def _open_decoding(self, counter: Callable[..., prometheus.Counter]) -> None:
        self.audio_seconds = counter("whisper_audio_seconds_total", "Seconds of audio taken in")
        self._decode_seconds = prometheus.Histogram(
            "whisper_decode_seconds",
            "Seconds from asking for a decode to its answer",
            ["purpose"],
            buckets=_DECODE_BUCKETS,
            registry=self._registry,
        )
        self.final_lag_seconds = prometheus.Histogram(
            "whisper_final_lag_seconds",
            "Seconds from the end of a final's last word to its becoming final, of live streams",
            buckets=_LAG_BUCKETS,
            registry=self._registry,
        )
        self.partials_dropped = counter(
            "whisper_partials_dropped_total",
            "Partials that were due and not made, the engine being busy",
        )
        self._rungs = counter(
            "whisper_decodes_total",
            "Decodes by the rung of the safety ladder that gave their text",
            ["rung"],
        )
        self._trips = counter(
            "whisper_ladder_trips_total",
            "First attempts at a decode that were not believed, by reason",
            ["reason"],
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge of this name whose value is what `read` gives when Prometheus asks."""
        prometheus.Gauge(name, text, registry=self._registry).set_function(read)

    def count_event(self, event: Event) -> None:
        self._events.labels(event.type).inc()
        if isinstance(event, Final):
            self._words.inc(len(event.words))

    def observe_decode(self, purpose: str, seconds: float, hypothesis: Hypothesis) -> None:
        """purpose: of the window; seconds: from asking for the decode to its answer."""
        self._decode_seconds.labels(purpose).observe(seconds)
        self._rungs.labels(hypothesis.rung).inc()
        if hypothesis.trip is not None:
            self._trips.labels(hypothesis.trip).inc()

    def exposition(self) -> bytes:
        return prometheus.generate_latest(self._registry)
