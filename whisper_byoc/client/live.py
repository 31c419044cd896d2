"""Clients of the service: audio in and events out, or one payload in and one out."""

import asyncio
import io
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from whisper_byoc.client.connection import ANSWER_SECONDS, ClientError, Connection, Tls, json_of
from whisper_byoc.client.sending import NO_AUDIO, Audio, listen, speak
from whisper_byoc.errors import bare_errors
from whisper_byoc.transcript import WRITERS, End, Event, Final, Format

_CLOSE_SECONDS = 5.0
"""For a job that has failed to be stopped."""


class ProcessorClient(Connection):
    """One payload in, one out: the call that Livepeer's BYOC tutorial makes.

    url: of a server, of a gateway with its path as `path`, or the `app_url` of a session.
    model_id: refused with 404 where another one is served. As an async context manager it keeps
    its connection between calls.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        path: str = "/process",
        model_id: str | None = None,
        tls: Tls = True,
    ) -> None:
        super().__init__(url, tls)
        self._path, self._model_id = path, model_id

    async def process_frame(self, data: bytes) -> bytes:
        """What the server makes of one payload: a frame of a processor, UTF-8 text of Whisper;
        nothing of nothing. Raises ClientError."""
        if self._session is None:  # not this client's own, since calls may go on side by side
            async with ProcessorClient(self._url, self._path, self._model_id, self._tls) as client:
                return await client.process_frame(data)
        headers = {"Content-Type": "application/octet-stream", "Accept": "text/plain"}
        if self._model_id is not None:
            headers["X-Model-Id"] = self._model_id
        body = io.BytesIO(data)  # aiohttp warns of large bytes as they are
        async with self.request("POST", self._path, data=body, headers=headers) as response:
            return await response.read()


TrickleClient = ProcessorClient
"""Its name in Livepeer's BYOC tutorial, though it speaks no trickle."""


class LiveClient(Connection):
    """Audio of live jobs in, their output back; use it as an async context manager.

    url: of a server, or the `app_url` of a session.
    """

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
        """Start a job, send its audio and pass its output to `receive` as it comes; returns the
        source's answer.

        audio: pieces of any size. content_type: of the audio; None lets the server look at its
        first bytes. options: of the job, such as `language`, as in a query.
        A job that cannot be had is refused before any audio is read, and one that fails is stopped.
        Raises ClientError, and any ServiceError of `audio`.
        """
        await self.start(job_id, **options)
        sent = Audio(audio)
        try:
            async with bare_errors(), asyncio.TaskGroup() as group:
                sending = group.create_task(self.send(job_id, sent.pieces(), content_type))
                async for text in self.output(job_id, output):
                    receive(text)
                # A proxy keeps the answer back until the body ends, where the job failed.
                sent.cut()
                await asyncio.wait({sending}, timeout=ANSWER_SECONDS)
                if not sending.done():
                    raise ClientError(f"job {job_id} has ended, expected an answer to its audio")
        except BaseException as error:
            # So that it holds no place until its idle limit; what was heard can still be read.
            with suppress(ClientError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._control(job_id, type="close")
            if isinstance(error, ClientError) and sent.failure is not None:
                raise sent.failure from error
            raise
        answer = sending.result()
        sent.check(str(answer["state"]))
        return answer

    async def converse(
        self,
        audio: AsyncIterator[bytes],
        receive: Callable[[str], None],
        *,
        output: Format = Format.NDJSON,
        **options: str,
    ) -> End:
        """Send audio through one WebSocket and pass the output to `receive` as it comes, as
        `transcribe` does; returns the last event.

        Of an orchestrator's streaming places it takes one and not two. options: of the job, and
        `job`, an id for it. The server looks at the first bytes of the audio for its type.
        Raises ClientError, and any ServiceError of `audio`.
        """
        writer = WRITERS[output]()
        if output in (Format.VTT, Format.SRT):
            options.pop("words", None)  # cues are made of words
        sent = Audio(audio)

        def take(event: Event) -> None:
            if isinstance(event, Final) and not event.words:
                writer.words = False
            written = writer.write(event)
            assert isinstance(written, str), "only payloads are bytes"
            if written:
                receive(written)

        if begin := writer.begin():
            receive(begin)
        async with self.exchange("WebSocket", "/transcribe") as session, bare_errors():
            async with asyncio.timeout(ANSWER_SECONDS):
                websocket = await session.ws_connect(self._url + "/transcribe", params=options)
            async with websocket, asyncio.TaskGroup() as group:
                speaking = group.create_task(speak(websocket, sent))
                end = await listen(websocket, take)
                speaking.cancel()
        sent.check(end.reason)
        return end

    async def start(self, job_id: str, **options: str) -> dict[str, Any]:
        """Begin a job whose audio follows, and return its state. Raises ClientError: 503 when the
        service is full, 409 when the id is taken, 400 for an option that cannot be used."""
        return await self._control(job_id, type="start", options=options)

    async def send(
        self,
        job_id: str,
        audio: AsyncIterator[bytes],
        content_type: str | None = None,
        **options: str,
    ) -> dict[str, Any]:
        """PUT one body; returns the server's answer. Raises ClientError, on an empty body too.

        Behind an orchestrator a refusal comes only when more of the body was sent: `start` first.
        """
        headers = {"Content-Type": content_type or "application/octet-stream"}
        async with self.request(
            "PUT", _path(job_id, "/source"), data=audio, headers=headers, params=options
        ) as response:
            answer: dict[str, Any] = await json_of(response)
        if answer["bytes"] == 0:
            raise ClientError(NO_AUDIO)
        return answer

    async def output(self, job_id: str, output: Format = Format.NDJSON) -> AsyncIterator[str]:
        """Yield the output of a job to its end, as it comes. Raises ClientError."""
        decoder = getincrementaldecoder("utf-8")()
        query = {"format": output.value}
        async with self.request("GET", _path(job_id, "/output"), params=query) as response:
            async for piece in response.content.iter_any():
                yield decoder.decode(piece)

    async def is_ready(self) -> bool:
        """Whether the service answers that it takes jobs; False also when nothing answers."""
        try:
            async with self.request("GET", "/ready"):
                return True
        except ClientError:
            return False

    async def delete(self, job_id: str) -> dict[str, Any]:
        """Stop a running job after a flush, or forget an ended one. Raises ClientError."""
        async with self.request("DELETE", _path(job_id)) as response:
            answer: dict[str, Any] = await json_of(response)
        return answer

    async def _control(self, job_id: str, **message: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self.ask("POST", _path(job_id, "/control"), json=message)
        return answer


def _path(job_id: str, rest: str = "") -> str:
    return f"/live/{quote(job_id, safe='')}{rest}"
