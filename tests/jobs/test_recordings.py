"""Whole recordings as jobs: bytes in, events out; real voice activity, and once real weights."""

import asyncio
import hashlib
import random
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak, direct, pcm, wav
from tests.scripted import ScriptedModel, scripted_engine, spoken
from whisper_byoc.audio.ffmpeg import find_ffmpeg
from whisper_byoc.audio.formats import AudioFormat, Pcm
from whisper_byoc.decode import DecodeRequest, Effort, Hypothesis
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.engine import open_engine
from whisper_byoc.inference.voice import open_voice_activity
from whisper_byoc.jobs.job import Job
from whisper_byoc.jobs.jobs import Jobs
from whisper_byoc.jobs.options import JobOptions
from whisper_byoc.jobs.shared import Inference
from whisper_byoc.jobs.transcription import Transcriptions
from whisper_byoc.jobs.work import Chunks
from whisper_byoc.metrics import Metrics
from whisper_byoc.service import OpenEngine
from whisper_byoc.settings import ModelSettings, Settings
from whisper_byoc.transcript import End, EndReason, Event, Failure, Final

pytestmark = pytest.mark.anyio
TIMEOUT = 300
NUM_UPLOADS = 20


@asynccontextmanager
async def open_jobs(opening: OpenEngine) -> AsyncIterator[Jobs]:
    settings, metrics = Settings(model=ModelSettings(directory=MODELS)), Metrics()
    async with (
        asyncio.timeout(TIMEOUT),
        opening(settings.model) as engine,
        open_voice_activity() as voice,
    ):
        await engine.warm_up()
        jobs = Jobs(Transcriptions(Inference(engine, voice, metrics), settings), settings, metrics)
        async with jobs.serve():
            yield jobs


def open_recording(jobs: Jobs, name: str, **options: object) -> Job:
    chosen = JobOptions().changed(options)
    return jobs.open(direct(name), chosen, attended=True, recording=True)


async def hear(job: Job, body: Chunks, audio_format: AudioFormat | None = None) -> list[Event]:
    """Every event of a recording."""
    async with asyncio.TaskGroup() as group:
        group.create_task(job.receive_body(body, audio_format, final=True))
        return [event async for event in job.log.read() if event is not None]


async def pieces_of(data: bytes, size: int) -> Chunks:
    for start in range(0, len(data), size):
        yield data[start : start + size]
        await asyncio.sleep(0)


def fingerprint(request: DecodeRequest) -> Hypothesis:
    """Other words for other samples."""
    seconds = len(request.samples) / 16_000
    digest = hashlib.sha256(request.samples.tobytes()).hexdigest()
    return spoken(digest, f"{seconds:.3f}", seconds=seconds)


@pytest.fixture(scope="session")
def conversation(speak: Speak) -> NDArray[np.float32]:
    """About a minute of sentences, with pauses of every length."""
    first, second = speak("Nobody knows where the money has gone."), speak("My brother said no.")
    parts = []
    for seconds in (0.2, 0.7, 1.1, 1.9, 2.4, 3.1, 3.9, 4.4, 6.0):
        pause = np.zeros(round(seconds * 16_000), np.float32)
        parts += [first, pause, second, pause]
    return np.concatenate(parts)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
async def test_case_recordings_05_pieces_of_any_length_give_the_same_events(
    conversation: NDArray[np.float32], kind: str
) -> None:
    data = converted(wav(pcm(conversation)), kind)
    short = converted(wav(pcm(conversation[: 3 * 16_000])), kind)
    async with open_jobs(scripted_engine(ScriptedModel(fingerprint))) as jobs:
        for name, file, sizes in (("long", data, (511, 65_536)), ("short", short, (1,))):
            whole = await hear(open_recording(jobs, name), pieces_of(file, len(file)))
            assert len(texts(whole)) == (7 if name == "long" else 1)
            for size in sizes:
                job = open_recording(jobs, f"{name}-by-{size}")
                assert await hear(job, pieces_of(file, size)) == whole


def converted(data: bytes, kind: str) -> bytes:
    if kind == "wav":
        return data
    command = [find_ffmpeg(), "-v", "error", "-i", "pipe:0", "-f", kind, "pipe:1"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


async def test_case_recordings_05_what_else_runs_changes_nothing(
    conversation: NDArray[np.float32],
) -> None:
    audio = pcm(conversation)
    async with open_jobs(scripted_engine(ScriptedModel(fingerprint))) as jobs:
        alone = await hear(open_recording(jobs, "alone"), pieces_of(audio, 4096), Pcm())
        live = jobs.open(direct("live"), JobOptions())
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(
                    hear(open_recording(jobs, f"n{size}"), pieces_of(audio, size), Pcm())
                )
                for size in (3000, 5000, 70_000)
            ]
            group.create_task(hear(live, pieces_of(audio, 3200), Pcm()))
        assert [task.result() for task in beside] == [alone] * 3


