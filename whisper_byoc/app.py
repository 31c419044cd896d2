"""Puts the routes on a service and turns its errors into answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from whisper_byoc import errors
from whisper_byoc.routes import live, system
from whisper_byoc.service import Service

STATUSES: dict[type[errors.ServiceError], int] = {
    errors.ServiceError: 500,
    errors.RequestError: 400,
    errors.UnknownModel: 404,
    errors.UnknownJob: 404,
    errors.JobEnded: 409,
    errors.JobExists: 409,
    errors.SourceBusy: 409,
    errors.NoAudio: 408,
    errors.BodyTooLarge: 413,
    errors.UnsupportedAudio: 415,
    errors.Unavailable: 503,
}


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


def status_of(error: errors.ServiceError) -> int:
    """The status of the nearest class that has one."""
    return next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.ServiceError)
    headers = {}
    if isinstance(error, errors.Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    return JSONResponse(_document(error.code, str(error)), status_of(error), headers)


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """The router's own errors in our shape."""
    assert isinstance(error, HTTPException)
    code = error.detail.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path[:200]}: {error.detail.lower()}"
    return JSONResponse(_document(code, message), error.status_code, error.headers)


def _document(code: str, message: str) -> dict[str, dict[str, str]]:
    return {"error": {"code": code, "message": message}}
