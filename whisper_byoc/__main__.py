"""`whisper-byoc serve`: runs the service until it is told to stop."""

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
import uvicorn

from whisper_byoc.app import build_app
from whisper_byoc.errors import ServiceError
from whisper_byoc.inference.weights import find_weights
from whisper_byoc.service import VERSION, Service
from whisper_byoc.settings import read_settings

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2
_CLOSE_SECONDS = 5
"""s that connections get to end by themselves after the jobs are flushed."""

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: `serve` decides what a signal means."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@click.group()
@click.version_option(VERSION)
def main() -> None:
    """Live audio in, text out."""


@main.command()
@click.option("--host", help="Address to listen on (WHISPER_SERVER_HOST).")
@click.option("--port", type=int, help="Port to listen on (WHISPER_SERVER_PORT).")
def serve(host: str | None, port: int | None) -> None:
    """Serve until SIGTERM or SIGINT; settings come from WHISPER_* in the environment."""
    try:
        settings = read_settings()
        given = {"host": host, "port": port}
        server = settings.server.model_dump() | {k: v for k, v in given.items() if v is not None}
        settings = read_settings(server=server)
        for name in settings.model.names:
            find_weights(settings.model.directory, name)
    except ServiceError as error:
        click.echo(f"whisper-byoc: {error}", err=True)
        sys.exit(EXIT_MISCONFIGURED)
    logging.basicConfig(
        level=settings.server.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    service = Service(settings)
    config = uvicorn.Config(
        build_app(service),
        host=settings.server.host,
        port=settings.server.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        sys.exit(runner.run(_serve(service, Server(config))))


async def _serve(service: Service, server: Server) -> int:
    """Serve; on the first signal accept no more, flush the jobs, close the connections, return.

    A second signal closes without waiting.
    """
    told = asyncio.Event()

    def on_signal() -> None:
        if told.is_set():
            server.force_exit = True
        told.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(_stop_when_told(service, server, told))
        await server.serve()
        stopping.cancel()
    return EXIT_FAILED if service.failure is not None else 0


async def _stop_when_told(service: Service, server: Server, told: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        settled = group.create_task(service.settled())
        signalled = group.create_task(told.wait())
        await asyncio.wait({settled, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if service.failure is None:
            await told.wait()
            logger.info("stopping: flushing jobs")
            await service.drain()
        server.should_exit = True
        settled.cancel()
        signalled.cancel()


if __name__ == "__main__":
    main()
