"""One thread that computes batches for many asyncio tasks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.scheduler import Scheduler

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Steps = Generator[None, None, Sequence[Answer | DecodeError]]
"""A computation that may be left for a while at each step, and returns the answers."""


@dataclass(frozen=True, slots=True)
class _Begun(Generic[Answer]):
    """A patient batch in the middle of its steps: the numbers of its requests."""

    numbers: Sequence[int]
    steps: Steps[Answer]


class BatchThread(Generic[Request, Answer]):
    """Owns its thread and its waiting requests; `serve` runs it, every caller awaits `submit`.

    The queue holds one request per waiting caller, and callers are bounded by the limit on jobs.
    Cancelling a caller takes its request out; one already in the thread is computed and dropped.
    Requests without a deadline are computed in `steps`, `max_patient` at once: between two of them
    others go first. A batch of those that nobody waits for any more is given up.
    An executor of one rather than `asyncio.to_thread`'s pool: OpenMP keeps a team of threads for
    every thread that calls it, and models are not safe for two callers.
    """

    def __init__(
        self,
        name: str,
        compute: Callable[[Sequence[Request]], Sequence[Answer | DecodeError]],
        max_batch: int,
        steps: Callable[[Sequence[Request]], Steps[Answer]] | None = None,
        max_patient: int = 1,
        executor: ThreadPoolExecutor | None = None,
    ) -> None:
        """executor: of one thread, where more is done in that thread; whoever made it shuts it
        down."""
        self._compute = compute
        self._steps = steps or self._in_one_step
        self._scheduler: Scheduler[Request] = Scheduler(max_batch, max_patient)
        self._begun: _Begun[Answer] | None = None
        self._closing = False
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._arrived = asyncio.Event()
        self._is_owner = executor is None
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix=name)

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
        """Answer requests while inside; leaving waits for the batch, or the step, in the thread."""
        try:
            async with asyncio.TaskGroup() as group:
                loop = group.create_task(self._loop())
                try:
                    yield
                finally:
                    self._closing = True
                    loop.cancel()
        finally:
            await asyncio.shield(asyncio.to_thread(self._leave))

    def _leave(self) -> None:
        if self._is_owner:
            self._executor.shutdown()
        else:
            self._executor.submit(lambda: None).result()  # behind what the thread is at

    async def _loop(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while await self._run_batch() or await self._run_patient():
                pass

    async def _run_batch(self) -> bool:
        """The most urgent batch, if one waits."""
        batch = self._scheduler.next_batch()
        if batch:
            requests = list(batch.values())
            self._deliver(
                list(batch), await self._in_thread(lambda: self._compute(requests), len(batch))
            )
        return bool(batch)

    async def _run_patient(self) -> bool:
        """A patient batch until an urgent one waits, or to its end; if there is one."""
        if self._begun is None:
            batch = self._scheduler.next_patient_batch()
            if not batch:
                return False
            self._begun = _Begun(list(batch), self._steps(list(batch.values())))
        begun = self._begun
        answers = await self._in_thread(lambda: self._go_on(begun), len(begun.numbers))
        if answers is not None:
            self._begun = None
            self._deliver(begun.numbers, answers)
        return True

    def _go_on(self, begun: _Begun[Answer]) -> Sequence[Answer | DecodeError] | None:
        """In the thread: take steps. None: it was left for what is urgent."""
        try:
            while True:
                next(begun.steps)
                if self._closing or not any(number in self._answers for number in begun.numbers):
                    begun.steps.close()
                    return [DecodeError("nobody waits for it")] * len(begun.numbers)
                if self._scheduler.has_urgent:
                    return None
        except StopIteration as end:
            answers: Sequence[Answer | DecodeError] = end.value
            return answers

    def _in_one_step(self, requests: Sequence[Request]) -> Steps[Answer]:
        yield from ()
        return self._compute(requests)

    async def _in_thread(
        self, compute: Callable[[], Sequence[Answer | DecodeError] | None], count: int
    ) -> Sequence[Answer | DecodeError] | None:
        """So many answers, or None where they are not yet there."""
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._executor, compute)
            if answers is not None and len(answers) != count:
                raise ValueError(f"{len(answers)} answers, expected {count}")
            return answers
        except Exception as error:  # every job waits on this thread: fail this batch and go on
            return [DecodeError(f"{type(error).__name__}: {error}")] * count

    def _deliver(
        self, numbers: Sequence[int], answers: Sequence[Answer | DecodeError] | None
    ) -> None:
        for number, answer in zip(numbers, answers or (), strict=True):
            future = self._answers.get(number)
            if future is None or future.done():
                continue
            if isinstance(answer, DecodeError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
