"""Hosts any processor of bytes in place of Whisper, behind the same doors.

A processor is an object with `async initialize()`, `async process(data: bytes) -> bytes` and
`async shutdown()`; `async update_params(params: dict)` is called where it is there.
"""

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Protocol

from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.errors import (
    BodyTooLarge,
    ConfigurationError,
    JobEnded,
    ProcessorError,
    ServiceError,
)
from whisper_byoc.jobs.eventlog import EventLog
from whisper_byoc.jobs.job import BodyCounter, Chunks, Job
from whisper_byoc.jobs.options import Options, ProcessorOptions
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import Settings
from whisper_byoc.transcript import (
    OCTETS,
    End,
    EndReason,
    Failure,
    Format,
    Payload,
    PayloadWriter,
    Writer,
)

logger = logging.getLogger(__name__)

_METHODS = ("initialize", "process", "shutdown")


class Processor(Protocol):
    """What can be hosted."""

    async def initialize(self) -> None: ...
    async def process(self, data: bytes) -> bytes: ...
    async def shutdown(self) -> None: ...


def load_processor(reference: str) -> Processor:
    """An object of the class that `module:Class` names, made without arguments.

    Raises ConfigurationError when there is none, or it lacks a method.
    """
    module_name, colon, class_name = reference.partition(":")
    if not (module_name and colon and class_name.isidentifier()):
        raise ConfigurationError(f"processor is {reference!r}, expected module:Class")
    try:
        made = getattr(importlib.import_module(module_name), class_name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"processor {reference} cannot be made: {error}") from error
    missing = [name for name in _METHODS if not callable(getattr(made, name, None))]
    if missing:
        expected = ", ".join(f"async {name}()" for name in _METHODS)
        raise ConfigurationError(
            f"processor {reference} has no {' and no '.join(missing)}, expected {expected}"
        )
    processor: Processor = made
    return processor


