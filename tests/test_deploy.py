"""A deploy in the middle of streams: SIGTERM to the real process behind an orchestrator that cuts
what still runs when we leave. `DEPLOYS=50` makes fifty of them."""

import asyncio
import json
import os
import random
import re
import signal
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak, pcm
from tests.test_main import command, read_until
from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_sim.live_runner import LiveRunner, open_live_runner
from whisper_sim.runner_entries import Session

pytestmark = [pytest.mark.anyio, pytest.mark.model]
DEPLOYS = int(os.environ.get("DEPLOYS", "2"))
TIMEOUT = 120.0
PIECE_SECONDS = 0.1
TEXT = (
    "The harbour master counted seven grey boats before breakfast. Nobody had told him about the"
    " eighth, which came in quietly behind the fog. When the sun finally rose, a small crowd was"
    " waiting on the pier."
)


@dataclass
class Told:
    """What a client was told, when its connection ended."""

    door: str
    events: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = False
    """Whether the answer came to its own end."""


async def paced(audio: bytes, stop: asyncio.Event) -> AsyncIterator[bytes]:
    """As a microphone gives it, until its client knows that the service is gone."""
    size = int(SAMPLE_RATE * PIECE_SECONDS) * 2
    began = time.monotonic()
    for start in range(0, len(audio), size):
        delay = began + start / (SAMPLE_RATE * 2) - time.monotonic()
        await asyncio.sleep(delay)
        if stop.is_set():
            return
        yield audio[start : start + size]


async def over_http(
    http: aiohttp.ClientSession, app: str, audio: bytes, stop: asyncio.Event
) -> Told:
    """PUT and GET beside it."""
    told = Told("http")
    job = f"{app}/live/j"
    async with http.post(f"{job}/control", json={"type": "start"}) as started:
        assert started.status == 200, await started.text()

    async def send() -> None:
        headers = {"Content-Type": "audio/pcm"}
        try:
            async with http.put(
                f"{job}/source", data=paced(audio, stop), headers=headers
            ) as answer:
                await answer.read()
        except aiohttp.ClientError:
            pass  # it ends with the service

    async with asyncio.TaskGroup() as group:
        sending = group.create_task(send())
        try:
            async with http.get(f"{job}/output?format=ndjson") as answer:
                async for line in answer.content:
                    if line.strip():
                        told.events.append(json.loads(line))
                told.whole = True
        except aiohttp.ClientError:
            pass
        sending.cancel()
    return told


async def over_socket(
    http: aiohttp.ClientSession, app: str, audio: bytes, stop: asyncio.Event
) -> Told:
    told = Told("socket")
    async with http.ws_connect(f"{app}/transcribe") as socket:

        async def send() -> None:
            async for piece in paced(audio, stop):
                await socket.send_bytes(piece)

        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send())
            async for message in socket:
                told.events.append(json.loads(message.data))
            told.whole = socket.close_code in (1000, 1001, 1012)
            sending.cancel()
    return told


@asynccontextmanager
async def deployed(orchestrator: LiveRunner, port: int) -> AsyncIterator[tuple[Process, str]]:
    """The service as an operator starts it, registered; its runner's id."""
    variables = {
        "WHISPER_MODEL_DIRECTORY": str(MODELS),
        "ORCH_URL": orchestrator.url,
        "ORCH_SECRET": "secret",
        "CAPABILITY_URL": f"http://127.0.0.1:{port}",
    }
    serve = ("serve", "--host", "127.0.0.1", "--port", str(port))
    async with command(*serve, **variables) as process:
        await read_until(process, "registered runner")
        yield process, list(orchestrator.registry.runners)[-1]


@asynccontextmanager
async def deployed_behind_one(port: int) -> AsyncIterator[tuple[LiveRunner, Process, str]]:
    """And its orchestrator."""
    async with (
        asyncio.timeout(TIMEOUT),
        open_live_runner(secret="secret") as orchestrator,
        deployed(orchestrator, port) as (process, runner_id),
    ):
        yield orchestrator, process, runner_id


