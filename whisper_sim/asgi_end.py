"""An ASGI application on one end of a connection: what our trickle server is."""

import asyncio

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_sim.go_rules import decode_path
from whisper_sim.http_ends import End, Gone


async def answer(app: ASGIApp, end: End, request: h11.Request, target: str) -> None:
    """The application's answer to a request. target: path and query, escaped, as the application is
    to see them. Raises Gone."""
    path, _, query = target.partition("?")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method.decode(),
        "scheme": "http",
        "path": decode_path(path.encode()).decode("utf-8", "replace"),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": list(request.headers),
    }
    await app(scope, _receive(end), _send(end))


def _receive(end: End) -> Receive:
    ended = gone = False

    async def receive() -> Message:
        nonlocal ended, gone
        if ended and not gone:
            gone = await end.until_closed()
            if not gone:  # the next request has come already
                await asyncio.Event().wait()
        if not gone:
            try:
                event = await end.next()
            except Gone:
                gone = True
        if gone:
            return {"type": "http.disconnect"}
        ended = isinstance(event, h11.EndOfMessage)
        body = bytes(event.data) if isinstance(event, h11.Data) else b""
        return {"type": "http.request", "body": body, "more_body": not ended}

    return receive


def _send(end: End) -> Send:
    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", [])
            await end.send(h11.Response(status_code=message["status"], headers=headers))
            return
        if body := message.get("body", b""):
            await end.send(h11.Data(data=body))
        if not message.get("more_body", False):
            await end.send(h11.EndOfMessage())

    return send
