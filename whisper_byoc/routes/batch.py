"""Door 3: a request brings a recording, its answer the transcript: whole, or as server-sent events.

Orchestrators forward the body, its type and our token, no query: what a query can say can be said
in the body, too.
"""

import asyncio
import base64
import json
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from whisper_byoc.audio import AudioFormat, format_of_content_type
from whisper_byoc.errors import (
    BadMessage,
    BodyTooLarge,
    DecodeError,
    Draining,
    InvalidOption,
    NoAudio,
    ServiceError,
    UnknownModel,
    first_of,
)
from whisper_byoc.jobs import Chunks, Job
from whisper_byoc.options import JobOptions, Options
from whisper_byoc.routes.answers import check_token, error_document, error_headers, status_of
from whisper_byoc.routes.live import MODEL_HEADER, check_encoding, check_length, model_header
from whisper_byoc.service import Service
from whisper_byoc.transcript import (
    CONTENT_TYPES,
    DONE,
    WRITERS,
    End,
    EndReason,
    Event,
    Failure,
    Final,
    Format,
    JsonWriter,
    PayloadWriter,
    Writer,
    choose_format,
    join_words,
)

FILE_FIELDS = ("audio", "file")
AUDIO_FIELDS = ("audio", "input", "audio_base64", "file")
MAX_LINE_BYTES = 60 * 1024
"""Of an event: orchestrators and gateways scan lines and give up at 64 KiB."""
OPENAI_MODEL = "whisper-1"
_OCTETS = "application/octet-stream"
_CHUNK_BYTES = 64 * 1024
_MAX_PARTS = 100
_RETRY_AFTER_SECONDS = 5

Fields = Mapping[str, Any]
"""What a request says beside its audio: text from forms and queries, anything from JSON."""


# What comes in


class _Vanished(Exception):
    """The client has closed the connection: no one is left to answer."""


class Incoming:
    """A body as it comes. `watch` reads it whatever the pace of the job, so that it is always
    noticed when the client vanishes; what waits is at most `limit`, then the request is refused.
    """

    def __init__(self, receive: Receive, limit: int, idle_seconds: float) -> None:
        self._receive = receive
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._waiting: deque[bytes] = deque()
        self._num_bytes = 0
        self._complete = False
        self._arrived = asyncio.Event()

    async def watch(self) -> None:
        """Read until cancelled. Raises _Vanished, BodyTooLarge, and NoAudio for a body that falls
        silent."""
        while True:
            try:
                async with asyncio.timeout(None if self._complete else self._idle_seconds):
                    message = await self._receive()
            except TimeoutError:
                raise NoAudio(self._idle_seconds) from None
            if message["type"] == "http.disconnect":
                raise _Vanished
            if chunk := message.get("body", b""):
                self._num_bytes += len(chunk)
                if self._num_bytes > self._limit:
                    raise BodyTooLarge(self._num_bytes, self._limit)
                self._waiting.append(chunk)
            self._complete = not message.get("more_body", False)
            self._arrived.set()

    async def begins(self) -> bool:
        """Whether there is a body at all."""
        while not (self._waiting or self._complete):
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._waiting)

    async def receive(self) -> Message:
        """The body again, for Starlette's own parsers."""
        if await self.begins():
            return {"type": "http.request", "body": self._waiting.popleft(), "more_body": True}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def chunks(self) -> AsyncIterator[bytes]:
        while await self.begins():
            yield self._waiting.popleft()


@dataclass(frozen=True, slots=True)
class Upload:
    """The parts of a body."""

    fields: Fields
    audio: Chunks
    audio_format: AudioFormat | None


