"""Any audio into 16 kHz mono samples while it arrives, through ffmpeg as a live pipe.

`open_source` takes one request body. `open_decoder` is the ffmpeg part of it alone. Neither writes
a file, and neither leaves a process behind.
"""

import asyncio
import logging
import os
import re
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol, Self

import ffmpeg
import imageio_ffmpeg

from whisper_byoc.audio.body import BodyReader
from whisper_byoc.audio.formats import (
    NATIVE,
    SAMPLE_RATE,
    AudioFormat,
    Container,
    Encoding,
    Pcm,
    Samples,
)
from whisper_byoc.audio.pcm import PcmDecoder
from whisper_byoc.audio.sniffing import begins_anew, sniff
from whisper_byoc.errors import ConfigurationError, ServiceError, UnsupportedAudio

logger = logging.getLogger(__name__)

BLOCK_BYTES: Final = SAMPLE_RATE * NATIVE.frame_bytes
"""One second of NATIVE audio: what may wait between a body and the job that reads it. When it is
there, `send` waits. ffmpeg and the kernel's two pipes hold some seconds more."""

# The audio codecs that are common in the containers we accept. ffmpeg opens decoders for all
# streams of its input to probe them; with this list hostile video never reaches a video decoder.
_CODECS: Final = (
    "aac,aac_latm,ac3,eac3,alac,amrnb,amrwb,libopencore_amrnb,libopencore_amrwb,flac,mp1,mp1float,"
    "mp2,mp2float,mp3,mp3float,opus,libopus,vorbis,libvorbis,speex,libspeex,gsm,gsm_ms,nellymoser,"
    "wmav1,wmav2,truehd,dca,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_swf,"
    "pcm_s8,pcm_s24be,pcm_s32be,pcm_f32be,pcm_f64be,"
) + ",".join(f"pcm_{encoding.demuxer}" for encoding in Encoding)


def find_ffmpeg() -> str:
    """The system's ffmpeg, else the one in imageio-ffmpeg's wheel. Raises ConfigurationError."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ConfigurationError("no ffmpeg was found, expected one on the PATH") from error


def ffmpeg_command(audio_format: AudioFormat, ffmpeg_path: str) -> list[str]:
    """Reads `audio_format` at standard input, writes NATIVE to standard output.

    The input format is forced and only pipes may be opened, so that no playlist, data reference or
    other content makes ffmpeg open a file or an address.
    """
    # Left alone, ffmpeg gathers up to 5 s of input before its first sample. These two have it begin
    # with the first packet (an analyzeduration of 0 would mean the default) and lose nothing, where
    # -fflags nobuffer drops what was probed. Seconds from the first byte to the first samples, left
    # alone and so, then the median delay of what follows; bodies paced at 1x, 2 cores; ffmpeg
    # 9.0.2, and 5.1.9 within 0.3 s of it. What the sender's encoder holds back is included.
    #
    #     raw of another kind           0.1          0.1          0.01
    #     WAV of another kind           3.2 to 4.7   0.1          0.01
    #     MP3 of 64 kbit/s              2.0          0.2          0.07
    #     AAC (ADTS)                    3.3          0.1          0.1
    #     MPEG-TS                       5.1 to 5.3   0.1 to 0.5   0.1 to 0.2
    #     WebM, fragmented MP4          0.1          0.1          0.1
    #     Ogg, pages of 20 ms and 1 s   0.1 to 1.5   0.1 to 1.5   0.05 to 0.7
    #     FLAC, frames of 1152, 4096    0.9, 2.9     0.9, 2.9     0.7, 2.2
    #
    # FLAC stays where it is: ffmpeg's parser wants ten headers to be sure of a frame. WAV gains
    # because ffmpeg's own WAV reader holds back 64 KiB; `WavReader` hands it the audio as raw.
    if isinstance(audio_format, Pcm):
        forced = {
            "f": audio_format.encoding.demuxer,
            "ar": audio_format.rate,
            "ac": audio_format.channels,
        }
    else:
        forced = {"f": audio_format.demuxer}
    source = ffmpeg.input(
        "pipe:0",
        **forced,
        protocol_whitelist="pipe",
        codec_whitelist=_CODECS,
        probesize=32,
        analyzeduration=1,
        threads=1,
        vn=None,
        sn=None,
        dn=None,
    )
    # Where a transport stream's clock leaps ahead by up to 10 s, something was lost: silence takes
    # its place, so that later words keep their times. A clock that leaps further, or back, is
    # another clock (-dts_delta_threshold), and the audio goes on.
    kept = {"af": "aresample=async=1"} if audio_format is Container.MPEG_TS else {}
    # s16le is what openai-whisper has ffmpeg write for its own models.
    sink = source["a:0"].output(
        "pipe:1",
        **kept,
        f=NATIVE.encoding.demuxer,
        ar=NATIVE.rate,
        ac=NATIVE.channels,
        threads=1,
        flush_packets=1,
    )
    flags = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "error")
    return [str(word) for word in sink.global_args(*flags).compile(cmd=ffmpeg_path)]


class _Complaints(asyncio.Protocol):
    """Empties ffmpeg's standard error, which would block it when full, and keeps the end."""

    _KEPT_BYTES = 4_096
    _PREFIX = re.compile(r"^(?:\[[^\]]* @ 0x[0-9a-f]+\] ?)+")

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._tail = b""

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-self._KEPT_BYTES :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()

    @property
    def without_audio(self) -> bool:
        return b"matches no streams" in self._tail

    @property
    def last_line(self) -> str:
        """The last line that one of ffmpeg's parts wrote; its main program adds general ones."""
        lines = [line for line in self._tail.decode("utf-8", "replace").splitlines() if line]
        special = [line for line in lines if self._PREFIX.match(line)]
        line = (special or lines or ["no message"])[-1]
        return self._PREFIX.sub("", line)[:200].strip()


