"""All streams of the worker door: admission, and which of them a request means."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from whisper_byoc import errors
from whisper_byoc.audio.content_types import format_of_content_type
from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.jobs.job import DIRECT, Job, JobKey, JobState
from whisper_byoc.jobs.jobs import Jobs
from whisper_byoc.metrics import Metrics
from whisper_byoc.orchestrator.messages import StartRequest, known_options
from whisper_byoc.orchestrator.session import Session
from whisper_byoc.settings import Settings
from whisper_byoc.transcript import EndReason

logger = logging.getLogger(__name__)

_CUT_OFF_SECONDS = 0.25
"""On top of what a stop may take: it is to be answered in any case."""


class Sessions:
    """Owns the running streams and their tasks. `serve` must be entered first.

    A stream needs a job, so it is bounded by `max_jobs` and, where that is less, by the capacity
    that orchestrators are told: they do not enforce it.
    """

    def __init__(
        self,
        jobs: Jobs,
        settings: Settings,
        metrics: Metrics,
        lost: Callable[[str], None] = lambda url: None,
    ) -> None:
        """lost: called with the URL of a channel that its orchestrator has forgotten, once for each
        stream that ends by that."""
        self._lost = lost
        self._jobs = jobs
        self._settings = settings
        self._metrics = metrics
        self._running: dict[str, Session] = {}
        self._tasks: dict[Session, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Run streams while inside; leaving cancels those that `drain` has not waited for."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
                for task in self._tasks.values():
                    task.cancel()

    @property
    def running(self) -> Sequence[Session]:
        return list(self._running.values())

    def start(self, request: StartRequest) -> Session:
        """A stream with a job of its own; the one that runs already when all is the same.

        Raises InvalidOption, StreamExists, TooManyJobs and Draining.
        """
        running = self._running.get(request.stream_id)
        if running is not None:
            if running.request == request and not running.stopping.is_set():
                return running
            raise errors.StreamExists(request.stream_id)
        capacity = self._settings.capability.capacity or self._settings.jobs.max_jobs
        if self._group is None:
            raise errors.Draining()
        if len(self._running) >= capacity:
            raise errors.TooManyJobs(len(self._running))
        audio_format = _audio_format(request.params)
        session = Session(
            request,
            self._open_job(request),
            audio_format,
            self._jobs,
            self._settings,
            self._metrics,
        )
        self._running[request.stream_id] = session
        self._tasks[session] = self._group.create_task(self._run(session))
        return session

    def select(self, named: str | None) -> Session:
        """The stream of this id; where one runs alone it is meant whatever the id says, since
        clients choose the id of an update. Raises UnknownStream."""
        if named is not None and named in self._running:
            return self._running[named]
        if len(self._running) == 1:
            return self.running[0]
        raise errors.UnknownStream(named, len(self._running))

    async def stop(self, named: str | None) -> Session | None:
        """Stop the stream of this id, or where none is named the only one; None where there is
        nothing to stop. Returns when its last words are published, and its place is free."""
        session = self._running.get(named) if named is not None else None
        if named is None and len(self._running) == 1:
            session = self.running[0]
        if session is not None:
            await session.stop(EndReason.STOPPED)
            if session in self._tasks:  # it may have to cut its job off
                await asyncio.wait({self._tasks[session]}, timeout=_CUT_OFF_SECONDS)
        return session

    async def drain(self) -> None:
        """Stop every stream, each within its own time."""
        await asyncio.gather(*(session.stop(EndReason.SHUTDOWN) for session in self.running))

    async def _run(self, session: Session) -> None:
        try:
            await session.run(self._lost)
        except Exception:  # one stream's fault must not reach the others
            logger.exception("stream %s failed", session.request.stream_id)
        finally:
            if session.job.state is not JobState.ENDED:
                await self._jobs.cut_off(session.job)
            del self._running[session.request.stream_id], self._tasks[session]

    def _open_job(self, request: StartRequest) -> Job:
        kind = self._jobs.kind
        defaults = kind.options()
        options = defaults.changed(known_options(defaults, request.params))
        key = JobKey(request.job_id, DIRECT)
        before = self._jobs.find(key)
        if before is not None and before.state is not JobState.ENDED:
            raise errors.StreamExists(request.stream_id)
        # The same stream may come once more, after a swap and back.
        return self._jobs.open(key, options, again=True, attended=True)


def _audio_format(params: Mapping[str, Any]) -> AudioFormat | None:
    """What `content_type` says of segments that are no container. Raises InvalidOption."""
    value = params.get("content_type")
    if value is None:
        return None
    if not isinstance(value, str):
        raise errors.InvalidOption(
            "content_type", repr(value), "a text such as audio/pcm;rate=8000"
        )
    try:
        return format_of_content_type(value)
    except errors.RequestError as error:
        raise errors.InvalidOption("content_type", value, str(error)) from error
