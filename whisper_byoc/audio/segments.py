"""Bodies out of segments: where a file of its own begins, and where the last goes on."""

from collections.abc import AsyncIterator
from typing import Self

from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.audio.sniffing import begins_anew, sniff
from whisper_byoc.errors import UnsupportedAudio

_HEAD_BYTES = 1_024
"""Of a segment, to tell what it begins with: enough for three packets of a transport stream."""


class SegmentJoiner:
    """Iterates over the bodies in segments, each of which may be a file of its own or more of the
    last; a body is an iterator over its chunks.

    Whoever gives a body up in the middle loses the rest of that segment: the next body begins with
    the next segment.
    """

    def __init__(
        self, segments: AsyncIterator[AsyncIterator[bytes]], declared: AudioFormat | None
    ) -> None:
        self._segments = segments
        self._declared = declared
        self._head = b""
        self._rest: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncIterator[bytes]:
        """Waits for a segment with data."""
        if self._rest is None:
            await self._open()
        if self._rest is None:
            raise StopAsyncIteration
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        current = self._declared or _sniffed(self._head)
        while self._rest is not None:
            head, rest = self._head, self._rest
            self._rest = None
            yield head
            async for chunk in rest:
                yield chunk
            await self._open()
            if self._rest is not None and begins_anew(self._head, current):
                return

    async def _open(self) -> None:
        """Find the next segment that is not empty."""
        async for segment in self._segments:
            head = b""
            async for chunk in segment:
                head += chunk
                if len(head) >= _HEAD_BYTES:
                    break
            if head:
                self._head, self._rest = head, segment
                return


def _sniffed(head: bytes) -> AudioFormat | None:
    try:
        return sniff(head, at_end=True)
    except UnsupportedAudio:
        return None
