"""Errors as answers: which status, and the documents that different callers look for."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from whisper_byoc import errors

STATUSES: dict[type[errors.ServiceError], int] = {
    errors.ServiceError: 500,
    errors.RequestError: 400,
    errors.Unauthorized: 401,
    errors.UnknownModel: 404,
    errors.UnknownJob: 404,
    errors.UnknownStream: 404,
    errors.JobEnded: 409,
    errors.JobExists: 409,
    errors.SourceBusy: 409,
    errors.NoAudio: 408,
    errors.BodyTooLarge: 413,
    errors.UnsupportedAudio: 415,
    errors.Unavailable: 503,
}


def status_of(error: errors.ServiceError) -> int:
    """The status of the nearest class that has one."""
    return next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)


def error_document(code: str, message: str) -> dict[str, dict[str, str]]:
    """The document of our own dialect."""
    return {"error": {"code": code, "message": message}}


def error_response(error: errors.ServiceError, document: Any = None) -> JSONResponse:
    """The answer that tells of an error, with the error's status. document: in place of that of our
    own dialect."""
    headers = (
        {"Retry-After": str(error.retry_after)} if isinstance(error, errors.Unavailable) else {}
    )
    ours = error_document(error.code, str(error))
    return JSONResponse(document or ours, status_of(error), headers)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.ServiceError)
    return error_response(error)
