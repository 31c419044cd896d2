"""A work without a model or a processor: what a test tells it, it does."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

from whisper_byoc.audio.formats import AudioFormat, Declared
from whisper_byoc.errors import ServiceError
from whisper_byoc.jobs.options import Options, ProcessorOptions
from whisper_byoc.jobs.work import Body, Chunks, Owner
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


class ScriptedWork:
    """Says every chunk again. It is flushed at once unless `flushed` is cleared, and fails with
    what is put into `refusals` (the next bodies), `run_error` or `end_error`."""

    relays_input = False
    audio_seconds = lag_seconds = 0.0

    def __init__(self, options: Options, owner: Owner, max_body_bytes: int | None = None) -> None:
        self.options = options
        self.max_body_bytes = max_body_bytes
        self.has_understood = False
        self.owner = owner
        self.whole: list[bool] = []
        self.refusals: list[Exception] = []
        self.left_out: list[ServiceError] = []
        self.ends: list[tuple[EndReason, ServiceError | None]] = []
        self.run_error: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.end_error: ServiceError | None = None
        self.taking = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self.flushed = asyncio.Event()
        self.flushed.set()
        self.taken: Callable[[], None] = lambda: None
        """Called when a chunk has been said."""
        self.num_finalized = 0
        self._seqs = itertools.count()
        self.ending = asyncio.Event()
        self._ended = False

    def counters(self) -> dict[str, Any]:
        return {"bodies": len(self.whole)}

    def writer(self, output: Format) -> tuple[str, Writer]:
        return OCTETS, PayloadWriter()

    def change(self, options: Options) -> None:
        self.options = options

    async def finalize(self) -> None:
        self.num_finalized += 1

    def bodies(
        self, segments: AsyncIterator[Chunks], audio_format: AudioFormat | None
    ) -> AsyncIterator[Chunks]:
        return segments

    def leave_out(self, error: ServiceError) -> None:
        self.left_out.append(error)

    async def receive(self, body: Body, audio_format: Declared | None) -> None:
        self.whole.append(await body.pump(self._take))
        if self.refusals:
            raise self.refusals.pop(0)

    async def _take(self, chunk: bytes) -> None:
        self.taking.set()
        await self.room.wait()
        if not self._ended:
            self.has_understood = True
            self.owner.send(Payload(next(self._seqs), chunk))
            self.taken()

    async def receive_end(self, reason: EndReason, failure: ServiceError | None) -> None:
        self.ends.append((reason, failure))
        if self.end_error is not None:
            raise self.end_error
        self.ending.set()

    def abandon(self, error: ServiceError) -> None:
        self._end(EndReason.ERROR, error)
        self.ending.set()

    async def run(self) -> None:
        self.run_error.add_done_callback(lambda _: self.ending.set())
        await self.ending.wait()
        if self.run_error.done():
            self.run_error.result()
        await self.flushed.wait()
        reason, failure = self.ends[-1] if self.ends else (EndReason.ERROR, None)
        self._end(reason, failure)

    def _end(self, reason: EndReason, failure: ServiceError | None) -> None:
        if not self._ended:
            self._ended = True
            if failure is not None:
                self.owner.send(Failure(next(self._seqs), failure.code, str(failure)))
            self.owner.send(End(next(self._seqs), 0.0, reason))


class ScriptedKind:
    """Makes such works, and keeps them in order."""

    def __init__(self) -> None:
        self.works: list[ScriptedWork] = []
        self.problem: ServiceError | None = None

    @property
    def model_names(self) -> list[str]:
        return ["scripted"]

    def model_for(self, options: Options) -> str:
        return "scripted"

    def options(self) -> Options:
        return ProcessorOptions()

    def check(self, options: Options) -> None:
        if self.problem is not None:
            raise self.problem

    def make(self, options: Options, owner: Owner, *, recording: bool = False) -> ScriptedWork:
        self.works.append(ScriptedWork(options, owner))
        return self.works[-1]


async def chunks(*pieces: bytes, then: BaseException | None = None) -> Chunks:
    for piece in pieces:
        yield piece
    if then is not None:
        raise then


async def stalled(*pieces: bytes) -> Chunks:
    """A body whose sender stays and sends no more."""
    for piece in pieces:
        yield piece
    await asyncio.Event().wait()


async def segments(*bodies: Chunks) -> AsyncIterator[Chunks]:
    for body in bodies:
        yield body
