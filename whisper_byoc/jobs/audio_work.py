"""What works that make words of audio have in common: how bytes become samples."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from whisper_byoc.audio.formats import AudioFormat, Declared, Gap, Samples
from whisper_byoc.audio.pcm import RawStream
from whisper_byoc.audio.segments import SegmentJoiner
from whisper_byoc.audio.source import open_source
from whisper_byoc.errors import ServiceError, bare_errors
from whisper_byoc.jobs.options import JobOptions, Options
from whisper_byoc.jobs.work import Body, Chunks, Owner
from whisper_byoc.transcript import CONTENT_TYPES, WRITERS, Format, Writer


def own_options(options: Options) -> JobOptions:
    """Those of a job whose input is audio."""
    assert isinstance(options, JobOptions)
    return options


class AudioWork(ABC):
    """The half of a `Work` that reads bodies; `receive` runs in the task of the request that brings
    one. Holds what raw audio shares between bodies."""

    relays_input = True
    max_body_bytes = None

    def __init__(self, options: JobOptions, owner: Owner) -> None:
        self.options = options
        self._owner = owner
        self._raw = RawStream()

    @abstractmethod
    async def _take(self, samples: Samples) -> None:
        """Take float32 (n,), as there is room. What comes after the end is dropped."""

    @abstractmethod
    async def _pass_over(self, num_samples: int) -> None:
        """So many samples are missing."""

    def writer(self, output: Format) -> tuple[str, Writer]:
        return CONTENT_TYPES[output], WRITERS[output](words=self.options.words)

    def change(self, options: Options) -> None:
        """Go on by other options, from the next decode."""
        self.options = own_options(options)

    def bodies(
        self, segments: AsyncIterator[Chunks], audio_format: AudioFormat | None
    ) -> AsyncIterator[Chunks]:
        """Segments that are pieces of one thing (a transport stream, raw audio, a file) are one
        body, so that one decoder reads them with one clock. A segment that begins another file
        begins another body."""
        return SegmentJoiner(segments, audio_format)

    def leave_out(self, error: ServiceError) -> None:
        self._owner.logger.debug("segment left out: %s", error)

    async def receive(self, body: Body, audio_format: Declared | None) -> None:
        async with open_source(audio_format, self._raw) as source:

            async def pump() -> None:
                await body.pump(source.send)
                # Also after a part of the body: what has come of it is decoded in any case.
                await source.send_eof()

            async with bare_errors(), asyncio.TaskGroup() as group:
                group.create_task(pump())
                while (piece := await source.next_piece()) is not None:
                    if isinstance(piece, Gap):
                        await self._pass_over(piece.num_samples)
                    else:
                        await self._take(piece)