class Decoder:
    """One ffmpeg process: bytes of one format in, samples out.

    Who starts it closes it. One task sends, another iterates. A task that is cancelled in `send`
    may have sent a part; one cancelled while iterating has lost nothing.
    """

    def __init__(
        self, audio_format: AudioFormat, process: Process, complaints: _Complaints
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._format = audio_format
        self._process = process
        self._complaints = complaints
        self._stdin, self._stdout = process.stdin, process.stdout
        # drain() waits until the pipe took everything, not until less than 64 KiB are left.
        self._stdin.transport.set_write_buffer_limits(high=0)
        self._reading = asyncio.Lock()
        self._pcm = PcmDecoder()
        self._num_bytes = self._num_samples = 0
        self._eof_sent = self._closed = False

    @classmethod
    async def start(cls, audio_format: AudioFormat, ffmpeg_path: str | None = None) -> Self:
        """Raises ConfigurationError where ffmpeg cannot be run."""
        command = ffmpeg_command(audio_format, ffmpeg_path or find_ffmpeg())
        complaints = _Complaints()
        try:
            read_end, write_end = os.pipe()
            try:
                await asyncio.get_running_loop().connect_read_pipe(
                    lambda: complaints, os.fdopen(read_end, "rb", 0)
                )
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=write_end,
                    limit=BLOCK_BYTES,
                    # Ctrl-C is for the server: it drains, and still needs ffmpeg for that.
                    start_new_session=True,
                )
            finally:
                os.close(write_end)
        except OSError as error:
            raise ConfigurationError(f"ffmpeg cannot be run: {error}") from error
        return cls(audio_format, process, complaints)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, data: bytes) -> None:
        """Waits while ffmpeg's pipe is full. When ffmpeg has gone the data are dropped: why it
        went is told where the samples are read."""
        self._num_bytes += len(data)
        for start in range(0, len(data), BLOCK_BYTES):
            if self._stdin.is_closing():
                return
            try:
                self._stdin.write(data[start : start + BLOCK_BYTES])
                await self._stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                self._stdin.close()

    async def send_eof(self) -> None:
        """No more will be sent: ffmpeg flushes what it holds, and iteration ends."""
        self._eof_sent = True
        self._stdin.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Samples:
        """A block of at most a second, as soon as there is one. Raises UnsupportedAudio."""
        async with self._reading:
            while not self._closed and (data := await self._stdout.read(BLOCK_BYTES)):
                samples = self._pcm.receive_bytes(data)
                if samples.size:
                    self._num_samples += samples.size
                    return samples
            if not self._closed:
                await self._process.wait()
                await self._complaints.ended.wait()
        if self._closed:
            raise StopAsyncIteration
        self._check_outcome()
        raise StopAsyncIteration

    def _check_outcome(self) -> None:
        """A damaged or cut stream gives what can be decoded; nothing at all is an error, and so is
        an ffmpeg that gives up before its input ends or is killed."""
        code = self._process.returncode or 0
        if self._num_samples and code >= 0 and (code == 0 or self._eof_sent):
            if code:
                logger.debug("ffmpeg on %s: %s", self._format, self._complaints.last_line)
            return
        if not self._num_bytes:
            raise UnsupportedAudio("empty", str(self._format))
        if self._complaints.without_audio:
            raise UnsupportedAudio(f"{self._format} without an audio stream", "one in it")
        problem = f"killed by signal {-code}" if code < 0 else self._complaints.last_line
        raise UnsupportedAudio(
            f"{self._format} that ffmpeg cannot decode ({problem})", "a playable file or stream"
        )

    async def close(self) -> None:
        """Kills ffmpeg and waits until it is gone; a task that still sends or iterates goes on
        with nothing. Cancelling it leaves a process that is dead but may be reaped later."""
        self._closed = True
        if self._process.returncode is None:
            self._process.kill()
        self._stdin.close()
        async with self._reading:
            # The process counts as gone when its pipes are closed, and a full one does not close.
            while await self._stdout.read(BLOCK_BYTES):
                pass
        await self._process.wait()
        await self._complaints.ended.wait()


