"""Door 2, worker: what orchestrators call to start, change and stop streams. Answers have the shape
of PyTrickle's, which orchestrators know."""

from collections.abc import Awaitable, Callable
from functools import wraps

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from whisper_byoc.doors.errors import error_document, error_response
from whisper_byoc.doors.requests import check_token, read_body, service_of
from whisper_byoc.errors import ServiceError
from whisper_byoc.jobs.control import parse_object
from whisper_byoc.orchestrator.messages import parse_start
from whisper_byoc.service import Health, Service

STREAM_HEADER = "X-Stream-Id"
MAX_MESSAGE_BYTES = 10 * 1024 * 1024
"""What orchestrators forward of a client's update."""

Handler = Callable[[Request, Service], Awaitable[Response]]


def _as_worker(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Check the token, and answer errors in PyTrickle's shape, ours beside it."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        service = service_of(request)
        try:
            check_token(request)
            return await handler(request, service)
        except ServiceError as error:
            document = {
                "status": "error",
                "message": str(error),
                "current_state": service.health,
                **error_document(error.code, str(error)),
            }
            return error_response(error, document)

    return answer


@_as_worker
async def start(request: Request, service: Service) -> Response:
    """Begin a stream and answer at once: its channels are opened behind the answer."""
    body = await read_body(request, MAX_MESSAGE_BYTES)
    hosts = service.settings.orchestrator.start_hosts
    message = parse_start(body, _named(request), hosts)
    session = service.sessions.start(message)
    return _done(service, "stream started", session.request.stream_id)


@_as_worker
async def stop(request: Request, service: Service) -> Response:
    """Flush, publish the last words, and answer then: the channels are closed upon the answer.
    Whatever the body is, and whether or not there is such a stream, it is stopped now; also while
    the models load, when there is none."""
    await read_body(request, MAX_MESSAGE_BYTES)
    named = _named(request)
    session = await service.sessions.stop(named) if _has_begun(service) else None
    if session is None:
        return _done(service, "no such stream is running, nothing was stopped", named)
    return _done(service, "stream stopped", session.request.stream_id)


@_as_worker
async def update(request: Request, service: Service) -> Response:
    """Other options for a running stream; the body has nothing but them."""
    values = parse_object(await read_body(request, MAX_MESSAGE_BYTES), '{"language": "de"}')
    session = service.sessions.select(_named(request))
    session.update(values)
    return _done(service, "parameters updated", session.request.stream_id)


@_as_worker
async def status(request: Request, service: Service) -> Response:
    """PyTrickle's keys, and every stream's status document."""
    sessions = service.sessions.running if _has_begun(service) else ()
    streams = [
        {"stream_id": it.request.stream_id, "job_id": it.job.job_id, **it.status()}
        for it in sessions
    ]
    first = sessions[0].request if sessions else None
    return JSONResponse(
        {
            "status": service.health,
            "state": service.health,
            "error_message": None,
            "pipeline_ready": service.ready,
            "startup_complete": service.ready,
            "pipeline_state": service.health,
            "active_streams": len(sessions),
            "client_active": bool(sessions),
            "client_running": bool(sessions),
            "fps": {},
            "additional_info": {},
            "current_params": {
                "gateway_request_id": first.stream_id,
                "subscribe_url": first.subscribe_url,
                "publish_url": first.publish_url,
            }
            if first
            else None,
            "streams": streams,
        }
    )


def _done(service: Service, message: str, stream_id: str | None) -> JSONResponse:
    return JSONResponse(
        {
            "status": "success",
            "message": message,
            "request_id": stream_id,
            "current_state": service.health,
        }
    )


def _has_begun(service: Service) -> bool:
    """Whether there can have been streams."""
    return service.health not in (Health.LOADING, Health.ERROR)


def _named(request: Request) -> str | None:
    """The stream's id in the headers; None where there is none. Go sends its UTF-8 as it is, and
    Starlette takes headers for Latin-1."""
    value = request.headers.get(STREAM_HEADER, "").encode("latin-1")
    return value.decode("utf-8", "replace") or None


_HANDLERS = {"start": start, "stop": stop, "params": update, "update": update}

routes = [
    Route(f"{prefix}/stream/{name}", handler, methods=["POST"])
    for prefix in ("", "/api")
    for name, handler in _HANDLERS.items()
]
routes += [Route(f"{prefix}/stream/status", status, methods=["GET"]) for prefix in ("", "/api")]
routes += [Route("/live-video-to-video", start, methods=["POST"])]
