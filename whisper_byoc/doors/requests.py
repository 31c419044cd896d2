"""What every door does with a request: reading its body, and checking token, model and options.

When a client closes its connection, whatever was reading from it or waiting for it here raises
`Vanished`.
"""

import asyncio
import hmac
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Message

from whisper_byoc import errors
from whisper_byoc.jobs.job import Job, JobKey
from whisper_byoc.jobs.options import Options
from whisper_byoc.orchestrator.runner_sessions import session_id_of
from whisper_byoc.service import Service

MODEL_HEADER = "X-Model-Id"
T = TypeVar("T")


class Vanished(ConnectionError):
    """The client has closed the connection: no one is left to answer."""


async def answer_vanished(request: Request, error: Exception) -> Response:
    """nginx's status for its log; no one is left to read it."""
    return Response(status_code=499)


async def body_chunks(
    request: Request, limit: int | None = None, idle_seconds: float | None = None
) -> AsyncIterator[bytes]:
    """The body's non-empty chunks.

    Raises Vanished, BodyTooLarge behind `limit` bytes, and NoAudio when `idle_seconds` pass
    without a chunk.
    """
    stream, num_bytes = request.stream(), 0
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise errors.NoAudio(idle_seconds or 0.0) from None
        except ClientDisconnect:
            raise Vanished("the client closed the connection within the body") from None
        if chunk is None:
            return
        num_bytes += len(chunk)
        if limit is not None and num_bytes > limit:
            raise errors.BodyTooLarge(num_bytes, limit)
        if chunk:
            yield chunk


async def first_chunk(chunks: AsyncIterator[bytes], idle_seconds: float) -> bytes:
    """The first chunk of a body, empty where the body is. Raises NoAudio when it does not come
    within `idle_seconds`, and Vanished."""
    try:
        async with asyncio.timeout(idle_seconds):
            return await anext(chunks, b"")
    except TimeoutError:
        raise errors.NoAudio(idle_seconds) from None


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises Vanished and BodyTooLarge."""
    return b"".join([chunk async for chunk in body_chunks(request, limit)])


class Incoming:
    """A body that `watch` reads as fast as it arrives, however slowly the job takes it: only who
    reads a connection learns that the client has closed it. At most `limit` bytes wait here, since
    a longer body is refused.

    `watch` fills it in one task; `receive` or `chunks` empty it in another.
    """

    def __init__(self, request: Request, limit: int, idle_seconds: float) -> None:
        self._request = request
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._waiting: deque[bytes] = deque()
        self._complete = False
        self._arrived = asyncio.Event()

    async def watch(self) -> None:
        """Read until cancelled. Raises Vanished, BodyTooLarge, and NoAudio for a body that falls
        silent."""
        async for chunk in body_chunks(self._request, self._limit, self._idle_seconds):
            self._waiting.append(chunk)
            self._arrived.set()
        self._complete = True
        self._arrived.set()
        await _until_vanished(self._request)
        raise Vanished

    async def begins(self) -> bool:
        """Wait for the next chunk; False when the body has ended, or had no byte."""
        while not (self._waiting or self._complete):
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._waiting)

    async def receive(self) -> Message:
        """The next chunk as an ASGI message, for Starlette's parser of forms."""
        if await self.begins():
            return {"type": "http.request", "body": self._waiting.popleft(), "more_body": True}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def chunks(self) -> AsyncIterator[bytes]:
        while await self.begins():
            yield self._waiting.popleft()


async def while_connected(request: Request, waiting: Coroutine[Any, Any, T]) -> T:
    """The result of `waiting`. Raises Vanished when the client closes the connection first. What
    comes of the body meanwhile is thrown away."""

    async def watch(waiter: asyncio.Task[T]) -> None:
        await _until_vanished(request)
        waiter.cancel()

    async with errors.bare_errors(), asyncio.TaskGroup() as group:
        waiter = group.create_task(waiting)
        watching = group.create_task(watch(waiter))
        await asyncio.wait({waiter})
        watching.cancel()
    if waiter.cancelled():
        raise Vanished
    return waiter.result()


