"""Rehearse without a network: an orchestrator on this machine, a recording at the pace of speech,
captions on the terminal. The Live Runner, or BYOC with its gateway."""

import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from whisper_sim.byoc_rehearsal import Plan, simulate
from whisper_sim.captions import Captions
from whisper_sim.live_rehearsal import LivePlan, rehearse
from whisper_sim.orchestrator import Capability

_OF_BYOC = ("token", "codec", "video", "egress")
_OF_LIVE_RUNNERS = ("http",)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--byoc", is_flag=True, help="BYOC, of go-livepeer up to 0.9.4.")
@click.option("--worker", help="URL of a worker; left out, one that registers is waited for.")
@click.option("--port", default=8935, show_default=True, help="Port of the orchestrator; 0: any.")
@click.option("--secret", default="secret", show_default=True, help="What workers register with.")
@click.option("--http", is_flag=True, help="PUT and GET in place of a WebSocket.")
@click.option("--minutes", type=float, help="Repeat the files for so long.")
@click.option(
    "--param", "params", multiple=True, metavar="NAME=VALUE", help="Of the stream, such as mode."
)
@click.option("--json", "as_json", is_flag=True, help="Data lines as they are, for other programs.")
@click.option("--token", default="", help="With --byoc: Bearer token of --worker.")
@click.option(
    "--codec",
    type=click.Choice(["libopus", "aac"]),
    default="libopus",
    show_default=True,
    help="With --byoc: of the sound.",
)
@click.option("--video/--no-video", default=True, help="With --byoc: a picture beside the sound.")
@click.option("--egress", is_flag=True, help="With --byoc: ask for the picture back.")
@click.pass_context
def main(
    context: click.Context,
    /,
    files: Sequence[Path],
    params: Sequence[str],
    byoc: bool,
    **chosen: Any,
) -> None:
    """Stream FILES, one behind the other, through a worker. Without FILES: serve until Ctrl-C, for
    workers to register with and for clients to call.

    Exits with 1 when anything was lost or cut.
    """
    for name in _OF_LIVE_RUNNERS if byoc else _OF_BYOC:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} is of the {'Live Runner' if byoc else 'BYOC'} kind")
    _check_port(chosen["port"])
    options = dict(param.partition("=")[::2] for param in params)
    captions = Captions(chosen["as_json"])
    run = _byoc if byoc else _live
    try:
        problems = asyncio.run(run(files, options, captions, chosen))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(1 if problems else 0)


def _check_port(port: int) -> None:
    """Raises BadParameter for one that is taken."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise click.BadParameter(f"{error.strerror}", param_hint="--port") from error


async def _live(
    files: Sequence[Path], options: dict[str, str], captions: Captions, chosen: dict[str, Any]
) -> list[str]:
    worker = chosen["worker"]
    plan = LivePlan(
        files, chosen["http"], chosen["minutes"], options, worker.rstrip("/") if worker else None
    )
    return await rehearse(plan, chosen["port"], chosen["secret"], captions)


async def _byoc(
    files: Sequence[Path], options: dict[str, str], captions: Captions, chosen: dict[str, Any]
) -> list[str]:
    plan = Plan(
        files, chosen["codec"], chosen["video"], chosen["egress"], chosen["minutes"], options
    )
    worker = chosen["worker"]
    capability = Capability("worker", worker.rstrip("/"), chosen["token"]) if worker else None
    stream = await simulate(plan, capability, chosen["port"], chosen["secret"], captions)
    if stream is None or stream.watchdog is None:
        return []
    problem = f"the gateway has ended the stream: {stream.watchdog}"
    click.echo(problem, err=True)
    return [problem]
