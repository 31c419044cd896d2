"""Rehearse without a network: an orchestrator and its gateway on this machine, a recording at the
pace of speech, captions on the terminal.

The channels, calls and watchdogs are those of `orchestrator.py`, which the tests use, too.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from whisper_byoc.audio.source import open_source
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
GAP_SECONDS = 1.0
"""Of silence behind each recording: long enough to end an utterance."""

console = Console(highlight=False)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--worker", help="URL of a worker; left out, one that registers is waited for.")
@click.option("--port", default=8935, show_default=True, help="Port of the orchestrator; 0: any.")
@click.option("--secret", default="secret", show_default=True, help="What workers register with.")
@click.option("--token", default="", help="Bearer token of --worker.")
@click.option(
    "--codec", type=click.Choice(["libopus", "aac"]), default="libopus", show_default=True
)
@click.option("--video/--no-video", default=True, help="A picture beside the sound.")
@click.option("--egress", is_flag=True, help="Ask for the picture back.")
@click.option("--minutes", type=float, help="Repeat the files for so long.")
@click.option(
    "--param", "params", multiple=True, metavar="NAME=VALUE", help="Of the stream, such as mode."
)
@click.option("--json", "as_json", is_flag=True, help="Data lines as they are, for other programs.")
def main(
    files: Sequence[Path],
    worker: str | None,
    port: int,
    secret: str,
    token: str,
    codec: str,
    video: bool,
    egress: bool,
    minutes: float | None,
    params: Sequence[str],
    as_json: bool,
) -> None:
    """Stream FILES, one behind the other, through a worker. Without FILES: serve until Ctrl-C, for
    workers to register with and for POST /live/video-to-video.

    Exits with 1 when a watchdog has ended the stream.
    """
    plan = Plan(
        files, codec, video, egress, minutes, dict(param.partition("=")[::2] for param in params)
    )
    capability = Capability("worker", worker.rstrip("/"), token) if worker else None
    try:
        stream = asyncio.run(simulate(plan, capability, port, secret, Captions(as_json)))
    except KeyboardInterrupt:
        sys.exit(130)
    if stream is not None and stream.watchdog is not None:
        click.echo(f"the gateway has ended the stream: {stream.watchdog}", err=True)
        sys.exit(1)


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
    plan: Plan, capability: Capability | None, port: int, secret: str, captions: "Captions"
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


async def decode(path: Path) -> NDArray[np.float32]:
    """A recording and a pause behind it: float32 (n,), 16 kHz mono."""
    data = await asyncio.to_thread(path.read_bytes)
    async with open_source(None) as source, asyncio.TaskGroup() as group:

        async def feed() -> None:
            await source.send(data)
            await source.send_eof()

        group.create_task(feed())
        blocks = [block async for block in source]
    return np.concatenate([*blocks, np.zeros(round(GAP_SECONDS * 16_000), np.float32)])


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


class Captions:
    """Finals as lines, the newest partial below them."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def receive(self, line: dict[str, Any]) -> None:
        if self._as_json:
            console.print(json.dumps(line, ensure_ascii=False), soft_wrap=True, markup=False)
            return
        match line["type"]:
            case "final":
                self.live.console.print(f"{line['start']:8.2f}  {line['text']}", markup=False)
                self.live.update(Text(""), refresh=True)
            case "partial":
                self.live.update(Text(f"          {line['text']}", "dim"), refresh=True)


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
