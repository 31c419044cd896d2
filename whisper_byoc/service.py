"""What lives as long as the process: models, jobs, metrics, and in which order they come and go."""

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass
from enum import StrEnum

from whisper_byoc.errors import NotReady, ServiceError, ServiceFailed, bare_errors, first_of
from whisper_byoc.inference.engine import Engine, open_engine
from whisper_byoc.inference.voice import open_voice_activity
from whisper_byoc.jobs.jobs import JobKind, Jobs
from whisper_byoc.jobs.processing import Host, Processings, Processor
from whisper_byoc.jobs.sources import Sources
from whisper_byoc.jobs.transcription import Inference, Transcriptions
from whisper_byoc.metrics import Metrics
from whisper_byoc.orchestrator.entry import Identity
from whisper_byoc.orchestrator.registration import Registration
from whisper_byoc.orchestrator.runner_sessions import RunnerSessions
from whisper_byoc.orchestrator.sessions import Sessions
from whisper_byoc.settings import ModelSettings, Settings

logger = logging.getLogger(__name__)

VERSION = importlib.metadata.version("whisper-byoc")

_ANSWERED_SECONDS = 5.0
"""For the last words to be sent to who reads slowly."""
_SETTLE_SECONDS = 0.5
"""For them to pass through the orchestrator, which cuts what it has not passed on when we leave."""

OpenEngine = Callable[[ModelSettings], AbstractAsyncContextManager[Engine]]


class Health(StrEnum):
    """PyTrickle's words, which Livepeer's orchestrators look for."""

    LOADING = "LOADING"
    IDLE = "IDLE"
    OK = "OK"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Running:
    """The parts of a service that is ready. engine: None where a processor is hosted."""

    engine: Engine | None
    jobs: Jobs
    sessions: Sessions
    registration: Registration


