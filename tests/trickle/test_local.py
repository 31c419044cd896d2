"""Readers in the same process as their channel."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.trickle.local import LocalChannel, LocalReader

pytestmark = pytest.mark.anyio
TIMEOUT = 20


@pytest.fixture(autouse=True)
async def limit() -> AsyncIterator[None]:
    async with asyncio.timeout(TIMEOUT):
        yield


def publish(channel: LocalChannel, seq: int, *pieces: bytes) -> None:
    segment = channel.begin(seq)
    channel.receive_first_byte(segment)
    for piece in pieces:
        channel.write(segment, piece)
    channel.end(segment)


async def whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def everything(reader: LocalReader) -> list[bytes]:
    return [await whole(chunks) async for chunks in reader]


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_segments_come_in_order_and_whole() -> None:
    channel = LocalChannel()
    reader = LocalReader(channel)
    for seq in range(3):
        publish(channel, seq, b"a", b"%d" % seq)
    channel.finish()
    assert await everything(reader) == [b"a0", b"a1", b"a2"]
    assert reader.num_skipped == 0


async def test_bytes_are_read_as_they_come() -> None:
    channel = LocalChannel()
    reader = LocalReader(channel)
    segment = channel.begin(0)
    chunks = await anext(reader)
    channel.write(segment, b"first")
    assert await anext(chunks) == b"first"
    waiting = asyncio.ensure_future(anext(chunks))
    await settle()
    assert not waiting.done()
    channel.write(segment, b"second")
    assert await waiting == b"second"
    channel.write(segment, b"third")
    channel.end(segment)
    assert await whole(chunks) == b"third"


async def test_a_reader_waits_for_the_next_segment() -> None:
    channel = LocalChannel()
    waiting = asyncio.ensure_future(anext(LocalReader(channel)))
    await settle()
    assert not waiting.done()
    publish(channel, 0, b"x")
    assert await whole(await waiting) == b"x"


async def test_giving_up_between_two_segments_loses_nothing() -> None:
    channel = LocalChannel()
    reader = LocalReader(channel)
    waiting = asyncio.ensure_future(anext(reader))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    publish(channel, 0, b"x")
    assert await whole(await anext(reader)) == b"x"


async def test_what_gave_way_is_counted() -> None:
    channel = LocalChannel(num_slots=100, max_bytes=4)
    reader = LocalReader(channel)
    for seq in range(6):
        publish(channel, seq, b"ab")
    channel.finish()
    assert await everything(reader) == [b"ab", b"ab"]
    assert reader.num_skipped == 4
    assert reader.position == 6


async def test_a_segment_that_gives_way_while_it_is_read_ends_where_it_is() -> None:
    channel = LocalChannel(num_slots=2)
    reader = LocalReader(channel)
    segment = channel.begin(0)
    channel.write(segment, b"begun")
    chunks = await anext(reader)
    for seq in (1, 2):
        publish(channel, seq, b"x")
    channel.write(segment, b"too late")
    assert await whole(chunks) == b"begun"


async def test_what_every_reader_has_left_behind_is_forgotten() -> None:
    channel = LocalChannel(num_slots=100)
    fast, slow = LocalReader(channel), LocalReader(channel)
    for seq in range(3):
        publish(channel, seq, b"x")
    for _ in range(3):
        await anext(fast)
    oldest = channel.first_from(0)
    assert oldest is not None
    assert oldest.seq == 0
    await anext(slow)
    await anext(slow)
    oldest = channel.first_from(0)
    assert oldest is not None
    assert oldest.seq == 1  # which it is reading


async def test_a_reader_that_is_closed_keeps_nothing() -> None:
    channel = LocalChannel(num_slots=100)
    reader, other = LocalReader(channel), LocalReader(channel)
    for seq in range(3):
        publish(channel, seq, b"x")
    other.close()
    for _ in range(3):
        await anext(reader)
    oldest = channel.first_from(0)
    assert oldest is not None
    assert oldest.seq == 2


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_the_end_wakes_who_waits_for_a_segment(how: str) -> None:
    channel = LocalChannel()
    reading = asyncio.ensure_future(everything(LocalReader(channel)))
    await settle()
    getattr(channel, how)()
    assert await reading == []


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_the_end_wakes_who_waits_for_bytes(how: str) -> None:
    channel = LocalChannel()
    segment = channel.begin(0)
    channel.receive_first_byte(segment)
    reading = asyncio.ensure_future(everything(LocalReader(channel)))
    channel.write(segment, b"begun")
    await settle()
    getattr(channel, how)()
    assert await reading == [b"begun"]


async def test_what_is_there_is_read_after_the_last_segment() -> None:
    channel = LocalChannel()
    reader = LocalReader(channel)
    for seq in range(4):
        publish(channel, seq, b"%d" % seq)
    channel.finish()
    assert await everything(reader) == [b"0", b"1", b"2", b"3"]


async def test_a_patient_reader_takes_segments_that_overtook_one_another_in_order() -> None:
    channel = LocalChannel()
    reader = LocalReader(channel, patience=TIMEOUT)
    publish(channel, 1, b"1")
    waiting = asyncio.ensure_future(anext(reader))
    await settle()
    assert not waiting.done()
    publish(channel, 0, b"0")
    assert await whole(await waiting) == b"0"
    assert await whole(await anext(reader)) == b"1"
    assert reader.num_skipped == 0


async def test_patience_ends() -> None:
    channel = LocalChannel()
    reader = LocalReader(channel, patience=0.05)
    publish(channel, 2, b"2")
    assert await whole(await anext(reader)) == b"2"
    assert reader.num_skipped == 2


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_patience_ends_with_the_channel(how: str) -> None:
    channel = LocalChannel()
    reader = LocalReader(channel, patience=600)
    publish(channel, 2, b"2")
    waiting = asyncio.ensure_future(everything(reader))
    await settle()
    getattr(channel, how)()
    found = await waiting
    assert found == [b"2"]


async def test_a_publisher_waits_for_a_slot_that_has_been_read() -> None:
    channel = LocalChannel(num_slots=2)
    reader = LocalReader(channel)
    publish(channel, 0, b"0")
    publish(channel, 1, b"1")
    waiting = asyncio.ensure_future(channel.wait_for_slot(2))
    await settle()
    assert not waiting.done()
    await anext(reader)
    await waiting


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_a_publisher_waits_for_no_slot_of_a_channel_that_is_over(how: str) -> None:
    channel = LocalChannel(num_slots=2)
    reader = LocalReader(channel)
    channel.begin(1)
    waiting = asyncio.ensure_future(channel.wait_for_slot(5))
    await settle()
    assert not waiting.done()
    getattr(channel, how)()
    await waiting
    assert reader.position == 0


async def test_a_leap_over_what_nobody_has_begun_takes_readers_along() -> None:
    channel = LocalChannel(num_slots=2)
    reader = LocalReader(channel)
    async with asyncio.timeout(10):
        await channel.wait_for_slot(57)
    assert reader.position == 57


async def test_a_publisher_waits_for_no_reader_that_is_closed() -> None:
    channel = LocalChannel(num_slots=2)
    reader = LocalReader(channel)
    channel.begin(1)
    waiting = asyncio.ensure_future(channel.wait_for_slot(5))
    await settle()
    assert not waiting.done()
    reader.close()
    await waiting


@given(
    sizes=st.lists(st.integers(0, 9), max_size=30),
    reads=st.lists(st.booleans(), max_size=60),
    max_bytes=st.none() | st.integers(1, 40),
)
async def test_a_reader_sees_whole_segments_in_order_and_counts_the_rest(
    sizes: list[int], reads: list[bool], max_bytes: int | None
) -> None:
    channel = LocalChannel(num_slots=8, max_bytes=max_bytes)
    reader = LocalReader(channel)
    bodies = [bytes([65 + seq]) * size for seq, size in enumerate(sizes)]
    unpublished = list(enumerate(bodies))
    found: list[tuple[int, bytes]] = []

    async def read() -> None:
        chunks = await anext(reader)
        found.append((reader.position - 1, await whole(chunks)))

    for wants_read in reads:
        if not wants_read and unpublished:
            seq, data = unpublished.pop(0)
            publish(channel, seq, data)
        elif channel.first_from(reader.position) is not None:
            await read()
    channel.finish()
    while channel.first_from(reader.position) is not None:
        await read()
    assert found == [(seq, bodies[seq]) for seq, _ in found]
    assert [seq for seq, _ in found] == sorted({seq for seq, _ in found})
    # What gave way behind the last one that was read is not counted: nothing says it was there.
    assert reader.num_skipped == reader.position - len(found)
    if max_bytes is None and len(sizes) <= 8:
        assert reader.num_skipped == 0
