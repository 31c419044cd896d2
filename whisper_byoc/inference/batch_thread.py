"""One thread that computes batches for many asyncio tasks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.scheduler import Scheduler

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class BatchThread(Generic[Request, Answer]):
    """Owns its thread and its waiting requests; `serve` runs it, every caller awaits `submit`.

    The queue holds one request per waiting caller, and callers are bounded by the limit on jobs.
    Cancelling a caller takes its request out; one already in the thread is computed and dropped.
    An executor of one rather than `asyncio.to_thread`'s pool: OpenMP keeps a team of threads for
    every thread that calls it, and models are not safe for two callers.
    """

    def __init__(
        self,
        name: str,
        compute: Callable[[Sequence[Request]], Sequence[Answer | DecodeError]],
        max_batch: int,
    ) -> None:
        self._compute = compute
        self._scheduler: Scheduler[Request] = Scheduler(max_batch)
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._arrived = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler)

    async def submit(self, request: Request, deadline: float = 0.0, key: Hashable = None) -> Answer:
        """Wait for the answer to one request. Raises DecodeError when it could not be computed."""
        number = self._scheduler.receive_request(request, deadline, key)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._arrived.set()
        try:
            return await answer
        finally:
            self._scheduler.receive_cancel(number)
            self._answers.pop(number, None)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Answer requests while inside; leaving waits for the batch in the thread."""
        try:
            async with asyncio.TaskGroup() as group:
                loop = group.create_task(self._loop())
                try:
                    yield
                finally:
                    loop.cancel()
        finally:
            await asyncio.shield(asyncio.to_thread(self._executor.shutdown))

    async def _loop(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._scheduler.next_batch():
                answers = await self._answer(list(batch.values()))
                for number, answer in zip(batch, answers, strict=True):
                    self._deliver(number, answer)

    async def _answer(self, requests: list[Request]) -> Sequence[Answer | DecodeError]:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._executor, self._compute, requests)
            if len(answers) != len(requests):
                raise ValueError(f"{len(answers)} answers, expected {len(requests)}")
            return answers
        except Exception as error:  # every job waits on this thread: fail this batch and go on
            return [DecodeError(f"{type(error).__name__}: {error}") for _ in requests]

    def _deliver(self, number: int, answer: Answer | DecodeError) -> None:
        future = self._answers.get(number)
        if future is None or future.done():
            return
        if isinstance(answer, DecodeError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
