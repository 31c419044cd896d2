"""One job is one live stream: audio in at one end, events out at the other."""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio import NATIVE, SAMPLE_RATE, AudioFormat, Pcm
from whisper_byoc.decode import FRAME_SAMPLES, DecodeRequest, Task
from whisper_byoc.errors import (
    BodyTooLarge,
    CutOff,
    DecodeError,
    Draining,
    InvalidJobId,
    InvalidOption,
    JobEnded,
    ServiceError,
    SourceBusy,
    TooManyJobs,
    UnknownJob,
    first_of,
)
from whisper_byoc.eventlog import EventLog
from whisper_byoc.inference.engine import Engine
from whisper_byoc.inference.voice import VoiceActivity, VoiceState
from whisper_byoc.media import open_source
from whisper_byoc.metrics import Metrics
from whisper_byoc.options import JobOptions
from whisper_byoc.settings import JobSettings, Settings, StreamingSettings
from whisper_byoc.streaming.transcriber import MAX_BLOCK_SAMPLES, Purpose, Transcriber, Window
from whisper_byoc.transcript import End, EndReason, Final

logger = logging.getLogger(__name__)

_JOB_ID = re.compile(r"(?!\.+\Z)[A-Za-z0-9._~-]{1,128}\Z")
_BLOCK_SAMPLES = MAX_BLOCK_SAMPLES // FRAME_SAMPLES * FRAME_SAMPLES
_LIVE_SLACK_SECONDS = 1.0
"""A stream that has brought more audio than the time since its start and this is a file."""
_RETRY_AFTER_SECONDS = 5


class JobLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: object, kwargs: Any) -> tuple[str, Any]:
        return f"job {self.extra['job'] if self.extra else '?'}: {msg}", kwargs


class JobState(StrEnum):
    RECEIVING = "receiving"
    FLUSHING = "flushing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Services:
    """What all jobs share."""

    engine: Engine
    voice: VoiceActivity
    metrics: Metrics


