"""One job is one live stream: something in at one end, events out at the other. What becomes of it
in between is up to its kind."""

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import Any, ClassVar

from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.errors import (
    BodyTooLarge,
    CutOff,
    DecodeError,
    InvalidJobId,
    JobEnded,
    ProcessorError,
    ServiceError,
    SourceBusy,
)
from whisper_byoc.jobs.eventlog import EventLog
from whisper_byoc.jobs.options import Options
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import JobSettings
from whisper_byoc.transcript import End, EndReason, Event, Format, Writer

logger = logging.getLogger(__name__)

_JOB_ID = re.compile(r"(?!\.+\Z)[A-Za-z0-9._~-]{1,128}\Z")


class JobLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: object, kwargs: Any) -> tuple[str, Any]:
        return f"job {self.extra['job'] if self.extra else '?'}: {msg}", kwargs


class JobState(StrEnum):
    RECEIVING = "receiving"
    FLUSHING = "flushing"
    ENDED = "ended"


Chunks = AsyncIterator[bytes]


class Job(ABC):
    """One stream. Its state belongs to its run task and to the one body it receives at a time.

    `run` works until the end; cancelling it ends the job without a flush. `receive_body` and
    `receive_segments` feed it.
    """

    relays_input: ClassVar[bool]
    """Whether its input may pass by it unchanged to whoever wants media out."""

    def __init__(
        self,
        job_id: str,
        options: Options,
        settings: JobSettings,
        metrics: Metrics,
        log: EventLog,
    ) -> None:
        self.job_id = job_id
        self.options = options
        self.log = log
        self.problem: ServiceError | None = None
        self.num_problems = 0
        self._settings = settings
        self._metrics = metrics
        self._receiving = False
        self._pump: asyncio.Task[None] | None = None
        self.finish_input: Callable[[], None] | None = None
        """Set by who feeds it from a buffer: `stop` calls it, and hears first what waits there."""
        self._stop_reason: EndReason | None = None
        self._input_ended = False
        self._failure: ServiceError | None = None
        self._done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._last_activity = self._started
        self._ended_at: float | None = None
        self._reason: EndReason | None = None
        self._num_bytes = 0
        self._counter: BodyCounter | None = None
        self._logger = JobLog(logger, {"job": job_id})

    @property
    def state(self) -> JobState:
        if self._done.is_set():
            return JobState.ENDED
        ending = self._stop_reason is not None or self._input_ended
        return JobState.FLUSHING if ending else JobState.RECEIVING

    @property
    def num_bytes(self) -> int:
        return self._num_bytes + (self._counter.num_bytes if self._counter else 0)

    @property
    def ended_at(self) -> float | None:
        """Event-loop time of the end, None while the job runs."""
        return self._ended_at

    @property
    def seconds(self) -> float:
        """For which it has run, or did run."""
        return (self._loop.time() if self._ended_at is None else self._ended_at) - self._started

    @property
    def failure(self) -> ServiceError | None:
        """Why it was ended, unless that was as it should."""
        return self._failure

    @property
    @abstractmethod
    def audio_seconds(self) -> float:
        """Seconds of audio received; 0 for what is no audio."""

    @property
    @abstractmethod
    def lag_seconds(self) -> float:
        """Seconds of speech received and not yet final."""

    @property
    @abstractmethod
    def worth_keeping(self) -> bool:
        """Whether anyone may want to read it again: not a job that never understood its input."""

    @abstractmethod
    def counters(self) -> dict[str, Any]:
        """What this kind of job counts, for `document`."""

    @abstractmethod
    def writer(self, output: Format) -> tuple[str, Writer]:
        """A content type, and what writes the job's events so."""

    @abstractmethod
    async def finalize(self) -> None:
        """Return when all that has come is final; the stream goes on. Raises JobEnded."""

    @abstractmethod
    async def receive_segments(
        self, segments: AsyncIterator[Chunks], audio_format: AudioFormat | None
    ) -> None:
        """Take segments until there are no more, or the job ends. What cannot be used is told as
        `problem`, and the next segment is tried."""

    @abstractmethod
    async def _work(self) -> None:
        """Return when the stream has ended and everything is flushed."""

    @abstractmethod
    async def _receive(self, chunks: Chunks, audio_format: AudioFormat | None) -> None:
        """Take one body, to its end or until the pump is cancelled."""

    @abstractmethod
    async def _end_input(self, reason: EndReason, failure: ServiceError | None = None) -> None:
        """No more will come. Does nothing the second time."""

    @abstractmethod
    def _abandon(self, error: ServiceError) -> None:
        """End at once, without a flush."""

    def document(self) -> dict[str, Any]:
        """The state of the job for `GET /live/{job_id}`."""
        return {
            "job_id": self.job_id,
            "state": self.state,
            "reason": self._reason,
            "error": None if self._failure is None else self._failure.code,
            "options": self.options.model_dump(mode="json"),
            "bytes": self.num_bytes,
            "problems": self.num_problems,
            "problem": None if self.problem is None else str(self.problem),
            **self.counters(),
            "seconds": round(self.seconds, 3),
        }

    def keep_alive(self) -> None:
        """Put off the idle limit."""
        self._last_activity = self._loop.time()

    def change(self, options: Options) -> None:
        """Go on with other options. Raises JobEnded."""
        self.check_runs()
        self.options = options
        self._logger.info("options changed: %s", options.model_dump_json(exclude_unset=True))

    def check_runs(self) -> None:
        """Raises JobEnded."""
        if self.state is JobState.ENDED:
            raise JobEnded(self.job_id)

    def check_receives(self) -> None:
        """Raises JobEnded or SourceBusy when no body can be taken now."""
        if self.state is not JobState.RECEIVING:
            raise JobEnded(self.job_id)
        if self._receiving:
            raise SourceBusy(self.job_id)

    async def receive_body(
        self, chunks: Chunks, audio_format: AudioFormat | None, *, final: bool
    ) -> int:
        """Take one body; returns the number of its bytes when all of them have been taken in.

        `final`: the end of this body is the end of the stream, also when the body breaks off with
        ConnectionError. Raises what `check_receives` raises; BodyTooLarge, UnsupportedAudio and
        DecodeError when the job has ended for it, and what was heard before is flushed if it can
        be; and ProcessorError, which ends it only where the input was `final`.
        """
        self.check_receives()
        counter = BodyCounter(self._settings.max_body_bytes)
        try:
            await self._receive_counted(chunks, audio_format, counter)
        except ServiceError as error:
            if isinstance(error, ProcessorError) and not final:
                raise
            await self._fail(error)
            await self._done.wait()
            raise
        if final and self._stop_reason is None:
            await self._end_input(EndReason.DISCONNECTED if counter.lost else EndReason.EOF)
        return counter.num_bytes

    async def stop(self, reason: EndReason) -> None:
        """Take nothing more and flush; returns when everything is final."""
        if self._stop_reason is None:
            self._stop_reason = reason
            if self.finish_input is not None:
                self.finish_input()
            elif self._pump is not None:
                self._pump.cancel()
            elif not self._receiving:
                await self._end_input(reason)
        await self._done.wait()

    async def until_ended(self) -> None:
        await self._done.wait()

    async def run(self) -> None:
        """Work until the stream has ended and everything is flushed."""
        self._metrics.jobs_started.inc()
        self._logger.info("started with %s", self.options.model_dump_json(exclude_none=True))
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch_idle())
                await self._work()
                watch.cancel()
        except asyncio.CancelledError:
            if not self.log.ended:
                self._abandon(CutOff())
            raise
        except Exception as error:  # one job's fault must not reach the others
            self._logger.exception("failed")
            self._abandon(DecodeError(f"{type(error).__name__}: {error}"))
        finally:
            self._finish()

    async def _receive_counted(
        self, chunks: Chunks, audio_format: AudioFormat | None, counter: "BodyCounter"
    ) -> None:
        """Take one body. Raises BodyTooLarge, what is wrong with it, and why the job has failed."""
        self._receiving = True
        self._counter = counter
        try:
            await self._receive(counter.count(chunks), audio_format)
            if counter.too_large is not None:
                raise counter.too_large
            if self._failure is not None:
                raise self._failure
        finally:
            self._receiving = False
            self._num_bytes += counter.num_bytes
            self._counter = None
        if self._stop_reason is not None:
            await self._end_input(self._stop_reason)

    async def _fail(self, error: ServiceError) -> None:
        if self._failure is None:
            self._failure = error
        await self._end_input(EndReason.ERROR, error)

    def _send(self, event: Event) -> None:
        self._metrics.count_event(event)
        if isinstance(event, End):
            self._reason = event.reason
        self.log.append(event)

    async def _watch_idle(self) -> None:
        while True:
            idle = self._loop.time() - self._last_activity
            if idle >= self._settings.idle_seconds:
                break
            await asyncio.sleep(self._settings.idle_seconds - idle)
        self._logger.warning("no input for %.0f s", self._settings.idle_seconds)
        await self.stop(EndReason.IDLE)

    def _finish(self) -> None:
        self._ended_at = self._loop.time()
        if self._pump is not None:
            self._pump.cancel()  # nobody hears what is still to come
        self._done.set()
        self._metrics.count_job_ended(self._reason or EndReason.ERROR)
        self._logger.info(
            "ended after %.1f s, reason %s%s, %d bytes, %s",
            self.seconds,
            self._reason,
            f" ({self._failure})" if self._failure else "",
            self._num_bytes,
            ", ".join(f"{name} {value}" for name, value in self.counters().items()),
        )


class BodyCounter:
    """Counts the bytes of one body and notes why it ended before its end."""

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0
        self.lost = False
        self.too_large: BodyTooLarge | None = None

    async def count(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Ends where ConnectionError breaks the body off, and where it grows too large."""
        try:
            async for chunk in chunks:
                self.num_bytes += len(chunk)
                too_many = self.num_bytes - (self._max_bytes or self.num_bytes)
                if self._max_bytes is not None and too_many > 0:
                    self.too_large = BodyTooLarge(self.num_bytes, self._max_bytes)
                    yield chunk[:-too_many]
                    return
                yield chunk
        except ConnectionError:
            self.lost = True


def check_job_id(job_id: str) -> None:
    """Raises InvalidJobId. All dots are refused: clients and proxies fold them into the path."""
    if not _JOB_ID.match(job_id):
        raise InvalidJobId(job_id)
