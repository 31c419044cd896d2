"""All jobs of a service: which may begin, who finds them, when they are forgotten."""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Protocol

from whisper_byoc.errors import Draining, JobEnded, TooManyJobs, UnknownJob
from whisper_byoc.jobs.job import DIRECT, Job, JobKey
from whisper_byoc.jobs.options import Options
from whisper_byoc.jobs.work import Owner, Work
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import Settings
from whisper_byoc.transcript import EndReason

logger = logging.getLogger(__name__)

_RELEASE_SECONDS = 1.5
"""s that the jobs of a session get to flush when it is over: its place has another client then."""


class JobKind(Protocol):
    """What kind of work the jobs of a service have, and what they can be asked for."""

    @property
    def model_names(self) -> Sequence[str]:
        """What `X-Model-Id` may name, the default first."""

    def model_for(self, options: Options) -> str:
        """The one of `model_names` that a job with these options uses."""

    def options(self) -> Options:
        """The options of a job whose caller chooses none."""

    def check(self, options: Options) -> None:
        """Raises InvalidOption for what this service cannot do."""

    def make(self, options: Options, owner: Owner, *, recording: bool = False) -> Work:
        """The work of a new job. owner: the job, for its work. recording: its one body is a whole
        recording."""


class Jobs:
    """All jobs, running and ended; owns them and their tasks. `serve` must be entered first.

    Running jobs are bounded by `max_jobs`: one more is refused. Ended ones are forgotten after the
    retention time, the oldest first when there are more than `max_ended_jobs`.
    """

    def __init__(self, kind: JobKind, settings: Settings, metrics: Metrics) -> None:
        self.kind = kind
        self._settings = settings
        self._metrics = metrics
        self._running: dict[JobKey, Job] = {}
        self._ended: dict[JobKey, Job] = {}
        self._group: asyncio.TaskGroup | None = None
        self._created = asyncio.Event()
        self._tasks: dict[Job, asyncio.Task[None]] = {}
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
        return max((job.work.lag_seconds for job in self._running.values()), default=0.0)

    def find(self, key: JobKey) -> Job | None:
        return self._running.get(key) or self._ended.get(key)

    def get(self, key: JobKey) -> Job:
        """The running or ended job of this key. Raises UnknownJob."""
        job = self.find(key)
        if job is None:
            raise UnknownJob(key.job_id)
        return job

    async def wait_for(self, key: JobKey) -> Job:
        """The job, once it exists, within the grace time, and in time to be answered. Raises
        UnknownJob."""
        settings = self._settings.jobs
        with suppress(TimeoutError):
            async with asyncio.timeout(min(settings.output_grace_seconds, settings.answer_seconds)):
                while self.find(key) is None and not self.draining:
                    await self._created.wait()
        return self.get(key)

    def open(
        self,
        key: JobKey,
        options: Options,
        *,
        again: bool = False,
        attended: bool = False,
        recording: bool = False,
    ) -> Job:
        """The running job of this key, or a new one. again: an ended job of this key is replaced
        rather than refused. attended: the job has no idle limit, since whoever opens it ends it.
        recording: its one body is a whole recording, and not what comes of a live stream.

        Raises JobEnded, and for a new one Draining, TooManyJobs and InvalidOption.
        """
        if key in self._running:
            return self._running[key]
        if key in self._ended and not again:
            raise JobEnded(key.job_id)
        group = self.free_place()
        self.kind.check(options)
        self._ended.pop(key, None)
        job = Job(
            key,
            partial(self.kind.make, options, recording=recording),
            self._settings.jobs,
            self._metrics,
            None if attended else self._settings.jobs.idle_seconds,
        )
        self._running[key] = job
        self._tasks[job] = group.create_task(self._run(job))
        self._announce()
        return job

    def free_place(self) -> asyncio.TaskGroup:
        """Where one more job would run. Raises Draining and TooManyJobs."""
        if self.draining or self._group is None:
            raise Draining()
        if len(self._running) >= self._settings.jobs.max_jobs:
            self._metrics.jobs_refused.inc()
            raise TooManyJobs(len(self._running))
        return self._group

    def change(self, job: Job, values: Mapping[str, Any]) -> None:
        """Other values for some options of a running job, all or none.

        Raises JobEnded and InvalidOption.
        """
        options = job.options.changed(values)
        self.kind.check(options)
        job.change(options)

    async def delete(self, key: JobKey) -> Job:
        """Stop a running job after a flush, or forget an ended one. Raises UnknownJob."""
        job = self.get(key)
        if key in self._running:
            await job.stop(EndReason.STOPPED)
        else:
            del self._ended[key]
        return job

    async def cut_off(self, *jobs: Job) -> None:
        """End jobs that run at once, without a flush."""
        await asyncio.sleep(0)  # a task that is cancelled before its first step cleans nothing up
        tasks = {self._tasks[job] for job in jobs if job in self._tasks}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def discard(self, *jobs: Job) -> None:
        """Forget jobs; those that run are cut off first."""
        await self.cut_off(*jobs)
        for job in jobs:
            if self._ended.get(job.key) is job:
                del self._ended[job.key]

    async def end_session(self, session: str) -> None:
        """A session of a Live Runner is over: flush its jobs within a short time, cut off those
        that take longer, and forget them all. Raises nothing."""
        if session == DIRECT:
            return
        running, ended = (
            [job for key, job in jobs.items() if key.session == session]
            for jobs in (self._running, self._ended)
        )
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                stopping = (job.stop(EndReason.RELEASED) for job in running)
                await asyncio.gather(*stopping, return_exceptions=True)
        except TimeoutError:
            logger.warning("a session is over, and not all of its jobs were flushed in time")
        await self.discard(*running, *ended)

    async def drain(self, seconds: float, stopped_elsewhere: Collection[Job] = ()) -> None:
        """Refuse new jobs and flush the running ones; those that still run after so many seconds
        are cut off. stopped_elsewhere: jobs that are not flushed here, since the streams of
        orchestrators flush theirs."""
        self.draining = True
        self._announce()
        stopping = [
            job.stop(EndReason.SHUTDOWN)
            for job in self._running.values()
            if job not in stopped_elsewhere
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
            del self._running[job.key], self._tasks[job]
            if job.worth_keeping:
                self._ended[job.key] = job
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
        """Forget ended jobs, the oldest first, while their time is over or there is too much of
        them."""
        oldest = asyncio.get_running_loop().time() - self._settings.jobs.retention_seconds
        while self._ended:
            job = next(iter(self._ended.values()))
            num_bytes = sum(job.log.num_bytes for job in self._ended.values())
            kept = len(self._ended) <= self._settings.jobs.max_ended_jobs
            kept = kept and num_bytes <= self._settings.jobs.max_ended_bytes
            if kept and job.ended_at is not None and job.ended_at > oldest:
                return
            del self._ended[job.key]
