"""All jobs of a service: which may begin, who finds them, when they are forgotten. No model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import direct
from tests.jobs.scripted_work import ScriptedKind, chunks
from whisper_byoc.errors import (
    CutOff,
    DecodeError,
    Draining,
    InvalidJobId,
    InvalidOption,
    JobEnded,
    TooManyJobs,
    UnknownJob,
)
from whisper_byoc.jobs.job import DIRECT, JobKey, JobState
from whisper_byoc.jobs.jobs import Jobs
from whisper_byoc.jobs.options import ProcessorOptions
from whisper_byoc.jobs.sources import Sources
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import JobSettings, Settings
from whisper_byoc.transcript import EndReason

pytestmark = pytest.mark.anyio
TIMEOUT = 20.0
OPTIONS = ProcessorOptions()


@asynccontextmanager
async def serving(**settings: float) -> AsyncIterator[tuple[Jobs, ScriptedKind]]:
    kind = ScriptedKind()
    jobs = Jobs(kind, Settings(jobs=JobSettings.model_validate(settings)), Metrics())
    async with asyncio.timeout(TIMEOUT), jobs.serve():
        yield jobs, kind


async def test_an_id_that_runs_is_the_same_job() -> None:
    async with serving() as (jobs, kind):
        job = jobs.open(direct("a"), OPTIONS)
        assert jobs.open(direct("a"), OPTIONS) is job
        assert jobs.find(direct("a")) is jobs.get(direct("a")) is job
        assert (jobs.num_running, len(kind.works)) == (1, 1)


async def test_an_id_that_has_ended_is_refused_unless_it_may_come_again() -> None:
    async with serving() as (jobs, _):
        job = jobs.open(direct("a"), OPTIONS)
        await job.stop(EndReason.STOPPED)
        with pytest.raises(JobEnded):
            jobs.open(direct("a"), OPTIONS)
        assert jobs.open(direct("a"), OPTIONS, again=True) is not job


@pytest.mark.parametrize("job_id", ["", "..", "a/b"])
def test_an_id_that_cannot_be_one_is_no_key(job_id: str) -> None:
    with pytest.raises(InvalidJobId):
        JobKey(job_id, DIRECT)


async def test_one_job_more_than_may_run_is_refused() -> None:
    async with serving(max_jobs=2) as (jobs, _):
        first = jobs.open(direct("a"), OPTIONS)
        jobs.open(direct("b"), OPTIONS)
        with pytest.raises(TooManyJobs):
            jobs.open(direct("c"), OPTIONS)
        await first.stop(EndReason.STOPPED)
        jobs.open(direct("c"), OPTIONS)


async def test_options_that_the_service_cannot_serve_begin_no_job() -> None:
    async with serving() as (jobs, kind):
        kind.problem = InvalidOption("task", "translate", "transcribe")
        with pytest.raises(InvalidOption):
            jobs.open(direct("a"), OPTIONS)
        assert jobs.find(direct("a")) is None


async def test_options_change_all_or_none() -> None:
    async with serving() as (jobs, kind):
        job = jobs.open(direct("a"), OPTIONS)
        jobs.change(job, {"level": 2})
        assert job.options.model_extra == {"level": 2}
        kind.problem = InvalidOption("level", "3", "2")
        with pytest.raises(InvalidOption):
            jobs.change(job, {"level": 3})
        assert job.options.model_extra == {"level": 2}


async def test_who_waits_for_a_job_gets_it_when_it_begins() -> None:
    async with serving() as (jobs, _), asyncio.TaskGroup() as group:
        waiting = group.create_task(jobs.wait_for(direct("a")))
        await asyncio.sleep(0)
        job = jobs.open(direct("a"), OPTIONS)
        assert await waiting is job


async def test_a_job_that_never_begins_is_unknown_after_the_grace_time() -> None:
    async with serving(output_grace_seconds=0.01) as (jobs, _):
        with pytest.raises(UnknownJob):
            await jobs.wait_for(direct("a"))


async def test_who_waits_while_the_service_drains_waits_no_longer() -> None:
    async with serving(output_grace_seconds=60) as (jobs, _):
        waiting = asyncio.ensure_future(jobs.wait_for(direct("a")))
        await asyncio.sleep(0)
        await jobs.drain(1)
        with pytest.raises(UnknownJob):
            await waiting


async def test_an_attended_job_has_no_idle_limit() -> None:
    async with serving(idle_seconds=0.01) as (jobs, _):
        attended = jobs.open(direct("a"), OPTIONS, attended=True)
        left = jobs.open(direct("b"), OPTIONS)
        await left.until_ended()
        assert left.log.end_reason is EndReason.IDLE
        assert attended.state is JobState.RECEIVING


async def test_deleting_stops_a_running_job_and_forgets_an_ended_one() -> None:
    async with serving() as (jobs, _):
        job = jobs.open(direct("a"), OPTIONS)
        assert await jobs.delete(direct("a")) is job
        assert job.log.end_reason is EndReason.STOPPED
        assert jobs.find(direct("a")) is job
        await jobs.delete(direct("a"))
        assert jobs.find(direct("a")) is None
        with pytest.raises(UnknownJob):
            await jobs.delete(direct("a"))


async def test_a_job_that_is_cut_off_is_not_flushed() -> None:
    async with serving() as (jobs, kind):
        job = jobs.open(direct("a"), OPTIONS)
        await job.receive_body(chunks(b"a"), None, final=False)
        await jobs.cut_off(job)
        assert isinstance(job.failure, CutOff)
        assert kind.works[0].ends == []
        assert (jobs.find(direct("a")), jobs.num_running) == (job, 0)


async def test_a_job_that_is_discarded_is_forgotten() -> None:
    async with serving() as (jobs, _):
        job = jobs.open(direct("a"), OPTIONS)
        await jobs.discard(job)
        await jobs.discard(job)
        assert jobs.find(direct("a")) is None


async def test_a_job_that_never_understood_its_input_is_not_kept() -> None:
    async with serving() as (jobs, kind):
        job = jobs.open(direct("a"), OPTIONS)
        kind.works[0].run_error.set_exception(DecodeError("no memory"))
        await job.until_ended()
        assert jobs.find(direct("a")) is None


async def test_a_job_that_fails_harms_no_other() -> None:
    async with serving() as (jobs, kind):
        broken, good = jobs.open(direct("a"), OPTIONS), jobs.open(direct("b"), OPTIONS)
        kind.works[0].run_error.set_exception(RuntimeError("a fault"))
        await broken.until_ended()
        await good.receive_body(chunks(b"x"), None, final=True)
        assert good.failure is None


async def test_of_ended_jobs_the_oldest_are_forgotten() -> None:
    async with serving(max_ended_jobs=2) as (jobs, _):
        for job_id in "abc":
            await jobs.open(direct(job_id), OPTIONS).stop(EndReason.STOPPED)
        assert [jobs.find(direct(job_id)) is None for job_id in "abc"] == [True, False, False]


async def test_of_ended_jobs_with_much_output_the_oldest_are_forgotten() -> None:
    async with serving(max_ended_bytes=1500) as (jobs, _):
        for job_id in "ab":
            job = jobs.open(direct(job_id), OPTIONS)
            await job.receive_body(chunks(bytes(1000)), None, final=True)
            await job.until_ended()
        assert [jobs.find(direct(job_id)) is None for job_id in "ab"] == [True, False]


async def test_a_drain_flushes_all_but_what_is_stopped_elsewhere_and_refuses_more() -> None:
    async with serving() as (jobs, _):
        ours, theirs = jobs.open(direct("a"), OPTIONS), jobs.open(direct("b"), OPTIONS)
        await jobs.drain(TIMEOUT, [theirs])
        assert ours.log.end_reason is EndReason.SHUTDOWN
        assert theirs.state is JobState.RECEIVING
        with pytest.raises(Draining):
            jobs.open(direct("c"), OPTIONS)


async def test_a_drain_cuts_off_what_is_not_flushed_in_time() -> None:
    async with serving() as (jobs, kind):
        job = jobs.open(direct("a"), OPTIONS)
        await job.receive_body(chunks(b"a"), None, final=False)
        kind.works[0].flushed.clear()
        await jobs.drain(0.01)
        await job.until_ended()
        assert isinstance(job.failure, CutOff)


async def test_one_id_in_two_sessions_is_two_jobs() -> None:
    async with serving() as (jobs, _):
        keys = [JobKey("a", session) for session in ("s", "t", DIRECT)]
        opened = [jobs.open(key, OPTIONS) for key in keys]
        assert [jobs.get(key) for key in keys] == opened
        assert len(set(opened)) == 3
        await jobs.delete(keys[0])
        assert [job.state is JobState.RECEIVING for job in opened] == [False, True, True]


def test_a_session_is_not_shown_and_tells_jobs_of_one_id_apart() -> None:
    names = [JobKey("a", session).log_name for session in ("secret", "other", DIRECT)]
    assert len(set(names)) == 3
    assert names[0] == JobKey("a", "secret").log_name
    assert names[2] == "a"
    assert "secret" not in names[0] + repr(JobKey("a", "secret"))


async def test_the_end_of_a_session_flushes_and_forgets_its_jobs() -> None:
    async with serving(max_jobs=3) as (jobs, kind):
        ended, running = (jobs.open(JobKey(it, "s"), OPTIONS) for it in "ab")
        other = jobs.open(JobKey("b", "t"), OPTIONS)
        await ended.stop(EndReason.STOPPED)
        await running.receive_body(chunks(b"x"), None, final=False)
        await jobs.end_session("s")
        assert running.log.end_reason is EndReason.RELEASED
        assert kind.works[1].ends == [(EndReason.RELEASED, None)]
        assert [jobs.find(job.key) for job in (ended, running, other)] == [None, None, other]
        assert jobs.num_running == 1
        await jobs.end_session("s")


async def test_the_end_of_a_session_cuts_off_what_takes_long_to_flush() -> None:
    async with serving() as (jobs, kind):
        slow = jobs.open(JobKey("a", "s"), OPTIONS)
        await slow.receive_body(chunks(b"x"), None, final=False)
        kind.works[0].flushed.clear()
        await jobs.end_session("s")
        assert isinstance(slow.failure, CutOff)
        assert (jobs.find(slow.key), jobs.num_running) == (None, 0)


async def test_no_session_ends_the_jobs_of_callers_without_one() -> None:
    async with serving() as (jobs, _):
        job = jobs.open(direct("a"), OPTIONS)
        await jobs.end_session(DIRECT)
        assert job.state is JobState.RECEIVING


async def test_leaving_cuts_off_what_still_runs() -> None:
    async with serving() as (jobs, _):
        job = jobs.open(direct("a"), OPTIONS)
        await asyncio.sleep(0)
    assert isinstance(job.failure, CutOff)
    assert jobs.draining


async def test_a_fault_while_segments_are_read_reaches_no_other_job() -> None:
    sources = Sources()
    async with serving() as (jobs, kind), sources.serve():
        job, other = (jobs.open(direct(it), OPTIONS) for it in "ab")
        kind.works[0].refusals.append(RuntimeError("a fault of ours"))
        for it in (job, other):
            channel = sources.channel(it)
            segment = channel.begin(0)
            channel.receive_first_byte(segment)
            channel.write(segment, b"x")
            channel.end(segment)
            if it is job:
                await job.until_ended()
            else:
                channel.finish()
                await other.until_ended()
        assert job.log.end_reason is EndReason.ERROR
        assert str(job.failure) == "decoding failed: RuntimeError: a fault of ours"
        assert other.log.end_reason is EndReason.EOF