def check(told: Told) -> None:
    """The answer is whole, and ends as it should."""
    assert told.whole, (told.door, told.events[-1:])
    end = told.events[-1]
    assert (end["type"], end["reason"]) == ("end", "shutdown"), told.door
    # Partials that were replaced are left out; nothing else is.
    numbers = [event["seq"] for event in told.events]
    assert numbers == sorted(set(numbers))
    finals = [event for event in told.events if event["type"] == "final"]
    partials = [event for event in told.events if event["type"] == "partial"]
    later = [it for it in partials if not finals or it["seq"] > finals[-1]["seq"]]
    assert not later or end["seq"] > later[-1]["seq"]
    if partials and not finals:
        raise AssertionError(f"{told.door}: {partials[-1]['text']!r} was heard and is not final")


def text_of(told: Told) -> str:
    return " ".join(event["text"] for event in told.events if event["type"] == "final")


@pytest.mark.parametrize("deploy", range(DEPLOYS))
async def test_case_r20_a_deploy_loses_no_word(
    deploy: int, speak: Speak, unused_tcp_port: int
) -> None:
    samples: NDArray[np.float32] = speak(TEXT)
    audio = pcm(samples)
    chosen = random.Random(deploy).uniform(1.0, len(samples) / SAMPLE_RATE - 1)
    async with (
        deployed_behind_one(unused_tcp_port) as (orchestrator, process, runner_id),
        aiohttp.ClientSession() as http,
        asyncio.TaskGroup() as group,
    ):
        apps = [app_url(orchestrator, orchestrator.reserve(runner_id)) for _ in range(2)]
        stop = asyncio.Event()
        clients = [
            group.create_task(over_http(http, apps[0], audio, stop)),
            group.create_task(over_socket(http, apps[1], audio, stop)),
        ]
        await asyncio.sleep(chosen)  # the place in the stream at which the deploy comes
        process.send_signal(signal.SIGTERM)
        told = [await client for client in clients]
        stop.set()
        _, errors = await process.communicate()
    assert process.returncode == 0
    for it in told:
        check(it)
    # Every byte that a job says it has taken was heard.
    taken = re.findall(r"reason shutdown, (\d+) bytes", errors.decode())
    heard = [it.events[-1]["audio_seconds"] for it in told]
    assert sorted(int(num_bytes) / (2 * SAMPLE_RATE) for num_bytes in taken) == pytest.approx(
        sorted(heard), abs=0.001
    )
    (departure,) = orchestrator.records.departures
    assert not [exchange.path for exchange in departure.open if exchange.downloaded]
    statuses = [beat.request.fields["status"] for beat in orchestrator.records.beats]
    assert statuses[-1] == "draining"
    assert statuses == sorted(statuses, reverse=True)  # ready, and from then on draining
    if os.environ.get("DEPLOYS"):
        print(
            f"{deploy}: at {chosen:.2f} s", *(f"{it.door}: {text_of(it)}" for it in told), sep="\n"
        )


def app_url(orchestrator: LiveRunner, session: Session) -> str:
    return f"{orchestrator.url}/apps/{session.runner_id}/session/{session.session_id}/app"


async def test_case_r21_a_second_signal_does_not_wait(speak: Speak, unused_tcp_port: int) -> None:
    audio = pcm(speak(TEXT))
    async with (
        deployed_behind_one(unused_tcp_port) as (orchestrator, process, runner_id),
        aiohttp.ClientSession() as http,
        asyncio.TaskGroup() as group,
    ):
        app = app_url(orchestrator, orchestrator.reserve(runner_id))
        stop = asyncio.Event()
        client = group.create_task(over_http(http, app, audio, stop))
        await orchestrator.records.until(
            lambda: any(it.uploaded > 64_000 for it in orchestrator.records.running)
        )
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        await process.wait()
        stop.set()
        await client
    assert process.returncode == 0
    assert [it.status for it in orchestrator.records.departures] == [200]
