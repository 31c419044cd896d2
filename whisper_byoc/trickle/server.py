"""`Channel`'s rules on sockets: segments that are posted to one channel, whoever owns it."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_byoc.errors import BodyTooLarge
from whisper_byoc.trickle.channel import Channel
from whisper_byoc.trickle.local import LocalChannel
from whisper_byoc.trickle.protocol import CLOSED, LATEST, RESET, SEQ, TERMINATED

_LAST = {"Connection": "close"}
"""For answers that come before a body was read, or in its place."""


async def answer_post(
    request: Request,
    channel: LocalChannel,
    asked: int,
    max_bytes: int | None = None,
    *,
    broken_ends: bool = False,
) -> Response:
    """Take one segment while it arrives. Raises BodyTooLarge when it has more than `max_bytes`,
    and ends it there. broken_ends: whether a body that breaks off ends its segment, which otherwise
    stays open for its publisher to come back."""
    loop = asyncio.get_running_loop()
    segment = channel.begin(asked)
    if request.headers.get(RESET):
        channel.reset(segment.seq)
    seq_header = {SEQ: str(segment.seq)}
    chunks = _body(request)
    try:
        first = await _first_chunk(chunks, channel)
        if first is None:
            return Response(headers={CLOSED: TERMINATED, **seq_header, **_LAST})
        channel.receive_first_byte(segment, loop.time())
        if not first:
            channel.end(segment)
            return Response(headers={**seq_header, **_LAST})
        if segment.closed:
            return Response(headers={**seq_header, **_LAST})
        channel.write(segment, first)
        async for chunk in chunks:
            channel.write(segment, chunk)
            if max_bytes is not None and len(segment) > max_bytes:
                channel.end(segment)
                raise BodyTooLarge(len(segment), max_bytes)
    except ClientDisconnect:
        if broken_ends:
            channel.end(segment)
        return Response(status_code=500)
    channel.end(segment)
    return Response(headers=seq_header)


def answer_next(channel: Channel) -> Response:
    """The number that will be written next."""
    headers = {LATEST: str(channel.next_write)}
    return Response(str(channel.next_write), headers=headers, media_type="text/plain")


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


async def _first_chunk(chunks: AsyncIterator[bytes], channel: Channel) -> bytes | None:
    """The first bytes, empty where there are none; None when the channel is closed before."""
    assert isinstance(channel, LocalChannel)

    async def watch() -> None:
        while not channel.closed:
            await channel.changes.wait()

    async def first() -> bytes:
        return await anext(chunks, b"")

    reading, watching = asyncio.ensure_future(first()), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({reading, watching}, return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else None
    finally:
        watching.cancel()
        if not reading.done():
            reading.cancel()
        await asyncio.gather(reading, watching, return_exceptions=True)