class Service:
    """Owns engine, voice activity, jobs, streams and registration; `serve` opens them.

    processor: what is hosted in place of Whisper. All load in the background, so that health can be
    asked at once.
    """

    def __init__(
        self,
        settings: Settings,
        open_engine: OpenEngine = open_engine,
        processor: Processor | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.sources = Sources()
        self.runner_sessions = RunnerSessions(settings)
        self._processor = processor
        self._open_engine = open_engine
        self._outcome: Running | ServiceError | None = None
        """What became of loading; None while it goes on. A later error takes its place."""
        self._settled = asyncio.Event()
        self._closing = asyncio.Event()
        self._ended = asyncio.Event()
        self._watch()

    @property
    def failure(self) -> ServiceError | None:
        """Why the service is not ready and never will be."""
        return self._outcome if isinstance(self._outcome, ServiceError) else None

    @property
    def _running(self) -> Running | None:
        return self._outcome if isinstance(self._outcome, Running) else None

    @property
    def health(self) -> Health:
        if self.failure is not None:
            return Health.ERROR
        if self._running is None:
            return Health.LOADING
        return Health.OK if self._running.jobs.num_running else Health.IDLE

    @property
    def ready(self) -> bool:
        return self._running is not None and not self._running.jobs.draining

    @property
    def model_id(self) -> str:
        """The default model, also before it is loaded."""
        if self._processor is not None:
            return type(self._processor).__name__
        if self._running is not None:
            return self._running.jobs.kind.model_names[0]
        return self.settings.model.names[0]

    @property
    def jobs(self) -> Jobs:
        """Raises NotReady while the models load."""
        return self._ready().jobs

    @property
    def sessions(self) -> Sessions:
        """Raises NotReady while the models load."""
        return self._ready().sessions

    @property
    def engine(self) -> Engine | None:
        """None while the models load, and where a processor is hosted."""
        return self._running.engine if self._running else None

    async def settled(self) -> None:
        """Return when the service is ready, or when `failure` says why it never will be."""
        await self._settled.wait()

    async def ended(self) -> None:
        """Return when nothing of the service is left: because it was closed, or has failed."""
        await self._ended.wait()

    async def drain(self) -> None:
        """Get no new work, flush the running jobs within the time that the settings give, and let
        their answers arrive. Call `leave` then: an orchestrator cuts what still runs."""
        running = self._running
        if running is None:
            return
        await running.registration.drain()
        in_use = bool(self.runner_sessions.in_use)
        streams = [session.job for session in running.sessions.running]
        async with asyncio.TaskGroup() as group:
            group.create_task(running.jobs.drain(self.settings.server.drain_seconds, streams))
            group.create_task(running.sessions.drain())
        if in_use:
            with suppress(TimeoutError):
                async with asyncio.timeout(_ANSWERED_SECONDS):
                    await self.runner_sessions.until_answered()
            await asyncio.sleep(_SETTLE_SECONDS)

    async def leave(self) -> None:
        """Unregister, within 3 s."""
        if self._running is not None:
            await self._running.registration.withdraw()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(self._run())
            try:
                yield
            finally:
                self._closing.set()
                if self._processor is not None and not self._settled.is_set():
                    loading.cancel()  # it is not ours, and may never be initialized

    def _ready(self) -> Running:
        if self._running is None:
            raise NotReady(self.failure)
        return self._running

    async def _run(self) -> None:
        began = time.monotonic()
        try:
            async with bare_errors(), AsyncExitStack() as stack:
                running = self._outcome = await self._open(stack)
                self._log_ready(running, time.monotonic() - began)
                self._settled.set()
                # Tell orchestrators that we are here, until the service closes.
                async with asyncio.TaskGroup() as group:
                    announcing = group.create_task(running.registration.run())
                    await self._closing.wait()
                    announcing.cancel()
        except ServiceError as error:
            self._outcome = error
            logger.error("not ready: %s", error)
        except Exception as error:  # the process has to end: it would serve nobody
            logger.exception("a part of the service has failed")
            cause = first_of(error) if isinstance(error, ExceptionGroup) else error
            self._outcome = ServiceFailed(f"{type(cause).__name__}: {cause}")
        finally:
            self._settled.set()
            self._ended.set()

    async def _open(self, stack: AsyncExitStack) -> Running:
        """All that lives with the service; `stack` closes it, the last first."""
        engine: Engine | None = None
        kind: JobKind
        if self._processor is not None:
            host = Host(self._processor, self.model_id)
            await stack.enter_async_context(host.serve())
            kind = Processings(host, self.settings.worker.max_segment_bytes)
        else:
            voice = await stack.enter_async_context(open_voice_activity())
            engine = await stack.enter_async_context(self._open_engine(self.settings.model))
            await engine.warm_up()
            inference = Inference(engine, voice, self.metrics)
            kind = Transcriptions(inference, self.settings.streaming)
        jobs = Jobs(kind, self.settings, self.metrics)
        await stack.enter_async_context(jobs.serve())
        await stack.enter_async_context(self.runner_sessions.serve(jobs.end_session))
        registration = Registration(
            self.settings,
            Identity(kind.model_names[0], VERSION, engine.gpu if engine else None),
            self.runner_sessions,
            lambda: len(sessions.running),
        )
        if registration.has_runners:
            self.runner_sessions.ask_now = registration.ask_sessions
        sessions = Sessions(
            jobs, self.settings, self.metrics, lost=lambda url: registration.tell_now()
        )
        await stack.enter_async_context(sessions.serve())
        await stack.enter_async_context(self.sources.serve())
        return Running(engine, jobs, sessions, registration)

    def _log_ready(self, running: Running, seconds: float) -> None:
        models = ", ".join(
            f"{model.name} on {model.device} ({model.branch})"
            for model in (running.engine.models.values() if running.engine else ())
        ) or ", ".join(running.jobs.kind.model_names)
        logger.info("ready after %.1f s: whisper-byoc %s, %s", seconds, VERSION, models)

    def _watch(self) -> None:
        def watch(name: str, text: str, read: Callable[[Running], float]) -> None:
            self.metrics.watch(name, text, lambda: read(self._running) if self._running else 0)

        watch("whisper_jobs_running", "Jobs running", lambda it: it.jobs.num_running)
        watch(
            "whisper_lag_seconds",
            "Largest time of speech received and not yet final, of all running jobs",
            lambda it: it.jobs.max_lag_seconds,
        )
        watch(
            "whisper_windows_waiting",
            "Windows waiting to be decoded",
            lambda it: it.engine.num_waiting if it.engine else 0,
        )
        watch(
            "whisper_streams_running",
            "Streams of orchestrators running",
            lambda it: len(it.sessions.running),
        )
        watch(
            "whisper_registrations",
            "Registrations that orchestrators have taken",
            lambda it: it.registration.num_registered,
        )
        watch(
            "whisper_ready", "1 when the service takes jobs", lambda it: float(not it.jobs.draining)
        )
