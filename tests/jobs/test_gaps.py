"""Transport streams in which something is missing: words behind a gap have the times of the clock,
and nobody listens to the hours between."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import LOOPBACK, Speak, direct, serve_app
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.jobs.job import Job
from whisper_byoc.service import Service
from whisper_byoc.settings import Settings, WorkerSettings
from whisper_sim.orchestrator import Capability, Times, open_orchestrator, open_stream
from whisper_sim.transport import transport_segments

pytestmark = pytest.mark.anyio
TIMEOUT = 60.0
LEAPS = [
    pytest.param(5.0, 5.0, id="5 s"),
    pytest.param(11.0, 11.0, id="11 s"),
    pytest.param(90.0, 90.0, id="90 s"),
    pytest.param(3_600.0, 3_600.0, id="an hour"),
    pytest.param(90_000.0, 0.0, id="25 hours, which is a broken clock"),
    pytest.param(-50.0, 0.0, id="back"),
]


@pytest.fixture
async def worker() -> AsyncIterator[tuple[str, Service]]:
    settings = Settings(orchestrator=LOOPBACK, worker=WorkerSettings(heartbeat_seconds=0.05))
    async with (
        asyncio.timeout(TIMEOUT),
        serve_app(scripted_engine(ScriptedModel()), settings) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def sentence(speak: Speak) -> NDArray[np.float32]:
    """Ends in speech, so that what follows would go on with it."""
    return speak("The bridge was closed for an hour.")


async def said_twice(sentence: NDArray[np.float32], leap: float) -> list[bytes]:
    """Segments of the sentence, and once more when the clock has leapt."""
    seconds = len(sentence) / 16_000
    return [
        *await transport_segments(sentence, codec="aac", first_time=60.0),
        *await transport_segments(sentence, codec="aac", first_time=60.0 + seconds + leap),
    ]


def check(events: Sequence[dict[str, Any]], sentence: NDArray[np.float32], gap: float) -> None:
    """gap: in s, that the events are to have between the sentences."""
    seconds = len(sentence) / 16_000
    finals = [event for event in events if event["type"] == "final"]
    assert finals
    if gap:  # else they may be one utterance
        first = [event for event in finals if event["end"] <= seconds + 0.3]
        second = [event for event in finals if event["start"] >= seconds + gap - 0.3]
        assert first + second == finals
        assert {it["utterance"] for it in first}.isdisjoint(it["utterance"] for it in second)
        later = seconds + gap
        assert second[0]["start"] - first[0]["start"] == pytest.approx(later, abs=0.3)
        assert second[-1]["end"] - first[-1]["end"] == pytest.approx(later, abs=0.3)
    assert events[-1]["type"] == "end"
    assert events[-1]["audio_seconds"] == pytest.approx(2 * seconds + gap, abs=0.3)
    times = [event[key] for event in events for key in ("start", "end", "time") if key in event]
    assert all(0 <= time <= events[-1]["audio_seconds"] for time in times)


async def heard_seconds(http: aiohttp.ClientSession, url: str) -> float:
    async with http.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(it.split()[1]) for it in lines if it.startswith("whisper_audio_seconds_t"))


@pytest.mark.parametrize(("leap", "gap"), LEAPS)
async def test_in_one_body(
    worker: tuple[str, Service], sentence: NDArray[np.float32], leap: float, gap: float
) -> None:
    url, _ = worker
    body = b"".join(await said_twice(sentence, leap))
    async with aiohttp.ClientSession() as http:
        async with http.put(f"{url}/live/j/source", data=body) as answer:
            assert answer.status == 200
            told = (await answer.json())["audio_seconds"]
        async with http.get(f"{url}/live/j/output?format=ndjson") as answer:
            events = [json.loads(line) for line in (await answer.text()).splitlines()]
        async with http.get(f"{url}/live/j/output?format=vtt") as answer:
            captions = await answer.text()
        heard = await heard_seconds(http, url)
    check(events, sentence, gap)
    assert told == pytest.approx(events[-1]["audio_seconds"], abs=0.001)
    silence = gap if gap <= 10 else 1
    assert heard == pytest.approx(2 * len(sentence) / 16_000 + silence, abs=0.3)
    if gap == 3_600:
        assert "\n01:00:0" in captions


@pytest.mark.parametrize(("leap", "gap"), LEAPS)
async def test_between_segments_of_an_orchestrator(
    worker: tuple[str, Service], sentence: NDArray[np.float32], leap: float, gap: float
) -> None:
    url, _ = worker
    async with (
        open_orchestrator(Times(reader_delay=0)) as orchestrator,
        open_stream(orchestrator, Capability("whisper", url)) as stream,
    ):
        for count, segment in enumerate(await said_twice(sentence, leap), start=1):
            await stream.publish(segment)
            await stream.until(
                lambda count=count: (  # type: ignore[misc]
                    stream.status.get("input_status", {}).get("segments_received") == count
                )
            )
        await stream.stop()
        events = [line for line in stream.lines if line["type"] != "keepalive"]
        check(events, sentence, gap)
        assert stream.status["audio_seconds"] == pytest.approx(events[-1]["audio_seconds"], abs=0.1)


Ask = Callable[..., Coroutine[Any, Any, None]]


@asynccontextmanager
async def held_in_a_gap(
    sentence: NDArray[np.float32],
) -> AsyncIterator[tuple[Job, Ask, ScriptedModel]]:
    """A job whose gap waits for the last words before it, which the model keeps back; what asks
    something of it, by method, path and body."""
    model = ScriptedModel()
    async with (
        asyncio.timeout(TIMEOUT),
        serve_app(scripted_engine(model)) as (url, service),
        aiohttp.ClientSession() as http,
        asyncio.TaskGroup() as group,
    ):
        model.gate.clear()

        async def ask(method: str, path: str, data: bytes | None = None) -> None:
            async with http.request(method, f"{url}/live/j{path}", data=data) as answer:
                assert answer.status == 200, await answer.text()

        group.create_task(ask("PUT", "/source", b"".join(await said_twice(sentence, 90))))
        await asyncio.to_thread(model.asked.wait)
        yield service.jobs.get(direct("j")), ask, model


async def test_options_and_finalize_may_come_while_a_gap_waits_for_the_last_words(
    sentence: NDArray[np.float32],
) -> None:
    async with held_in_a_gap(sentence) as (job, ask, model), asyncio.TaskGroup() as group:
        await ask("POST", "/control", b'{"type": "options", "options": {"words": false}}')
        finalizing = group.create_task(ask("POST", "/control", b'{"type": "finalize"}'))
        model.gate.set()
        await finalizing
        await job.until_ended()
    assert job.work.audio_seconds == pytest.approx(2 * len(sentence) / 16_000 + 90, abs=0.3)


async def test_a_job_that_is_stopped_in_a_gap_keeps_its_words(
    sentence: NDArray[np.float32],
) -> None:
    async with held_in_a_gap(sentence) as (job, ask, model), asyncio.TaskGroup() as group:
        stopping = group.create_task(ask("DELETE", ""))
        model.gate.set()
        await stopping
    assert job.log.end_reason in ("stopped", "eof")
    assert job.work.counters()["words"] > 0
