"""Puts the routes on a service, says who gets which, and turns errors into answers."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from whisper_byoc import errors
from whisper_byoc.doors import batch, live, models, segments, socket, system, worker
from whisper_byoc.doors.errors import answer_error, below_openai, error_document, openai_problem
from whisper_byoc.doors.prompt import PromptAnswers
from whisper_byoc.doors.requests import Vanished, answer_vanished
from whisper_byoc.orchestrator.runner_sessions import SESSION_HEADER
from whisper_byoc.service import Service

CLIENT_ROUTES = [
    *system.routes,
    *segments.routes,
    *live.routes,
    *socket.routes,
    *models.routes,
    *batch.routes,
]
"""For clients, wherever they come from."""
OPERATOR_ROUTES = [*system.operator_routes, *worker.routes]
"""For who runs the service, and for orchestrators themselves."""
_PREFLIGHT_SECONDS = 600
"""Of what a browser asks before a request it may make others without asking again."""


def build_app(service: Service) -> Starlette:
    """The ASGI application; its lifespan opens and closes the service."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.serve():
            yield

    # Starlette's type has no handler for requests and WebSockets alike.
    handlers: dict[type[Exception], Any] = {
        errors.ServiceError: answer_error,
        HTTPException: answer_http_error,
        Vanished: answer_vanished,
    }
    app = Starlette(
        routes=[SessionRoute(service, CLIENT_ROUTES), *OPERATOR_ROUTES, *CLIENT_ROUTES],
        middleware=[
            Middleware(Slashes),
            *cross_origin(service.settings.server.cors_origins),
            Middleware(PromptAnswers, seconds=service.settings.jobs.answer_seconds),
        ],
        lifespan=lifespan,
        exception_handlers=handlers,
    )
    # A redirect would name a path that lacks what a proxy in front of us adds.
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def cross_origin(origins: Sequence[str]) -> list[Middleware]:
    """What lets pages of other origins use the doors of clients."""
    return [Middleware(ClientsOnly, origins=origins)] if origins else []


class ClientsOnly:
    """CORS for the doors of clients; pages have no business at the others."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._crossing = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
            max_age=_PREFLIGHT_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if _for_operators(scope) else self._crossing
        await app(scope, receive, send)


def _for_operators(scope: Scope) -> bool:
    return scope["type"] == "http" and any(
        route.matches(scope)[0] is not Match.NONE for route in OPERATOR_ROUTES
    )


class Slashes:
    """Folds doubled slashes: orchestrators append paths to the URL they were given, as text. Within
    `/live/` they are left alone, so that an empty job id is refused as one. A slash at the end of
    OpenAI's paths means nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = found = scope.get("path", "")
        if "//" in path:
            path = "/" + path.lstrip("/")
            if not path.startswith("/live/"):
                path = re.sub("/{2,}", "/", path)
        if path.startswith("/v1/"):
            path = path.rstrip("/")
        if path != found:
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


class SessionRoute(BaseRoute):
    """Takes every request that has come through a session of a Live Runner, and notes that the
    session is in use. Whatever is below our URL is public there, so there are no other routes than
    those that are given."""

    def __init__(self, service: Service, routes: Sequence[BaseRoute]) -> None:
        self._service = service
        self._router = Router(routes, redirect_slashes=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        through_session = SESSION_HEADER in Headers(scope=scope)
        return Match.FULL if through_session else Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.runner_sessions.request(Headers(scope=scope)):
            await self._router(scope, receive, send)


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """The router's own errors in our shape."""
    assert isinstance(error, HTTPException)
    code = error.detail.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path[:200]}: {error.detail.lower()}"
    document = (
        openai_problem(code, message, "invalid_request_error")
        if below_openai(request)
        else error_document(code, message)
    )
    return JSONResponse(document, error.status_code, error.headers)
