"""One thread that answers many tasks."""

import asyncio
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.scripted import Answer, ScriptedModel
from whisper_byoc.decode import DecodeRequest
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference import engine
from whisper_byoc.inference.batch_thread import BatchThread, Steps
from whisper_byoc.settings import ModelSettings

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


class Counter:
    """Computes in ten steps, waits for the gate before the second, and keeps what it did."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.closed = threading.Event()
        self.course: list[str] = []

    def __call__(self, requests: Sequence[int]) -> list[int | DecodeError]:
        self.course.append("live")
        return [2 * n for n in requests]

    def steps(self, requests: Sequence[int]) -> Steps[int]:
        try:
            for step in range(10):
                self.course.append(f"{len(requests)}: {step}")
                self.begun.set()
                assert self.gate.wait(TIMEOUT)
                if 0 in requests:
                    raise RuntimeError("zero")
                yield
            return [10 * n for n in requests]
        finally:
            self.closed.set()


def lanes() -> tuple[Counter, BatchThread[int, int]]:
    compute = Counter()
    return compute, BatchThread("test", compute, 4, compute.steps, max_patient=2)


async def test_what_is_live_goes_in_between_two_steps() -> None:
    compute, thread = lanes()
    async with asyncio.timeout(TIMEOUT), thread.serve(), asyncio.TaskGroup() as group:
        patient = [group.create_task(thread.submit(n, math.inf)) for n in (1, 2, 3)]
        await asyncio.to_thread(compute.begun.wait)
        live = group.create_task(thread.submit(4, 1.0))
        await asyncio.sleep(0)
        compute.gate.set()
        assert await live == 8
        assert [await task for task in patient] == [10, 20, 30]
    first = compute.course.index("live")
    assert first == 1
    assert compute.course[:1] == ["2: 0"]
    rest = [f"2: {step}" for step in range(1, 10)] + [f"1: {step}" for step in range(10)]
    assert compute.course[2:] == rest


async def test_what_nobody_waits_for_any_more_is_given_up() -> None:
    compute, thread = lanes()
    async with asyncio.timeout(TIMEOUT), thread.serve(), asyncio.TaskGroup() as group:
        gone = [group.create_task(thread.submit(n, math.inf)) for n in (1, 2)]
        await asyncio.to_thread(compute.begun.wait)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        compute.gate.set()
        assert await thread.submit(3, 1.0) == 6
        assert await thread.submit(4, math.inf) == 40
    assert compute.course.count("2: 0") == 1
    assert "2: 2" not in compute.course


async def test_leaving_waits_for_the_step_in_the_thread() -> None:
    compute, thread = lanes()
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        async with thread.serve():
            caller = group.create_task(thread.submit(1, math.inf))
            await asyncio.to_thread(compute.begun.wait)
            caller.cancel()
            threading.Timer(0.05, compute.gate.set).start()
        assert compute.closed.is_set()
    assert compute.course == ["1: 0"]


async def test_steps_that_fail_harm_no_other() -> None:
    compute, thread = lanes()
    compute.gate.set()
    async with asyncio.timeout(TIMEOUT), thread.serve():
        with pytest.raises(DecodeError, match="RuntimeError: zero"):
            await thread.submit(0, math.inf)
        assert await thread.submit(1, math.inf) == 10


async def test_without_steps_a_patient_request_is_computed_at_once() -> None:
    thread = BatchThread("test", Doubler(), max_batch=3)
    async with asyncio.timeout(TIMEOUT), thread.serve():
        answers = await asyncio.gather(thread.submit(1, math.inf), thread.submit(2))
        assert list(answers) == [2, 4]


async def test_a_thread_that_is_lent_is_waited_for_and_not_ended() -> None:
    compute = Doubler()
    compute.gate.clear()
    with ThreadPoolExecutor(1) as executor:
        lent = executor.submit(threading.get_ident).result()
        thread = BatchThread("test", compute, max_batch=1, executor=executor)
        async with asyncio.timeout(TIMEOUT):
            async with thread.serve():
                asking = asyncio.ensure_future(thread.submit(1))
                await asyncio.to_thread(compute.begun.wait)
                asking.cancel()
                asyncio.get_running_loop().call_soon(compute.gate.set)
            assert compute.threads == {lent}, "the batch has been waited for"
        assert executor.submit(threading.get_ident).result() == lent


async def test_weights_are_loaded_in_the_thread_that_decodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads would be two teams of OpenMP's, and decoding half as fast (docs/engine.md)."""
    threads: list[int] = []

    class Watched(ScriptedModel):
        def decode(self, requests: Sequence[DecodeRequest]) -> list[Answer]:
            threads.append(threading.get_ident())
            return super().decode(requests)

    def load(settings: ModelSettings) -> list[Watched]:
        threads.append(threading.get_ident())
        return [Watched()]

    monkeypatch.setattr(engine, "load_models", load)
    async with asyncio.timeout(TIMEOUT), engine.open_engine(ModelSettings()) as opened:
        await opened.warm_up()
        await opened.decode(DecodeRequest(np.zeros(16_000, np.float32), deadline=0.0))
        await opened.decode(DecodeRequest(np.zeros(16_000, np.float32), deadline=math.inf))
    assert len(threads) == 4
    assert len(set(threads)) == 1
