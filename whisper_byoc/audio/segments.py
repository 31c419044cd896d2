"""Bodies out of segments: which segments are one file, and where another file begins."""

from collections.abc import AsyncIterator
from typing import Self

from whisper_byoc.audio.formats import AudioFormat, Container, Pcm
from whisper_byoc.audio.sniffing import sniff
from whisper_byoc.errors import UnsupportedAudio

_HEAD_BYTES = 1_024
"""Of a segment, to tell what it begins with: enough for three packets of a transport stream."""


class SegmentJoiner:
    """Iterates over the bodies in a stream of segments; a body is an iterator over its chunks.

    A segment is the beginning of a new body, or more of the body before, as `_begins_body` tells by
    its first bytes. Iterated and owned by one task. Whoever leaves a body before its end loses the
    rest of the segment that was being read: the next body begins with the next segment.
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
        """Waits for a segment with data; StopAsyncIteration when the segments have ended."""
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
            if self._rest is not None and _begins_body(self._head, current):
                return

    async def _open(self) -> None:
        """Find the next segment that is not empty: its first bytes, and an iterator over the
        others; None for that where no segment is left."""
        async for segment in self._segments:
            head = b""
            async for chunk in segment:
                head += chunk
                if len(head) >= _HEAD_BYTES:
                    break
            if head:
                self._head, self._rest = head, segment
                return


def _begins_body(head: bytes, current: AudioFormat | None) -> bool:
    """Whether a segment that begins with `head` is a file of its own, and not more of the body
    before it, which is `current`.

    Raw audio goes on from segment to segment. So does a transport stream: a decoder has to hear
    its segments as one, though each begins like a file.
    """
    found = _sniffed(head)
    if isinstance(current, Pcm) or not isinstance(found, Container):
        return False
    return not (found is Container.MPEG_TS and current is Container.MPEG_TS)


def _sniffed(head: bytes) -> AudioFormat | None:
    try:
        return sniff(head, at_end=True)
    except UnsupportedAudio:
        return None
