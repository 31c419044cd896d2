"""Door 1 in trickle's terms: `/live/{job_id}/source/{seq}` and `/live/{job_id}/output/{seq}`.

PyTrickle's publisher and subscriber, and every other trickle client, work against these. An output
segment is one event of the job, so what is kept of the transcript can be read at any time.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from whisper_byoc.audio.content_types import format_of_content_type
from whisper_byoc.audio.formats import AudioFormat, Pcm
from whisper_byoc.doors import trickle
from whisper_byoc.doors.prompt import promise
from whisper_byoc.doors.requests import checked, options_of, while_connected
from whisper_byoc.errors import UnknownJob, UnsupportedAudio
from whisper_byoc.jobs.eventlog import EventLog
from whisper_byoc.jobs.job import Job, JobKey, JobState
from whisper_byoc.service import Service
from whisper_byoc.transcript import Format
from whisper_byoc.trickle import protocol
from whisper_byoc.trickle.channel import NEWEST, NEXT, NUM_SLOTS, is_awaited, resolve
from whisper_byoc.trickle.local import LocalChannel

CLOSED_HEADERS = {protocol.CLOSED: protocol.TERMINATED, **trickle.LAST}


async def post_segment(request: Request) -> Response:
    """Take one segment of input. The first one makes the job, and the channel in front of it."""
    service, key = checked(request)
    seq = protocol.parse_seq(request.path_params["seq"])
    if seq is None or seq < NEXT:
        return trickle.invalid_seq()
    options = options_of(request, service.jobs.find(key))
    job = service.jobs.find(key)
    if job is not None and job.state is not JobState.RECEIVING:
        return trickle.no_channel(CLOSED_HEADERS)
    job = job or service.jobs.open(key, options)
    job.keep_alive()
    max_bytes = service.settings.worker.max_segment_bytes
    channel = service.sources.channel(job, _raw_format(request))
    wanted = channel.resolve(seq)
    if channel.has_been_read(wanted):
        if not (request.headers.get(protocol.RESET) or wanted < channel.read_position - NUM_SLOTS):
            # A complete segment takes nothing any more, as in any channel: this body is read into
            # a channel that has no reader.
            return await trickle.answer_post(
                request, LocalChannel(), seq, max_bytes, broken_ends=True
            )
        # Its publisher has begun anew: it says so, or goes back further than a channel reaches.
        channel.rewind(wanted)
    promise(request, {protocol.SEQ: str(wanted)})
    await channel.wait_for_slot(wanted)
    if channel.over:
        return trickle.no_channel(CLOSED_HEADERS)
    return await trickle.answer_post(request, channel, seq, max_bytes, broken_ends=True)


async def get_next_source(request: Request) -> Response:
    """The number that a publisher begins with."""
    service, key = checked(request)
    job = service.jobs.find(key)
    if job is None:
        return trickle.answer_next(0)
    channel = service.sources.find(job)
    if channel is not None:
        return trickle.answer_next(channel.next_write)
    if job.state is not JobState.RECEIVING:
        return trickle.no_channel()
    return trickle.answer_next(service.sources.channel(job).next_write)


async def delete_source(request: Request) -> Response:
    """The publisher's end of the stream: answered at once, flushed behind the answer."""
    service, key = checked(request)
    channel = service.sources.find(service.jobs.find(key))
    if channel is None:
        return trickle.refusal("Invalid stream", 400)
    channel.finish()
    return Response()


async def get_segment(request: Request) -> Response:
    """One event of the job, which is waited for when it is the next one."""
    service, key = checked(request)
    asked = protocol.parse_seq(request.path_params["seq"])
    if asked is None or asked < NEWEST:
        return trickle.invalid_seq()
    job = await _find(request, service, key)
    if job is None:
        return trickle.no_channel()
    log, latest = job.log, job.log.next_seq
    seq = resolve(asked, latest)
    headers = {protocol.SEQ: str(seq), protocol.LATEST: str(latest)}
    content_type, writer = job.work.writer(Format.NDJSON)
    if is_awaited(seq, latest):
        promise(request, {**headers, "Content-Type": content_type})
        await while_connected(request, _until_written(log, seq))
        headers[protocol.LATEST] = str(log.next_seq)
    if log.ended and seq >= log.next_seq:
        return Response(headers={**headers, protocol.CLOSED: protocol.TERMINATED})
    if seq >= log.next_seq or seq <= log.dropped_seq:
        return trickle.no_segment(seq, log.next_seq)
    events = log.after(seq - 1)
    # A partial that was replaced is an empty segment: clients skip it.
    body = writer.write(events[0]) if events and events[0].seq == seq else ""
    if not body:
        return Response(headers=headers)
    return Response(body, headers={**headers, "Content-Type": content_type})


async def get_next_output(request: Request) -> Response:
    service, key = checked(request)
    job = service.jobs.find(key)
    if job is None:
        return trickle.no_channel()
    return trickle.answer_next(job.log.next_seq)


async def _find(request: Request, service: Service, key: JobKey) -> Job | None:
    """The job once it exists, within the grace time."""
    try:
        return await while_connected(request, service.jobs.wait_for(key))
    except UnknownJob:
        return None


async def _until_written(log: EventLog, seq: int) -> None:
    while log.next_seq <= seq and not log.ended:
        await log.wait()


def _raw_format(request: Request) -> AudioFormat | None:
    """The format that the Content-Type declares for raw audio, which no bytes tell; None for any
    other type. Other formats are recognised by their bytes, because trickle's clients often
    declare a wrong one."""
    try:
        declared = format_of_content_type(request.headers.get("Content-Type"))
    except UnsupportedAudio:
        return None
    return declared if isinstance(declared, Pcm) else None


routes = [
    Route("/live/{job_id:path}/source/next", get_next_source, methods=["GET"]),
    Route("/live/{job_id:path}/source/{seq}", post_segment, methods=["POST", "PUT"]),
    Route("/live/{job_id:path}/source", delete_source, methods=["DELETE"]),
    Route("/live/{job_id:path}/output/next", get_next_output, methods=["GET"]),
    Route("/live/{job_id:path}/output/{seq}", get_segment, methods=["GET"]),
]
