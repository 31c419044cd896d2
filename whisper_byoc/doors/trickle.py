"""Trickle's answers over HTTP, in go-livepeer's words, whoever owns the channel."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from whisper_byoc.doors.requests import Vanished, body_chunks
from whisper_byoc.errors import BodyTooLarge
from whisper_byoc.trickle.local import LocalChannel
from whisper_byoc.trickle.protocol import CLOSED, LATEST, NO_SEGMENT, RESET, SEQ, TERMINATED

LAST = {"Connection": "close"}
"""For answers that come before a body was read, or in its place."""


def refusal(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(text + "\n", status, headers, "text/plain")


def invalid_seq() -> Response:
    return refusal("Invalid idx", 400)


def no_channel(headers: dict[str, str] | None = None) -> Response:
    return refusal("Stream not found", 404, headers)


def no_segment(seq: int, latest: int) -> Response:
    """latest: the number that will be written next."""
    return refusal("Entry not found", NO_SEGMENT, {LATEST: str(latest), SEQ: str(seq)})


def answer_next(latest: int) -> Response:
    """The number that will be written next."""
    return Response(str(latest), headers={LATEST: str(latest)}, media_type="text/plain")


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
    segment = channel.begin(asked)
    if request.headers.get(RESET):
        channel.reset(segment.seq)
    seq_header = {SEQ: str(segment.seq)}
    chunks = body_chunks(request)
    try:
        first = await _first_chunk(chunks, channel)
        if first is None:
            return Response(headers={CLOSED: TERMINATED, **seq_header, **LAST})
        channel.receive_first_byte(segment)
        if not first:
            channel.end(segment)
            return Response(headers={**seq_header, **LAST})
        if segment.closed:
            return Response(headers={**seq_header, **LAST})
        channel.write(segment, first)
        async for chunk in chunks:
            channel.write(segment, chunk)
            if max_bytes is not None and len(segment) > max_bytes:
                channel.end(segment)
                raise BodyTooLarge(len(segment), max_bytes)
    except Vanished:
        if broken_ends:
            channel.end(segment)
        return Response(status_code=500)
    channel.end(segment)
    return Response(headers=seq_header)


async def _first_chunk(chunks: AsyncIterator[bytes], channel: LocalChannel) -> bytes | None:
    """The first bytes, empty where there are none; None when the channel is closed before."""

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
