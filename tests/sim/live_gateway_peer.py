"""livepeer-gateway's own client and runner, as a process of a Python that can hold them.

Run by test_gateway_peer.py. Writes what it got as lines of JSON. Imports nothing of ours.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

from aiohttp import web
from livepeer_gateway.live_runner import (  # type: ignore[import-not-found]
    LiveRunnerTrickleChannelRequest,
    call_runner,
    register_runner,
    stop_runner_session,
)
from livepeer_gateway.selection import (  # type: ignore[import-not-found]
    reserve_session,
    runner_selector,
)


def tell(what: str, value: Any) -> None:
    print(json.dumps({"what": what, "value": value}), flush=True)


async def client(orchestrator: str, app: str, recording: str) -> None:
    """Discovers, reserves, calls twice in the session, and stops it."""
    discovery = f"{orchestrator}/discovery"
    cursor = await runner_selector(discovery_url=discovery, app=app)
    tell("candidates", [[it.app, it.mode, it.url] for it in cursor.candidates])
    session = await reserve_session(orchestrators=[orchestrator], app=app)
    tell("session", [session.session_id, session.app_url, session.control_url])
    audio = base64.b64encode(Path(recording).read_bytes()).decode()  # noqa: ASYNC240
    url = f"{session.app_url}/v1/audio/transcriptions"
    payload = {"audio": audio, "model": "whisper-1"}
    result = await call_runner(runner_url=url, payload=payload, timeout=60)
    tell("json", result.data)
    streamed = payload | {"stream": "true"}
    async with await call_runner(runner_url=url, payload=streamed, stream=True) as call:
        tell("stream", [call.content_type, [line async for line in call.aiter_lines()]])
    await stop_runner_session(session)
    try:
        await call_runner(runner_url=url, payload=payload)
    except Exception as error:
        tell("after", str(error))


async def runner(orchestrator: str, secret: str) -> None:
    """Registers, answers, makes a channel, and stops a session when it is asked to."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/stop":
            await stop_runner_session(request)
        if request.path == "/channel":
            asked = [LiveRunnerTrickleChannelRequest(name="out", mime_type="text/plain")]
            made = await registration.create_trickle_channels(request, asked)
            return web.json_response(made)
        return web.json_response({"path": request.path})

    async def reserved(event: Any) -> None:
        tell("reserved", event.session_id)

    async def released(event: Any) -> None:
        tell("released", event.session_id)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    serving = web.AppRunner(app)
    await serving.setup()
    site = web.TCPSite(serving, "127.0.0.1", 0)
    await site.start()
    registration = await register_runner(
        orchestrator,
        secret=secret,
        runner_url=site.name,
        app="peer/app",
        capacity=2,
        on_session_reserve=reserved,
        on_session_release=released,
    )
    async with registration:
        tell("registered", registration.runner_id)
        await asyncio.to_thread(sys.stdin.readline)
    await serving.cleanup()


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    asyncio.run(client(*rest) if kind == "client" else runner(*rest))
