"""One job: bodies of bytes go in at one end, events come out at the other. What becomes of the
bytes in between is its work (`jobs.work.Work`)."""

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from whisper_byoc import errors
from whisper_byoc.audio.formats import AudioFormat, Declared
from whisper_byoc.errors import ServiceError
from whisper_byoc.jobs.eventlog import EventLog
from whisper_byoc.jobs.options import Options
from whisper_byoc.jobs.work import Activity, Body, Chunks, JobLog, Owner, Work
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import JobSettings
from whisper_byoc.transcript import EndReason, Event

logger = logging.getLogger(__name__)

_JOB_ID = re.compile(r"(?!\.+\Z)[A-Za-z0-9._~-]{1,128}\Z")
_SESSION_SALT = secrets.token_bytes(16)
_OF_ONE_SEGMENT = (errors.UnsupportedAudio, errors.ProcessorError, errors.BodyTooLarge)
"""What may be wrong with one segment while those behind it can be used."""


DIRECT: Final = ""
"""In place of a session: of jobs whose callers come through none."""


@dataclass(frozen=True, slots=True)
class JobKey:
    """What a job is found by: the id that its callers have chosen, and the session of a Live Runner
    that they share. Jobs of one id in two sessions have nothing to do with one another.

    Raises InvalidJobId. All dots are refused: clients and proxies fold them into the path.
    """

    job_id: str
    session: str = field(repr=False)
    """`DIRECT`, or the only secret that the session's client has."""

    def __post_init__(self) -> None:
        if not _JOB_ID.match(self.job_id):
            raise errors.InvalidJobId(self.job_id)

    @property
    def log_name(self) -> str:
        """Tells jobs of one id apart, and no session's id."""
        if self.session == DIRECT:
            return self.job_id
        salted = hashlib.blake2s(self.session.encode(), key=_SESSION_SALT, digest_size=3)
        return f"{self.job_id} of session {salted.hexdigest()}"


class JobState(StrEnum):
    """As a job's document says it."""

    RECEIVING = "receiving"
    FLUSHING = "flushing"
    """No more input is taken; what has come is still being worked on."""
    ENDED = "ended"


