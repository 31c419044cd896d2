"""Puts the routes on a service and turns its errors into answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from whisper_byoc import errors
from whisper_byoc.routes import live, system
from whisper_byoc.routes.answers import answer_error, error_document
from whisper_byoc.service import Service


def build_app(service: Service) -> Starlette:
    """The ASGI application; its lifespan opens and closes the service."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.serve():
            yield

    app = Starlette(
        routes=[*system.routes, *live.routes],
        lifespan=lifespan,
        exception_handlers={errors.ServiceError: answer_error, HTTPException: answer_http_error},
    )
    app.state.service = service
    return app


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """The router's own errors in our shape."""
    assert isinstance(error, HTTPException)
    code = error.detail.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path[:200]}: {error.detail.lower()}"
    return JSONResponse(error_document(code, message), error.status_code, error.headers)
