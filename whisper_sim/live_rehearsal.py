"""The rehearsal of the Live Runner: an orchestrator on this machine for a worker to register with,
and a client that discovers, reserves, streams a recording at the pace of speech, and stops."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.client.connection import ClientError
from whisper_byoc.client.live import LiveClient
from whisper_byoc.client.network import reserve
from whisper_byoc.transcript import Format
from whisper_sim.captions import Captions, decode
from whisper_sim.live_runner import LiveRunner, open_live_runner
from whisper_sim.runner_entries import Runner

PIECE_SECONDS: Final = 0.1
JOB: Final = "rehearsal"
STATIC_ID: Final = "worker"
STATIC_APP: Final = "static/worker"


@dataclass(frozen=True, slots=True)
class LivePlan:
    """files: one behind the other, again and again for `minutes` where given. http: whether they go
    by PUT and GET instead of a WebSocket. options: of the job. worker: the URL of one that does not
    register."""

    files: Sequence[Path]
    http: bool
    minutes: float | None
    options: dict[str, str]
    worker: str | None


@dataclass
class Outcome:
    """Of one session. lags: s from the moment that a final's last word was sent to its arrival.
    problems: what was lost or cut, in words."""

    num_words: int = 0
    lags: list[float] = field(default_factory=list)
    ended: str = ""
    problems: list[str] = field(default_factory=list)


async def rehearse(plan: LivePlan, port: int, secret: str, captions: Captions) -> list[str]:
    """Serve an orchestrator, and stream the plan's files through the first runner that there is;
    without files, wait for runners. What was lost or cut, in words."""
    async with open_live_runner(port, secret=secret) as it:
        click.echo(f"orchestrator on {it.url}", err=True)
        if plan.worker is not None:
            it.add_static(
                STATIC_ID, plan.worker, STATIC_APP, capacity=64, health_url=f"{plan.worker}/ready"
            )
        else:
            click.echo(
                f"waiting for a worker: ORCH_URL={it.url} ORCH_SECRET={secret} make run", err=True
            )
        if not plan.files:
            await show_runners(it)
        runner = await first_persistent(it)
        click.echo(f"registered: {_told(runner)}", err=True)
        audio = np.concatenate([await decode(path) for path in plan.files])
        with captions.live:
            outcome = await stream(it, runner.fields.app, audio, plan, captions)
        problems = outcome.problems + lost(it, runner)
        account(it, runner, outcome)
        for problem in problems:
            click.echo(f"problem: {problem}", err=True)
        return problems


async def first_persistent(it: LiveRunner) -> Runner:
    """The first runner that gives sessions, once there is one."""

    def found() -> Runner | None:
        every = it.registry.runners.values()
        return next((runner for runner in every if not runner.fields.single_shot), None)

    await it.records.until(lambda: found() is not None, None)
    runner = found()
    assert runner is not None
    return runner


async def show_runners(it: LiveRunner) -> None:
    """Tell of every runner that comes, and how it is called, and of those that leave. Returns
    never."""
    known: dict[str, Runner] = {}
    while True:
        for runner_id, runner in it.registry.runners.items():
            if runner_id not in known:
                click.echo(f"registered: {_told(runner)}\n{_how_to_call(it, runner)}", err=True)
        for runner_id in known.keys() - it.registry.runners.keys():
            click.echo(f"gone: {_told(known[runner_id])}", err=True)
        known = dict(it.registry.runners)
        await it.records.until(lambda: it.registry.runners.keys() != known.keys(), None)  # noqa: B023


def _told(runner: Runner) -> str:
    fields = runner.fields
    return f"{runner.runner_id}, {fields.app} ({fields.mode}), at {fields.runner_url}"


def _how_to_call(it: LiveRunner, runner: Runner) -> str:
    base = f"{it.url}/apps/{runner.runner_id}"
    if runner.fields.single_shot:
        return f"  single shot: curl --data-binary @FILE {base}/app/process"
    return (
        f"  session: curl -X POST {base}/session\n"
        f"  in it: curl --data-binary @FILE APP_URL/process\n"
        f"  at its end: curl -X POST CONTROL_URL/stop"
    )


async def stream(
    it: LiveRunner,
    app: str,
    samples: NDArray[np.float32],
    plan: LivePlan,
    captions: Captions,
) -> Outcome:
    """One session. samples: float32 (n,), 16 kHz."""
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    began: list[float] = []

    def receive(line: dict[str, Any]) -> None:
        match line["type"]:
            case "final":
                outcome.num_words += len(line["text"].split())
                outcome.lags.append(loop.time() - began[0] - line["end"])
            case "error":
                outcome.problems.append(f"the job says {line['code']}: {line['message']}")
            case "end":
                outcome.ended = line["reason"]
        captions.receive(line)

    audio = paced(samples, plan.minutes, began.append)
    take = Lines(receive)
    try:
        async with reserve(it.url, app) as session, LiveClient(session.app_url) as client:
            if plan.http:
                await client.transcribe(
                    JOB,
                    audio,
                    take,
                    output=Format.NDJSON,
                    content_type="audio/pcm",
                    **plan.options,
                )
            else:
                await client.converse(audio, take, output=Format.NDJSON, **plan.options)
    except ClientError as error:
        outcome.problems.append(str(error))
    if not outcome.ended:
        outcome.problems.append("the transcript broke off, expected an end event")
    return outcome


class Lines:
    """Takes text in pieces of any length; `receive` gets the object of each whole line."""

    def __init__(self, receive: Callable[[dict[str, Any]], None]) -> None:
        self._receive = receive
        self._rest = ""

    def __call__(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            document = json.loads(line) if line.strip() else {}
            if "type" in document:
                self._receive(document)


async def paced(
    samples: NDArray[np.float32], minutes: float | None, began: Callable[[float], None]
) -> AsyncIterator[bytes]:
    """PCM in pieces, each when a microphone would have recorded its end. began: gets the time of
    the first sample."""
    loop = asyncio.get_running_loop()
    size = round(SAMPLE_RATE * PIECE_SECONDS)
    audio = (np.clip(samples, -1, 1) * 32767).astype("<i2")
    start = loop.time()
    began(start)
    sent = 0
    for _ in count():
        for at in range(0, len(audio), size):
            piece = audio[at : at + size]
            sent += len(piece)
            await asyncio.sleep(start + sent / SAMPLE_RATE - loop.time())
            yield piece.tobytes()
        if minutes is None or loop.time() - start >= minutes * 60:
            return


def lost(it: LiveRunner, runner: Runner) -> list[str]:
    """What the orchestrator has seen go wrong, in words."""
    problems = [f"{cut.session_id} was cut" for cut in it.records.cuts]
    if it.records.late_beats:
        problems.append(f"{len(it.records.late_beats)} beats came after the time to live")
    if it.registry.runners.get(runner.runner_id) is not runner:
        problems.append(f"{runner.runner_id} is not registered any more")
    if sessions := it.registry.sessions:
        problems.append(f"{len(sessions)} sessions were left open")
    return problems


def account(it: LiveRunner, runner: Runner, outcome: Outcome) -> None:
    """What the orchestrator and the client have seen, on standard error."""
    gaps = it.records.gaps(runner.runner_id)
    beats = f"{len(gaps) + 1} beats" + (f", at most {max(gaps):.1f} s apart" if gaps else "")
    reserved = {exchange.session_id for exchange in it.records.finished}
    lags = ""
    if outcome.lags:
        lags = (
            f", {median(outcome.lags):.1f} s behind the end of their last word in the middle,"
            f" {max(outcome.lags):.1f} s at most"
        )
    click.echo(
        f"{'static' if runner.credential is None else beats};"
        f" {len(reserved)} sessions, {len(it.registry.sessions)} left open;"
        f" {len(it.records.finished)} requests, {len(it.records.running)} left open,"
        f" {len(it.records.cuts)} cut; {outcome.num_words} words in {len(outcome.lags)} finals"
        f"{lags}; ended: {outcome.ended or 'no'}",
        err=True,
    )
