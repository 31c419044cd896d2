"""One job is one live stream: something in at one end, events out at the other. What becomes of it
in between is up to its kind."""

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.errors import (
    BodyTooLarge,
    CutOff,
    DecodeError,
    Draining,
    InvalidJobId,
    JobEnded,
    ProcessorError,
    ServiceError,
    SourceBusy,
    TooManyJobs,
    UnknownJob,
)
from whisper_byoc.eventlog import EventLog
from whisper_byoc.metrics import Metrics
from whisper_byoc.options import Options
from whisper_byoc.settings import JobSettings, Settings
from whisper_byoc.transcript import End, EndReason, Event, Format, Writer

logger = logging.getLogger(__name__)

_JOB_ID = re.compile(r"(?!\.+\Z)[A-Za-z0-9._~-]{1,128}\Z")
_RETRY_AFTER_SECONDS = 5


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


class JobKind(Protocol):
    """What the jobs of a service are: who makes them, and what they can be asked for."""

    @property
    def model_names(self) -> Sequence[str]:
        """What `X-Model-Id` may name, the default first."""

    def model_for(self, options: Options) -> str:
        """Which of them such a job uses."""

    def options(self) -> Options:
        """Of a job that asks for nothing."""

    def check(self, options: Options) -> None:
        """Raises InvalidOption for what this service cannot do."""

    def make(self, job_id: str, options: Options) -> Job: ...


class Jobs:
    """All jobs, running and ended; owns their tasks. `serve` must be entered first.

    Running jobs are bounded by `max_jobs`: one more is refused. Ended ones are forgotten after the
    retention time, the oldest first when there are more than `max_ended_jobs`.
    """

    def __init__(self, kind: JobKind, settings: Settings, metrics: Metrics) -> None:
        self.kind = kind
        self._settings = settings
        self._metrics = metrics
        self._running: dict[str, Job] = {}
        self._ended: OrderedDict[str, Job] = OrderedDict()
        self._group: asyncio.TaskGroup | None = None
        self._created = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.draining = False

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Run jobs while inside; leaving cancels the ones that `drain` has not waited for."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            sweep = group.create_task(self._sweep())
            try:
                yield
            finally:
                self.draining = True
                sweep.cancel()
                for task in self._tasks.values():
                    task.cancel()
                self._group = None

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def max_lag_seconds(self) -> float:
        return max((job.lag_seconds for job in self._running.values()), default=0.0)

    def find(self, job_id: str) -> Job | None:
        return self._running.get(job_id) or self._ended.get(job_id)

    def get(self, job_id: str) -> Job:
        """Raises InvalidJobId and UnknownJob."""
        check_job_id(job_id)
        job = self.find(job_id)
        if job is None:
            raise UnknownJob(job_id)
        return job

    async def wait_for(self, job_id: str) -> Job:
        """The job, once it exists, within the grace time. Raises InvalidJobId and UnknownJob."""
        check_job_id(job_id)
        try:
            async with asyncio.timeout(self._settings.jobs.output_grace_seconds):
                while (job := self.find(job_id)) is None:
                    if self.draining:
                        raise UnknownJob(job_id)
                    await self._created.wait()
        except TimeoutError:
            raise UnknownJob(job_id) from None
        return job

    def open(self, job_id: str, options: Options, *, again: bool = False) -> Job:
        """The running job of this id, or a new one. again: one that has ended gives way.

        Raises InvalidJobId, JobEnded, and for a new one Draining, TooManyJobs and InvalidOption.
        """
        check_job_id(job_id)
        if job_id in self._running:
            return self._running[job_id]
        if job_id in self._ended and not again:
            raise JobEnded(job_id)
        if self.draining or self._group is None:
            raise Draining(_RETRY_AFTER_SECONDS)
        if len(self._running) >= self._settings.jobs.max_jobs:
            self._metrics.jobs_refused.inc()
            raise TooManyJobs(_RETRY_AFTER_SECONDS, len(self._running))
        self.kind.check(options)
        self._ended.pop(job_id, None)
        job = self.kind.make(job_id, options)
        self._running[job_id] = job
        self._tasks[job_id] = self._group.create_task(self._run(job))
        self._announce()
        return job

    def change(self, job: Job, values: Mapping[str, Any]) -> None:
        """Other values for some options of a running job, all or none.

        Raises JobEnded and InvalidOption.
        """
        options = job.options.changed(values)
        self.kind.check(options)
        job.change(options)

    async def delete(self, job_id: str) -> Job:
        """Stop a running job after a flush, or forget an ended one. Raises UnknownJob."""
        job = self.get(job_id)
        if job_id in self._running:
            await job.stop(EndReason.STOPPED)
        else:
            del self._ended[job_id]
        return job

    async def cut_off(self, job_id: str) -> None:
        """End a running job at once, without a flush."""
        await asyncio.sleep(0)  # a task that is cancelled before its first step cleans nothing up
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def discard(self, job_id: str) -> None:
        """Forget a job; one that runs is cut off first."""
        await self.cut_off(job_id)
        self._ended.pop(job_id, None)

    async def drain(self, seconds: float, stopped_elsewhere: Collection[str] = ()) -> None:
        """Refuse new jobs and flush the running ones, except those that another is stopping; what
        is left after the time is cut off."""
        self.draining = True
        self._announce()
        stopping = [
            job.stop(EndReason.SHUTDOWN)
            for job_id, job in self._running.items()
            if job_id not in stopped_elsewhere
        ]
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*stopping)
        except TimeoutError:
            logger.warning("%d jobs were not flushed within %.0f s", len(self._running), seconds)
            for task in self._tasks.values():
                task.cancel()

    async def _run(self, job: Job) -> None:
        try:
            await job.run()
        finally:
            del self._running[job.job_id], self._tasks[job.job_id]
            if job.worth_keeping:
                self._ended[job.job_id] = job
                self._forget()

    def _announce(self) -> None:
        """Wake whoever waits for a job: there is one more, or there will be none."""
        self._created.set()
        self._created = asyncio.Event()

    async def _sweep(self) -> None:
        """Forget ended jobs when their time is over, also when nothing else happens."""
        interval = max(1.0, self._settings.jobs.retention_seconds / 10)
        while True:
            await asyncio.sleep(interval)
            self._forget()

    def _forget(self) -> None:
        oldest = asyncio.get_running_loop().time() - self._settings.jobs.retention_seconds
        while self._ended:
            job = next(iter(self._ended.values()))
            num_bytes = sum(job.log.num_bytes for job in self._ended.values())
            kept = len(self._ended) <= self._settings.jobs.max_ended_jobs
            kept = kept and num_bytes <= self._settings.jobs.max_ended_bytes
            if kept and job.ended_at is not None and job.ended_at > oldest:
                return
            del self._ended[job.job_id]


def check_job_id(job_id: str) -> None:
    """Raises InvalidJobId. All dots are refused: clients and proxies fold them into the path."""
    if not _JOB_ID.match(job_id):
        raise InvalidJobId(job_id)
