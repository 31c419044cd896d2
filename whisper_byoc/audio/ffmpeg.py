"""Any audio into 16 kHz mono samples by an ffmpeg process: while it arrives, between two pipes, or
out of a file that is open. No process is left behind."""

import asyncio
import logging
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from contextlib import suppress
from typing import Final, Self

import ffmpeg
import imageio_ffmpeg

from whisper_byoc.audio.channels import RawDecoder, WavDecoder
from whisper_byoc.audio.clock import MUXER, ClockedDecoder
from whisper_byoc.audio.formats import (
    ACCEPTED,
    NATIVE,
    AudioFormat,
    Container,
    Encoding,
    Gap,
    Pcm,
    Samples,
)
from whisper_byoc.errors import ConfigurationError, UnsupportedAudio

logger = logging.getLogger(__name__)

BLOCK_BYTES: Final = NATIVE.rate * NATIVE.frame_bytes
"""One second of NATIVE audio: so much may wait for the job that reads it before `send` waits.
ffmpeg and the kernel's two pipes hold some seconds more."""

MAX_LEAP_SECONDS: Final = 6 * 3600
"""How far a transport stream's clock may leap ahead for something to be missing there. A clock that
leaps further, or back, is another clock, and the audio goes on: an encoder that began anew, and the
33 bits of the clock, which begin anew every 26.5 h, look like that. Nobody waits for six hours."""

# The audio codecs that are common in the containers we accept. ffmpeg opens decoders for all
# streams of its input to probe them; with this list hostile video never reaches a video decoder.
_CODECS: Final = (
    "aac,aac_latm,ac3,eac3,alac,amrnb,amrwb,libopencore_amrnb,libopencore_amrwb,flac,mp1,mp1float,"
    "mp2,mp2float,mp3,mp3float,opus,libopus,vorbis,libvorbis,speex,libspeex,gsm,gsm_ms,nellymoser,"
    "wmav1,wmav2,wmapro,wmalossless,wmavoice,truehd,dca,wavpack,ape,tta,tak,mpc7,mpc8,"
    "cook,sipr,ra_144,ra_288,ilbc,g722,adpcm_g722,g726,g726le,adpcm_g726,adpcm_g726le,g729,g723_1,"
    "qcelp,evrc,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_swf,adpcm_yamaha,adpcm_sbpro_2,"
    "adpcm_sbpro_3,adpcm_sbpro_4,mace3,mace6,qdm2,qdmc,shorten,pcm_dvd,pcm_u16le,pcm_u16be,"
    "pcm_s8,pcm_s24be,pcm_s32be,pcm_f32be,pcm_f64be,pcm_s64le,pcm_s64be,"
) + ",".join(f"pcm_{encoding.demuxer}" for encoding in Encoding)


# Left alone, ffmpeg gathers up to 5 s of input before its first sample. These two have it begin
# with the first packet (an analyzeduration of 0 would mean the default) and lose nothing, where
# -fflags nobuffer drops what was probed. Measured with bodies paced at 1x on 2 cores, ffmpeg 9.0.2
# (5.1.9 within 0.3 s of it), what the sender's encoder holds back included; in seconds: first byte
# to first samples with ffmpeg left alone, the same with these two, and with these two the median
# delay of what follows.
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
_PROBING: Final = {"probesize": 32, "analyzeduration": 1}


_WAV: Final[dict[str, str | int]] = {"f": "wav", "ar": NATIVE.rate}
_FILE: Final = "file:/dev/fd/0"
_PROBE_SECONDS: Final = 20
_TOLD_BYTES: Final = 64 * 1024
_LEAST_SCORE: Final = 25


