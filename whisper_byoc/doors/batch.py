"""Door 3: a request brings a recording, its answer the transcript: whole, or as server-sent events.

Orchestrators forward the body, its type and our token, no query: what a query can say can be said
in the body, too.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from whisper_byoc.doors.dialects import Answer, Dialect, OpenAi, Pipeline, Plain
from whisper_byoc.doors.errors import error_response
from whisper_byoc.doors.requests import (
    MODEL_HEADER,
    Incoming,
    Vanished,
    check_body,
    check_token,
    model_header,
    service_of,
)
from whisper_byoc.doors.uploads import Fields, Upload, open_upload
from whisper_byoc.errors import (
    RETRY_AFTER_SECONDS,
    BadMessage,
    DecodeError,
    Draining,
    ServiceError,
    UnknownModel,
    bare_errors,
)
from whisper_byoc.jobs.job import Job
from whisper_byoc.jobs.options import JobOptions, Options
from whisper_byoc.service import Service
from whisper_byoc.settings import own_model_name
from whisper_byoc.transcript import OCTETS, End, EndReason, Event, Failure, PayloadWriter, Writer

OPENAI_MODEL = "whisper-1"


class BatchEndpoint:
    """A family of paths, as an ASGI application."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Exchange(Request(scope, receive), send, self._dialect).run()


class Exchange:
    """One request, its job and its answer. Driven by the server's task for the request; cancelling
    it cuts the job off."""

    def __init__(self, request: Request, send: Send, dialect: Dialect) -> None:
        self._request = request
        self._send = send
        self._dialect = dialect
        self._service = service_of(request)
        settings = self._service.settings
        self._limit = settings.worker.max_upload_bytes
        self._incoming = Incoming(request, self._limit, settings.jobs.idle_seconds)
        self._begun: Writer | None = None
        """What writes the events of an answer that has begun and has not ended."""
        self._next_seq = 0
        self._done = False

    async def run(self) -> None:
        try:
            await self._run()
        except ServiceError as error:
            if self._begun is not None:
                await self._break_off(self._begun, error)
            elif not self._done:
                await self._respond(error_response(error, self._dialect.error_body(error)))

    async def _run(self) -> None:
        """Raises ServiceError."""
        check_token(self._request)
        self._check_model()
        check_body(self._request, self._limit)
        async with bare_errors():
            try:
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(self._incoming.watch())
                    await self._answer()
                    watching.cancel()
            except* Vanished:
                pass  # nobody is left to be told

    def _check_model(self) -> None:
        """The name may be longer than ours, as Hugging Face's are. What a body names is not looked
        at: clients have to name something. Raises UnknownModel and NotReady."""
        asked = self._request.headers.get(MODEL_HEADER, "")
        served = self._service.jobs.kind.model_names
        if asked in ("", OPENAI_MODEL, *served) or own_model_name(asked) in served:
            return
        raise UnknownModel(asked, served)

    async def _answer(self) -> None:
        jobs = self._service.jobs
        query = dict(self._request.query_params)
        options = _changed(jobs.kind.options(), query)
        if not await self._incoming.begins():
            await self._answer_nothing(options, query)
            return
        response: Response | None = None
        async with self._job(options) as job:
            is_audio = isinstance(options, JobOptions)
            upload = open_upload(self._request, self._incoming, self._limit, is_audio=is_audio)
            # The inner group ends what reads the upload before that is closed.
            async with upload as parts, asyncio.TaskGroup() as feeding:
                if jobs.draining:
                    raise Draining(RETRY_AFTER_SECONDS)
                if values := _given(options, parts.fields):
                    jobs.change(job, values)
                answer = self._answer_form({**query, **parts.fields}, job.options)
                feed = feeding.create_task(_feed(job, parts))
                if answer.streamed:
                    await self._stream(job, answer)
                else:
                    response = await self._whole(job, answer)
                feed.cancel()
        if response is not None:  # now that nothing is left of the request
            await self._respond(response)

    async def _answer_nothing(self, options: Options, query: Fields) -> None:
        """An empty body is a keepalive: it takes no place among the jobs."""
        self._service.jobs.kind.check(options)
        answer = self._answer_form(query, options)
        if isinstance(options, JobOptions) and not self._dialect.takes_nothing:
            raise BadMessage("empty", "a file named audio or file, or base64 in audio")
        body = answer.writer.begin()
        end = answer.writer.write(End(0, 0.0, EndReason.EOF))
        await self._respond(Response(_bytes(body) + _bytes(end), headers=self._headers(answer)))

    @asynccontextmanager
    async def _job(self, options: Options) -> AsyncIterator[Job]:
        """Without an idle limit, which is for jobs whose sender may have gone: here the connection
        tells."""
        jobs = self._service.jobs
        job = jobs.open(f"batch-{secrets.token_hex(8)}", options, attended=True)
        try:
            yield job
        finally:
            await jobs.discard(job.job_id)

    def _answer_form(self, fields: Fields, options: Options) -> Answer:
        if isinstance(options, JobOptions):
            accept = self._request.headers.get("Accept")
            return self._dialect.answer(fields, accept, words=options.words)
        return Answer(OCTETS, PayloadWriter())

    async def _whole(self, job: Job, answer: Answer) -> Response:
        body = bytearray(_bytes(answer.writer.begin()))
        async for event in job.log.read():
            assert event is not None, "read without an idle time"
            _check(job, event)
            body += _bytes(answer.writer.write(event))
        headers = self._headers(answer, job, whole=True)
        return Response(bytes(body), headers=headers)

    async def _stream(self, job: Job, answer: Answer) -> None:
        """The first event, or a while without one, begins the answer: until then what goes wrong
        still has a status."""
        idle_seconds = self._service.settings.jobs.keepalive_seconds
        async for event in job.log.read(idle_seconds=idle_seconds):
            if self._begun is None:
                if event is not None:
                    _check(job, event)
                await self._begin(job, answer)
            text = answer.writer.keepalive() if event is None else answer.writer.write(event)
            self._next_seq = self._next_seq if event is None else event.seq + 1
            if isinstance(event, End):
                await self._finish(_bytes(text))
            elif text:
                await self._write(_bytes(text))

    async def _begin(self, job: Job, answer: Answer) -> None:
        self._begun = answer.writer
        headers = Headers({**self._headers(answer, job), "X-Accel-Buffering": "no"}).raw
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(_bytes(answer.writer.begin()))

    async def _break_off(self, writer: Writer, error: ServiceError) -> None:
        """Tell it as events: whoever relays the answer waits for its last line."""
        failure = Failure(self._next_seq, error.code, str(error))
        end = End(self._next_seq + 1, 0.0, EndReason.ERROR)
        await self._finish(_bytes(writer.write(failure)) + _bytes(writer.write(end)))

    async def _write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _finish(self, data: bytes) -> None:
        self._begun, self._done = None, True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _respond(self, response: Response) -> None:
        self._done = True
        await response(self._request.scope, self._request.receive, self._send)

    def _headers(
        self, answer: Answer, job: Job | None = None, *, whole: bool = False
    ) -> dict[str, str]:
        """whole: when the job has ended, so that its account is known."""
        model = model_header(self._service, job)
        metadata: dict[str, Any] = {"model": model[MODEL_HEADER]}
        if whole and job is not None and job.work.audio_seconds:
            decoding = job.work.counters().get("decode_seconds", 0.0)
            metadata["duration"] = round(job.work.audio_seconds, 3)
            metadata["rtf"] = round(decoding / job.work.audio_seconds, 4)
        return {
            "Content-Type": answer.content_type,
            "Cache-Control": "no-store",
            **model,
            "X-Metadata": json.dumps(metadata),
        }


