"""Jobs that are fed segment by segment: a trickle channel in front of each."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.errors import Draining, ServiceError
from whisper_byoc.jobs.job import Job
from whisper_byoc.transcript import EndReason
from whisper_byoc.trickle.local import LocalChannel, LocalReader

logger = logging.getLogger(__name__)

_OVERTAKE_SECONDS = 1.0
"""For which a segment that was overtaken on another connection is waited for."""


class Sources:
    """Owns the source channels of `/live/{job}/source/{seq}` and the tasks that read them.

    A channel lives as long as its job takes input. A writer waits while five segments before its
    own have not been read, so nothing is lost here.
    """

    def __init__(self) -> None:
        self._channels: dict[str, LocalChannel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Feed jobs while inside."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
                for task in self._tasks:
                    task.cancel()

    def find(self, job_id: str) -> LocalChannel | None:
        return self._channels.get(job_id)

    def channel(self, job: Job, audio_format: AudioFormat | None = None) -> LocalChannel:
        """The source channel of a running job, made when it has none. audio_format: of raw audio in
        it; None lets its first bytes say. Raises JobEnded, SourceBusy and Draining."""
        channel = self._channels.get(job.job_id)
        if channel is not None:
            return channel
        job.check_receives()
        if self._group is None:
            raise Draining()
        channel = LocalChannel()
        reader = LocalReader(channel, _OVERTAKE_SECONDS)
        self._channels[job.job_id] = channel
        task = self._group.create_task(self._feed(job, reader, audio_format))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return channel

    async def _feed(self, job: Job, reader: LocalReader, audio_format: AudioFormat | None) -> None:
        channel = self._channels[job.job_id]
        try:
            await job.receive_segments(reader, audio_format, channel.finish)
            await job.stop(EndReason.EOF)
        except ServiceError as error:  # the job tells its readers
            logger.info("job %s: %s", job.job_id, error)
        finally:
            channel.close()
            del self._channels[job.job_id]