def media_type(request: Request) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def open_upload(
    request: Request, incoming: Incoming, limit: int, *, is_audio: bool
) -> AsyncIterator[Upload]:
    """Take a body apart; files of a form are gone at exit. What `is_audio` not is only unpacked.

    Raises BadMessage, InvalidOption and UnsupportedAudio.
    """
    async with AsyncExitStack() as stack:
        if media_type(request) == "multipart/form-data":
            form = await stack.enter_async_context(_form(request, incoming, limit))
            fields = _form_fields(form)
            for file in (file for name in FILE_FIELDS for file in form.getlist(name)):
                if isinstance(file, UploadFile):
                    declared = format_of_content_type(file.content_type) if is_audio else None
                    yield Upload(fields, _file_chunks(file), declared)
                    return
        elif media_type(request) == "application/json" and is_audio:
            fields = _json_fields(b"".join([chunk async for chunk in incoming.chunks()]))
        else:
            content_type = request.headers.get("Content-Type")
            declared = format_of_content_type(content_type) if is_audio else None
            yield Upload({}, incoming.chunks(), declared)
            return
        audio, declared = _encoded_audio(fields)
        yield Upload(fields, _slices(audio), declared)


@asynccontextmanager
async def _form(request: Request, incoming: Incoming, limit: int) -> AsyncIterator[FormData]:
    expected = "multipart/form-data with the audio as file named audio or file"
    parsing = Request(request.scope, incoming.receive).form(
        max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=limit
    )
    async with AsyncExitStack() as stack:
        try:
            form = await stack.enter_async_context(parsing)
        except HTTPException as error:
            raise BadMessage(f"a form that cannot be read ({error.detail})", expected) from error
        yield form


def _form_fields(form: FormData) -> Fields:
    """Text parts; those that come more than once, or are named so, as lists."""
    fields: dict[str, Any] = {}
    for name in form:
        texts = [value for value in form.getlist(name) if isinstance(value, str)]
        if name.endswith("[]"):
            fields[name.removesuffix("[]")] = texts
        elif texts:
            fields[name] = texts[0] if len(texts) == 1 else texts
    return fields


def _json_fields(body: bytes) -> Fields:
    """Options may also come in an object of their own, as in control messages."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        found = body[:80].decode("utf-8", "replace")
        raise BadMessage(repr(found), 'a JSON object such as {"audio": "<base64>"}')
    options = document.get("options")
    return {**options, **document} if isinstance(options, dict) else document


def _encoded_audio(fields: Fields) -> tuple[bytes, AudioFormat | None]:
    """Base64, or a `data:` URL, whose type counts. Raises BadMessage, InvalidOption and
    UnsupportedAudio."""
    name = next((name for name in AUDIO_FIELDS if fields.get(name) is not None), None)
    if name is None:
        raise BadMessage(
            f"without audio, it has {', '.join(sorted(fields)) or 'nothing'}",
            "a file named audio or file, or base64 in audio",
        )
    value = fields[name]
    wrong = InvalidOption(name, str(value)[:40], "base64, or a data: URL with base64")
    if not isinstance(value, str):
        raise wrong
    declared = None
    text = value.strip()
    if text[:5].lower() == "data:":
        head, _, text = text[5:].partition(",")
        if not head.lower().endswith(";base64"):
            raise wrong
        declared = format_of_content_type(head[: -len(";base64")])
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True), declared
    except ValueError:
        raise wrong from None


async def _file_chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]


# What goes out


@dataclass(frozen=True, slots=True)
class Reply:
    """How the caller wants the transcript; streamed: as it becomes final."""

    content_type: str
    writer: Writer
    streamed: bool = False


class Dialect(ABC):
    """What one family of callers asks with and looks for (pure)."""

    takes_nothing: ClassVar[bool]
    """Whether a request without a body is answered as one of silence."""

    @abstractmethod
    def reply(self, fields: Fields, accept: str | None, *, words: bool) -> Reply:
        """Raises InvalidOption."""

    @abstractmethod
    def problem(self, error: ServiceError) -> dict[str, Any]:
        """The document that tells of an error."""


class Plain(Dialect):
    """Ours: the formats of the live door, JSON where none is named."""

    takes_nothing = True

    def reply(self, fields: Fields, accept: str | None, *, words: bool) -> Reply:
        streamed = _flag(fields, "stream")
        named = _choice(fields, ("response_format", "format"), [*Format, "verbose_json"])
        if streamed:
            chosen = Format.SSE
        elif named is not None:
            chosen = Format.JSON if named == "verbose_json" else Format(named)
        else:
            chosen = choose_format(None, f"{accept or ''},application/json;q=0.001")
            if chosen is Format.SSE and streamed is False:
                chosen = Format.JSON
        writer = WRITERS[chosen](words=words)
        return Reply(CONTENT_TYPES[chosen], writer, chosen is Format.SSE)

    def problem(self, error: ServiceError) -> dict[str, Any]:
        return error_document(error.code, str(error))


class Pipeline(Dialect):
    """Livepeer's pipeline audio-to-text (go-livepeer, ai/worker)."""

    takes_nothing = False

    def reply(self, fields: Fields, accept: str | None, *, words: bool) -> Reply:
        # An empty value asks for none, as with ai-runner.
        given = fields.get("return_timestamps", "true")
        value = str(given).lower()
        if value not in ("", "true", "false", "word", "sentence"):
            raise InvalidOption("return_timestamps", value, "true, false, word or sentence")
        return Reply(CONTENT_TYPES[Format.JSON], ChunksWriter(value))

    def problem(self, error: ServiceError) -> dict[str, Any]:
        return {"detail": {"msg": str(error)}}


