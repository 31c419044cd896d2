"""What a job does with its input, and what job and work know of one another."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from whisper_byoc.audio.formats import AudioFormat, Declared
from whisper_byoc.errors import BodyTooLarge, ServiceError
from whisper_byoc.jobs.options import Options
from whisper_byoc.transcript import EndReason, Event, Format, Writer

Chunks = AsyncIterator[bytes]


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """A logger that begins every line with the id of a job, `extra["job"]`."""

    def process(self, msg: object, kwargs: Any) -> tuple[str, Any]:
        return f"job {self.extra['job'] if self.extra else '?'}: {msg}", kwargs


class Activity:
    """Remembers when input has last come, to tell when there was none for some time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()

    def note(self) -> None:
        """Input has come."""
        self._last = self._loop.time()

    async def until_idle(self, seconds: float) -> None:
        """Return when no input has come for so many seconds."""
        while True:
            idle = self._loop.time() - self._last
            if idle >= seconds:
                return
            await asyncio.sleep(seconds - idle)


class Owner(Protocol):
    """What a work knows of the job that has it."""

    logger: JobLog

    def send(self, event: Event) -> None:
        """Put an event into the job's log. The work numbers its events by `seq`, from 0 without
        gaps, and its last is `End`."""

    def keep_alive(self) -> None:
        """Put off the idle limit."""


class Body:
    """The chunks of one body on their way into a job. They may stop coming before the body's end:
    because the sender has gone, because the job is stopped, or because there are too many bytes.
    """

    def __init__(
        self, chunks: Chunks, max_bytes: int | None, received: Callable[[int], None]
    ) -> None:
        self._chunks = chunks
        self._max_bytes = max_bytes
        self._received = received
        self._pumping: asyncio.Timeout | None = None
        self._stopped = False
        self.num_bytes = 0
        self.lost = False
        """Whether its sender has gone in the middle of it."""
        self.too_large: BodyTooLarge | None = None

    async def pump(self, take: Callable[[bytes], Awaitable[None]]) -> bool:
        """Hand every chunk to `take`, to the end of the body or until it is stopped.

        False when only a part of it has come, because it was stopped or is too large. Raises what
        `take` raises.
        """
        if self._stopped:
            return False
        try:
            async with asyncio.timeout(None) as self._pumping:  # `stop` sets the time
                async for chunk in self._counted():
                    await take(chunk)
        except TimeoutError:
            if not self._stopped:
                raise
            return False
        finally:
            self._pumping = None
        return self.too_large is None

    def stop(self) -> None:
        """Make `pump` return False at once, even while it waits for a chunk to be taken."""
        self._stopped = True
        if self._pumping is not None:
            self._pumping.reschedule(asyncio.get_running_loop().time())

    async def _counted(self) -> Chunks:
        """The chunks, up to where ConnectionError breaks the body off, or it grows too large."""
        try:
            async for chunk in self._chunks:
                self.num_bytes += len(chunk)
                self._received(len(chunk))
                if self._max_bytes is not None and self.num_bytes > self._max_bytes:
                    self.too_large = BodyTooLarge(self.num_bytes, self._max_bytes)
                    yield chunk[: self._max_bytes - self.num_bytes]
                    return
                yield chunk
        except ConnectionError:
            self.lost = True


class Work(Protocol):
    """What a job does with the bytes it gets: it reads them and sends events to its `Owner`.

    Driven by its job: `run` in the job's own task, the rest from the tasks that feed the job.
    """

    @property
    def options(self) -> Options: ...

    relays_input: bool
    """Whether an orchestrator that wants media back gets the input unchanged, since the work makes
    none."""

    @property
    def max_body_bytes(self) -> int | None:
        """The most bytes that a body may have; None for any number."""

    @property
    def has_understood(self) -> bool:
        """Whether any of the input could be used so far."""

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio received; 0 for what is no audio."""

    @property
    def lag_seconds(self) -> float:
        """Seconds of speech received and not yet final."""

    def counters(self) -> dict[str, Any]:
        """What the work has counted so far, by the names of the job's document."""

    def writer(self, output: Format) -> tuple[str, Writer]:
        """The content type of an output, and what writes the events into it."""

    def change(self, options: Options) -> None:
        """Go on with other options."""

    def bodies(
        self, segments: AsyncIterator[Chunks], audio_format: AudioFormat | None
    ) -> AsyncIterator[Chunks]:
        """The bodies that segments make: each is handed to `receive` and may join several."""

    async def receive(self, body: Body, audio_format: Declared | None) -> None:
        """Take one body to its end; one at a time. What comes after the work has ended is dropped.
        Raises UnsupportedAudio, ProcessorError and DecodeError."""

    def leave_out(self, error: ServiceError) -> None:
        """Go on without a body that could not be used."""

    async def receive_end(self, reason: EndReason, failure: ServiceError | None) -> None:
        """Flush what has come, since no more will, then send `failure`, if there is one, and `End`
        with this reason. Returns before that is done; `run` does it. Raises DecodeError when what
        has come cannot be read to its end."""

    async def finalize(self) -> None:
        """Return when all that has come is final; the stream goes on."""

    def abandon(self, error: ServiceError) -> None:
        """Send the error and `End` at once, without a flush. Does nothing after the end."""

    async def run(self) -> None:
        """Return when `End` is sent. Raises DecodeError when it cannot go on."""
