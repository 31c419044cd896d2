"""Door 4: one WebSocket takes audio and gives the transcript back, while both go on."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from whisper_byoc import errors
from whisper_byoc.audio.formats import NATIVE, AudioFormat
from whisper_byoc.audio.sniffing import SNIFF_BYTES, sniff
from whisper_byoc.doors.errors import closing
from whisper_byoc.doors.requests import check_model, job_key, open_job, service_of
from whisper_byoc.jobs import control
from whisper_byoc.jobs.control import Control
from whisper_byoc.jobs.job import Job, JobState
from whisper_byoc.jobs.options import JobOptions
from whisper_byoc.service import Service
from whisper_byoc.transcript import EndReason, Event, Final, Payload, event_document

EOS = "eos"
"""End of stream, in the words of Live Runner's speech apps."""
_GONE = (WebSocketDisconnect, RuntimeError)
"""What sending raises when the client has closed the connection, and (RuntimeError, by Starlette)
when we have."""


async def transcribe(websocket: WebSocket) -> None:
    """Refusals come after the handshake, since browsers show no status of a failed one."""
    service = service_of(websocket)
    await websocket.accept()
    call = Call(websocket, service)
    try:
        call.open()
    except errors.ServiceError as error:
        await call.close(error)
        return
    async with asyncio.TaskGroup() as group:
        group.create_task(call.listen())
        await call.tell()


class Call:
    """One WebSocket and its job. `listen` and `tell` are driven by the server's task for it, side
    by side; cancelling them leaves the job to its idle limit.

    No more frames are read while the job has no room, so that the sender waits.
    """

    def __init__(self, websocket: WebSocket, service: Service) -> None:
        self._websocket = websocket
        self._service = service
        self._job: Job
        self._format: AudioFormat | None = None
        self._head = b""
        """The first bytes, which tell raw audio from formats with a header."""
        self._reason: EndReason | None = None
        """Why no more audio will come."""

    def open(self) -> None:
        """Begin the job that the query names, or go on with it. Raises ServiceError."""
        check_model(self._websocket)
        job_id = self._websocket.query_params.get("job") or f"socket-{secrets.token_hex(8)}"
        self._job = open_job(self._websocket, job_key(self._websocket, job_id))

    async def listen(self) -> None:
        """Take frames until there are no more; returns when all that was heard is final."""
        job = self._job
        try:
            if isinstance(job.options, JobOptions):
                await self._take_audio(job)
            else:
                await self._take_inputs(job)
        except errors.SourceBusy as error:  # another door was first: the job is not ours to end
            await self.close(error)
            return
        except errors.ServiceError:
            pass  # the job has ended, and its events say why
        await job.stop(self._reason or EndReason.STOPPED)

    async def tell(self) -> None:
        """Send the job's events, then close. A client that has gone is not told."""
        try:
            async for event in self._job.log.read():
                assert event is not None, "read without an idle time"
                if isinstance(event, Payload):
                    await self._websocket.send_bytes(event.data)
                else:
                    await self._send(self._document(event))
        except _GONE:
            return
        except errors.SlowReader as error:
            self._service.metrics.slow_readers.inc()
            await self.close(error)
        else:
            await self.close(self._job.failure)

    async def close(self, error: errors.ServiceError | None) -> None:
        with suppress(*_GONE):
            await self._websocket.close(*closing(error))

    async def _take_audio(self, job: Job) -> None:
        """Hand the frames to the job as one body, or as several where `_obey` ends one of them."""
        while self._reason is None and job.state is JobState.RECEIVING:
            await job.receive_body(self._audio(), self._format, final=False)
            if self._reason is None:
                await job.finalize()

    async def _audio(self) -> AsyncIterator[bytes]:
        while (data := await self._frame()) is not None:
            if len(self._head) < SNIFF_BYTES:
                self._head += data[:SNIFF_BYTES]
            yield data

    async def _take_inputs(self, job: Job) -> None:
        """Hand every frame to a hosted processor as one input."""
        while job.state is JobState.RECEIVING and (data := await self._frame()) is not None:
            try:
                await job.receive_body(_only(data), None, final=False)
            except errors.ProcessorError as error:  # of this input alone
                await self._refuse(error)

    async def _frame(self) -> bytes | None:
        """The next frame that is not empty; None where the client leaves, or a control message
        ends the body."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                self._reason = EndReason.DISCONNECTED
                return None
            data: bytes | None = message.get("bytes")
            if data:
                return data
            if data is None and await self._obey(message.get("text") or ""):
                return None

    async def _obey(self, text: str) -> bool:
        """Do what a text frame asks. True where it ends the body that is on its way to the job. A
        message that cannot be obeyed is refused, and the stream goes on."""
        try:
            kind, values = _read(text)
            match kind:
                case None:
                    self._reason = EndReason.EOF
                case Control.CLOSE:
                    self._reason = EndReason.STOPPED
                case Control.START | Control.OPTIONS:
                    self._service.jobs.change(self._job, values)
                case Control.KEEPALIVE:
                    self._job.keep_alive()
                case Control.FINALIZE if self._is_raw:
                    # Raw audio has no header, so it can go on in another body; and when a body has
                    # ended, none of its audio is on its way to the transcriber any more.
                    self._format = NATIVE
                    return True
                case Control.FINALIZE:
                    await self._job.finalize()
        except errors.ServiceError as error:
            await self._refuse(error)
        return self._reason is not None

    async def _refuse(self, error: errors.ServiceError) -> None:
        refused = {"type": "refused", "code": error.code, "message": str(error)}
        with suppress(*_GONE):  # whoever reads the next frame learns that the client has gone
            await self._send({**_NO_TEXT, **refused})

    async def _send(self, document: dict[str, Any]) -> None:
        await self._websocket.send_text(json.dumps(document, ensure_ascii=False))

    def _document(self, event: Event) -> dict[str, Any]:
        """The event's own fields, and those that Live Runner's speech apps have in every frame."""
        options = self._job.options
        words = not isinstance(options, JobOptions) or options.words
        document = event_document(event, words=words)
        return {**_NO_TEXT, **document, "final": isinstance(event, Final)}

    @property
    def _is_raw(self) -> bool:
        try:
            return bool(self._head) and sniff(self._head, at_end=True) == NATIVE
        except errors.UnsupportedAudio:
            return False


async def _only(data: bytes) -> AsyncIterator[bytes]:
    yield data


_NO_TEXT: dict[str, Any] = {"text": "", "final": False, "start": None, "end": None}


def _read(text: str) -> tuple[Control | None, dict[str, Any]]:
    """None for the end of the stream. Raises InvalidOption."""
    if len(text) > control.MAX_CONTROL_BYTES:
        raise control.too_long(
            f"{len(text)} characters", f"at most {control.MAX_CONTROL_BYTES} characters"
        )
    if text.strip().lower() == EOS:
        return None, {}
    message = control.parse_control(text.encode())
    return (None, {}) if message.get("type") == EOS else control.read_control(message)


routes = [WebSocketRoute("/transcribe", transcribe)]
