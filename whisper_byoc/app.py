"""Puts the routes on a service and turns its errors into answers."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from whisper_byoc import errors
from whisper_byoc.doors import batch, live, segments, socket, system, worker
from whisper_byoc.doors.errors import answer_error, error_document
from whisper_byoc.doors.requests import Vanished, answer_vanished
from whisper_byoc.orchestrator.runner_sessions import SESSION_HEADER
from whisper_byoc.service import Service


def build_app(service: Service) -> Starlette:
    """The ASGI application; its lifespan opens and closes the service."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.serve():
            yield

    app = Starlette(
        routes=[
            *system.routes,
            *worker.routes,
            *segments.routes,
            *live.routes,
            *socket.routes,
            *batch.routes,
        ],
        middleware=[Middleware(Slashes), Middleware(RunnerSessions, service=service)],
        lifespan=lifespan,
        exception_handlers={
            errors.ServiceError: answer_error,
            HTTPException: answer_http_error,
            Vanished: answer_vanished,
        },
    )
    # A redirect would name a path that lacks what a proxy in front of us adds.
    app.router.redirect_slashes = False
    app.state.service = service
    return app


class Slashes:
    """Folds doubled slashes: orchestrators append paths to the URL they were given, as text. Within
    `/live/` they are left alone, so that an empty job id is refused as one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "//" in scope.get("path", ""):
            path = "/" + scope["path"].lstrip("/")
            if not path.startswith("/live/"):
                path = re.sub("/{2,}", "/", path)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


class RunnerSessions:
    """Notes which sessions of a Live Runner are in use."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if "headers" in scope else Headers()
        if SESSION_HEADER not in headers:
            await self._app(scope, receive, send)
            return
        with self._service.runner_sessions.request(headers):
            await self._app(scope, receive, send)


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """The router's own errors in our shape."""
    assert isinstance(error, HTTPException)
    code = error.detail.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path[:200]}: {error.detail.lower()}"
    return JSONResponse(error_document(code, message), error.status_code, error.headers)
