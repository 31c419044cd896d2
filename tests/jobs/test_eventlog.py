"""The events of one job, for readers of any pace."""

import asyncio

import pytest

from whisper_byoc.errors import SlowReader
from whisper_byoc.jobs.eventlog import EventLog
from whisper_byoc.transcript import End, Endpoint, EndReason, Event, Final, Partial

pytestmark = pytest.mark.anyio
TIMEOUT = 10


def partial(seq: int) -> Partial:
    return Partial(seq, 0, 0.0, 1.0, f"partial {seq}")


def final(seq: int) -> Final:
    return Final(seq, 0, 0.0, 1.0, f"final {seq}", (), "en")


def end(seq: int) -> End:
    return End(seq, 1.0, EndReason.EOF)


async def read_all(log: EventLog, after: int = -1) -> list[int]:
    async with asyncio.timeout(TIMEOUT):
        return [event.seq async for event in log.read(after) if event is not None]


async def test_a_late_reader_gets_finals_and_no_stale_partials() -> None:
    log = EventLog(100)
    for event in (partial(0), partial(1), final(2), Endpoint(3, 0, 1.0), end(4)):
        log.append(event)
    assert log.ended
    assert await read_all(log) == [2, 3, 4]
    assert await read_all(log, after=2) == [3, 4]


async def test_readers_follow_while_events_come() -> None:
    log = EventLog(100)
    seen: asyncio.Queue[Event | None] = asyncio.Queue()

    async def follow() -> None:
        async for event in log.read():
            seen.put_nowait(event)

    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        group.create_task(follow())
        for event in (partial(0), final(1), partial(2), end(3)):
            log.append(event)
            assert await seen.get() == event


async def test_a_slow_reader_misses_partials_and_no_finals() -> None:
    log = EventLog(100)
    log.append(final(0))
    reader = log.read()
    assert await anext(reader) == final(0)
    for event in (partial(1), partial(2), final(3), partial(4), partial(5)):
        log.append(event)
    assert await anext(reader) == final(3)
    assert await anext(reader) == partial(5)


async def test_a_reader_that_needs_dropped_events_is_cut_off() -> None:
    log = EventLog(10)
    log.append(final(0))
    reader = log.read()
    assert await anext(reader) == final(0)
    for seq in range(1, 40):
        log.append(final(seq))
    with pytest.raises(SlowReader, match="missed"):
        await anext(reader)


async def test_a_new_reader_begins_with_what_is_kept() -> None:
    log = EventLog(10)
    for seq in range(40):
        log.append(final(seq))
    log.append(end(40))
    seqs = await read_all(log)
    assert seqs == list(range(seqs[0], 41))
    assert 9 <= len(seqs) <= 10


async def test_a_silent_log_tells_that_it_is_idle() -> None:
    log = EventLog(10)
    async with asyncio.timeout(TIMEOUT):
        reader = log.read(idle_seconds=0.01)
        assert await anext(reader) is None
        assert await anext(reader) is None
        log.append(end(0))
        assert await anext(reader) == end(0)
