"""Audio on its way to the service, and the frames of a WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import aiohttp

from whisper_byoc.client.connection import ClientError
from whisper_byoc.errors import ServiceError
from whisper_byoc.transcript import End, Event, Failure, event_of

NO_AUDIO = "the audio has 0 bytes, expected some"
_FRAME_BYTES = 65536


class Audio:
    """The audio of one stream on its way. One task reads `pieces`; another may `cut` them off."""

    def __init__(self, audio: AsyncIterator[bytes]) -> None:
        self.failure: ServiceError | None = None
        """Why the audio broke off: an HTTP library tells it in words of its own."""
        self._audio = audio
        self._num_bytes = 0
        self._whole = False
        self._cut = False
        self._waiting: asyncio.Timeout | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises a ServiceError of the audio as it is, and ClientError for others."""
        while not self._cut:
            try:
                async with asyncio.timeout(None) as self._waiting:
                    piece = await anext(self._audio, None)
            except Exception as error:  # it is the caller's, and may raise anything
                if self._cut:
                    return
                broken = ClientError(f"the audio broke off: {error}")
                self.failure = error if isinstance(error, ServiceError) else broken
                raise self.failure from error
            finally:
                self._waiting = None
            if piece is None:
                self._whole = True
                return
            self._num_bytes += len(piece)
            if piece:
                yield piece

    def cut(self) -> None:
        """No more of it is wanted."""
        self._cut = True
        if self._waiting is not None:
            self._waiting.reschedule(0.0)

    def check(self, ended: str) -> None:
        """Raises ClientError unless there was some, and all of it was read. ended: how the job
        has."""
        if not self._whole:
            raise ClientError(
                f"the job took a part of its audio ({ended}), expected it to take all"
            )
        if self._num_bytes == 0:
            raise ClientError(NO_AUDIO)


async def speak(websocket: aiohttp.ClientWebSocketResponse, audio: Audio) -> None:
    """Send the audio and say that it has ended. What goes wrong with the connection is told to the
    one who listens."""
    async for piece in audio.pieces():
        for start in range(0, len(piece), _FRAME_BYTES):
            try:
                await websocket.send_bytes(piece[start : start + _FRAME_BYTES])
            except (aiohttp.ClientError, ConnectionError):
                return
    with suppress(aiohttp.ClientError, ConnectionError):
        await websocket.send_str("eos")


async def listen(websocket: aiohttp.ClientWebSocketResponse, take: Callable[[Event], None]) -> End:
    """Hand the events over until the connection closes; the last of them. Raises ClientError."""
    end: End | None = None
    failure: Failure | None = None
    while (message := await websocket.receive()).type is aiohttp.WSMsgType.TEXT:
        match event := _event_in(message.data):
            case End():
                end = event
            case Failure():
                failure = event
        take(event)
    if failure is not None:
        raise ClientError(failure.message)
    if message.type is aiohttp.WSMsgType.BINARY:
        raise ClientError("WebSocket /transcribe answered bytes, expected events as JSON")
    closed = message.type is aiohttp.WSMsgType.CLOSE
    code, reason = (message.data, message.extra) if closed else (1006, "without a close frame")
    if code != aiohttp.WSCloseCode.OK or end is None:
        raise ClientError(
            f"WebSocket /transcribe was closed with {code} ({reason or 'no reason'}),"
            " expected the end event and 1000"
        )
    return end


def _event_in(text: str) -> Event:
    try:
        document = json.loads(text)
        if document["type"] == "refused":
            raise ClientError(str(document["message"]))
        return event_of(document)
    except (KeyError, TypeError, ValueError) as error:
        raise ClientError(
            f"WebSocket /transcribe answered {text[:80]!r}, expected an event"
        ) from error
