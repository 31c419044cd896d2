"""The life of one job, whatever its work: fed, counted, stopped, failed. No model."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import direct
from tests.jobs.scripted_work import ScriptedWork, chunks, segments, stalled
from whisper_byoc.errors import (
    BodyTooLarge,
    CutOff,
    DecodeError,
    InvalidJobId,
    JobEnded,
    ProcessorError,
    ServiceError,
    SourceBusy,
    UnsupportedAudio,
)
from whisper_byoc.jobs.job import Job, JobState
from whisper_byoc.jobs.options import ProcessorOptions
from whisper_byoc.jobs.work import Owner
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import JobSettings
from whisper_byoc.transcript import End, EndReason, Failure, Payload

pytestmark = pytest.mark.anyio
TIMEOUT = 20.0
UNUSABLE = UnsupportedAudio("noise", "speech")
BROKEN = DecodeError("no memory")


class Running:
    """A job and its work, both at hand."""

    def __init__(self, job: Job, work: ScriptedWork, task: asyncio.Task[None]) -> None:
        self.job = job
        self.work = work
        self.task = task

    @property
    def said(self) -> list[bytes]:
        return [event.data for event in self.job.log.after(-1) if isinstance(event, Payload)]

    @property
    def failures(self) -> list[str]:
        return [event.code for event in self.job.log.after(-1) if isinstance(event, Failure)]


@asynccontextmanager
async def running(
    settings: JobSettings | None = None,
    *,
    idle_seconds: float | None = None,
    max_body_bytes: int | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[Running]:
    works: list[ScriptedWork] = []

    def begin(owner: Owner) -> ScriptedWork:
        works.append(ScriptedWork(ProcessorOptions(), owner, max_body_bytes))
        return works[-1]

    job = Job(direct("j"), begin, settings or JobSettings(), metrics or Metrics(), idle_seconds)
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        task = group.create_task(job.run())
        await asyncio.sleep(0)  # its first step
        yield Running(job, works[0], task)
        task.cancel()


# Bodies


async def test_the_end_of_a_final_body_is_the_end_of_the_stream() -> None:
    async with running() as it:
        assert await it.job.receive_body(chunks(b"ab", b"c"), None, final=True) == 3
        await it.job.until_ended()
        assert it.said == [b"ab", b"c"]
        assert it.work.ends == [(EndReason.EOF, None)]
        assert it.job.log.end_reason is EndReason.EOF


async def test_after_a_body_that_is_not_final_another_may_come() -> None:
    async with running() as it:
        for piece in (b"a", b"bc"):
            await it.job.receive_body(chunks(piece), None, final=False)
        assert it.job.state is JobState.RECEIVING
        assert it.said == [b"a", b"bc"]
        assert it.job.num_bytes == 3


async def test_a_body_that_breaks_off_ends_the_stream_as_disconnected() -> None:
    async with running() as it:
        lost = chunks(b"ab", then=ConnectionError())
        assert await it.job.receive_body(lost, None, final=True) == 2
        assert it.work.ends == [(EndReason.DISCONNECTED, None)]


async def test_only_one_body_is_taken_at_a_time() -> None:
    async with running() as it, asyncio.TaskGroup() as group:
        first = group.create_task(it.job.receive_body(stalled(b"a"), None, final=True))
        await it.work.taking.wait()
        with pytest.raises(SourceBusy):
            await it.job.receive_body(chunks(b"b"), None, final=True)
        await it.job.stop(EndReason.STOPPED)
        assert await first == 1
        assert it.said == [b"a"]


async def test_bytes_are_counted_while_they_come() -> None:
    async with running() as it, asyncio.TaskGroup() as group:
        it.work.room.clear()
        group.create_task(it.job.receive_body(stalled(b"abc"), None, final=True))
        await it.work.taking.wait()
        assert it.job.document()["bytes"] == 3
        await it.job.stop(EndReason.STOPPED)


@pytest.mark.parametrize(
    ("of_jobs", "of_work"), [(4, None), (4, 100), (100, 4)], ids=["jobs", "both", "work"]
)
async def test_a_body_is_taken_up_to_the_smaller_limit_and_ends_the_job(
    of_jobs: int, of_work: int | None
) -> None:
    async with running(JobSettings(max_body_bytes=of_jobs), max_body_bytes=of_work) as it:
        with pytest.raises(BodyTooLarge, match="at most 4"):
            await it.job.receive_body(chunks(b"abc", b"def"), None, final=False)
        assert it.job.state is JobState.ENDED
        assert it.work.whole == [False]
        assert it.said == [b"abc", b"d"]
        assert it.failures == ["body_too_large"]


async def test_a_body_that_cannot_be_used_ends_the_job_behind_what_was_heard() -> None:
    async with running() as it:
        it.work.refusals = [UNUSABLE]
        with pytest.raises(UnsupportedAudio):
            await it.job.receive_body(chunks(b"a"), None, final=False)
        assert it.work.ends == [(EndReason.ERROR, UNUSABLE)]
        assert it.job.failure is UNUSABLE
        assert [type(event) for event in it.job.log.after(-1)] == [Payload, Failure, End]


@pytest.mark.parametrize("final", [False, True])
async def test_a_processor_that_fails_ends_only_a_final_input(final: bool) -> None:
    async with running() as it:
        it.work.refusals = [ProcessorError("p", "no")]
        with pytest.raises(ProcessorError):
            await it.job.receive_body(chunks(b"a"), None, final=final)
        assert (it.job.state is JobState.ENDED) == final
        assert (it.job.failure is not None) == final


# Segments


async def test_segments_are_bodies_one_after_another() -> None:
    async with running() as it:
        await it.job.receive_segments(segments(chunks(b"a"), chunks(b"b", b"c")), None)
        assert it.work.whole == [True, True]
        assert it.job.state is JobState.RECEIVING


@pytest.mark.parametrize("error", [UNUSABLE, ProcessorError("p", "no")], ids=lambda it: it.code)
async def test_a_segment_that_cannot_be_used_is_left_out_and_told(error: ServiceError) -> None:
    async with running() as it:
        it.work.refusals = [error]
        await it.job.receive_segments(segments(chunks(b"a"), chunks(b"b")), None)
        assert it.said == [b"a", b"b"]
        assert it.work.left_out == [error]
        document = it.job.document()
        assert (document["problems"], document["problem"]) == (1, str(error))
        assert it.job.failure is None


async def test_a_segment_over_the_limit_is_left_out() -> None:
    async with running(max_body_bytes=2) as it:
        await it.job.receive_segments(segments(chunks(b"abc"), chunks(b"d")), None)
        assert [type(error) for error in it.work.left_out] == [BodyTooLarge]
        assert it.work.whole == [False, True]


async def test_segments_that_cannot_be_decoded_end_the_job() -> None:
    async with running() as it:
        it.work.refusals = [BROKEN]
        with pytest.raises(DecodeError):
            await it.job.receive_segments(segments(chunks(b"a"), chunks(b"b")), None)
        await it.job.until_ended()
        assert (it.job.failure, it.failures) == (BROKEN, ["decode_failed"])


async def test_a_stop_hears_the_segments_that_wait() -> None:
    finished = asyncio.Event()

    async def fed() -> AsyncIterator[AsyncIterator[bytes]]:
        yield chunks(b"a")
        await finished.wait()
        yield chunks(b"waited")

    async with running() as it, asyncio.TaskGroup() as group:
        group.create_task(it.job.receive_segments(fed(), None, finished.set))
        await it.work.taking.wait()
        await it.job.stop(EndReason.STOPPED)
        assert it.said == [b"a", b"waited"]
        assert it.work.ends == [(EndReason.STOPPED, None)]


async def test_a_job_that_fails_drops_the_segments_that_wait() -> None:
    finished = asyncio.Event()

    async def fed() -> AsyncIterator[AsyncIterator[bytes]]:
        await finished.wait()
        yield chunks(b"waited")

    async with running() as it, asyncio.TaskGroup() as group:
        feeding = group.create_task(it.job.receive_segments(fed(), None, finished.set))
        it.work.run_error.set_exception(BROKEN)
        await it.job.until_ended()
        await feeding
        assert it.said == []


# The end


@pytest.mark.parametrize("reason", [EndReason.STOPPED, EndReason.SHUTDOWN])
async def test_a_stop_flushes_and_nothing_more_is_taken(reason: EndReason) -> None:
    async with running() as it, asyncio.TaskGroup() as group:
        it.work.flushed.clear()
        stopping = group.create_task(it.job.stop(reason))
        await it.work.ending.wait()
        assert it.job.document()["state"] == "flushing"
        with pytest.raises(JobEnded):
            await it.job.receive_body(chunks(b"a"), None, final=False)
        it.work.flushed.set()
        await stopping
        assert it.job.state is JobState.ENDED
        assert it.job.document()["reason"] == reason


async def test_a_stop_interrupts_a_body_that_stalls() -> None:
    async with running() as it, asyncio.TaskGroup() as group:
        receiving = group.create_task(it.job.receive_body(stalled(b"a"), None, final=True))
        await it.work.taking.wait()
        await it.job.stop(EndReason.STOPPED)
        assert await receiving == 1
        assert it.work.whole == [False]
        assert it.work.ends == [(EndReason.STOPPED, None)]


async def test_a_stop_interrupts_a_body_for_which_there_is_no_room() -> None:
    async with running() as it, asyncio.TaskGroup() as group:
        it.work.room.clear()
        group.create_task(it.job.receive_body(chunks(b"a", b"b"), None, final=True))
        await it.work.taking.wait()
        await it.job.stop(EndReason.STOPPED)
        assert it.said == []
        assert it.work.ends == [(EndReason.STOPPED, None)]


async def test_the_first_of_two_stops_says_why() -> None:
    async with running() as it:
        stops = (it.job.stop(reason) for reason in (EndReason.STOPPED, EndReason.SHUTDOWN))
        await asyncio.gather(*stops)
        assert it.work.ends == [(EndReason.STOPPED, None)]


async def test_a_job_that_hears_nothing_is_stopped() -> None:
    async with running(idle_seconds=0.01) as it:
        await it.job.until_ended()
        assert it.job.log.end_reason is EndReason.IDLE
        assert it.job.failure is None


async def test_a_job_that_is_kept_alive_is_not_idle() -> None:
    async with running(idle_seconds=0.2) as kept, running(idle_seconds=0.2) as left:
        asyncio.get_running_loop().call_later(0.1, kept.job.keep_alive)
        await left.job.until_ended()
        assert kept.job.state is JobState.RECEIVING


async def test_a_job_without_an_idle_limit_goes_on() -> None:
    async with running(idle_seconds=None) as unlimited, running(idle_seconds=0.01) as limited:
        await limited.job.until_ended()
        assert unlimited.job.state is JobState.RECEIVING


async def test_a_job_that_is_cancelled_says_that_it_was_cut_off() -> None:
    async with running() as it:
        await it.job.receive_body(chunks(b"a"), None, final=False)
        it.task.cancel()
        await asyncio.wait({it.task})
        assert isinstance(it.job.failure, CutOff)
        assert it.failures == ["cut_off"]
        assert it.job.state is JobState.ENDED


@pytest.mark.parametrize(
    ("error", "message"),
    [(BROKEN, "no memory"), (RuntimeError("a fault"), "RuntimeError: a fault")],
    ids=["a decode that failed", "a fault of our own"],
)
async def test_a_work_that_fails_ends_its_job_and_says_why(
    error: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "whisper_byoc.jobs.job"):
        async with running() as it:
            it.work.taken = lambda: it.work.run_error.set_exception(error)
            with pytest.raises(DecodeError, match=message) as caught:
                await it.job.receive_body(stalled(b"a"), None, final=True)
            assert caught.value is it.job.failure
            assert it.failures == ["decode_failed"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_tail_that_cannot_be_decoded_ends_the_job() -> None:
    async with running() as it:
        it.work.end_error = BROKEN
        await it.job.stop(EndReason.STOPPED)
        assert (it.job.failure, it.job.log.end_reason) == (BROKEN, EndReason.ERROR)


async def test_an_ended_job_takes_nothing() -> None:
    async with running() as it:
        await it.job.stop(EndReason.STOPPED)
        with pytest.raises(JobEnded):
            await it.job.finalize()
        with pytest.raises(JobEnded):
            it.job.change(ProcessorOptions())
        with pytest.raises(JobEnded):
            await it.job.receive_body(chunks(b"a"), None, final=True)
        assert it.work.num_finalized == 0


@pytest.mark.parametrize("understood", [False, True])
async def test_a_job_that_failed_is_kept_only_if_it_understood_something(understood: bool) -> None:
    async with running() as it:
        assert it.job.worth_keeping
        await it.job.receive_body(chunks(*[b"a"] * understood), None, final=False)
        it.work.run_error.set_exception(BROKEN)
        await it.job.until_ended()
        assert it.job.worth_keeping == understood


async def test_a_job_logs_its_beginning_and_its_whole_account_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    with caplog.at_level(logging.INFO, "whisper_byoc.jobs.job"):
        async with running(metrics=metrics) as it:
            it.job.change(ProcessorOptions.model_validate({"level": 1}))
            await it.job.receive_body(chunks(b"abc"), None, final=True)
            await it.job.until_ended()
    begun, changed, ended = (record.getMessage() for record in caplog.records)
    assert begun == "job j: started with {}"
    assert changed == 'job j: options changed: {"level":1}'
    assert ended.startswith("job j: ended after 0.")
    assert ended.endswith("s, reason eof, 3 bytes, bodies 1")
    told = metrics.exposition().decode()
    assert "whisper_jobs_started_total 1.0" in told
    assert 'whisper_jobs_ended_total{reason="eof"} 1.0' in told
    assert 'whisper_events_total{type="payload"} 1.0' in told


@pytest.mark.parametrize("job_id", ["a", "A-1.b_c~", "x" * 128, "..a"])
def test_a_job_id_may_be_part_of_a_path(job_id: str) -> None:
    direct(job_id)


@pytest.mark.parametrize("job_id", ["", ".", "..", "a/b", "a b", "x" * 129, "é", "a\n"])
def test_other_job_ids_are_refused(job_id: str) -> None:
    with pytest.raises(InvalidJobId):
        direct(job_id)