@asynccontextmanager
async def open_decoder(
    audio_format: AudioFormat, ffmpeg_path: str | None = None
) -> AsyncIterator[Decoder]:
    """Raises ConfigurationError where ffmpeg cannot be run. At exit ffmpeg is gone."""
    decoder = await Decoder.start(audio_format, ffmpeg_path)
    try:
        yield decoder
    finally:
        await decoder.close()


class _Route(Protocol):
    """What stands between the bytes of a body and its samples."""

    async def send(self, data: bytes) -> None: ...
    async def send_eof(self) -> None: ...
    async def __anext__(self) -> Samples: ...
    async def close(self) -> None: ...


class _NativeRoute:
    """NATIVE bytes from the task that sends to the one that iterates.

    It holds up to two blocks; then the sender waits, since audio must not be dropped.
    """

    def __init__(self) -> None:
        self._pcm = PcmDecoder()
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

    async def __anext__(self) -> Samples:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._readable.clear()
            await self._readable.wait()
        data = bytes(self._waiting[:BLOCK_BYTES])
        del self._waiting[:BLOCK_BYTES]
        self._writable.set()
        return self._pcm.receive_bytes(data)

    async def close(self) -> None:
        self._ended = self._closed = True
        self._waiting.clear()
        self._readable.set()
        self._writable.set()