class Job:
    """One stream. Its state belongs to its run task and to the one body it receives at a time.

    `run` decodes until the end; cancelling it ends the job without a flush. `receive_body` feeds
    it. Audio waits in the transcriber: one window of 30 s and four closed utterances at most; when
    that is full the body is not read further, so the sender waits.
    """

    def __init__(
        self,
        job_id: str,
        options: JobOptions,
        services: Services,
        streaming: StreamingSettings,
        settings: JobSettings,
    ) -> None:
        self.job_id = job_id
        self.options = options
        self.log = EventLog(settings.max_events)
        self._services = services
        self._settings = settings
        self._streaming = streaming
        self._transcriber = Transcriber(options.streaming(streaming))
        self._voice_state = VoiceState()
        self._pending = np.empty(0, dtype=np.float32)
        self._carry = b""
        self._raw_format: Pcm | None = None
        self._heard = asyncio.Event()
        self._decoded = asyncio.Event()
        self._receiving = False
        self._pump: asyncio.Task[None] | None = None
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
        self._counter: _BodyCounter | None = None
        self._num_words = 0
        self._num_samples = self._num_heard = 0
        self._partials_dropped = 0
        self._decode_seconds = 0.0
        self._logger = JobLog(logger, {"job": job_id})

    @property
    def state(self) -> JobState:
        if self._done.is_set():
            return JobState.ENDED
        ending = self._stop_reason is not None or self._input_ended
        return JobState.FLUSHING if ending else JobState.RECEIVING

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio received, a piece shorter than a frame included."""
        return self._transcriber.audio_seconds + len(self._pending) / SAMPLE_RATE

    @property
    def lag_seconds(self) -> float:
        """Seconds of speech received and not yet final."""
        return self._transcriber.lag_seconds

    @property
    def ended_at(self) -> float | None:
        """Event-loop time of the end, None while the job runs."""
        return self._ended_at

    @property
    def worth_keeping(self) -> bool:
        """Whether anyone may want to read it again: not a job that never understood its audio."""
        return self._failure is None or self._transcriber.audio_seconds > 0

    def document(self) -> dict[str, Any]:
        """The state of the job for `GET /live/{job_id}`."""
        now = self._loop.time() if self._ended_at is None else self._ended_at
        return {
            "job_id": self.job_id,
            "state": self.state,
            "reason": self._reason,
            "error": None if self._failure is None else self._failure.code,
            "options": self.options.model_dump(mode="json"),
            "bytes": self._num_bytes + (self._counter.num_bytes if self._counter else 0),
            "audio_seconds": round(self.audio_seconds, 3),
            "lag_seconds": round(self.lag_seconds, 3),
            "final_lag_seconds": round(self._transcriber.final_lag_seconds, 3),
            "partials": self._transcriber.num_partials,
            "partials_dropped": self._transcriber.num_partials_dropped,
            "words": self._num_words,
            "seconds": round(now - self._started, 3),
        }

    def keep_alive(self) -> None:
        """Put off the idle limit."""
        self._last_activity = self._loop.time()

    def change(self, options: JobOptions) -> None:
        """Go on with other options, from the next decode. Raises JobEnded."""
        self.check_runs()
        self.options = options
        self._transcriber.receive_settings(options.streaming(self._streaming))
        self._heard.set()
        self._logger.info("options changed: %s", options.model_dump_json(exclude_unset=True))

    async def finalize(self) -> None:
        """Return when all that was received so far is final; the stream goes on. Raises JobEnded.

        What fills no frame of 32 ms waits for the rest of it.
        """
        self.check_runs()
        self.keep_alive()
        received = self._num_samples
        while not self._transcriber.ended and self._num_heard + FRAME_SAMPLES <= received:
            self._decoded.clear()
            await self._decoded.wait()
        position = self._transcriber.receive_finalize()
        self._heard.set()
        while not self._transcriber.is_final(position):
            self._decoded.clear()
            await self._decoded.wait()

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
        self, chunks: AsyncIterator[bytes], audio_format: AudioFormat | None, *, final: bool
    ) -> int:
        """Take one body; returns the number of its bytes when all of them are in the transcriber.

        `final`: the end of this body is the end of the stream, also when the body breaks off with
        ConnectionError. Raises what `check_receives` raises, and BodyTooLarge, UnsupportedAudio and
        DecodeError when the job has ended for it; what was heard before is flushed if it can be.
        """
        self.check_receives()
        self._receiving = True
        counter = self._counter = _BodyCounter(self._settings.max_body_bytes)
        try:
            await self._receive(counter.count(chunks), audio_format)
            if counter.too_large is not None:
                raise counter.too_large
            if self._failure is not None:
                raise self._failure
        except ServiceError as error:
            await self._fail(error)
            await self._done.wait()
            raise
        finally:
            self._receiving = False
            self._num_bytes += counter.num_bytes
            self._counter = None
        if self._stop_reason is not None:
            await self._end_input(self._stop_reason)
        elif final:
            await self._end_input(EndReason.DISCONNECTED if counter.lost else EndReason.EOF)
        return counter.num_bytes

    async def stop(self, reason: EndReason) -> None:
        """Take no more audio and flush; returns when every word is final."""
        if self._stop_reason is None:
            self._stop_reason = reason
            if self._pump is not None:
                self._pump.cancel()
            elif not self._receiving:
                await self._end_input(reason)
        await self._done.wait()

    async def run(self) -> None:
        """Decode until the stream has ended and everything is flushed."""
        self._services.metrics.jobs_started.inc()
        self._logger.info("started, language %s", self.options.language or "detected")
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch_idle())
                await self._transcribe()
                watch.cancel()
        except asyncio.CancelledError:
            self._abandon(CutOff())
            raise
        except Exception as error:  # one job's fault must not reach the others
            self._logger.exception("failed")
            self._abandon(DecodeError(f"{type(error).__name__}: {error}"))
        finally:
            self._finish()

    async def _receive(
        self, chunks: AsyncIterator[bytes], audio_format: AudioFormat | None
    ) -> None:
        # What goes on in the middle of a sound has no head to tell its format by, so labelled raw
        # audio keeps its label; a divided sample goes on only in the same format.
        declared = audio_format
        if audio_format is None and self._raw_format != NATIVE:
            declared = self._raw_format
        carry = self._carry if (declared or NATIVE) == self._raw_format else b""
        async with open_source(declared, carry=carry) as source:

            async def pump() -> None:
                async for chunk in chunks:
                    self.keep_alive()
                    await source.send(chunk)

            async def finish(pumping: asyncio.Task[None]) -> None:
                """Apart from `pump`, which `stop` may cancel before its first step: what has come
                so far is decoded in any case."""
                await asyncio.wait({pumping})
                await source.send_eof()

            failure: ServiceError | None = None
            try:
                async with asyncio.TaskGroup() as group:
                    self._pump = group.create_task(pump())
                    group.create_task(finish(self._pump))
                    async for samples in source:
                        await self._take(samples)
            except* ServiceError as errors:
                failure = first_of(errors)
            finally:
                self._pump = None
            if failure is not None:  # Python before 3.11.4 would wrap what an except* block raises
                raise failure
            self._carry = source.carry
            if isinstance(source.format, Pcm):
                self._raw_format = source.format

    async def _take(self, samples: NDArray[np.float32]) -> None:
        """Pass whole frames on to the transcriber, as it has room."""
        self._num_samples += len(samples)
        self._pending = np.concatenate([self._pending, samples])
        while len(self._pending) >= FRAME_SAMPLES:
            await self._wait_for_room()
            whole = len(self._pending) // FRAME_SAMPLES * FRAME_SAMPLES
            block, self._pending = np.split(self._pending, [min(whole, _BLOCK_SAMPLES)])
            await self._hear(block, block)

    async def _hear(self, samples: NDArray[np.float32], frames: NDArray[np.float32]) -> None:
        voice = await self._services.voice.probabilities(frames, self._voice_state)
        self._transcriber.receive_audio(samples, voice.tolist())
        self._services.metrics.audio_seconds.inc(len(samples) / SAMPLE_RATE)
        self._num_heard += len(samples)
        self.keep_alive()
        self._heard.set()
        self._decoded.set()

    async def _wait_for_room(self) -> None:
        while not (self._transcriber.has_room or self._transcriber.ended):
            self._decoded.clear()
            await self._decoded.wait()
        if self._transcriber.ended:
            raise self._failure or JobEnded(self.job_id)

    async def _end_input(self, reason: EndReason, failure: ServiceError | None = None) -> None:
        if self._input_ended:
            return
        self._input_ended = True
        tail, self._pending = self._pending, self._pending[:0]
        if len(tail) and not self._transcriber.ended:
            try:
                await self._hear(tail, np.pad(tail, (0, FRAME_SAMPLES - len(tail))))
            except DecodeError as error:  # whoever ends the input waits for the end of the job
                self._abandon(error)
        if failure is None:
            self._transcriber.receive_end(reason)
        else:
            self._transcriber.receive_end(EndReason.ERROR, (failure.code, str(failure)))
        self._heard.set()

    async def _fail(self, error: ServiceError) -> None:
        if self._failure is None:
            self._failure = error
        await self._end_input(EndReason.ERROR, error)

    def _abandon(self, error: ServiceError) -> None:
        self._failure = self._failure or error
        self._transcriber.receive_failure(error.code, str(error))
        self._publish()

    async def _transcribe(self) -> None:
        while not self._transcriber.ended:
            self._heard.clear()
            window = self._transcriber.next_window(live=self._is_live())
            self._publish()
            if window is not None:
                await self._decode(window)
            elif not self._transcriber.ended:
                self._decoded.set()  # what held no speech was dropped without a decode
                await self._heard.wait()
        self._publish()
        self._decoded.set()

    async def _decode(self, window: Window) -> None:
        began = self._loop.time()
        wanted = began
        if window.purpose is Purpose.PARTIAL:  # finals go first
            wanted += self._streaming.partial_interval
        request = DecodeRequest(
            window.samples,
            deadline=wanted,
            language=self.options.language,
            task=self.options.task,
            prompt=self.options.context,
            # The next partial comes before another attempt could.
            retry=window.purpose is not Purpose.PARTIAL,
            committed=window.committed,
            draft=window.draft,
        )
        try:
            hypothesis = await self._services.engine.decode(request)
        except DecodeError as error:
            self._logger.error("%s", error)
            self._abandon(error)
            return
        seconds = self._loop.time() - began
        self._decode_seconds += seconds
        self._services.metrics.observe_decode(window.purpose.name.lower(), seconds, hypothesis)
        self._transcriber.receive_hypothesis(hypothesis, seconds)
        self._publish()
        self._decoded.set()

    def _is_live(self) -> bool:
        elapsed = self._loop.time() - self._started
        return not self._input_ended and self.audio_seconds <= elapsed + _LIVE_SLACK_SECONDS

    def _publish(self) -> None:
        for event in self._transcriber.events_to_send():
            self._services.metrics.count_event(event)
            match event:
                case Final():
                    self._num_words += len(event.words)
                    if self._is_live():
                        lag = self._transcriber.final_lag_seconds
                        self._services.metrics.final_lag_seconds.observe(lag)
                case End():
                    self._reason = event.reason
            self.log.append(event)
        dropped = self._transcriber.num_partials_dropped
        self._services.metrics.partials_dropped.inc(dropped - self._partials_dropped)
        self._partials_dropped = dropped

    async def _watch_idle(self) -> None:
        while True:
            idle = self._loop.time() - self._last_activity
            if idle >= self._settings.idle_seconds:
                break
            await asyncio.sleep(self._settings.idle_seconds - idle)
        self._logger.warning("no audio for %.0f s", self._settings.idle_seconds)
        await self.stop(EndReason.IDLE)

    def _finish(self) -> None:
        self._ended_at = self._loop.time()
        if self._pump is not None:
            self._pump.cancel()  # nobody hears what is still to come
        self._decoded.set()
        self._done.set()
        self._services.metrics.count_job_ended(self._reason or EndReason.ERROR)
        self._logger.info(
            "ended, reason %s%s, %d bytes, %.1f s of audio, %d words, decoding took %.1f of %.1f s",
            self._reason,
            f" ({self._failure})" if self._failure else "",
            self._num_bytes,
            self.audio_seconds,
            self._num_words,
            self._decode_seconds,
            self._ended_at - self._started,
        )


class _BodyCounter:
    """Counts the bytes of one body and notes why it ended before its end."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0
        self.lost = False
        self.too_large: BodyTooLarge | None = None

    async def count(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Ends where ConnectionError breaks the body off, and where it grows too large."""
        try:
            async for chunk in chunks:
                room = self._max_bytes - self.num_bytes
                self.num_bytes += len(chunk)
                yield chunk[:room]
                if len(chunk) > room:
                    self.too_large = BodyTooLarge(self.num_bytes, self._max_bytes)
                    return
        except ConnectionError:
            self.lost = True


class Jobs:
    """All jobs, running and ended; owns their tasks. `serve` must be entered first.

    Running jobs are bounded by `max_jobs`: one more is refused. Ended ones are forgotten after the
    retention time, the oldest first when there are more than `max_ended_jobs`.
    """

    def __init__(self, services: Services, settings: Settings) -> None:
        self._services = services
        self._settings = settings
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

    def open(self, job_id: str, options: JobOptions) -> Job:
        """The running job of this id, or a new one.

        Raises InvalidJobId, JobEnded, and for a new one Draining, TooManyJobs and InvalidOption.
        """
        check_job_id(job_id)
        if job_id in self._running:
            return self._running[job_id]
        if job_id in self._ended:
            raise JobEnded(job_id)
        if self.draining or self._group is None:
            raise Draining(_RETRY_AFTER_SECONDS)
        if len(self._running) >= self._settings.jobs.max_jobs:
            self._services.metrics.jobs_refused.inc()
            raise TooManyJobs(_RETRY_AFTER_SECONDS, len(self._running))
        self.check(options)
        settings = self._settings
        job = Job(job_id, options, self._services, settings.streaming, settings.jobs)
        self._running[job_id] = job
        self._tasks[job_id] = self._group.create_task(self._run(job))
        self._announce()
        return job

    def check(self, options: JobOptions) -> None:
        """Raises InvalidOption for what the loaded models cannot do."""
        model = self._services.engine.model_for(options.language)
        if options.task is Task.TRANSLATE and model.languages == {"en"}:
            expected = f"transcribe, since {model.name} is English only"
            raise InvalidOption("task", "translate", expected)

    def change(self, job_id: str, values: Mapping[str, Any]) -> Job:
        """Other values for some options of a running job, all or none.

        Raises UnknownJob, JobEnded and InvalidOption.
        """
        job = self.get(job_id)
        options = job.options.changed(values)
        self.check(options)
        job.change(options)
        return job

    async def delete(self, job_id: str) -> Job:
        """Stop a running job after a flush, or forget an ended one. Raises UnknownJob."""
        job = self.get(job_id)
        if job_id in self._running:
            await job.stop(EndReason.STOPPED)
        else:
            del self._ended[job_id]
        return job

    async def drain(self, seconds: float) -> None:
        """Refuse new jobs and flush the running ones; what is left after the time is cut off."""
        self.draining = True
        self._announce()
        stopping = [job.stop(EndReason.SHUTDOWN) for job in self._running.values()]
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
            kept = len(self._ended) <= self._settings.jobs.max_ended_jobs
            if kept and job.ended_at is not None and job.ended_at > oldest:
                return
            del self._ended[job.job_id]


def check_job_id(job_id: str) -> None:
    """Raises InvalidJobId. All dots are refused: clients and proxies fold them into the path."""
    if not _JOB_ID.match(job_id):
        raise InvalidJobId(job_id)
