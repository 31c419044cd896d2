"""Transcriptions as jobs, by real weights: long live streams, which come faster than they would."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import jiwer
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak, direct, pcm
from whisper_byoc.audio.formats import SAMPLE_RATE, Pcm
from whisper_byoc.inference.engine import open_engine
from whisper_byoc.inference.voice import open_voice_activity
from whisper_byoc.jobs.job import Job
from whisper_byoc.jobs.jobs import Jobs
from whisper_byoc.jobs.options import JobOptions
from whisper_byoc.jobs.shared import Inference
from whisper_byoc.jobs.transcription import Transcriptions
from whisper_byoc.jobs.work import Chunks
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import ModelSettings, Settings
from whisper_byoc.transcript import Event, Final, Word

pytestmark = [pytest.mark.anyio, pytest.mark.model]
TIMEOUT = 400
SENTENCES = (
    "Please keep your ticket until the end of the journey.",
    "There is a small garden behind the old house.",
    "We are going to need another bottle of water.",
)


@pytest.fixture(scope="module")
async def jobs() -> AsyncIterator[Jobs]:
    """Jobs to which an hour that comes at once is as live as one that takes an hour."""
    settings, metrics = Settings(model=ModelSettings(directory=MODELS)), Metrics()
    async with (
        asyncio.timeout(TIMEOUT),
        open_engine(settings.model) as engine,
        open_voice_activity() as voice,
    ):
        inference = Inference(engine, voice, metrics, live_slack_seconds=3600)
        jobs = Jobs(Transcriptions(inference, settings), settings, metrics)
        async with jobs.serve():
            yield jobs


async def hear(job: Job, chunks: Chunks) -> list[Event]:
    """Every event of a stream of raw audio."""
    async with asyncio.TaskGroup() as group:
        group.create_task(job.receive_body(chunks, Pcm(), final=True))
        return [event async for event in job.log.read() if event is not None]


async def seconds_of(samples: NDArray[np.float32]) -> Chunks:
    for start in range(0, len(samples), SAMPLE_RATE):
        yield pcm(samples[start : start + SAMPLE_RATE])


@pytest.mark.parametrize("decibels", [None, -60, -40, -20], ids=str)
async def test_ten_minutes_of_silence_and_noise_give_not_even_a_partial(
    jobs: Jobs, decibels: int | None
) -> None:
    noise = np.zeros(600 * SAMPLE_RATE, dtype=np.float32)
    if decibels is not None:
        noise = np.random.default_rng(1).standard_normal(len(noise), dtype=np.float32)
        noise *= 10 ** (decibels / 20)
    events = await hear(jobs.open(direct(f"noise{decibels}"), JobOptions()), seconds_of(noise))
    assert [event.type for event in events] == ["end"]


async def test_an_hour_with_long_silences_keeps_its_times_and_its_memory(
    jobs: Jobs, speak: Speak
) -> None:
    spoken_once = [speak(sentence) for sentence in SENTENCES]
    begins: list[float] = []
    memory: list[float] = []

    async def hour() -> Chunks:
        for number in range(12):
            speech = spoken_once[number % len(SENTENCES)]
            begins.append(300 * number + int(np.flatnonzero(np.abs(speech) > 0.02)[0]) / 16_000)
            silence = np.zeros(300 * SAMPLE_RATE - len(speech), np.float32)
            async for chunk in seconds_of(np.concatenate([speech, silence])):
                yield chunk
            memory.append(resident_mb())

    job = jobs.open(direct("hour"), JobOptions())
    events = await hear(job, hour())
    assert job.work.audio_seconds == 3600
    # Not one for each sentence: at this pace an utterance may be over before its first is due.
    assert job.work.counters()["partials"] > 0
    assert events[-1].seq == job.log.next_seq - 1
    spoken: dict[int, list[Word]] = {}
    for event in events:
        if isinstance(event, Final):
            spoken.setdefault(event.utterance, []).extend(event.words)
    assert len(spoken) == len(begins)
    for number, (begin, heard) in enumerate(zip(begins, spoken.values(), strict=True)):
        sentence = SENTENCES[number % len(SENTENCES)]
        assert jiwer.wer(plain([sentence]), plain([word.text for word in heard])) <= 0.25
        assert abs(heard[0].start - begin) < 0.7
        assert heard[-1].end - begin < len(spoken_once[number % len(SENTENCES)]) / 16_000 + 0.5
    # Buffers grow to the longest window first; an hour as float32 would be 230 MB.
    assert memory[-1] - memory[3] < 50, memory


def plain(texts: Sequence[str]) -> str:
    return "".join(
        letter for letter in " ".join(texts).lower() if letter.isalpha() or letter == " "
    )


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1000
