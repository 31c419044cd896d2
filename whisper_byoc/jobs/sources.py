"""Jobs that are fed at the live door by numbered segments, in requests of their own: a trickle
channel in front of each job puts them in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.errors import Draining, ServiceError
from whisper_byoc.jobs.job import Job
from whisper_byoc.transcript import EndReason
from whisper_byoc.trickle.local import LocalChannel, LocalReader

_OVERTAKE_SECONDS = 1.0
"""How long a segment is waited for when a later one has come first, on another connection."""


class Sources:
    """Owns the channels behind `/live/{job}/source/{seq}` and the tasks that read them.

    A channel lives as long as its job takes input. Whoever sends a segment waits while five before
    it have not been read, so no segment is lost here.
    """

    def __init__(self) -> None:
        self._channels: dict[Job, LocalChannel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Read channels into their jobs while inside; leaving cancels that."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
                for task in self._tasks:
                    task.cancel()

    def find(self, job: Job | None) -> LocalChannel | None:
        """The source channel of a job that takes input from one."""
        return self._channels.get(job) if job else None

    def channel(self, job: Job, audio_format: AudioFormat | None = None) -> LocalChannel:
        """The source channel of a running job, made when it has none. audio_format: of the segments
        when they are raw audio; None finds the format by their first bytes. Raises JobEnded,
        SourceBusy and Draining."""
        channel = self.find(job)
        if channel is not None:
            return channel
        job.check_receives()
        if self._group is None:
            raise Draining()
        channel = LocalChannel()
        reader = LocalReader(channel, _OVERTAKE_SECONDS)
        self._channels[job] = channel
        task = self._group.create_task(self._feed(job, reader, audio_format))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return channel

    async def _feed(self, job: Job, reader: LocalReader, audio_format: AudioFormat | None) -> None:
        channel = self._channels[job]
        try:
            await job.receive_segments(reader, audio_format, channel.finish)
            await job.stop(EndReason.EOF)
        except ServiceError as error:  # readers of the job get it as an event
            job.logger.info("%s", error)
        finally:
            channel.close()
            del self._channels[job]
