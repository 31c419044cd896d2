"""Door 3, batch: the body of a request is a whole recording, and the answer is its transcript, in
one piece or as server-sent events.

Orchestrators forward the body, its Content-Type and our token, but no query string. So whatever a
query can say may also be said in the body.
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

from whisper_byoc import errors
from whisper_byoc.decode import Task
from whisper_byoc.doors import openai, requests
from whisper_byoc.doors.dialects import Answer, Dialect, Pipeline, Plain
from whisper_byoc.doors.errors import error_response
from whisper_byoc.doors.progress import Place, Progress
from whisper_byoc.doors.prompt import promise
from whisper_byoc.doors.uploads import Fields, Upload, gathered, open_upload
from whisper_byoc.jobs.job import Job, JobState
from whisper_byoc.jobs.options import JobOptions, Options
from whisper_byoc.jobs.recordings import RecordingWork
from whisper_byoc.service import Service
from whisper_byoc.settings import own_model_name
from whisper_byoc.transcript import (
    OCTETS,
    End,
    Endpoint,
    EndReason,
    Event,
    Failure,
    PayloadWriter,
    Writer,
)


class BatchEndpoint:
    """The paths of one dialect. An ASGI application and no plain handler, because an `Exchange`
    may have to send the end of an answer after an error."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Exchange(Request(scope, receive), send, self._dialect).run()


