"""Door 1: `PUT /live/{job_id}/source` takes audio, `GET /live/{job_id}/output` gives text."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Coroutine
from enum import StrEnum
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from whisper_byoc.audio.content_types import format_of_content_type
from whisper_byoc.errors import (
    BodyTooLarge,
    InvalidOption,
    JobExists,
    NoAudio,
    SlowReader,
    UnknownModel,
    UnsupportedAudio,
    bare_errors,
)
from whisper_byoc.jobs.eventlog import EventLog
from whisper_byoc.jobs.job import Job, check_job_id
from whisper_byoc.jobs.options import Options
from whisper_byoc.service import Service
from whisper_byoc.transcript import EndReason, Format, Writer, choose_format

MODEL_HEADER = "X-Model-Id"
MAX_CONTROL_BYTES = 65536
T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for its log; no one is left to read it."""


class Control(StrEnum):
    """What a control message asks for."""

    START = "start"
    """A job with these options, before its audio."""
    OPTIONS = "options"
    """Other values for some options, from now on."""
    FINALIZE = "finalize"
    """All that was said so far becomes final now; the stream goes on."""
    KEEPALIVE = "keepalive"
    """Put off the idle limit."""
    CLOSE = "close"
    """Take no more audio, and flush."""


async def put_source(request: Request) -> Response:
    """Take one body. Its end is the end of the stream, unless `?final=false`."""
    service, job_id = checked(request)
    final = _boolean(request, "final")
    job = service.jobs.find(job_id)
    options_of(request, service, job)
    audio_format = format_of_content_type(request.headers.get("Content-Type"))
    check_encoding(request)
    check_length(request, service.settings.jobs.max_body_bytes)
    if job is not None:
        job.check_receives()
    chunks = _chunks(request)
    try:
        async with asyncio.timeout(service.settings.jobs.idle_seconds):
            first = await anext(chunks, b"")
    except ConnectionError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except TimeoutError:
        raise NoAudio(service.settings.jobs.idle_seconds) from None
    job = service.jobs.find(job_id)  # another request may have begun or ended it meanwhile
    if first:
        options = options_of(request, service, job)
        if job is None:
            job = service.jobs.open(job_id, options)
        job.check_receives()
        if job.options != options:
            job.change(options)
        num_bytes = await job.receive_body(
            _chain(first, chunks), audio_format, final=final is not False
        )
    else:
        num_bytes = 0
        if job is not None:
            job.keep_alive()
            if final is True:
                await job.stop(EndReason.EOF)
    return JSONResponse(
        {
            "job_id": job_id,
            "bytes": num_bytes,
            "audio_seconds": round(job.audio_seconds, 3) if job else 0.0,
            "state": job.state if job else None,
        },
        headers=model_header(service, job),
    )


async def get_output(request: Request) -> Response:
    """Stream the transcript from its beginning, whenever the job begins or has ended."""
    service, job_id = checked(request)
    chosen = choose_format(request.query_params.get("format"), request.headers.get("Accept"))
    after = _last_event_id(request) if chosen is Format.SSE else -1
    job = await while_connected(request, service.jobs.wait_for(job_id))
    if job is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    idle_seconds = service.settings.jobs.keepalive_seconds
    content_type, writer = job.writer(chosen)
    return StreamingResponse(
        _written(job.log, writer, after, idle_seconds, service),
        headers={
            "Content-Type": content_type,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            **model_header(service, job),
        },
    )


async def get_job(request: Request) -> Response:
    service, job_id = checked(request)
    job = service.jobs.get(job_id)
    return JSONResponse(job.document(), headers=model_header(service, job))


async def delete_job(request: Request) -> Response:
    """Stop a running job after a flush; forget an ended one."""
    service, job_id = checked(request)
    job = await service.jobs.delete(job_id)
    forgotten = service.jobs.find(job_id) is None
    document = {**job.document(), "forgotten": forgotten}
    return JSONResponse(document, headers=model_header(service, job))


async def post_control(request: Request) -> Response:
    """One control message: JSON with its `type`, answered when it has been obeyed."""
    service, job_id = checked(request)
    try:
        async with asyncio.timeout(service.settings.jobs.idle_seconds):
            message = await _message(request)
    except ConnectionError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except TimeoutError:
        raise NoAudio(service.settings.jobs.idle_seconds) from None
    kind, values = read_control(message)
    if kind is Control.START:
        options = service.jobs.kind.options().changed(values)
        if service.jobs.find(job_id) is not None:
            raise JobExists(job_id)
        job = service.jobs.open(job_id, options)
    elif kind is Control.OPTIONS:
        job = service.jobs.get(job_id)
        service.jobs.change(job, values)
    else:
        job = service.jobs.get(job_id)
        match kind:
            case Control.FINALIZE:
                await job.finalize()
            case Control.KEEPALIVE:
                job.check_runs()
                job.keep_alive()
            case Control.CLOSE:
                await job.stop(EndReason.STOPPED)
    return JSONResponse(job.document(), headers=model_header(service, job))