def find_ffmpeg() -> str:
    """The system's ffmpeg, else the one in imageio-ffmpeg's wheel. Raises ConfigurationError."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ConfigurationError("no ffmpeg was found, expected one on the PATH") from error


def ffmpeg_command(
    audio_format: AudioFormat, ffmpeg_path: str, *, from_file: bool = False
) -> list[str]:
    """The command that reads `audio_format` at standard input and writes 16 kHz to its output: raw
    audio with the channels that it has, mono or stereo of a container.

    The input format is forced and only pipes may be opened, so that no playlist, data reference or
    other content makes ffmpeg open a file or an address. from_file: standard input is a file in
    which ffmpeg may go to and fro. For that it has to open it once more by its number, and none of
    our formats makes it open another (`enable_drefs` of MP4 is off).
    """
    source = ffmpeg.input(
        _FILE if from_file else "pipe:0",
        **_format_options(audio_format),
        protocol_whitelist="file" if from_file else "pipe",
        codec_whitelist=_CODECS,
        **({} if from_file else _PROBING),
        threads=1,
        vn=None,
        sn=None,
        dn=None,
    )
    clocked = audio_format is Container.MPEG_TS
    sink = source["a:0"].output(
        "pipe:1", **_output_options(audio_format), threads=1, flush_packets=1
    )
    flags = ["-hide_banner", "-nostdin", "-nostats", "-loglevel", "error"]
    if clocked:
        flags += ["-dts_delta_threshold", str(MAX_LEAP_SECONDS)]
    return [str(word) for word in sink.global_args(*flags).compile(cmd=ffmpeg_path)]


def _format_options(audio_format: AudioFormat) -> dict[str, str | int]:
    if isinstance(audio_format, Container):
        return {"f": audio_format.demuxer}
    raw = audio_format
    return {"f": raw.encoding.demuxer, "ar": raw.rate, "ac": raw.channels}


def _output_options(audio_format: AudioFormat) -> dict[str, str | int]:
    """s16le is what openai-whisper has ffmpeg write for its own models. Channels are mixed here
    (`Mixer`), but for more than two of a container, whose places only ffmpeg knows."""
    if isinstance(audio_format, Pcm):
        return _format_options(Pcm(NATIVE.encoding, NATIVE.rate, audio_format.channels))
    written = MUXER if audio_format is Container.MPEG_TS else _WAV
    return {**written, "acodec": "pcm_s16le", "af": "aformat=channel_layouts=mono|stereo"}


async def probe(fd: int, ffmpeg_path: str | None = None) -> Container | None:
    """Which of our containers an open file is, by what ffmpeg makes of its bytes; None for none.

    ffmpeg looks at its first 5 MB at most. Raises UnsupportedAudio when that takes it 20 s, and
    ConfigurationError where it cannot be run.
    """
    names = ",".join(container.demuxer for container in Container)
    command = [ffmpeg_path or find_ffmpeg(), "-hide_banner", "-nostdin", "-loglevel", "info"]
    command += ["-protocol_whitelist", "file", "-format_whitelist", names]
    command += ["-codec_whitelist", _CODECS, "-threads", "1", "-i", _FILE]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=fd, stdout=DEVNULL, stderr=PIPE, start_new_session=True
        )
    except OSError as error:
        raise ConfigurationError(f"ffmpeg cannot be run: {error}") from error
    assert process.stderr is not None
    told = b""
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            while data := await process.stderr.read(_TOLD_BYTES):
                told = (told + data)[:_TOLD_BYTES]
    except TimeoutError:
        raise UnsupportedAudio(
            f"of no kind that ffmpeg has found within {_PROBE_SECONDS} s", ACCEPTED
        ) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        while await process.stderr.read(_TOLD_BYTES):
            pass
        await process.wait()
    return _probed(told)


def _probed(told: bytes) -> Container | None:
    """By what ffmpeg has told of its input. A low score means that it guesses: 25 are four frames
    of MP3 or AAC behind other bytes, less is a header that chance has made."""
    score = re.search(rb"detected only with low score of (\d+)", told)
    name = re.search(rb"^Input #0, (\S+), from ", told, re.MULTILINE)
    if name is None or (score is not None and int(score[1]) < _LEAST_SCORE):
        return None
    found = name[1].decode("latin-1").split(",")
    return next((container for container in Container if container.demuxer in found), None)


class _Complaints(asyncio.Protocol):
    """Reads ffmpeg's standard error, since ffmpeg stops when that pipe is full, and keeps the last
    4 KiB to say why it failed. `ended`: set when ffmpeg has closed it."""

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
        """The last line by one of ffmpeg's parts (`[mp3 @ 0x5581c0] …`), without that prefix: it
        names the cause, where the lines of the main program behind it are general."""
        lines = [line for line in self._tail.decode("utf-8", "replace").splitlines() if line]
        special = [line for line in lines if self._PREFIX.match(line)]
        line = (special or lines or [""])[-1]
        return self._PREFIX.sub("", line)[:200].strip()


class Decoder:
    """One ffmpeg process: bytes of one format in, samples out, and of a transport stream the gaps
    between them.

    Whoever calls `start` calls `close`. One task sends, another iterates. Cancelling a `send` may
    leave a part of its bytes sent; cancelling the iteration loses nothing.
    """

    def __init__(
        self, audio_format: AudioFormat, process: Process, complaints: _Complaints
    ) -> None:
        assert process.stdout is not None
        self._format = audio_format
        self._process = process
        self._complaints = complaints
        self._stdin, self._stdout = process.stdin, process.stdout
        if self._stdin is not None:
            # drain() waits until the pipe took everything, not until less than 64 KiB are left.
            self._stdin.transport.set_write_buffer_limits(high=0)
        self._reading = asyncio.Lock()
        self._clocked = ClockedDecoder() if audio_format is Container.MPEG_TS else None
        self._decoder: RawDecoder | WavDecoder = WavDecoder()
        if isinstance(audio_format, Pcm):
            self._decoder = RawDecoder(audio_format.channels)
        self._pieces: deque[Samples | Gap] = deque()
        self._num_bytes = self._num_samples = 0
        self._eof_sent = self._closed = False

    @classmethod
    async def start(
        cls, audio_format: AudioFormat, ffmpeg_path: str | None = None, file: int | None = None
    ) -> Self:
        """file: number of an open file that holds the whole input, which is then not sent. It may
        be closed behind this. Raises ConfigurationError where ffmpeg cannot be run."""
        from_file = file is not None
        command = ffmpeg_command(audio_format, ffmpeg_path or find_ffmpeg(), from_file=from_file)
        complaints = _Complaints()
        try:
            read_end, write_end = os.pipe()
            try:
                await asyncio.get_running_loop().connect_read_pipe(
                    lambda: complaints, os.fdopen(read_end, "rb", 0)
                )
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=PIPE if file is None else file,
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
        """Waits while ffmpeg's pipe is full. When ffmpeg has ended the data are dropped: why it
        ended is told by the iteration."""
        self._num_bytes += len(data)
        for start in range(0, len(data), BLOCK_BYTES):
            if self._stdin is None or self._stdin.is_closing():
                return
            try:
                self._stdin.write(data[start : start + BLOCK_BYTES])
                await self._stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                self._stdin.close()

    async def send_eof(self) -> None:
        """No more will be sent: ffmpeg flushes what it holds, and iteration ends."""
        self._eof_sent = True
        if self._stdin is not None:
            self._stdin.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Samples | Gap:
        """A block of about a second at most, as soon as there is one, or what a transport stream's
        clock says is missing before the next. Raises UnsupportedAudio."""
        async with self._reading:
            while not (self._closed or self._pieces):
                data = await self._stdout.read(BLOCK_BYTES)
                self._receive(data)
                if not data:
                    break
            if self._pieces and not self._closed:
                return self._pieces.popleft()
            if not self._closed:
                await self._process.wait()
                await self._complaints.ended.wait()
        if self._closed:
            raise StopAsyncIteration
        self._check_outcome()
        raise StopAsyncIteration

    def _receive(self, data: bytes) -> None:
        if self._clocked is not None:
            pieces = self._clocked.receive_bytes(data)
        else:
            pieces = [self._decoder.receive_bytes(data) if data else self._decoder.receive_end()]
        for piece in pieces:
            if isinstance(piece, Gap):
                self._pieces.append(piece)
            elif piece.size:
                self._num_samples += piece.size
                self._pieces.append(piece)

    def _check_outcome(self) -> None:
        """A damaged or cut stream gives what can be decoded; nothing at all is an error, and so is
        an ffmpeg that gives up before its input ends or is killed."""
        code = self._process.returncode or 0
        if self._num_samples and code >= 0 and (code == 0 or self._eof_sent):
            if code:
                logger.debug("ffmpeg on %s: %s", self._format, self._complaints.last_line)
            return
        if not self._num_bytes and self._stdin is not None:
            raise UnsupportedAudio("empty", str(self._format))
        if self._complaints.without_audio:
            raise UnsupportedAudio(f"{self._format} without an audio stream", "one in it")
        if not (code or self._complaints.last_line):
            raise UnsupportedAudio(f"{self._format} that holds no audio", "some audio in it")
        problem = f"killed by signal {-code}" if code < 0 else self._complaints.last_line
        raise UnsupportedAudio(
            f"{self._format} that ffmpeg cannot decode ({problem})", "a playable file or stream"
        )

    async def close(self) -> None:
        """Kill ffmpeg and wait until it is gone. A task that still sends has its bytes dropped, one
        that iterates comes to the end. Cancelling this leaves ffmpeg dead, to be reaped later."""
        self._closed = True
        if self._process.returncode is None:
            self._process.kill()
        if self._stdin is not None:
            self._stdin.close()
        async with self._reading:
            # The process counts as gone when its pipes are closed, and a full one does not close.
            while await self._stdout.read(BLOCK_BYTES):
                pass
        await self._process.wait()
        await self._complaints.ended.wait()
