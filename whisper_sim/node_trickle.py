"""What livepeer/node's trickle server answers otherwise than go-livepeer's.

Its publishers are interrupted when their segment is closed, hear nothing of a channel's end, and
may send 10,000,000 bytes; its readers keep waiting when their clients have gone.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from whisper_byoc.doors.requests import Vanished, body_chunks
from whisper_byoc.doors.trickle import LAST, refusal
from whisper_byoc.trickle.channel import NEWEST, NEXT, Segment
from whisper_byoc.trickle.local import LocalChannel
from whisper_byoc.trickle.protocol import RESET, SEQ

MAX_SEGMENT_BYTES: Final = 10_000_000
LOWEST: Final = {"GET": NEWEST, "HEAD": NEWEST, "POST": NEXT, "DELETE": 0}
"""By method, the lowest seq that is taken; below it is 400."""


async def answer_post(request: Request, channel: LocalChannel, asked: int) -> Response:
    """Take one segment while it arrives, or until somebody else closes it."""
    segment = channel.begin(asked)
    if request.headers.get(RESET):
        channel.reset(segment.seq)
    seq = {SEQ: str(segment.seq)}
    chunks = body_chunks(request)
    begun = False
    try:
        while (chunk := await _next_chunk(chunks, channel, segment)) is not None:
            if not begun:
                begun = True
                channel.receive_first_byte(segment)
            if len(segment) + len(chunk) > MAX_SEGMENT_BYTES:
                channel.end(segment)
                return refusal("segment exceeds maximum size", 413, {**seq, **LAST})
            channel.write(segment, chunk)
            if not chunk:
                break
    except Vanished:
        return Response(status_code=500)
    interrupted = segment.closed
    channel.end(segment)
    return Response(headers={**seq, **(LAST if interrupted or not len(segment) else {})})


async def _next_chunk(
    chunks: AsyncIterator[bytes], channel: LocalChannel, segment: Segment
) -> bytes | None:
    """Empty at the body's end; None where the segment is closed before more of it has come."""

    async def watch() -> None:
        while not segment.closed:
            await channel.changes.wait()

    async def following() -> bytes:
        return await anext(chunks, b"")

    reading, watching = asyncio.ensure_future(following()), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({reading, watching}, return_when=asyncio.FIRST_COMPLETED)
        return None if segment.closed else reading.result()
    finally:
        for task in (reading, watching):
            task.cancel()
        await asyncio.gather(reading, watching, return_exceptions=True)
