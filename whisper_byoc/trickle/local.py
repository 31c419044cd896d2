"""Channels inside this process: changes that can be awaited, and readers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Self

from whisper_byoc.trickle.channel import NUM_SLOTS, Channel, Segment


class Changes:
    """Wakes everyone who waits; what `notify` of a `Channel` is for."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Until the next `notify`."""
        await self._changed.wait()


class LocalChannel(Channel):
    """A channel whose changes can be awaited."""

    def __init__(self, *, num_slots: int = NUM_SLOTS, max_bytes: int | None = None) -> None:
        self.changes = Changes()
        self.finished = False
        self.readers: list[LocalReader] = []
        super().__init__(num_slots=num_slots, max_bytes=max_bytes, notify=self.changes.notify)

    @property
    def over(self) -> bool:
        """Whether there will be no more segments."""
        return self.closed or self.finished

    async def chunks(self, segment: Segment) -> AsyncIterator[bytes]:
        """What is there and what comes, until the segment is closed."""
        offset = 0
        while True:
            closed = segment.closed
            data = segment.read(offset)
            if data:
                offset += len(data)
                yield data
            elif closed:
                return
            else:
                await self.changes.wait()

    def finish(self) -> None:
        """No more segments: readers end when they have read what is there."""
        self.finished = True
        self.reset(self.next_write + self.num_slots)  # beyond all that is open

    @property
    def read_position(self) -> int:
        """The seq that the slowest reader has come to."""
        return min(reader.position for reader in self.readers)

    def has_been_read(self, seq: int) -> bool:
        """Whether what a segment of this seq holds is complete, and would be read no more."""
        kept = self._kept(seq)
        return seq < self.read_position and (kept is None or kept.closed)

    def rewind(self, seq: int) -> None:
        """Have readers that have passed `seq` go on there; what they have read is forgotten."""
        self.forget_before(self.read_position)
        for reader in self.readers:
            reader.position = min(reader.position, seq)

    async def wait_for_slot(self, seq: int) -> None:
        """Return when no reader still needs the segment whose slot one of this seq would take.
        Where nothing was begun between the readers and `seq`, the readers are moved on to it."""
        while self.readers and not self.over:
            if seq - self.read_position < self.num_slots:
                return
            if self.first_from(self.read_position) is None:
                for reader in self.readers:
                    reader.position = seq
                return
            await self.changes.wait()

    def release(self) -> None:
        """Forget the segments that every reader is done with."""
        self.forget_before(self.read_position - 1)  # the last one may still be read
        self.changes.notify()


class LocalReader:
    """Reads a channel in this process from its beginning, segment by segment.

    `position` is the seq it has come to; `num_skipped` counts segments that gave way before it did.
    patience: seconds to wait for a segment that the one behind it has overtaken.
    One task iterates; cancelling it between two segments loses nothing.
    """

    def __init__(self, channel: LocalChannel, patience: float = 0.0) -> None:
        self._channel = channel
        self._patience = patience
        self.position = 0
        self.num_skipped = 0
        channel.readers.append(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncIterator[bytes]:
        """The chunks of the next segment. Ends when the channel is closed or finished."""
        segment = await self._next_segment()
        self.num_skipped += segment.seq - self.position
        self.position = segment.seq + 1
        self._channel.release()
        return self._channel.chunks(segment)

    def close(self) -> None:
        """Read no more: nothing is kept for this reader from now on."""
        self._channel.readers.remove(self)
        self._channel.changes.notify()

    async def _next_segment(self) -> Segment:
        while (segment := self._channel.first_from(self.position)) is None:
            if self._channel.over:
                raise StopAsyncIteration
            await self._channel.changes.wait()
        if segment.seq == self.position or not self._patience:
            return segment
        try:
            async with asyncio.timeout(self._patience):
                while segment.seq != self.position and not self._channel.over:
                    await self._channel.changes.wait()
                    segment = self._channel.first_from(self.position) or segment
        except TimeoutError:
            pass
        return segment
