"""What a job does with its input, and what job and work know of one another."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.errors import BodyTooLarge, ServiceError
from whisper_byoc.jobs.options import Options
from whisper_byoc.transcript import EndReason, Event, Format, Writer

Chunks = AsyncIterator[bytes]


class JobLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: object, kwargs: Any) -> tuple[str, Any]:
        return f"job {self.extra['job'] if self.extra else '?'}: {msg}", kwargs


class Activity:
    """When something has last come, and until nothing has come for some time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()

    def note(self) -> None:
        """Something has come."""
        self._last = self._loop.time()

    async def until_idle(self, seconds: float) -> None:
        """Return when nothing has come for so long."""
        while True:
            idle = self._loop.time() - self._last
            if idle >= seconds:
                return
            await asyncio.sleep(seconds - idle)


class Owner(Protocol):
    """What a work knows of the job that has it."""

    logger: JobLog

    def send(self, event: Event) -> None:
        """To all who read the job. The works number their events, and `End` is the last."""

    def keep_alive(self) -> None:
        """Put off the idle limit."""


class Body:
    """One body on its way into a job. It may end before its end, and knows why."""

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
        """Take no more of it: not the chunk either that is being taken."""
        self._stopped = True
        if self._pumping is not None:
            self._pumping.reschedule(asyncio.get_running_loop().time())

    async def _counted(self) -> Chunks:
        """Ends where ConnectionError breaks the body off, and where it grows too large."""
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
    """What a job does: it knows its input and what it says of it, and tells its `Owner`.

    Driven by its job: `run` in a task of its own, the rest from the tasks that feed the job.
    """

    @property
    def options(self) -> Options: ...

    relays_input: bool
    """Whether its input may pass by it unchanged to whoever wants media out."""

    @property
    def max_body_bytes(self) -> int | None:
        """Beyond which it takes no body or segment; None for any."""

    @property
    def has_understood(self) -> bool:
        """Whether any of its input was what it should be."""

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio received; 0 for what is no audio."""

    @property
    def lag_seconds(self) -> float:
        """Seconds of speech received and not yet final."""

    def counters(self) -> dict[str, Any]:
        """What it counts, for the job's document."""

    def writer(self, output: Format) -> tuple[str, Writer]:
        """A content type, and what writes its events so."""

    def change(self, options: Options) -> None:
        """Go on with other options."""

    def bodies(
        self, segments: AsyncIterator[Chunks], audio_format: AudioFormat | None
    ) -> AsyncIterator[Chunks]:
        """What of the segments is to be received together."""

    async def receive(self, body: Body, audio_format: AudioFormat | None) -> None:
        """Take one body, one at a time; once the work has ended it is dropped. Raises
        UnsupportedAudio, ProcessorError and DecodeError."""

    def leave_out(self, error: ServiceError) -> None:
        """A body could not be used, and the next is tried."""

    async def receive_end(self, reason: EndReason, failure: ServiceError | None) -> None:
        """No more will come; what has come is flushed, then `failure` is told. Raises DecodeError
        when that cannot be."""

    async def finalize(self) -> None:
        """Return when all that has come is final; the stream goes on."""

    def abandon(self, error: ServiceError) -> None:
        """Tell the error and end at once, without a flush. Nothing when it has ended."""

    async def run(self) -> None:
        """Return when `End` is sent. Raises DecodeError when it cannot go on."""
