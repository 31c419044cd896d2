"""All jobs of a service: which may begin, who finds them, when they are forgotten."""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Protocol

from whisper_byoc.errors import Draining, JobEnded, TooManyJobs, UnknownJob
from whisper_byoc.jobs.job import Job, check_job_id
from whisper_byoc.jobs.options import Options
from whisper_byoc.jobs.work import Owner, Work
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import Settings
from whisper_byoc.transcript import EndReason

logger = logging.getLogger(__name__)


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

    def make(self, options: Options, owner: Owner) -> Work:
        """The work of a new job. owner: the job, for its work."""


class Jobs:
    """All jobs, running and ended; owns them and their tasks. `serve` must be entered first.

    Running jobs are bounded by `max_jobs`: one more is refused. Ended ones are forgotten after the
    retention time, the oldest first when there are more than `max_ended_jobs`.
    """

    def __init__(self, kind: JobKind, settings: Settings, metrics: Metrics) -> None:
        self.kind = kind
        self._settings = settings
        self._metrics = metrics
        self._running: dict[str, Job] = {}
        self._ended: dict[str, Job] = {}
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
        return max((job.work.lag_seconds for job in self._running.values()), default=0.0)

    def find(self, job_id: str) -> Job | None:
        return self._running.get(job_id) or self._ended.get(job_id)

    def get(self, job_id: str) -> Job:
        """The running or ended job of this id. Raises InvalidJobId and UnknownJob."""
        check_job_id(job_id)
        job = self.find(job_id)
        if job is None:
            raise UnknownJob(job_id)
        return job

    async def wait_for(self, job_id: str) -> Job:
        """The job, once it exists, within the grace time. Raises InvalidJobId and UnknownJob."""
        check_job_id(job_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.jobs.output_grace_seconds):
                while self.find(job_id) is None and not self.draining:
                    await self._created.wait()
        return self.get(job_id)

    def open(
        self, job_id: str, options: Options, *, again: bool = False, attended: bool = False
    ) -> Job:
        """The running job of this id, or a new one. again: an ended job of this id is replaced
        rather than refused. attended: the job has no idle limit, since whoever opens it ends it.

        Raises InvalidJobId, JobEnded, and for a new one Draining, TooManyJobs and InvalidOption.
        """
        check_job_id(job_id)
        if job_id in self._running:
            return self._running[job_id]
        if job_id in self._ended and not again:
            raise JobEnded(job_id)
        if self.draining or self._group is None:
            raise Draining()
        if len(self._running) >= self._settings.jobs.max_jobs:
            self._metrics.jobs_refused.inc()
            raise TooManyJobs(len(self._running))
        self.kind.check(options)
        self._ended.pop(job_id, None)
        job = Job(
            job_id,
            partial(self.kind.make, options),
            self._settings.jobs,
            self._metrics,
            None if attended else self._settings.jobs.idle_seconds,
        )
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
        """Stop a running job after a flush, or forget an ended one. Raises InvalidJobId and
        UnknownJob."""
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
        """Refuse new jobs and flush the running ones; those that still run after so many seconds
        are cut off. stopped_elsewhere: ids of jobs that are not flushed here, since the streams of
        orchestrators flush theirs."""
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
            del self._ended[job.job_id]