class Job:
    """The life of one job: who feeds it, when it ends, and the log of its events.

    Owned by `Jobs`, which has `run` in a task of its own; cancelling that ends the job without a
    flush. `receive_body` and `receive_segments` feed it, from the tasks of requests, one body at a
    time.
    """

    def __init__(
        self,
        key: JobKey,
        begin: Callable[[Owner], Work],
        settings: JobSettings,
        metrics: Metrics,
        idle_seconds: float | None,
    ) -> None:
        """begin: makes the work of this job. idle_seconds: without input, after which the job is
        stopped; None when whoever feeds the job sees to its end."""
        self.key = key
        self.job_id = key.job_id
        self.log = EventLog(settings.max_events, settings.max_output_bytes)
        self.logger = JobLog(logger, {"job": key.log_name})
        self.problem: ServiceError | None = None
        """What was wrong with the last segment that was left out."""
        self.num_problems = 0
        """Segments that were left out."""
        self.num_bytes = 0
        self.failure: ServiceError | None = None
        """What ended the job; None while it runs, and when it ended as it should."""
        self.ended_at: float | None = None
        """Event-loop time of the end, None while the job runs."""
        self._settings = settings
        self._metrics = metrics
        self._idle_seconds = idle_seconds
        self._body: Body | None = None
        self._finish_segments: Callable[[], None] | None = None
        self._stop_reason: EndReason | None = None
        self._input_ended = False
        self._done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._activity = Activity()
        self.work = begin(self)

    @property
    def state(self) -> JobState:
        if self._done.is_set():
            return JobState.ENDED
        ending = self._stop_reason is not None or self._input_ended
        return JobState.FLUSHING if ending else JobState.RECEIVING

    @property
    def seconds(self) -> float:
        """From the start of the job to its end, or until now while it runs."""
        return (self._loop.time() if self.ended_at is None else self.ended_at) - self._started

    @property
    def worth_keeping(self) -> bool:
        """Whether anyone may want to read the events of this job when it has ended: not if it
        failed before any of its input could be used."""
        return self.failure is None or self.work.has_understood

    @property
    def options(self) -> Options:
        return self.work.options

    def document(self) -> dict[str, Any]:
        """The state of the job for `GET /live/{job_id}`."""
        return {
            "job_id": self.job_id,
            "state": self.state,
            "reason": self.log.end_reason,
            "error": None if self.failure is None else self.failure.code,
            "options": self.options.model_dump(mode="json"),
            "bytes": self.num_bytes,
            "problems": self.num_problems,
            "problem": None if self.problem is None else str(self.problem),
            **self.work.counters(),
            "seconds": round(self.seconds, 3),
        }

    def send(self, event: Event) -> None:
        """Put an event of the work into the log."""
        self._metrics.count_event(event)
        self.log.append(event)

    def keep_alive(self) -> None:
        """Put off the idle limit."""
        self._activity.note()

    def change(self, options: Options) -> None:
        """Go on with other options. Raises JobEnded."""
        self.check_runs()
        self.work.change(options)
        self.logger.info("options changed: %s", options.model_dump_json(exclude_unset=True))

    def check_runs(self) -> None:
        """Raises JobEnded when the job has ended."""
        if self.state is JobState.ENDED:
            raise errors.JobEnded(self.job_id)

    def check_receives(self) -> None:
        """Raises JobEnded or SourceBusy when no body can be taken now."""
        if self.state is not JobState.RECEIVING:
            raise errors.JobEnded(self.job_id)
        if self._body is not None:
            raise errors.SourceBusy(self.job_id)

    async def finalize(self) -> None:
        """Return when all that has come is final; the stream goes on. Raises JobEnded."""
        self.check_runs()
        self.keep_alive()
        await self.work.finalize()

    async def receive_body(
        self, chunks: Chunks, audio_format: Declared | None, *, final: bool
    ) -> int:
        """Take one body to its end; returns the number of its bytes.

        final: the end of this body is the end of the stream, also when the body breaks off with
        ConnectionError. Raises what `check_receives` raises. BodyTooLarge, UnsupportedAudio and
        DecodeError end the job, after what was heard before is flushed, and are raised when it has
        ended. ProcessorError is raised, too, and ends the job only if the body was `final`.
        """
        self.check_receives()
        limits = (self._settings.max_body_bytes, self.work.max_body_bytes)
        body = Body(chunks, min(it for it in limits if it is not None), self._count)
        try:
            await self._receive(body, audio_format)
        except ServiceError as error:
            if isinstance(error, errors.ProcessorError) and not final:
                raise
            await self._fail(error)
            await self._done.wait()
            raise
        if final and self._stop_reason is None:
            await self._end_input(EndReason.DISCONNECTED if body.lost else EndReason.EOF)
        return body.num_bytes

    async def receive_segments(
        self,
        segments: AsyncIterator[Chunks],
        audio_format: AudioFormat | None,
        finish: Callable[[], None] | None = None,
    ) -> None:
        """Take segments until there are no more, or the job ends. One that cannot be used is left
        out and counted, `problem` says why, and the next one is tried.

        finish: makes `segments` end behind those that already wait in it. `stop` calls it and takes
        those that wait; the end of the job calls it, too, and drops them.
        Raises DecodeError, or whatever else has ended the job.
        """
        self._finish_segments = finish
        bodies = self.work.bodies(segments, audio_format)
        try:
            while not self._input_ended:
                chunks = await anext(bodies, None)
                if chunks is None or self._input_ended:
                    break
                body = Body(chunks, self.work.max_body_bytes, self._count)
                try:
                    await self._receive(body, audio_format)
                except _OF_ONE_SEGMENT as error:
                    if self.failure is not None:
                        raise
                    self.problem = error
                    self.num_problems += 1
                    self.work.leave_out(error)
            if self._stop_reason is not None:
                await self._end_input(self._stop_reason)
        except ServiceError as error:
            await self._fail(error)
            raise
        finally:
            self._finish_segments = None

    async def stop(self, reason: EndReason) -> None:
        """Take nothing more and flush; returns when everything is final."""
        if self._stop_reason is None:
            self._stop_reason = reason
            if self._finish_segments is not None:
                self._finish_segments()
            elif self._body is not None:
                self._body.stop()
            else:
                await self._end_input(reason)
        await self._done.wait()

    async def until_ended(self) -> None:
        """Return when everything is flushed, or the job has failed."""
        await self._done.wait()

    async def run(self) -> None:
        """Work until the stream has ended and everything is flushed. Cancelling it ends the job at
        once, with a `CutOff`."""
        self._metrics.jobs_started.inc()
        self.logger.info("started with %s", self.options.model_dump_json(exclude_none=True))
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch_idle())
                await self.work.run()
                watch.cancel()
        except asyncio.CancelledError:
            if not self.log.ended:
                self._abandon(errors.CutOff())
            raise
        except ExceptionGroup as failed:  # one job's fault must not reach the others
            error = errors.first_of(failed)
            if isinstance(error, ServiceError):
                self.logger.error("%s", error)
            self._abandon(self._told_of(error))
        finally:
            self._finish()

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self.keep_alive()

    async def _receive(self, body: Body, audio_format: Declared | None) -> None:
        """Have the work take one body. Raises BodyTooLarge, what is wrong with the body, or what
        has ended the job meanwhile."""
        self._body = body
        try:
            await self.work.receive(body, audio_format)
        except ServiceError:
            raise
        except Exception as error:  # one job's fault must not reach the others
            raise self._told_of(error) from error
        finally:
            self._body = None
        if failure := body.too_large or self.failure:
            raise failure
        if self._stop_reason is not None:
            await self._end_input(self._stop_reason)

    def _told_of(self, error: BaseException) -> ServiceError:
        """An error as readers of the job are told of it. What is no error of the service is a fault
        of ours, and is logged."""
        if isinstance(error, ServiceError):
            return error
        self.logger.error("failed", exc_info=error)
        return errors.DecodeError(f"{type(error).__name__}: {error}")

    async def _fail(self, error: ServiceError) -> None:
        self.failure = self.failure or error
        await self._end_input(EndReason.ERROR, error)

    async def _end_input(self, reason: EndReason, failure: ServiceError | None = None) -> None:
        """Tell the work that no more input comes. Does nothing the second time."""
        if not self._input_ended:
            self._input_ended = True
            try:
                await self.work.receive_end(reason, failure)
            except Exception as error:  # not raised: who ends the input waits for the job's end
                self._abandon(self._told_of(error))

    def _abandon(self, error: ServiceError) -> None:
        """End at once, without a flush."""
        self.failure = self.failure or error
        self._input_ended = True
        self.work.abandon(error)

    async def _watch_idle(self) -> None:
        """Stop the job when no input has come for its idle limit."""
        if self._idle_seconds is None:
            return
        await self._activity.until_idle(self._idle_seconds)
        self.logger.warning("no input for %.0f s", self._idle_seconds)
        await self.stop(EndReason.IDLE)

    def _finish(self) -> None:
        self.ended_at = self._loop.time()
        # A request that is still feeding the job gets its answer; the rest of its input is dropped.
        if self._body is not None:
            self._body.stop()
        if self._finish_segments is not None:
            self._finish_segments()
        self._done.set()
        self._metrics.jobs_ended.labels(self.log.end_reason or EndReason.ERROR).inc()
        self.logger.info(
            "ended after %.1f s, reason %s%s, %d bytes, %s",
            self.seconds,
            self.log.end_reason,
            f" ({self.failure})" if self.failure else "",
            self.num_bytes,
            ", ".join(f"{name} {value}" for name, value in self.work.counters().items()),
        )
