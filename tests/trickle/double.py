"""Our trickle server behind uvicorn: in a test's event loop, or by `python -m` as a process.

    python -m tests.trickle.double --port 8935 --autocreate
    TRICKLE_BASE=http://127.0.0.1:8935/ai/trickle/ pytest tests/trickle/test_conformance.py

Without --autocreate, channels are made by a `PUT` outside the base:

    TRICKLE_CREATE='curl -fsS -X PUT http://127.0.0.1:8935/create/{channel} --data {mime}'
"""

import argparse
import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from whisper_byoc.cli import Server
from whisper_sim.trickle_server import TrickleServer

BASE = "/ai/trickle/"
_LEAVE_SECONDS = 10
"""s that requests get to end after their clients have gone."""


@asynccontextmanager
async def serve(trickle: TrickleServer, port: int = 0) -> AsyncIterator[int]:
    """Serve below `BASE`, yield the port; at the end, what clients left behind must have ended."""

    async def create(request: Request) -> Response:
        trickle.create(request.path_params["channel"], (await request.body()).decode())
        return Response()

    routes = [
        Mount(BASE.rstrip("/"), routes=trickle.routes),
        Route("/create/{channel}", create, methods=["PUT"]),
    ]
    config = uvicorn.Config(
        Starlette(routes=routes),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_LEAVE_SECONDS,
    )
    server = Server(config)
    with socket.create_server(("127.0.0.1", port)) as listener:
        async with trickle.serve(), asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve([listener]))
            left: set[asyncio.Task[None]] = set()
            try:
                yield listener.getsockname()[1]
            finally:
                if running := set(server.server_state.tasks):
                    _, left = await asyncio.wait(running, timeout=_LEAVE_SECONDS)
                server.stop()
                await serving
    assert not left, f"{len(left)} requests outlive their clients: {left}"


async def _main(port: int, autocreate: bool) -> None:
    async with serve(TrickleServer(autocreate=autocreate), port) as bound:
        print(f"http://127.0.0.1:{bound}{BASE}", flush=True)
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=8935)
    parser.add_argument("--autocreate", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.port, arguments.autocreate))