async def _message(request: Request) -> dict[str, Any]:
    """Raises InvalidOption when the body is not a JSON object, or too long."""
    body = bytearray()
    async for chunk in _chunks(request):
        body += chunk
        if len(body) > MAX_CONTROL_BYTES:
            expected = f"at most {MAX_CONTROL_BYTES} bytes"
            raise InvalidOption("control message", f"over {MAX_CONTROL_BYTES} bytes", expected)
    return parse_message(bytes(body))


def parse_message(body: bytes) -> dict[str, Any]:
    """Raises InvalidOption when it is not a JSON object."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        found = body[:80].decode("utf-8", "replace")
        raise InvalidOption("control message", found, 'a JSON object such as {"type": "finalize"}')
    return message


async def _written(
    log: EventLog, writer: Writer, after: int, idle_seconds: float, service: Service
) -> AsyncIterator[str | bytes]:
    """What `writer` makes of the events. A reader that fell behind is cut off in mid-body, so that
    it cannot take what it has for the whole."""
    if begin := writer.begin():
        yield begin
    try:
        async for event in log.read(after, idle_seconds):
            text = writer.keepalive() if event is None else writer.write(event)
            if text:
                yield text
    except SlowReader:
        service.metrics.slow_readers.inc()
        raise


async def while_connected(request: Request, waiting: Coroutine[Any, Any, T]) -> T | None:
    """What is waited for, or None when the client closes the connection first."""

    async def watch(waiter: asyncio.Task[T]) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        waiter.cancel()

    async with bare_errors(), asyncio.TaskGroup() as group:
        searching = group.create_task(waiting)
        watching = group.create_task(watch(searching))
        await asyncio.wait({searching})
        watching.cancel()
    return None if searching.cancelled() else searching.result()


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body's non-empty chunks. Raises ConnectionError when the client vanishes."""
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect:
        raise ConnectionError("the client closed the connection within the body") from None


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def checked(request: Request) -> tuple[Service, str]:
    """The service, and a job id that is one. Raises InvalidJobId, UnknownModel and NotReady."""
    service: Service = request.app.state.service
    job_id = request.path_params["job_id"]
    check_job_id(job_id)
    check_model(request, service)
    return service, job_id


def check_model(connection: HTTPConnection[Any], service: Service) -> None:
    """Raises UnknownModel and NotReady."""
    asked = connection.headers.get(MODEL_HEADER)
    served = service.jobs.kind.model_names
    if asked is not None and asked not in served:
        raise UnknownModel(asked, served)


def model_header(service: Service, job: Job | None = None) -> dict[str, str]:
    """The weights that the job's language picks; the default ones where there is no job."""
    kind = service.jobs.kind
    return {MODEL_HEADER: kind.model_for(job.options if job else kind.options())}


def options_of(connection: HTTPConnection[Any], service: Service, job: Job | None) -> Options:
    """The options that the query names, over those of the job. Other names mean nothing here:
    gateways add their own. Raises InvalidOption."""
    query = connection.query_params
    kind = service.jobs.kind
    before = job.options if job else kind.options()
    options = before.changed(
        {name: query[name] for name in type(before).model_fields if name in query}
    )
    kind.check(options)
    return options


def read_control(message: dict[str, Any]) -> tuple[Control, dict[str, Any]]:
    """What a control message asks for, and the options it brings. Raises InvalidOption."""
    kind = _control(message.get("type"))
    names = ("type", "options") if kind in (Control.START, Control.OPTIONS) else ("type",)
    for name in message:
        if name not in names:
            raise InvalidOption("control message", name, "no more than " + " and ".join(names))
    values = message.get("options", {})
    if not isinstance(values, dict):
        raise InvalidOption("options", json.dumps(values), "a JSON object")
    return kind, values


def _control(value: object) -> Control:
    """Raises InvalidOption."""
    try:
        return Control(str(value))
    except ValueError:
        expected = "one of " + ", ".join(Control)
        raise InvalidOption("type", str(value), expected) from None


def _boolean(request: Request, name: str) -> bool | None:
    value = request.query_params.get(name)
    if value is None:
        return None
    if value.lower() in ("true", "1", "false", "0"):
        return value.lower() in ("true", "1")
    raise InvalidOption(name, value, "true or false")


def check_encoding(request: Request) -> None:
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedAudio(f"sent with Content-Encoding {encoding[:40]!r}", "none")


def check_length(request: Request, limit: int) -> None:
    length = request.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > limit:
        raise BodyTooLarge(int(length), limit)


def _last_event_id(request: Request) -> int:
    """Where a server-sent event stream that was cut off goes on."""
    value = request.headers.get("Last-Event-ID", "")
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else -1


# The converter takes slashes too, so that `..%2f` in a job id is refused by its name, not as a
# path that is not served.
routes = [
    Route("/live/{job_id:path}/source", put_source, methods=["PUT", "POST"]),
    Route("/live/{job_id:path}/control", post_control, methods=["POST"]),
    Route("/live/{job_id:path}/output", get_output, methods=["GET"]),
    Route("/live/{job_id:path}", get_job, methods=["GET"]),
    Route("/live/{job_id:path}", delete_job, methods=["DELETE"]),
]