async def test_options_of_a_recording_are_those_of_its_windows(
    conversation: NDArray[np.float32],
) -> None:
    model = ScriptedModel(fingerprint)
    audio = pcm(conversation[: 5 * 16_000])
    async with open_jobs(scripted_engine(model)) as jobs:
        await hear(open_recording(jobs, "a"), pieces_of(audio, 4096), Pcm())
        assert {request.effort for request in model.requests} == {Effort.THOROUGH}
        assert {request.prompt for request in model.requests} == {None}
        model.requests.clear()
        # Those of live streams change nothing.
        quick = open_recording(
            jobs, "b", effort="quick", prompt="Hello.", mode="low_latency", endpoint_silence=0.1
        )
        events = await hear(quick, pieces_of(audio, 4096), Pcm())
        [request] = model.requests
        assert (request.effort, request.prompt, request.retry) == (Effort.QUICK, "Hello.", True)
        assert len(events) == 3
        live = jobs.open(direct("live"), JobOptions(effort=Effort.THOROUGH))
        model.requests.clear()
        await hear(live, pieces_of(audio, 4096), Pcm())
        assert {request.effort for request in model.requests} == {Effort.QUICK}


async def test_events_are_numbered_times_do_not_fall_and_the_job_tells_of_it(
    conversation: NDArray[np.float32],
) -> None:
    async with open_jobs(scripted_engine(ScriptedModel(fingerprint))) as jobs:
        job = open_recording(jobs, "a")
        events = await hear(job, pieces_of(pcm(conversation), 4096), Pcm())
        assert [event.seq for event in events] == list(range(len(events)))
        finals = [event for event in events if isinstance(event, Final)]
        times = [time for it in finals for time in (it.start, it.end)]
        assert times == sorted(times)
        assert all(it.detail is not None and it.detail.seek <= 100 * it.start for it in finals)
        *_, end = events
        assert end == End(len(events) - 1, len(conversation) / 16_000, EndReason.EOF)
        told = job.document()
        assert told["words"] == sum(len(it.words) for it in finals)
        assert (told["lag_seconds"], told["partials"]) == (0, 0)
        assert told["decode_seconds"] > 0
        assert jobs.max_lag_seconds == 0


async def test_a_failed_decode_ends_a_recording_with_an_error(
    conversation: NDArray[np.float32],
) -> None:
    async with open_jobs(
        scripted_engine(ScriptedModel(lambda _: DecodeError("no memory")))
    ) as jobs:
        job = open_recording(jobs, "a")
        with pytest.raises(ExceptionGroup):
            await hear(job, pieces_of(pcm(conversation), 4096), Pcm())
        *_, failure, end = [event async for event in job.log.read() if event is not None]
        assert isinstance(failure, Failure)
        assert isinstance(end, End)
        assert (failure.code, end.reason) == ("decode_failed", EndReason.ERROR)
        assert not any(isinstance(event, Final) for event in [failure, end])


async def test_a_recording_that_is_stopped_is_heard_as_far_as_it_came(
    conversation: NDArray[np.float32],
) -> None:
    came = asyncio.Event()

    async def part() -> Chunks:
        yield pcm(conversation[: 5 * 16_000])
        came.set()
        await asyncio.Event().wait()

    async with open_jobs(scripted_engine(ScriptedModel(fingerprint))) as jobs:
        job = open_recording(jobs, "a")
        async with asyncio.TaskGroup() as group:
            events = group.create_task(hear(job, part(), Pcm()))
            await came.wait()
            finalized = group.create_task(job.finalize())
            await job.stop(EndReason.SHUTDOWN)
            await finalized
        *finals, end = (it for it in events.result() if isinstance(it, Final | End))
        assert finals
        assert end == End(end.seq, 5.0, EndReason.SHUTDOWN)


def texts(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Final)]


@pytest.mark.model
async def test_case_recordings_05_uploads_at_random_moments_of_a_loaded_service_give_one_text(
    conversation: NDArray[np.float32],
) -> None:
    audio, chance = pcm(conversation[: 25 * 16_000]), random.Random(5)
    live = [f"live{number}" for number in range(2)]
    async with open_jobs(open_engine) as jobs:
        alone = await hear(open_recording(jobs, "alone"), pieces_of(audio, len(audio)), Pcm())
        assert len(alone) > 4

        async def upload(number: int) -> list[Event]:
            for _ in range(chance.randrange(20_000)):
                await asyncio.sleep(0)
            job = open_recording(jobs, f"n{number}")
            return await hear(job, pieces_of(audio, chance.randrange(100, 100_000)), Pcm())

        async with asyncio.TaskGroup() as group:
            uploads = [group.create_task(upload(number)) for number in range(NUM_UPLOADS)]
            for name in live:
                stream = jobs.open(direct(name), JobOptions())
                group.create_task(hear(stream, pieces_of(audio, 3200), Pcm()))
        assert {tuple(texts(task.result())) for task in uploads} == {tuple(texts(alone))}
        assert all(task.result() == alone for task in uploads)
