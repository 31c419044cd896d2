"""Clients: audio in and events out, or one payload in and one out. The scripts use them, and so may
anyone."""

import asyncio
import io
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from whisper_byoc.errors import ServiceError, bare_errors
from whisper_byoc.transcript import Format

_CONNECT_SECONDS = 10.0


class ClientError(ServiceError):
    """The server answered with an error, or could not be reached, or broke off."""

    code = "client_error"
    text = "{message} (HTTP {status})"

    message: str
    status: int | None = None

    def __str__(self) -> str:
        return self.message if self.status is None else super().__str__()


class _Client:
    """What both clients are: one pool of connections to one server while the async context manager
    is entered. There are no total time-outs: a stream may last for days."""

    def __init__(self, url: str = "http://127.0.0.1:8000") -> None:
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS)
        # A stream holds two connections while it lasts; aiohttp's limit of 100 lets others wait.
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *exception: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, **arguments: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request whose failures, also while its answer is read, are ClientError."""
        if self._session is None:
            raise ClientError("the client is not open, expected it in an `async with`")
        try:
            async with self._session.request(method, self._url + path, **arguments) as response:
                if response.status >= 400:
                    raise await _error_of(response)
                yield response
        except aiohttp.ClientError as error:
            problem = str(error) or type(error).__name__
            raise ClientError(f"{method} {self._url}{path}: {problem}") from error


class ProcessorClient(_Client):
    """One payload in, one out: the call that Livepeer's BYOC tutorial makes.

    url: of a server, or of a gateway with its path as `path`. model_id: refused with 404 where
    another one is served. As an async context manager it keeps its connection between calls.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        path: str = "/process",
        model_id: str | None = None,
    ) -> None:
        super().__init__(url)
        self._path, self._model_id = path, model_id

    async def process_frame(self, data: bytes) -> bytes:
        """What the server makes of one payload: a frame of a processor, UTF-8 text of Whisper;
        nothing of nothing. Raises ClientError."""
        if self._session is None:  # not this client's own, since calls may go on side by side
            async with ProcessorClient(self._url, self._path, self._model_id) as client:
                return await client.process_frame(data)
        headers = {"Content-Type": "application/octet-stream", "Accept": "text/plain"}
        if self._model_id is not None:
            headers["X-Model-Id"] = self._model_id
        body = io.BytesIO(data)  # aiohttp warns of large bytes as they are
        async with self._request("POST", self._path, data=body, headers=headers) as response:
            return await response.read()


TrickleClient = ProcessorClient
"""Its name in Livepeer's BYOC tutorial, though it speaks no trickle."""


class LiveClient(_Client):
    """Audio of live jobs in, their output back; use it as an async context manager."""

    async def transcribe(
        self,
        job_id: str,
        audio: AsyncIterator[bytes],
        receive: Callable[[str], None],
        *,
        output: Format = Format.NDJSON,
        content_type: str | None = None,
        **options: str,
    ) -> dict[str, Any]:
        """Send audio and pass the output to `receive` as it comes; returns the source's answer.

        audio: pieces of any size. content_type: of the audio; None lets the server look at its
        first bytes. options: query parameters of the source, such as `language`.
        Raises ClientError.
        """
        async with bare_errors(), asyncio.TaskGroup() as group:
            sending = group.create_task(self.send(job_id, audio, content_type, **options))
            group.create_task(self._receive(job_id, output, receive))
        return sending.result()

    async def send(
        self,
        job_id: str,
        audio: AsyncIterator[bytes],
        content_type: str | None = None,
        **options: str,
    ) -> dict[str, Any]:
        """PUT one body; returns the server's answer. Raises ClientError, on an empty body too."""
        headers = {"Content-Type": content_type or "application/octet-stream"}
        path = f"/live/{quote(job_id, safe='')}/source"
        async with self._request(
            "PUT", path, data=audio, headers=headers, params=options
        ) as response:
            answer: dict[str, Any] = await response.json()
        if answer["bytes"] == 0:
            raise ClientError("the audio has 0 bytes, expected some")
        return answer

    async def output(self, job_id: str, output: Format = Format.NDJSON) -> AsyncIterator[str]:
        """Yield the output of a job to its end, as it comes. Raises ClientError."""
        path = f"/live/{quote(job_id, safe='')}/output"
        decoder = getincrementaldecoder("utf-8")()
        async with self._request("GET", path, params={"format": output.value}) as response:
            async for piece in response.content.iter_any():
                yield decoder.decode(piece)

    async def is_ready(self) -> bool:
        """Whether the service answers that it takes jobs; False also when nothing answers."""
        try:
            async with self._request("GET", "/ready"):
                return True
        except ClientError:
            return False

    async def delete(self, job_id: str) -> dict[str, Any]:
        """Stop a running job after a flush, or forget an ended one. Raises ClientError."""
        async with self._request("DELETE", f"/live/{quote(job_id, safe='')}") as response:
            answer: dict[str, Any] = await response.json()
        return answer

    async def _receive(self, job_id: str, output: Format, receive: Callable[[str], None]) -> None:
        async for text in self.output(job_id, output):
            receive(text)


async def _error_of(response: aiohttp.ClientResponse) -> ClientError:
    try:
        message = (await response.json(content_type=None))["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.reason}"
    return ClientError(str(message), response.status)
