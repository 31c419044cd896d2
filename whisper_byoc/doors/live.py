"""Door 1: `PUT /live/{job_id}/source` takes audio, `GET /live/{job_id}/output` gives text."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from whisper_byoc.audio.content_types import format_of_content_type
from whisper_byoc.doors import requests
from whisper_byoc.doors.prompt import promise
from whisper_byoc.errors import BodyTooLarge, JobExists, NoAudio, SlowReader
from whisper_byoc.jobs import control
from whisper_byoc.jobs.control import Control
from whisper_byoc.jobs.eventlog import EventLog
from whisper_byoc.jobs.job import Job
from whisper_byoc.service import Service
from whisper_byoc.transcript import EndReason, Format, Writer, choose_format


async def put_source(request: Request) -> Response:
    """Take one body. Its end is the end of the stream, unless `?final=false`."""
    service, key = requests.checked(request)
    final = requests.flag("final", request.query_params.get("final"))
    job = service.jobs.find(key)
    requests.options_of(request, job)
    audio_format = format_of_content_type(request.headers.get("Content-Type"))
    requests.check_body(request, service.settings.jobs.max_body_bytes)
    if job is None:
        requests.check_place(request)
    else:
        job.check_receives()
    promise(request, _head(service, job))
    chunks = requests.body_chunks(request)
    first = await requests.first_chunk(chunks, service.settings.jobs.idle_seconds)
    num_bytes = 0
    if first:  # another request may have begun or ended the job meanwhile
        job, body = requests.open_job(request, key), _chain(first, chunks)
        num_bytes = await job.receive_body(body, audio_format, final=final is not False)
    elif (job := service.jobs.find(key)) is not None:
        job.keep_alive()
        if final is True:
            await job.stop(EndReason.EOF)
    return JSONResponse(
        {
            "job_id": key.job_id,
            "bytes": num_bytes,
            "audio_seconds": round(job.work.audio_seconds, 3) if job else 0.0,
            "state": job.state if job else None,
        },
        headers=requests.model_header(service, job),
    )


async def get_output(request: Request) -> Response:
    """Stream the transcript from its beginning, whenever the job begins or has ended."""
    service, key = requests.checked(request)
    chosen = choose_format(request.query_params.get("format"), request.headers.get("Accept"))
    after = _last_event_id(request) if chosen is Format.SSE else -1
    job = await requests.while_connected(request, service.jobs.wait_for(key))
    idle_seconds = service.settings.jobs.keepalive_seconds
    content_type, writer = job.work.writer(chosen)
    return StreamingResponse(
        _written(job.log, writer, after, idle_seconds, service),
        headers={
            "Content-Type": content_type,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            **requests.model_header(service, job),
        },
    )


async def get_job(request: Request) -> Response:
    service, key = requests.checked(request)
    job = service.jobs.get(key)
    return JSONResponse(job.document(), headers=requests.model_header(service, job))


async def delete_job(request: Request) -> Response:
    """Stop a running job after a flush; forget an ended one."""
    service, key = requests.checked(request)
    promise(request, _head(service, service.jobs.get(key)))
    job = await service.jobs.delete(key)
    forgotten = service.jobs.find(key) is None
    document = {**job.document(), "forgotten": forgotten}
    return JSONResponse(document, headers=requests.model_header(service, job))


async def post_control(request: Request) -> Response:
    """One control message: JSON with its `type`, answered when it has been obeyed."""
    service, key = requests.checked(request)
    kind, values = control.read_control(await _message(request, service.settings.jobs.idle_seconds))
    if kind is Control.START:
        options = service.jobs.kind.options().changed(values)
        if service.jobs.find(key) is not None:
            raise JobExists(key.job_id)
        job = service.jobs.open(key, options)
    else:
        job = service.jobs.get(key)
    promise(request, _head(service, job))
    match kind:
        case Control.OPTIONS:
            service.jobs.change(job, values)
        case Control.FINALIZE:
            await job.finalize()
        case Control.KEEPALIVE:
            job.check_runs()
            job.keep_alive()
        case Control.CLOSE:
            await job.stop(EndReason.STOPPED)
    return JSONResponse(job.document(), headers=requests.model_header(service, job))


def _head(service: Service, job: Job | None) -> dict[str, str]:
    """Of an answer in JSON."""
    return {"Content-Type": "application/json", **requests.model_header(service, job)}


async def _message(request: Request, seconds: float) -> dict[str, Any]:
    """The control message in the body. seconds: within which it has to come, so that a request
    without a body does not wait for ever. Raises NoAudio, Vanished and InvalidOption."""
    try:
        async with asyncio.timeout(seconds):
            return control.parse_control(
                await requests.read_body(request, control.MAX_CONTROL_BYTES)
            )
    except TimeoutError:
        raise NoAudio(seconds) from None
    except BodyTooLarge as error:
        raise control.too_long(
            f"over {error.limit} bytes", f"at most {error.limit} bytes"
        ) from None


async def _written(
    log: EventLog, writer: Writer, after: int, idle_seconds: float, service: Service
) -> AsyncIterator[str | bytes]:
    """The events of a job as `writer` writes them. A reader that fell behind what the log keeps is
    cut off in the middle of the body, so that it cannot take what it has for the whole."""
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


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _last_event_id(request: Request) -> int:
    """The number of the last event that a client has, which browsers send when they come back to a
    stream of server-sent events; -1 for none."""
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
