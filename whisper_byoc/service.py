"""What lives as long as the process: models, jobs, metrics, and in which order they come and go."""

import asyncio
import importlib.metadata
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from enum import StrEnum

from whisper_byoc.errors import NotReady, ServiceError, bare_errors
from whisper_byoc.inference.engine import Engine, open_engine
from whisper_byoc.inference.voice import open_voice_activity
from whisper_byoc.jobs.feeds import Feeds
from whisper_byoc.jobs.jobs import JobKind, Jobs
from whisper_byoc.jobs.processing import Host, Processings, Processor
from whisper_byoc.jobs.transcription import Services, Transcriptions
from whisper_byoc.metrics import Metrics
from whisper_byoc.orchestrator.registration import Registration
from whisper_byoc.orchestrator.sessions import Sessions
from whisper_byoc.settings import ModelSettings, Settings

logger = logging.getLogger(__name__)

VERSION = importlib.metadata.version("whisper-byoc")
_RETRY_AFTER_SECONDS = 2

OpenEngine = Callable[[ModelSettings], AbstractAsyncContextManager[Engine]]


class Health(StrEnum):
    """PyTrickle's words, which Livepeer's orchestrators look for."""

    LOADING = "LOADING"
    IDLE = "IDLE"
    OK = "OK"
    ERROR = "ERROR"


class Service:
    """Owns engine, voice activity, jobs, streams and registration; `serve` opens them.

    processor: what is hosted in place of Whisper. All load in the background, so that health can be
    asked at once. `failure` is why they did not. `runner_sessions` counts the requests that are
    being answered, by the Live Runner session they came through.
    """

    def __init__(
        self,
        settings: Settings,
        open_engine: OpenEngine = open_engine,
        processor: Processor | None = None,
    ) -> None:
        self.settings = settings
        self._processor = processor
        self.metrics = Metrics()
        self.failure: ServiceError | None = None
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._jobs: Jobs | None = None
        self._sessions: Sessions | None = None
        self._registration: Registration | None = None
        self.feeds = Feeds()
        self.runner_sessions: Counter[str] = Counter()
        self._settled = asyncio.Event()
        self._closing = asyncio.Event()
        self._watch()

    @property
    def health(self) -> Health:
        if self.failure is not None:
            return Health.ERROR
        if self._jobs is None:
            return Health.LOADING
        return Health.OK if self._jobs.num_running else Health.IDLE

    @property
    def ready(self) -> bool:
        return self._jobs is not None and not self._jobs.draining

    @property
    def model_id(self) -> str:
        """The default model, also before it is loaded."""
        if self._jobs is not None:
            return self._jobs.kind.model_names[0]
        if self._processor is not None:
            return type(self._processor).__name__
        return self.settings.model.names[0]

    @property
    def jobs(self) -> Jobs:
        """Raises NotReady while the models load."""
        if self._jobs is None:
            raise NotReady(_RETRY_AFTER_SECONDS, self.failure)
        return self._jobs

    @property
    def sessions(self) -> Sessions:
        """Raises NotReady while the models load."""
        if self._sessions is None:
            raise NotReady(_RETRY_AFTER_SECONDS, self.failure)
        return self._sessions

    @property
    def engine(self) -> Engine | None:
        """None while the models load, and where a processor is hosted."""
        return self._engine

    async def settled(self) -> None:
        """Return when the service is ready, or when `failure` says why it never will be."""
        await self._settled.wait()

    async def drain(self) -> None:
        """Refuse new jobs and flush the running ones within the time that the settings give."""
        if self._jobs is None:
            return
        streams = [session.job.job_id for session in self.sessions.running]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._jobs.drain(self.settings.server.drain_seconds, streams))
            group.create_task(self.sessions.drain())
            if self._registration is not None:
                group.create_task(self._registration.withdraw())

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._run())
            try:
                yield
            finally:
                self._closing.set()
                if self._processor is not None and not self._settled.is_set():
                    running.cancel()  # it is not ours, and may never be initialized

    async def _run(self) -> None:
        began = time.monotonic()
        try:
            async with bare_errors(), AsyncExitStack() as stack:
                kind = await self._open_kind(stack)
                jobs = Jobs(kind, self.settings, self.metrics)
                await stack.enter_async_context(jobs.serve())
                sessions = Sessions(jobs, self.settings, self.metrics)
                await stack.enter_async_context(sessions.serve())
                await stack.enter_async_context(self.feeds.serve())
                self._jobs, self._sessions = jobs, sessions
                self._log_ready(kind, time.monotonic() - began)
                self._settled.set()
                await self._announce(kind)
        except ServiceError as error:
            self.failure = error
            logger.error("not ready: %s", self.failure)
            self._settled.set()

    async def _announce(self, kind: JobKind) -> None:
        """Tell orchestrators that we are here, until the service closes."""
        self._registration = Registration(
            self.settings, kind.model_names[0], VERSION, lambda: list(self.runner_sessions)
        )
        async with asyncio.TaskGroup() as group:
            announcing = group.create_task(self._registration.run())
            await self._closing.wait()
            announcing.cancel()

    async def _open_kind(self, stack: AsyncExitStack) -> JobKind:
        """What the jobs are, ready for them."""
        if self._processor is not None:
            host = Host(self._processor, self.model_id)
            await stack.enter_async_context(host.serve())
            return Processings(host, self.settings, self.metrics)
        voice = await stack.enter_async_context(open_voice_activity())
        engine = await stack.enter_async_context(self._open_engine(self.settings.model))
        await engine.warm_up()
        self._engine = engine
        return Transcriptions(Services(engine, voice, self.metrics), self.settings)

    def _log_ready(self, kind: JobKind, seconds: float) -> None:
        models = ", ".join(
            f"{model.name} on {model.device} ({model.branch})"
            for model in (self._engine.models.values() if self._engine else ())
        ) or ", ".join(kind.model_names)
        logger.info("ready after %.1f s: whisper-byoc %s, %s", seconds, VERSION, models)

    def _watch(self) -> None:
        watch = self.metrics.watch
        watch(
            "whisper_jobs_running",
            "Jobs running",
            lambda: self._jobs.num_running if self._jobs else 0,
        )
        watch(
            "whisper_lag_seconds",
            "Largest time of speech received and not yet final, of all running jobs",
            lambda: self._jobs.max_lag_seconds if self._jobs else 0,
        )
        watch(
            "whisper_windows_waiting",
            "Windows waiting to be decoded",
            lambda: self._engine.num_waiting if self._engine else 0,
        )
        watch(
            "whisper_streams_running",
            "Streams of orchestrators running",
            lambda: len(self._sessions.running) if self._sessions else 0,
        )
        watch("whisper_ready", "1 when the service takes jobs", lambda: float(self.ready))
