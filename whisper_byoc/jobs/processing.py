"""Hosts any processor of bytes in place of Whisper, behind the same doors.

A processor is an object with `async initialize()`, `async process(data: bytes) -> bytes` and
`async shutdown()`; `async update_params(params: dict)` is called where it is there.
"""

import asyncio
import importlib
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from whisper_byoc import transcript
from whisper_byoc.audio.formats import AudioFormat, Declared
from whisper_byoc.errors import ConfigurationError, ProcessorError, ServiceError
from whisper_byoc.jobs.options import Options, ProcessorOptions
from whisper_byoc.jobs.work import Body, Chunks, Owner
from whisper_byoc.transcript import EndReason, Format

logger = logging.getLogger(__name__)

_METHODS = ("initialize", "process", "shutdown")
_MAX_UPDATES = 16
"""Of parameters, waiting for the next input; the oldest give way."""


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
        """The processor's output for one input. An empty input is a keepalive: its output is empty,
        and the processor does not see it. Raises ProcessorError."""
        if not data:
            return b""
        async with self._turn:
            result = await self._call("process", lambda: self._processor.process(data))
        if not isinstance(result, bytes | bytearray | memoryview):
            raise ProcessorError(self.name, f"process gave {type(result).__name__}, expected bytes")
        return bytes(result)

    async def update_params(self, params: dict[str, Any]) -> None:
        """Tell the processor, if it can be told. Raises ProcessorError."""
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
    """The kind of job whose work is a `Processing`, all by the same processor."""

    def __init__(self, host: Host, max_bytes: int) -> None:
        """max_bytes: of one input."""
        self._host = host
        self._max_bytes = max_bytes

    @property
    def model_names(self) -> Sequence[str]:
        return [self._host.name]

    def model_for(self, options: Options) -> str:
        return self._host.name

    def options(self) -> Options:
        return ProcessorOptions()

    def check(self, options: Options) -> None:
        """Takes any options: it is the processor that may refuse some."""

    def make(self, options: Options, owner: Owner, *, recording: bool = False) -> "Processing":
        return Processing(options, owner, self._host, self._max_bytes)


class Processing:
    """Every body or segment is one input; its output is one `Payload`, in the same order."""

    relays_input = False
    audio_seconds = lag_seconds = 0.0

    def __init__(self, options: Options, owner: Owner, host: Host, max_bytes: int) -> None:
        self.options = options
        self.max_body_bytes = max_bytes
        self._owner = owner
        self._host = host
        self._seqs = itertools.count()
        self._ended = asyncio.Event()
        self._num_outputs = 0
        self._busy_seconds = 0.0
        self._updates: deque[dict[str, Any]] = deque(maxlen=_MAX_UPDATES)
        if options.model_extra:
            self._updates.append(dict(options.model_extra))

    @property
    def has_understood(self) -> bool:
        return self._num_outputs > 0

    def counters(self) -> dict[str, Any]:
        return {
            "audio_seconds": 0.0,
            "payloads": self._num_outputs,
            "process_seconds": round(self._busy_seconds, 3),
        }

    def writer(self, output: Format) -> tuple[str, transcript.Writer]:
        return transcript.OCTETS, transcript.PayloadWriter()

    def change(self, options: Options) -> None:
        """The processor is told before its next input."""
        self.options = options
        self._updates.append(dict(options.model_extra or {}))

    async def finalize(self) -> None:
        """Returns at once: what a processor gives for an input is final."""

    def bodies(
        self, segments: AsyncIterator[Chunks], audio_format: AudioFormat | None
    ) -> AsyncIterator[Chunks]:
        return segments

    def leave_out(self, error: ServiceError) -> None:
        self._owner.logger.warning("input left out: %s", error)
        # An empty output in its place: input n has output n, whatever became of those before.
        self._send_payload(b"")

    async def receive(self, body: Body, audio_format: Declared | None) -> None:
        data = bytearray()

        async def take(chunk: bytes) -> None:
            data.extend(chunk)

        if not await body.pump(take):
            return  # only a part has come, which the processor could not use
        while self._updates:
            await self._host.update_params(self._updates.popleft())
        began = time.monotonic()
        result = await self._host.process(bytes(data))
        self._busy_seconds += time.monotonic() - began
        if not self._ended.is_set():
            self._num_outputs += 1
            self._send_payload(result)

    def _send_payload(self, data: bytes) -> None:
        self._owner.send(transcript.Payload(next(self._seqs), data))

    async def receive_end(self, reason: EndReason, failure: ServiceError | None) -> None:
        self._end(reason, failure)

    def abandon(self, error: ServiceError) -> None:
        self._end(EndReason.ERROR, error)

    def _end(self, reason: EndReason, failure: ServiceError | None) -> None:
        if not self._ended.is_set():
            if failure is not None:
                self._owner.send(transcript.Failure(next(self._seqs), failure.code, str(failure)))
            self._owner.send(transcript.End(next(self._seqs), 0.0, reason))
            self._ended.set()

    async def run(self) -> None:
        await self._ended.wait()