async def _until_vanished(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def service_of(connection: HTTPConnection[Any]) -> Service:
    service: Service = connection.app.state.service
    return service


def job_key(connection: HTTPConnection[Any], job_id: str) -> JobKey:
    """The job that a request means: of its own session alone. Raises InvalidJobId."""
    return JobKey(job_id, session_id_of(connection.headers))


def checked(request: Request) -> tuple[Service, JobKey]:
    """The service, and the job that the path names. Raises InvalidJobId, UnknownModel and
    NotReady."""
    service = service_of(request)
    key = job_key(request, request.path_params["job_id"])
    check_model(request)
    return service, key


def check_model(connection: HTTPConnection[Any]) -> None:
    """Raises UnknownModel and NotReady."""
    asked = connection.headers.get(MODEL_HEADER)
    served = service_of(connection).jobs.kind.model_names
    if asked is not None and asked not in served:
        raise errors.UnknownModel(asked, served)


def model_header(service: Service, job: Job | None = None) -> dict[str, str]:
    """The header that names the weights in use: those that the job's language picks, or the default
    ones where there is no job."""
    kind = service.jobs.kind
    return {MODEL_HEADER: kind.model_for(job.options if job else kind.options())}


def check_token(request: Request) -> None:
    """Where a token is configured, callers must bring it. Raises Unauthorized."""
    if not _has_token(request):
        raise errors.Unauthorized()


async def check_token_or_session(request: Request) -> None:
    """As `check_token`, but whoever comes through a session that its orchestrator has told us of
    needs none: orchestrators have no token to send. Raises Unauthorized and InvalidSession."""
    if _has_token(request):
        return
    session_id = session_id_of(request.headers)
    if not (session_id and await service_of(request).runner_sessions.confirmed(session_id)):
        raise errors.Unauthorized()


def _has_token(request: Request) -> bool:
    """Compared in constant time, so that it cannot be found out byte by byte."""
    token = service_of(request).settings.orchestrator.token.get_secret_value()
    scheme, _, found = request.headers.get("Authorization", "").partition(" ")
    right = hmac.compare_digest(found.strip().encode(), token.encode())
    return not token or (right and scheme.lower() == "bearer")


def check_body(request: Request, limit: int) -> None:
    """What the headers say of the body. Raises UnsupportedAudio for one that is compressed, and
    BodyTooLarge."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise errors.UnsupportedAudio(f"sent with Content-Encoding {encoding[:40]!r}", "none")
    length = request.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > limit:
        raise errors.BodyTooLarge(int(length), limit)


def check_place(request: Request) -> None:
    """Whether there is a place for the job that a body would need, before any of it is read: a
    client behind an orchestrator learns of an answer within its body late or never. Raises Draining
    and TooManyJobs."""
    length = request.headers.get("Content-Length", "0")
    if length != "0" or "Transfer-Encoding" in request.headers:
        service_of(request).jobs.free_place()


def options_of(connection: HTTPConnection[Any], job: Job | None) -> Options:
    """The options that the query names, over those of the job. Other names mean nothing here:
    gateways add their own. Raises InvalidOption."""
    query = connection.query_params
    kind = service_of(connection).jobs.kind
    before = job.options if job else kind.options()
    options = before.changed(
        {name: query[name] for name in type(before).model_fields if name in query}
    )
    kind.check(options)
    return options


def open_job(connection: HTTPConnection[Any], key: JobKey) -> Job:
    """The running job of this key with the options that the query names, or a new one.

    Raises InvalidOption, JobEnded, SourceBusy, and for a new one Draining and TooManyJobs.
    """
    jobs = service_of(connection).jobs
    options = options_of(connection, jobs.find(key))
    job = jobs.open(key, options)
    job.check_receives()
    if job.options != options:
        job.change(options)
    return job


def flag(name: str, value: str | None) -> bool | None:
    """A query parameter that is true or false; None where it is absent. Raises InvalidOption."""
    if value is None:
        return None
    if value.lower() in ("true", "1", "false", "0"):
        return value.lower() in ("true", "1")
    raise errors.InvalidOption(name, value, "true or false")