class Host:
    """One processor for all jobs, which come to it one input at a time, in order of asking."""

    def __init__(self, processor: Processor, name: str) -> None:
        self.name = name
        self._processor = processor
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """The processor is initialized inside, and shut down at exit. Raises ProcessorError."""
        await self._call("initialize", self._processor.initialize)
        try:
            yield
        finally:
            await self._call("shutdown", self._processor.shutdown)

    async def process(self, data: bytes) -> bytes:
        """Empty input is a keepalive, and comes back. Raises ProcessorError."""
        if not data:
            return b""
        async with self._turn:
            result = await self._call("process", lambda: self._processor.process(data))
        if not isinstance(result, bytes | bytearray | memoryview):
            raise ProcessorError(self.name, f"process gave {type(result).__name__}, expected bytes")
        return bytes(result)

    async def update_params(self, params: dict[str, Any]) -> None:
        update = getattr(self._processor, "update_params", None)
        if update is not None:
            async with self._turn:
                await self._call("update_params", lambda: update(params))

    async def _call(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except Exception as error:  # it is not ours, and may raise anything
            logger.exception("processor %s: %s failed", self.name, name)
            raise ProcessorError(self.name, f"{name}: {type(error).__name__}: {error}") from error


class Processings:
    """The kind of job that hands inputs to a processor."""

    def __init__(self, host: Host, settings: Settings, metrics: Metrics) -> None:
        self._host = host
        self._settings = settings
        self._metrics = metrics

    @property
    def model_names(self) -> Sequence[str]:
        return [self._host.name]

    def model_for(self, options: Options) -> str:
        return self._host.name

    def options(self) -> Options:
        return ProcessorOptions()

    def check(self, options: Options) -> None:
        """Whatever a caller asks for is the processor's to refuse."""

    def make(self, job_id: str, options: Options) -> "Processing":
        return Processing(job_id, options, self._host, self._settings, self._metrics)


class Processing(Job):
    """Every body or segment is one input; its output is one `Payload`, in the same order."""

    relays_input: ClassVar[bool] = False

    def __init__(
        self, job_id: str, options: Options, host: Host, settings: Settings, metrics: Metrics
    ) -> None:
        log = EventLog(settings.jobs.max_events, settings.jobs.max_output_bytes)
        super().__init__(job_id, options, settings.jobs, metrics, log)
        self._host = host
        self._max_bytes = settings.worker.max_segment_bytes
        self._ended = asyncio.Event()
        self._num_inputs = 0
        self._busy_seconds = 0.0
        self._updates: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=16)
        if options.model_extra:
            self._updates.put_nowait(dict(options.model_extra))

    @property
    def audio_seconds(self) -> float:
        return 0.0

    @property
    def lag_seconds(self) -> float:
        return 0.0

    @property
    def worth_keeping(self) -> bool:
        return self._failure is None or self._num_inputs > 0

    def counters(self) -> dict[str, Any]:
        return {
            "audio_seconds": 0.0,
            "payloads": self._num_inputs,
            "process_seconds": round(self._busy_seconds, 3),
        }

    def writer(self, output: Format) -> tuple[str, Writer]:
        return OCTETS, PayloadWriter()

    def change(self, options: Options) -> None:
        """Tell the processor before its next input. Raises JobEnded."""
        super().change(options)
        if self._updates.full():
            self._updates.get_nowait()  # the newest count
        self._updates.put_nowait(dict(options.model_extra or {}))

    async def finalize(self) -> None:
        """Nothing waits here. Raises JobEnded."""
        self.check_runs()
        self.keep_alive()

    async def receive_segments(
        self, segments: AsyncIterator[Chunks], audio_format: AudioFormat | None
    ) -> None:
        async for segment in segments:
            if self._input_ended:
                return
            try:
                await self._receive_counted(segment, audio_format, BodyCounter(self._max_bytes))
            except (ProcessorError, BodyTooLarge) as error:
                if self._failure is not None:
                    raise
                self.problem = error
                self.num_problems += 1
                self._logger.warning("input left out: %s", error)
                self._send(Payload(self.log.next_seq, b""))  # so that numbers go on together
        if self._stop_reason is not None:
            await self._end_input(self._stop_reason)

    async def _receive(self, chunks: Chunks, audio_format: AudioFormat | None) -> None:
        data = bytearray()

        async def pump() -> None:
            async for chunk in chunks:
                self.keep_alive()
                data.extend(chunk)
                if len(data) > self._max_bytes:
                    return

        try:
            async with asyncio.TaskGroup() as group:
                self._pump = group.create_task(pump())
                await asyncio.wait({self._pump})
                stopped = self._pump.cancelled()
        finally:
            self._pump = None
        if stopped:  # a part of an input is none
            return
        if len(data) > self._max_bytes:
            raise BodyTooLarge(len(data), self._max_bytes)
        while not self._updates.empty():
            await self._host.update_params(self._updates.get_nowait())
        began = self._loop.time()
        result = await self._host.process(bytes(data))
        self._busy_seconds += self._loop.time() - began
        if self._ended.is_set():
            raise self._failure or JobEnded(self.job_id)
        self._num_inputs += 1
        self._send(Payload(self.log.next_seq, result))

    async def _work(self) -> None:
        await self._ended.wait()

    async def _end_input(self, reason: EndReason, failure: ServiceError | None = None) -> None:
        if self._input_ended:
            return
        self._input_ended = True
        if failure is not None:
            self._send(Failure(self.log.next_seq, failure.code, str(failure)))
            reason = EndReason.ERROR
        self._send(End(self.log.next_seq, 0.0, reason))
        self._ended.set()

    def _abandon(self, error: ServiceError) -> None:
        self._failure = self._failure or error
        if not self._ended.is_set():
            self._input_ended = True
            self._send(Failure(self.log.next_seq, error.code, str(error)))
            self._send(End(self.log.next_seq, 0.0, EndReason.ERROR))
            self._ended.set()