class ChunksWriter(JsonWriter):
    """chunks: `word`, a chunk a word; `true` or `sentence`, one an utterance; else none."""

    def __init__(self, chunks: str) -> None:
        super().__init__(words=True)
        self._chunks = chunks

    def _document(self, end: End) -> dict[str, Any]:
        ours = super()._document(end)
        match self._chunks:
            case "word":
                spoken = [
                    (it, it["word"]) for segment in ours["segments"] for it in segment["words"]
                ]
            case "true" | "sentence":
                spoken = [(it, it["text"]) for it in ours["segments"]]
            case _:
                spoken = []
        chunks = [{"timestamp": [it["start"], it["end"]], "text": text} for it, text in spoken]
        return {"text": ours["text"], "chunks": chunks}


class OpenAi(Dialect):
    """OpenAI's transcriptions, as its clients read them."""

    takes_nothing = False
    _FORMATS: ClassVar = {"text": Format.TEXT, "srt": Format.SRT, "vtt": Format.VTT}

    def reply(self, fields: Fields, accept: str | None, *, words: bool) -> Reply:
        known = ("json", "verbose_json", *self._FORMATS)
        named = _choice(fields, ("response_format",), known) or "json"
        details = _choices(fields, "timestamp_granularities", ("word", "segment")) or ["segment"]
        if _flag(fields, "stream"):
            return Reply(CONTENT_TYPES[Format.SSE], DeltaWriter(), streamed=True)
        if named in self._FORMATS:
            chosen = self._FORMATS[named]
            return Reply(CONTENT_TYPES[chosen], WRITERS[chosen]())
        if named == "json":
            details = []
        task = str(fields.get("task") or "transcribe")
        return Reply(CONTENT_TYPES[Format.JSON], OpenAiWriter(task, details))

    def problem(self, error: ServiceError) -> dict[str, Any]:
        kind = "invalid_request_error" if status_of(error) < 500 else "server_error"
        param = error.name if isinstance(error, InvalidOption) else None
        return openai_problem(error.code, str(error), kind, param)


