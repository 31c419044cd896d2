"""PyTrickle's publisher and subscriber, which today's workers use, through our trickle server."""

import asyncio
from typing import Any

import pytest

from tests.pytrickle_peer import open_publisher, open_subscriber
from tests.trickle.conftest import Trickle
from tests.trickle.wire import TIMEOUT

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:verify_ssl is deprecated:DeprecationWarning"),
]

SEGMENTS = [
    [b"in one piece"],
    [b"in ", b"three ", b"pieces"],
    [bytes(100_000), b"and more"],
    [b"0"],
    [b"1", b"2"],
    [b"the sixth takes the slot of the first"],
    [b"the seventh"],
]


async def publish(publisher: Any, chunks: list[bytes]) -> None:
    async with await publisher.next() as writer:
        for chunk in chunks:
            await writer.write(chunk)


async def next_segment(subscriber: Any) -> Any:
    async with asyncio.timeout(TIMEOUT):
        return await subscriber.next()


async def read_until(segment: Any, num_bytes: int) -> bytes:
    """The next bytes, fewer than `num_bytes` where the segment ends."""
    received = b""
    async with asyncio.timeout(TIMEOUT):
        while len(received) < num_bytes and (data := await segment.read()):
            received += data
    return received


async def read_whole(segment: Any) -> bytes:
    received = b""
    async with asyncio.timeout(TIMEOUT):
        while data := await segment.read():
            received += data
    return received


async def test_segments_arrive_intact_and_in_order(trickle: Trickle) -> None:
    url = trickle.url(await trickle.create())
    async with (
        open_publisher(url) as publisher,
        open_subscriber(url) as subscriber,
    ):
        for seq, chunks in enumerate(SEGMENTS):
            # In step: a channel keeps five, and a reader that is late loses what is older.
            await publish(publisher, chunks)
            segment = await next_segment(subscriber)
            assert segment.seq() == seq
            assert await read_whole(segment) == b"".join(chunks)


async def test_a_chunk_arrives_before_the_next_is_written(trickle: Trickle) -> None:
    url = trickle.url(await trickle.create())
    async with (
        open_publisher(url) as publisher,
        open_subscriber(url) as subscriber,
    ):
        async with await publisher.next() as writer:
            await writer.write(b"first")
            segment = await next_segment(subscriber)
            assert await read_until(segment, 5) == b"first"
            await writer.write(b"second")
            assert await read_until(segment, 6) == b"second"
        assert await read_whole(segment) == b""


async def test_a_late_subscriber_starts_at_the_live_edge(trickle: Trickle) -> None:
    channel = await trickle.create()
    url = trickle.url(channel)
    async with open_publisher(url) as publisher:
        for seq, chunks in enumerate(SEGMENTS):
            await publish(publisher, chunks)
            assert (await trickle.get(f"{channel}/{seq}")).body == b"".join(chunks)
        async with open_subscriber(url) as subscriber:
            segment = await next_segment(subscriber)
            assert segment.seq() == len(SEGMENTS) - 1
            assert await read_whole(segment) == b"".join(SEGMENTS[-1])
            await publish(publisher, [b"and on"])
            segment = await next_segment(subscriber)
            assert segment.seq() == len(SEGMENTS)
            assert await read_whole(segment) == b"and on"


async def test_deletion_ends_a_subscriber_that_waits_for_its_first_segment(
    trickle: Trickle,
) -> None:
    channel = await trickle.create()
    async with (
        open_subscriber(trickle.url(channel)) as subscriber,
        asyncio.TaskGroup() as group,
    ):
        waiting = group.create_task(next_segment(subscriber))
        await trickle.arrived(channel)
        assert not waiting.done()
        await trickle.delete(channel)
        assert await waiting is None


async def test_deletion_ends_a_subscriber_after_its_last_segment(trickle: Trickle) -> None:
    channel = await trickle.create()
    url = trickle.url(channel)
    async with (
        open_publisher(url) as publisher,
        open_subscriber(url) as subscriber,
    ):
        await publish(publisher, [b"the last"])
        segment = await next_segment(subscriber)
        assert await read_whole(segment) == b"the last"
        await trickle.delete(channel)
        assert await next_segment(subscriber) is None
