"""The samples of one request body, while it arrives.

NATIVE audio is decoded here, all other audio by an ffmpeg process. Nothing is written to a file,
and no process is left behind.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import numpy as np

from whisper_byoc.audio.body import BodyReader
from whisper_byoc.audio.ffmpeg import BLOCK_BYTES, Decoder, probe
from whisper_byoc.audio.formats import (
    ACCEPTED,
    NATIVE,
    SAMPLE_RATE,
    AudioFormat,
    Declared,
    Gap,
    Samples,
    WholeFile,
)
from whisper_byoc.audio.level import Leveller
from whisper_byoc.audio.pcm import RawStream, to_samples
from whisper_byoc.audio.spool import Spool
from whisper_byoc.errors import ServiceError, UnsupportedAudio


class _NativeRoute:
    """A queue of NATIVE audio, whole frames, from the task that sends to the one that iterates.

    It holds up to two blocks of a second; then the sender waits, since audio must not be dropped.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._ended = self._closed = False

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), BLOCK_BYTES):
            while len(self._waiting) >= BLOCK_BYTES and not self._closed:
                self._writable.clear()
                await self._writable.wait()
            if self._closed:
                return
            self._waiting += data[start : start + BLOCK_BYTES]
            self._readable.set()

    async def send_eof(self) -> None:
        self._ended = True
        self._readable.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Samples:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._readable.clear()
            await self._readable.wait()
        frames = bytes(self._waiting[:BLOCK_BYTES])
        del self._waiting[:BLOCK_BYTES]
        self._writable.set()
        return to_samples(frames)

    async def close(self) -> None:
        self._ended = self._closed = True
        self._waiting.clear()
        self._readable.set()
        self._writable.set()


