"""`whisper-byoc serve`: runs the service until it is told to stop."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
import uvicorn

from whisper_byoc.app import build_app
from whisper_byoc.errors import ConfigurationError, ServiceError
from whisper_byoc.jobs.processing import load_processor
from whisper_byoc.service import VERSION, Service
from whisper_byoc.settings import ServerSettings, drop_secrets, read_settings
from whisper_byoc.weights.accepting import find_weights

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2
_CLOSE_SECONDS = 5
"""s that connections get to end by themselves after the jobs are flushed."""

_KEEP_ALIVE_SECONDS = 100
"""s that an idle connection is kept: longer than an orchestrator keeps it, 90 s, which would send a
request on a connection that is just being closed."""

_BACKLOG = 2048
_TICK_SECONDS = 0.1
_TICKS_A_DAY = 864_000
"""uvicorn counts its ticks so, and dates its answers by them."""

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: `serve` decides what a signal means, and calls
    `stop`, which is obeyed at once and not at the next tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        tick = 0
        while not await self.on_tick(tick):
            tick = (tick + 1) % _TICKS_A_DAY
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._stopped.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@click.group()
@click.version_option(VERSION)
def cli() -> None:
    """Live audio in, text out."""


@cli.command()
@click.option("--host", help="Address to listen on (WHISPER_SERVER_HOST).")
@click.option("--port", type=int, help="Port to listen on (WHISPER_SERVER_PORT).")
@click.option(
    "--processor", metavar="MODULE:CLASS", help="Host this in place of Whisper (examples/)."
)
def serve(host: str | None, port: int | None, processor: str | None) -> None:
    """Serve until SIGTERM or SIGINT; settings come from WHISPER_* in the environment."""
    try:
        settings = read_settings()
        given = {"host": host, "port": port, "processor": processor}
        server = settings.server.model_dump() | {k: v for k, v in given.items() if v is not None}
        settings = read_settings(server=server)
        drop_secrets(os.environ)
        hosted = None
        if settings.server.processor:
            sys.path.insert(0, os.getcwd())
            hosted = load_processor(settings.server.processor)
        else:
            for name in settings.model.names:
                find_weights(settings.model.directory, name)
    except ServiceError as error:
        click.echo(f"whisper-byoc: {error}", err=True)
        sys.exit(EXIT_MISCONFIGURED)
    logging.basicConfig(
        level=settings.server.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        listener = listen(settings.server)
    except OSError as error:
        address = f"{settings.server.host} port {settings.server.port}"
        click.echo(f"whisper-byoc: cannot listen on {address}: {error.strerror}", err=True)
        sys.exit(EXIT_MISCONFIGURED)
    service = Service(settings, processor=hosted)
    config = config_of(service)
    with listener, asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        sys.exit(runner.run(run_server(service, Server(config), listener)))


def config_of(service: Service) -> uvicorn.Config:
    """At DEBUG uvicorn would log the headers of WebSockets, tokens of sessions among them. And it
    would close one whose pong waits behind audio that the job has no room for yet: who is gone is
    found by the job's idle limit."""
    return uvicorn.Config(
        build_app(service),
        log_config=None,
        log_level=max(logging.INFO, logging.getLogger().level),
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        ws_ping_timeout=None,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )


def listen(settings: ServerSettings) -> socket.socket:
    """A listening socket, before anything is loaded. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    address = (settings.host, settings.port)
    listener = socket.create_server(address, family=family, backlog=_BACKLOG)
    # Connections inherit it. asyncio itself sets it only for sockets of its own making, and without
    # it an answer in two pieces waits for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def run_server(service: Service, server: Server, listener: socket.socket) -> int:
    """Serve; on the first signal accept no more, flush the jobs, close the connections, return the
    exit status. A second signal does not wait for the flush; a service that fails waits for none.
    """
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(_stop_when_told(service, server, signals))
        await server.serve([listener])
        stopping.cancel()
    if service.failure is None:
        return 0
    misconfigured = isinstance(service.failure, ConfigurationError)
    return EXIT_MISCONFIGURED if misconfigured else EXIT_FAILED


async def _stop_when_told(service: Service, server: Server, signals: asyncio.Queue[int]) -> None:
    async with asyncio.TaskGroup() as group:
        ended = group.create_task(service.ended())
        told = group.create_task(signals.get())
        waiting: list[asyncio.Task[Any]] = [ended, told]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if service.failure is None:
            logger.info("stopping: flushing jobs")
            waiting = [group.create_task(service.drain()), group.create_task(signals.get())]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting[1].done():
                logger.warning("told again: not waiting for the jobs")
                server.config.timeout_graceful_shutdown = 0
                waiting[0].cancel()
            await service.leave()
        server.stop()
        for task in (ended, told, *waiting):
            task.cancel()
