"""Errors as answers: which status or close code, and the documents that different callers look
for."""

from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

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
POLICY, INTERNAL, TRY_LATER = 1008, 1011, 1013
"""RFC 6455, section 7.4.1, and the registry it began."""
MAX_REASON_BYTES = 123


def status_of(error: errors.ServiceError) -> int:
    """The status of the nearest class that has one."""
    return next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)


def error_document(code: str, message: str) -> dict[str, dict[str, str]]:
    """The document of our own dialect."""
    return {"error": {"code": code, "message": message}}


def openai_document(error: errors.ServiceError) -> dict[str, Any]:
    """The document of OpenAI's dialect. param: the field that is to be mended, where it is one."""
    kind = "invalid_request_error" if status_of(error) < 500 else "server_error"
    code, param = error.code, None
    match error:
        case errors.InvalidOption():
            param = error.name
        case errors.UnknownModel():
            code, param = "model_not_found", "model"
        case errors.UnsupportedAudio() | errors.BodyTooLarge() | errors.BadMessage():
            param = "file"
    return openai_problem(code, str(error), kind, param)


def openai_problem(
    code: str, message: str, kind: str = "server_error", param: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def below_openai(connection: HTTPConnection[Any]) -> bool:
    """Whether a path is of OpenAI's API."""
    return connection.url.path.startswith("/v1/")


def error_response(error: errors.ServiceError, document: Any = None) -> JSONResponse:
    """The answer that tells of an error, with the error's status. document: in place of that of our
    own dialect."""
    headers = (
        {"Retry-After": str(error.retry_after)} if isinstance(error, errors.Unavailable) else {}
    )
    ours = error_document(error.code, str(error))
    return JSONResponse(document or ours, status_of(error), headers)


def closing(error: errors.ServiceError | None) -> tuple[int, str]:
    """Code and reason that a WebSocket is closed with."""
    if error is None:
        return 1000, ""
    code = POLICY if isinstance(error, errors.RequestError | errors.SlowReader) else INTERNAL
    code = TRY_LATER if isinstance(error, errors.Unavailable) else code
    return code, str(error).encode()[:MAX_REASON_BYTES].decode(errors="ignore")


async def answer_error(connection: HTTPConnection[Any], error: Exception) -> JSONResponse | None:
    """A WebSocket is accepted first: browsers show no status of a failed handshake."""
    assert isinstance(error, errors.ServiceError)
    if isinstance(connection, WebSocket):
        await connection.accept()
        await connection.close(*closing(error))
        return None
    return error_response(error, openai_document(error) if below_openai(connection) else None)