class Exchange:
    """One request, its job and its answer. Driven by the server's task for the request;
    cancelling that task cuts the job off."""

    def __init__(self, request: Request, send: Send, dialect: Dialect) -> None:
        self._request = request
        self._send = send
        self._dialect = dialect
        self._service = requests.service_of(request)
        settings = self._service.settings
        self._limit = settings.worker.max_upload_bytes
        self._incoming = requests.Incoming(request, self._limit, settings.jobs.idle_seconds)
        self._begun: Writer | None = None
        """Writes the events of a streamed answer; None before its first byte and after its last."""
        self._next_seq = 0
        self._done = False
        self._progress = Progress(None)
        self._told_seconds = 0.0

    async def run(self) -> None:
        try:
            await self._run()
        except errors.ServiceError as error:
            if self._begun is not None:
                await self._break_off(self._begun, error)
            elif not self._done:
                await self._respond(error_response(error, self._dialect.error_body(error)))

    async def _run(self) -> None:
        """Raises ServiceError."""
        await requests.check_token_or_session(self._request)
        self._check_model()
        requests.check_body(self._request, self._limit)
        requests.check_place(self._request)
        async with errors.bare_errors():
            try:
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(self._incoming.watch())
                    await self._answer()
                    watching.cancel()
            except* requests.Vanished:
                pass  # nobody is left to be told

    def _check_model(self) -> None:
        """The header must name a model that is served, by our name or by Hugging Face's. A model
        in the body is ignored: OpenAI's clients cannot leave it out. Raises UnknownModel and
        NotReady."""
        asked = self._request.headers.get(requests.MODEL_HEADER, "")
        served = self._service.jobs.kind.model_names
        if asked in ("", openai.MODEL, *served) or own_model_name(asked) in served:
            return
        raise errors.UnknownModel(asked, served)

    async def _answer(self) -> None:
        jobs = self._service.jobs
        query = self._dialect.options(gathered(self._request.query_params.multi_items()))
        options = _changed(self._default_options(), query)
        if not await self._incoming.begins():
            await self._answer_nothing(options, query)
            return
        response: Response | None = None
        async with self._job(options) as job:
            is_audio = isinstance(options, JobOptions)
            upload = open_upload(
                self._request,
                self._incoming,
                self._limit,
                is_audio=is_audio,
                takes_raw=self._dialect.takes_nothing,
            )
            # The inner group ends the task that reads the upload before the upload is closed.
            async with upload as parts, asyncio.TaskGroup() as feeding:
                if jobs.draining:
                    raise errors.Draining()
                fields = self._dialect.options(parts.fields)
                if values := _given(options, fields):
                    jobs.change(job, values)
                self._check_language(job.options)
                answer = self._answer_form({**query, **fields}, job.options)
                if parts.problem:
                    raise parts.problem
                self._progress = Progress(parts.num_bytes)
                feed = feeding.create_task(_feed(job, parts))
                if answer.streamed:
                    await self._stream(job, answer)
                else:
                    response = await self._whole(job, answer)
                feed.cancel()
        # Only now, so that a client with an answer finds the job's place free.
        if response is not None:
            await self._respond(response)

    def _default_options(self) -> Options:
        """Of a request that names none."""
        options = self._service.jobs.kind.options()
        if not isinstance(options, JobOptions):
            return options
        engine = self._service.engine
        detects = engine is not None and engine.detects_languages
        return options.changed(self._dialect.defaults(detects=detects))

    def _check_language(self, options: Options) -> None:
        """A recording whose language is to be found out needs weights that can; a live job that
        asks for it in vain is heard as English. Raises InvalidOption."""
        engine = self._service.engine
        if isinstance(options, JobOptions) and engine is not None and options.language is None:
            engine.check_detection()

    async def _answer_nothing(self, options: Options, query: Fields) -> None:
        """An empty body is a keepalive, and is answered without a job. Raises InvalidOption, and
        BadMessage where the dialect wants audio."""
        self._service.jobs.kind.check(options)
        answer = self._answer_form(query, options)
        if isinstance(options, JobOptions) and not self._dialect.takes_nothing:
            raise errors.BadMessage("empty", "a file named audio or file, or base64 in audio")
        body = answer.writer.begin()
        end = answer.writer.write(End(0, 0.0, EndReason.EOF))
        await self._respond(Response(_bytes(body) + _bytes(end), headers=self._headers(answer)))

    @asynccontextmanager
    async def _job(self, options: Options) -> AsyncIterator[Job]:
        """A job for this request, forgotten at exit. It has no idle limit: `Incoming` watches the
        connection, which tells at once when the sender has gone."""
        jobs = self._service.jobs
        key = requests.job_key(self._request, f"batch-{secrets.token_hex(8)}")
        job = jobs.open(key, options, attended=True, recording=True)
        try:
            yield job
        finally:
            await jobs.discard(job)

    def _answer_form(self, fields: Fields, options: Options) -> Answer:
        if isinstance(options, JobOptions):
            accept = self._request.headers.get("Accept")
            return self._dialect.answer(fields, accept, options)
        return Answer(OCTETS, PayloadWriter())

    async def _whole(self, job: Job, answer: Answer) -> Response:
        """The answer in one piece, when the job has ended. Raises why the job has failed."""
        promise(self._request, self._headers(answer, job))
        body = bytearray(_bytes(answer.writer.begin()))
        async for event in job.log.read():
            assert event is not None, "read without an idle time"
            _check(job, event)
            body += _bytes(answer.writer.write(event))
            self._told_progress(job, answer.writer)
        headers = self._headers(answer, job, whole=True)
        return Response(bytes(body), headers=headers)

    async def _stream(self, job: Job, answer: Answer) -> None:
        """Send the events as they come. The answer begins with the first event, or after
        `keepalive_seconds` without one; an error before that still has an HTTP status of its own.
        Raises why the job has failed."""
        idle_seconds = self._service.settings.jobs.keepalive_seconds
        async for event in job.log.read(idle_seconds=idle_seconds):
            if self._begun is None:
                if event is not None:
                    _check(job, event)
                await self._begin(job, answer)
            if isinstance(event, End):
                await self._finish(_bytes(answer.writer.write(event)))
                return
            text = _bytes(b"" if event is None else answer.writer.write(event))
            self._next_seq = self._next_seq if event is None else event.seq + 1
            if event is None or isinstance(event, Endpoint):
                text += self._told_progress(job, answer.writer).encode()
            if text := text or answer.writer.keepalive().encode():
                await self._write(text)

    def _told_progress(self, job: Job, writer: Writer) -> str:
        """How far the job has come, if that is further than when it was told last: for the caller,
        where its format has a place for it, and every tenth for the log."""
        work = job.work
        if not isinstance(work, RecordingWork) or work.heard_seconds == self._told_seconds:
            return ""
        self._told_seconds = work.heard_seconds
        complete = job.state is not JobState.RECEIVING
        place = Place(work.heard_seconds, work.audio_seconds, job.num_bytes, complete)
        percent = self._progress.receive_place(place)
        if (logged := self._progress.percent_to_log()) is not None:
            job.logger.info("%d %% heard, %.1f s", logged, work.heard_seconds)
        return writer.progress(work.heard_seconds, percent)

    async def _begin(self, job: Job, answer: Answer) -> None:
        self._begun = answer.writer
        headers = Headers({**self._headers(answer, job), "X-Accel-Buffering": "no"}).raw
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(_bytes(answer.writer.begin()))

    async def _break_off(self, writer: Writer, error: errors.ServiceError) -> None:
        """End an answer that has begun, whose status cannot be changed any more, with an error
        event and an end event: orchestrators that relay the answer wait for its last line."""
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
        """whole: whether the job has ended, so that its duration and speed are known."""
        model = requests.model_header(self._service, job)
        metadata: dict[str, Any] = {"model": model[requests.MODEL_HEADER]}
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
    """The audio of an upload into the job."""
    with suppress(errors.ServiceError):  # the job's events tell of it, and `_check` raises it
        await job.receive_body(upload.audio, upload.audio_format, final=True)


def _check(job: Job, event: Event) -> None:
    """Raise the error that an event tells of."""
    if isinstance(event, Failure):
        raise job.failure or errors.DecodeError(event.message)
    if isinstance(event, End) and event.reason is EndReason.SHUTDOWN:
        raise errors.Draining()  # the rest of the recording was not heard
    if isinstance(event, End) and event.reason is EndReason.RELEASED:
        raise errors.CutOff()


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
    """Matches a path that is the capability's name: some clients append the name to our URL where
    one of our paths should be."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            service: Service = scope["app"].state.service
            if child_scope["path_params"]["name"] != service.settings.capability.name:
                return Match.NONE, {}
        return match, child_scope


plain, pipeline = BatchEndpoint(Plain()), BatchEndpoint(Pipeline())
transcriptions = BatchEndpoint(openai.OpenAi(Task.TRANSCRIBE))
translations = BatchEndpoint(openai.OpenAi(Task.TRANSLATE))

routes = [
    *(Route(path, plain, methods=["POST"]) for path in ("/", "/transcribe", "/run", "/process")),
    Route("/audio-to-text", pipeline, methods=["POST"]),
    Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
    Route("/v1/audio/translations", translations, methods=["POST"]),
    CapabilityRoute("/{name:path}", plain, methods=["POST"]),
]
