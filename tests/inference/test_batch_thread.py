"""One thread that answers many tasks."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.batch_thread import BatchThread

pytestmark = pytest.mark.anyio
TIMEOUT = 10


class Doubler:
    """Doubles numbers; waits at the gate; refuses negative ones and falls over at zero."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, requests: Sequence[int]) -> list[int | DecodeError]:
        self.begun.set()
        assert self.gate.wait(TIMEOUT)
        self.threads.add(threading.get_ident())
        self.batches.append(list(requests))
        if 0 in requests:
            raise RuntimeError("zero")
        return [DecodeError("negative") if n < 0 else 2 * n for n in requests]


async def test_requests_that_wait_together_are_computed_together() -> None:
    compute = Doubler()
    compute.gate.clear()
    thread = BatchThread("test", compute, max_batch=3)
    async with asyncio.timeout(TIMEOUT), thread.serve(), asyncio.TaskGroup() as group:
        first = group.create_task(thread.submit(1))
        await asyncio.to_thread(compute.begun.wait)
        rest = [group.create_task(thread.submit(n)) for n in (2, 3, 4, 5)]
        await asyncio.sleep(0)
        assert thread.num_waiting == 4
        compute.gate.set()
        assert [await task for task in (first, *rest)] == [2, 4, 6, 8, 10]
    assert compute.batches == [[1], [2, 3, 4], [5]]
    assert len(compute.threads) == 1
    assert threading.get_ident() not in compute.threads


async def test_a_request_that_fails_harms_no_other() -> None:
    thread = BatchThread("test", Doubler(), max_batch=3)
    async with asyncio.timeout(TIMEOUT), thread.serve():
        results = await asyncio.gather(
            thread.submit(1), thread.submit(-1), thread.submit(2), return_exceptions=True
        )
        assert results[0] == 2
        assert isinstance(results[1], DecodeError)
        assert results[2] == 4


async def test_the_thread_survives_an_exception() -> None:
    thread = BatchThread("test", Doubler(), max_batch=1)
    async with asyncio.timeout(TIMEOUT), thread.serve():
        with pytest.raises(DecodeError, match="RuntimeError: zero"):
            await thread.submit(0)
        assert await thread.submit(3) == 6


async def test_the_thread_survives_an_answer_too_few() -> None:
    thread: BatchThread[int, int] = BatchThread("test", lambda requests: requests[1:], max_batch=2)
    async with asyncio.timeout(TIMEOUT), thread.serve():
        for _ in range(2):
            with pytest.raises(DecodeError, match="0 answers, expected 1"):
                await thread.submit(3)


async def test_a_cancelled_caller_takes_its_request_out() -> None:
    compute = Doubler()
    compute.gate.clear()
    thread = BatchThread("test", compute, max_batch=1)
    async with asyncio.timeout(TIMEOUT), thread.serve(), asyncio.TaskGroup() as group:
        first = group.create_task(thread.submit(1))
        await asyncio.to_thread(compute.begun.wait)
        gone = group.create_task(thread.submit(2))
        kept = group.create_task(thread.submit(3))
        await asyncio.sleep(0)
        gone.cancel()
        first.cancel()
        await asyncio.sleep(0)
        compute.gate.set()
        assert await kept == 6
    assert compute.batches == [[1], [3]]


async def test_leaving_waits_for_the_batch_in_the_thread() -> None:
    compute = Doubler()
    compute.gate.clear()
    thread = BatchThread("test", compute, max_batch=1)
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        async with thread.serve():
            caller = group.create_task(thread.submit(1))
            await asyncio.to_thread(compute.begun.wait)
            caller.cancel()
            threading.Timer(0.05, compute.gate.set).start()
        assert compute.batches == [[1]]