async def _feed(job: Job, upload: Upload) -> None:
    with suppress(ServiceError):  # the job's events tell of it
        await job.receive_body(upload.audio, upload.audio_format, final=True)


def _check(job: Job, event: Event) -> None:
    """Raises what has gone wrong with the job."""
    if isinstance(event, Failure):
        raise job.failure or DecodeError(event.message)
    if isinstance(event, End) and event.reason is EndReason.SHUTDOWN:
        raise Draining(RETRY_AFTER_SECONDS)  # the end of its body was not waited for


def _given(options: Options, fields: Fields) -> Fields:
    """The fields that are options; what is empty or null is as if it were not there."""
    names = type(options).model_fields
    return {name: fields[name] for name in names if fields.get(name) not in (None, "")}


def _changed(options: Options, fields: Fields) -> Options:
    """Raises InvalidOption."""
    return options.changed(_given(options, fields))


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


class CapabilityRoute(Route):
    """The path that is the capability's name: some clients put it where ours should be."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            service: Service = scope["app"].state.service
            if child_scope["path_params"]["name"] != service.settings.capability.name:
                return Match.NONE, {}
        return match, child_scope


plain, pipeline, openai = BatchEndpoint(Plain()), BatchEndpoint(Pipeline()), BatchEndpoint(OpenAi())

routes = [
    *(Route(path, plain, methods=["POST"]) for path in ("/", "/transcribe", "/run", "/process")),
    Route("/audio-to-text", pipeline, methods=["POST"]),
    Route("/v1/audio/transcriptions", openai, methods=["POST"]),
    CapabilityRoute("/{name:path}", plain, methods=["POST"]),
]
