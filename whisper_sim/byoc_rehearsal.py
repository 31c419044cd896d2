"""The rehearsal of BYOC: an orchestrator and its gateway on this machine, and a recording at the
pace of speech as a transport stream.

The channels, calls and watchdogs are those of `orchestrator.py`, which the tests use, too.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from whisper_sim.captions import Captions, decode
from whisper_sim.orchestrator import (
    Capability,
    Orchestrator,
    Stream,
    Times,
    open_orchestrator,
    open_stream,
)
from whisper_sim.transport import transport_segments

SEGMENT_SECONDS = 1.0
"""As gateways cut them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is streamed: files one behind the other, again and again for `minutes` where given.

    codec: ffmpeg's name of the sound's. video: whether there is a picture. egress: whether segments
    are asked back. params: of the stream.
    """

    files: Sequence[Path]
    codec: str
    video: bool
    egress: bool
    minutes: float | None
    params: dict[str, str]


async def simulate(
    plan: Plan, capability: Capability | None, port: int, secret: str, captions: Captions
) -> Stream | None:
    """Serve an orchestrator and stream the plan's files through the worker of `capability`, or
    through the first that registers. The stream when it is over; without files it never returns."""
    async with open_orchestrator(Times(), secret, port) as orchestrator:
        click.echo(f"orchestrator on {orchestrator.url}", err=True)
        if capability is not None:
            orchestrator.capabilities[capability.name] = capability
        elif plan.files:
            capability = await registered(orchestrator, secret)
        if capability is None or not plan.files:
            click.echo(f"gateway: POST {orchestrator.url}/live/video-to-video", err=True)
            await asyncio.Event().wait()
            return None
        samples = np.concatenate([await decode(path) for path in plan.files])
        segments = await transport_segments(samples, SEGMENT_SECONDS, plan.codec, video=plan.video)
        async with open_stream(
            orchestrator,
            capability,
            egress=plan.egress,
            params=plan.params,
            receive=captions.receive,
        ) as stream:
            with captions.live:
                await send(stream, segments, plan.minutes)
                await stream.stop()
        account(stream)
        return stream


async def registered(orchestrator: Orchestrator, secret: str) -> Capability:
    """The first worker that registers."""
    click.echo(
        f"waiting for a worker: ORCH_URL={orchestrator.url} ORCH_SECRET={secret} make run", err=True
    )
    await orchestrator.registered.wait()
    capability = next(iter(orchestrator.capabilities.values()))
    click.echo(f"registered: {capability.name} at {capability.url}", err=True)
    return capability


async def send(stream: Stream, segments: Sequence[bytes], minutes: float | None) -> None:
    """A segment when it is complete, at the pace of its clock, until the stream is over."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    sent = 0
    while not stream.ended.is_set():
        for segment in segments:
            sent += 1
            await asyncio.sleep(began + sent * SEGMENT_SECONDS - loop.time())
            if stream.ended.is_set():
                return
            await stream.publish(segment)
        if minutes is None or loop.time() - began >= minutes * 60:
            return


def account(stream: Stream) -> None:
    """What the gateway has seen, on standard error."""
    gaps = np.diff(stream.event_times) if len(stream.event_times) > 1 else np.zeros(1)
    lines = np.diff(stream.line_times) if len(stream.line_times) > 1 else np.zeros(1)
    status = stream.status
    received = status.get("input_status", {})
    click.echo(
        f"state {status.get('state')}, {status.get('audio_seconds')} s of audio,"
        f" {status.get('words')} words, rtf {status.get('rtf')};"
        f" segments: {received.get('segments_received')} read,"
        f" {received.get('segments_skipped')} skipped, {received.get('segments_dropped')} dropped,"
        f" {len(stream.outputs)} back; {len(stream.events)} events, at most {gaps.max():.1f} s"
        f" apart; {len(stream.lines)} data lines, at most {lines.max():.1f} s apart",
        err=True,
    )