def openai_problem(
    code: str, message: str, kind: str = "server_error", param: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class OpenAiWriter(JsonWriter):
    """details: `word`, `segment`; the text alone where there are none."""

    def __init__(self, task: str, details: Sequence[str]) -> None:
        super().__init__(words=True)
        self._task = task
        self._details = details

    def _document(self, end: End) -> dict[str, Any]:
        ours = super()._document(end)
        if not self._details:
            return {"text": ours["text"]}
        document = {
            "task": self._task,
            "language": ours["language"],
            "duration": ours["duration"],
            "text": ours["text"],
        }
        if "segment" in self._details:
            segments = [_only(it, "id", "start", "end", "text") for it in ours["segments"]]
            document["segments"] = segments
        if "word" in self._details:
            words = [word for segment in ours["segments"] for word in segment["words"]]
            document["words"] = [_only(word, "word", "start", "end") for word in words]
        return document


def _only(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: document[name] for name in names}


class DeltaWriter(Writer):
    """OpenAI's server-sent events: a delta for every final, then the text and `[DONE]`."""

    def __init__(self) -> None:
        super().__init__()
        self._text = ""
        self._failed = False

    def write(self, event: Event) -> str:
        match event:
            case Final():
                before = ("",) if self._text else ()
                delta = join_words((*before, event.text), event.language)
                self._text += delta
                return self._event({"type": "transcript.text.delta", "delta": delta})
            case Failure():
                self._failed = True
                return self._event(openai_problem(event.code, event.message))
            case End() if self._failed:
                return f"data: {DONE}\n\n"
            case End():
                return self._done() + f"data: {DONE}\n\n"
        return ""

    def keepalive(self) -> str:
        return ": keepalive\n\n"

    def _done(self) -> str:
        done = self._event({"type": "transcript.text.done", "text": self._text})
        if len(done.encode()) < MAX_LINE_BYTES:
            return done
        note = "the text is too long for one line: it is that of the deltas, one behind the other"
        return self._event({"type": "transcript.text.done", "text": "", "note": note})

    @staticmethod
    def _event(document: Mapping[str, Any]) -> str:
        line = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        return "data: " + line.replace(DONE, "\\u005bDONE]") + "\n\n"


def _flag(fields: Fields, name: str) -> bool | None:
    value = _text(fields, name)
    if value is None:
        return None
    if value.lower() in ("true", "1", "false", "0"):
        return value.lower() in ("true", "1")
    raise InvalidOption(name, value, "true or false")


def _choice(fields: Fields, names: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of `names` that is there. Raises InvalidOption when it is not among `known`."""
    for name in names:
        value = _text(fields, name)
        if value is not None:
            if value.lower() not in known:
                raise InvalidOption(name, value, "one of " + ", ".join(known))
            return value.lower()
    return None


def _choices(fields: Fields, name: str, known: Sequence[str]) -> Sequence[str]:
    values = fields.get(name) or []
    found = [values] if isinstance(values, str) else values
    if not isinstance(found, list) or not all(value in known for value in found):
        raise InvalidOption(name, str(values), "a list of " + ", ".join(known))
    return found


def _text(fields: Fields, name: str) -> str | None:
    """None where it is absent or empty."""
    value = fields.get(name)
    return None if value in (None, "") else str(value)


# Between them


class Door:
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
        self._service: Service = request.app.state.service
        settings = self._service.settings
        self._limit = settings.worker.max_upload_bytes
        self._idle_seconds = settings.jobs.idle_seconds
        self._incoming = Incoming(request.receive, self._limit, self._idle_seconds)
        self._tasks: list[asyncio.Task[None]] = []
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
                document = self._dialect.problem(error)
                await self._respond(JSONResponse(document, status_of(error), error_headers(error)))

    async def _run(self) -> None:
        """Raises ServiceError."""
        check_token(self._request)
        self._check_model()
        check_encoding(self._request)
        check_length(self._request, self._limit)
        failure: ServiceError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                self._start(group, self._incoming.watch())
                await self._answer(group)
                for task in self._tasks:
                    task.cancel()
        except* _Vanished:
            pass  # nobody is left to be told
        except* ServiceError as errors:
            failure = first_of(errors)
        if failure is not None:  # Python before 3.11.4 would wrap what an except* block raises
            raise failure

    def _start(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(group.create_task(work))

    def _check_model(self) -> None:
        """The name may be longer than ours, as Hugging Face's are. What a body names is not looked
        at: clients have to name something. Raises UnknownModel and NotReady."""
        asked = self._request.headers.get(MODEL_HEADER)
        served = self._service.jobs.kind.model_names
        if asked in (None, OPENAI_MODEL) or any(name in str(asked) for name in served):
            return
        raise UnknownModel(str(asked), served)

    async def _answer(self, group: asyncio.TaskGroup) -> None:
        jobs = self._service.jobs
        query = dict(self._request.query_params)
        options = _changed(jobs.kind.options(), query)
        if not await self._incoming.begins():
            await self._answer_nothing(options, query)
            return
        async with self._job(options) as job:
            self._start(group, self._keep(job))
            is_audio = isinstance(options, JobOptions)
            upload = open_upload(self._request, self._incoming, self._limit, is_audio=is_audio)
            async with upload as parts:
                if values := _given(options, parts.fields):
                    jobs.change(job, values)
                reply = self._reply({**query, **parts.fields}, job.options)
                self._start(group, _feed(job, parts))
                if reply.streamed:
                    await self._stream(job, reply)
                else:
                    await self._whole(job, reply)

    async def _answer_nothing(self, options: Options, query: Fields) -> None:
        """An empty body is a keepalive: it takes no place among the jobs."""
        self._service.jobs.kind.check(options)
        reply = self._reply(query, options)
        if isinstance(options, JobOptions) and not self._dialect.takes_nothing:
            raise BadMessage("empty", "a file named audio or file, or base64 in audio")
        body = reply.writer.begin()
        end = reply.writer.write(End(0, 0.0, EndReason.EOF))
        await self._respond(Response(_bytes(body) + _bytes(end), headers=self._headers(reply)))

    @asynccontextmanager
    async def _job(self, options: Options) -> AsyncIterator[Job]:
        jobs = self._service.jobs
        job = jobs.open(f"batch-{secrets.token_hex(8)}", options)
        try:
            await asyncio.sleep(
                0
            )  # a task that is cancelled before its first step cleans nothing up
            yield job
        finally:
            await jobs.discard(job.job_id)

    async def _keep(self, job: Job) -> None:
        """The idle limit is for jobs whose sender may have gone: here the connection tells."""
        while True:
            job.keep_alive()
            await asyncio.sleep(self._idle_seconds / 4)

    def _reply(self, fields: Fields, options: Options) -> Reply:
        if isinstance(options, JobOptions):
            accept = self._request.headers.get("Accept")
            return self._dialect.reply(fields, accept, words=options.words)
        return Reply(_OCTETS, PayloadWriter())

    async def _whole(self, job: Job, reply: Reply) -> None:
        body = bytearray(_bytes(reply.writer.begin()))
        async for event in job.log.read():
            assert event is not None, "read without an idle time"
            _check(job, event)
            body += _bytes(reply.writer.write(event))
        headers = self._headers(reply, job, whole=True)
        await self._respond(Response(bytes(body), headers=headers))

    async def _stream(self, job: Job, reply: Reply) -> None:
        """The first event, or a while without one, begins the answer: until then what goes wrong
        still has a status."""
        idle_seconds = self._service.settings.jobs.keepalive_seconds
        async for event in job.log.read(idle_seconds=idle_seconds):
            if self._begun is None:
                if event is not None:
                    _check(job, event)
                await self._begin(job, reply)
            text = reply.writer.keepalive() if event is None else reply.writer.write(event)
            self._next_seq = self._next_seq if event is None else event.seq + 1
            if isinstance(event, End):
                await self._finish(_bytes(text))
            elif text:
                await self._write(_bytes(text))

    async def _begin(self, job: Job, reply: Reply) -> None:
        self._begun = reply.writer
        headers = Headers({**self._headers(reply, job), "X-Accel-Buffering": "no"}).raw
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(_bytes(reply.writer.begin()))

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
        self, reply: Reply, job: Job | None = None, *, whole: bool = False
    ) -> dict[str, str]:
        """whole: when the job has ended, so that its account is known."""
        model = model_header(self._service, job)
        metadata: dict[str, Any] = {"model": model[MODEL_HEADER]}
        if whole and job is not None and job.audio_seconds:
            decoding = job.counters().get("decode_seconds", 0.0)
            metadata["duration"] = round(job.audio_seconds, 3)
            metadata["rtf"] = round(decoding / job.audio_seconds, 4)
        return {
            "Content-Type": reply.content_type,
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
        raise Draining(_RETRY_AFTER_SECONDS)  # the end of its body was not waited for


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


plain, pipeline, openai = Door(Plain()), Door(Pipeline()), Door(OpenAi())

routes = [
    *(Route(path, plain, methods=["POST"]) for path in ("/", "/transcribe", "/run", "/process")),
    Route("/audio-to-text", pipeline, methods=["POST"]),
    Route("/v1/audio/transcriptions", openai, methods=["POST"]),
    CapabilityRoute("/{name:path}", plain, methods=["POST"]),
]