class AudioSource:
    """The samples of one request body: `send` and `send_eof` in one task, iteration in another.

    Owned by `open_source`. NATIVE audio, raw or in a WAV, is decoded here, the rest by ffmpeg. All
    failures come out of the iteration, so that there is one place to answer them; after one, what
    is sent is dropped. Cancelling a `send` loses its bytes, so the body is over then; cancelling
    the iteration loses nothing.
    """

    def __init__(self, declared: AudioFormat | None, carry: bytes, ffmpeg_path: str | None) -> None:
        self._reader = BodyReader(declared, carry)
        self._ffmpeg_path = ffmpeg_path
        self._route: _Route | None = None
        self._decided = asyncio.Event()  # there is a route, or there will be none
        self._error: ServiceError | None = None
        self._closed = False

    @property
    def format(self) -> AudioFormat | None:
        """What the body is; None while too little of it is there, and for an empty one."""
        return self._reader.format

    @property
    def payload_format(self) -> AudioFormat | None:
        """What is decoded: the raw format inside a WAV, else `format`."""
        return self._reader.payload_format

    @property
    def carry(self) -> bytes:
        """After `send_eof`: the unfinished frame of raw audio, for the next body's `carry`."""
        return self._reader.carry

    async def send(self, data: bytes) -> None:
        """Waits while what was sent before has not been decoded and iterated."""
        if self._over:
            return
        try:
            await self._pass_on(self._reader.receive_bytes(data))
        except ServiceError as error:
            self._fail(error)

    async def send_eof(self) -> None:
        """The body is complete."""
        if self._over:
            return
        try:
            await self._pass_on(self._reader.receive_eof())
            if self._route is not None:
                await self._route.send_eof()
            self._decided.set()  # an empty body has no route
        except ServiceError as error:
            self._fail(error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Samples:
        """Raises UnsupportedAudio, or ConfigurationError where ffmpeg cannot be run."""
        await self._decided.wait()
        if self._error is not None:
            raise self._error
        if self._route is None:
            raise StopAsyncIteration
        return await self._route.__anext__()

    async def close(self) -> None:
        """Wakes whoever still sends or iterates, and kills ffmpeg."""
        self._closed = True
        self._decided.set()
        if self._route is not None:
            await self._route.close()

    @property
    def _over(self) -> bool:
        return self._decided.is_set() and (self._route is None or self._closed)

    def _fail(self, error: ServiceError) -> None:
        # Only before there is a route: what a reader refuses it refuses at the head of a body.
        self._error = error
        self._decided.set()

    async def _pass_on(self, payload: bytes) -> None:
        payload_format = self._reader.payload_format
        if payload_format is None:
            return
        if self._route is None:
            self._route = await self._open_route(payload_format)
            self._decided.set()
            if self._closed:  # by its owner, while ffmpeg was starting
                await self._route.close()
        await self._route.send(payload)

    async def _open_route(self, payload_format: AudioFormat) -> _Route:
        if payload_format == NATIVE:
            return _NativeRoute()
        return await Decoder.start(payload_format, self._ffmpeg_path)


@asynccontextmanager
async def open_source(
    declared: AudioFormat | None = None, *, carry: bytes = b"", ffmpeg_path: str | None = None
) -> AsyncIterator[AudioSource]:
    """One request body of the format `declared`, or to be found out. At exit ffmpeg is gone.

    `carry` is the `carry` of the body before, where this one continues the same stream.
    """
    source = AudioSource(declared, carry, ffmpeg_path)
    try:
        yield source
    finally:
        await source.close()


_HEAD_BYTES = 1_024
"""Of a segment, to tell what it begins with: enough for three packets of a transport stream."""


class SegmentJoiner:
    """Makes bodies out of segments, each of which may be a file of its own or more of the last.

    `begin`, then `chunks`, until `begin` says that there is no more. Whoever gives `chunks` up in
    the middle loses the rest of that segment: the next body begins with the next segment.
    """

    def __init__(
        self, segments: AsyncIterator[AsyncIterator[bytes]], declared: AudioFormat | None
    ) -> None:
        self._segments = segments
        self._declared = declared
        self._head = b""
        self._rest: AsyncIterator[bytes] | None = None

    async def begin(self) -> bool:
        """Wait for a segment with data; False when there are no more."""
        if self._rest is None:
            await self._open()
        return self._rest is not None

    async def chunks(self) -> AsyncIterator[bytes]:
        """One body, from the segment that `begin` has found."""
        current = self._declared or _sniffed(self._head)
        while self._rest is not None:
            head, rest = self._head, self._rest
            self._rest = None
            yield head
            async for chunk in rest:
                yield chunk
            await self._open()
            if self._rest is not None and begins_anew(self._head, current):
                return

    async def _open(self) -> None:
        """Find the next segment that is not empty."""
        async for segment in self._segments:
            head = b""
            async for chunk in segment:
                head += chunk
                if len(head) >= _HEAD_BYTES:
                    break
            if head:
                self._head, self._rest = head, segment
                return


def _sniffed(head: bytes) -> AudioFormat | None:
    try:
        return sniff(head, at_end=True)
    except UnsupportedAudio:
        return None