class AudioSource:
    """The samples of one request body: `send` and `send_eof` in one task, iteration in another.

    Owned by `open_source`. All failures come out of the iteration, so that there is one place to
    answer them; after a failure, what is sent is dropped. Cancelling a `send` loses its bytes, so
    the body cannot go on; cancelling the iteration loses nothing.
    """

    def __init__(
        self, declared: Declared | None, stream: RawStream | None, ffmpeg_path: str | None
    ) -> None:
        self._declared = declared
        self._reader = BodyReader(declared, stream)
        self._spool: Spool | None = None
        """What has come of a file that has to be whole before it can be decoded."""
        self._found: AudioFormat | None = None
        """What a file turned out to be."""
        self._ffmpeg_path = ffmpeg_path
        self._route: _NativeRoute | Decoder | None = None
        self._decided = asyncio.Event()  # there is a route, or there will be none
        self._error: ServiceError | None = None
        self._closed = False
        self._num_missing = 0
        """Samples of the gap that iteration has come to."""
        self._leveller = Leveller() if isinstance(declared, WholeFile) else None
        """None for what may be live: it makes samples wait for seconds."""
        self._pieces: deque[Samples | Gap] = deque()

    @property
    def format(self) -> AudioFormat | None:
        """What the body is; None while too little of it is there, and for an empty one."""
        return self._reader.format or self._found

    async def send(self, data: bytes) -> None:
        """Pass on some bytes of the body; waits while those sent before are still to be decoded."""
        if self._over:
            return
        try:
            await self._pass_on(self._reader.receive_bytes(data))
        except ServiceError as error:
            self._fail(error)

    async def send_eof(self) -> None:
        """The body is complete: iteration ends behind the samples of what was sent."""
        if self._over:
            return
        try:
            await self._pass_on(self._reader.receive_eof())
            if self._spool is not None:
                await self._start_on(self._spool)
            if self._route is not None:
                await self._route.send_eof()
            self._decided.set()  # for an empty body, which has no route
        except ServiceError as error:
            self._fail(error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Samples:
        """A block of at most a second, float32 (n,), with silence for what is missing. Raises what
        `next_piece` raises."""
        if not self._num_missing:
            piece = await self.next_piece()
            if piece is None:
                raise StopAsyncIteration
            if not isinstance(piece, Gap):
                return piece
            self._num_missing = piece.num_samples
        block = np.zeros(min(self._num_missing, SAMPLE_RATE), np.float32)
        self._num_missing -= len(block)
        return block

    async def next_piece(self) -> Samples | Gap | None:
        """A block of at most a second, float32 (n,), or what is missing before the next; None at
        the end.

        Raises UnsupportedAudio, or ConfigurationError where ffmpeg cannot be run.
        """
        while not self._pieces:
            piece = await self._next_decoded()
            if self._leveller is None:
                return piece
            if isinstance(piece, np.ndarray):
                samples = self._leveller.receive_samples(piece)
            else:
                samples = self._leveller.receive_end()
            for start in range(0, len(samples), SAMPLE_RATE):
                self._pieces.append(samples[start : start + SAMPLE_RATE])
            if isinstance(piece, Gap):
                self._pieces.append(piece)
            elif piece is None and not self._pieces:
                return None
        return self._pieces.popleft()

    async def _next_decoded(self) -> Samples | Gap | None:
        await self._decided.wait()
        if self._error is not None:
            raise self._error
        return None if self._route is None else await anext(self._route, None)

    async def close(self) -> None:
        """Wakes whoever still sends or iterates, and kills ffmpeg."""
        self._closed = True
        self._decided.set()
        if self._spool is not None:
            self._spool.close()
        if self._route is not None:
            await self._route.close()

    @property
    def _over(self) -> bool:
        return self._decided.is_set() and (self._route is None or self._closed)

    def _fail(self, error: ServiceError) -> None:
        # There is no route yet: a body is refused by its first bytes, or when ffmpeg cannot start.
        self._error = error
        self._decided.set()

    async def _start_on(self, spool: Spool) -> None:
        """Decode a file that is whole. Raises UnsupportedAudio and ConfigurationError."""
        try:
            found = self._reader.format or await probe(spool.fd, self._ffmpeg_path)
            self._found = found or self._as_raw(spool)
            if not self._closed:
                self._route = await Decoder.start(self._found, self._ffmpeg_path, spool.fd)
                if self._closed:  # by its owner, while ffmpeg was starting
                    await self._route.close()
        finally:
            spool.close()
        self._decided.set()

    def _as_raw(self, spool: Spool) -> AudioFormat:
        """What no program knows may be raw audio. Raises UnsupportedAudio."""
        file = self._declared
        assert isinstance(file, WholeFile), "others are not spooled"
        if file.takes_raw and spool.looks_like_sound():
            return NATIVE
        label = f"labelled {file.label!r} and " if file.label else ""
        raise UnsupportedAudio(
            f"{label}{spool.num_bytes} bytes of no kind that ffmpeg knows", ACCEPTED
        )

    async def _pass_on(self, payload: bytes) -> None:
        if self._reader.spooled:
            self._spool = self._spool or Spool()
            self._spool.write(payload)
            return
        payload_format = self._reader.payload_format
        if payload_format is None:
            return
        if self._route is None:
            if payload_format == NATIVE:
                self._route = _NativeRoute()
            else:
                self._route = await Decoder.start(payload_format, self._ffmpeg_path)
            self._decided.set()
            if self._closed:  # by its owner, while ffmpeg was starting
                await self._route.close()
        await self._route.send(payload)


@asynccontextmanager
async def open_source(
    declared: Declared | None = None,
    stream: RawStream | None = None,
    *,
    ffmpeg_path: str | None = None,
) -> AsyncIterator[AudioSource]:
    """One request body of the format `declared`, or to be found out. At exit ffmpeg is gone, and
    so is what was kept of a file that had to be whole.

    stream: what this body shares with those before it, where it may continue their raw audio.
    """
    source = AudioSource(declared, stream, ffmpeg_path)
    try:
        yield source
    finally:
        await source.close()
