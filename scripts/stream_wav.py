"""Send audio files, or standard input, to a service and print the transcript: to one that runs at a
URL, or through a Livepeer orchestrator."""

import asyncio
import contextlib
import os
import signal
import ssl
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.audio.source import AudioSource, open_source
from whisper_byoc.client import ClientError, LiveClient, Tls, reserve
from whisper_byoc.errors import ServiceError, bare_errors
from whisper_byoc.transcript import Format

BYTES_PER_SECOND = SAMPLE_RATE * 2
READ_BYTES = 65536
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
URL = "http://127.0.0.1:8000"
APP = "live-transcription/tiny.en"


class Unreadable(ServiceError):
    """A file was opened and cannot be read; among the service's errors, so that `bare_errors`
    takes it out of a task group, too."""

    code = "unreadable"
    text = "cannot be read: {problem}"

    problem: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What all files have in common. options: of the job. piece_ms: length of the pieces that are
    sent at the speed of speech; 0 sends all at once. socket: send through a WebSocket."""

    output: Format
    options: dict[str, str]
    piece_ms: int
    socket: bool
    tls: Tls


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True))
@click.option("--url", help=f"The service.  [default: {URL}]")
@click.option("--orchestrator", metavar="URL", help="Of Livepeer, to reserve a runner at instead.")
@click.option("--app", help=f"The runner's app id, with --orchestrator.  [default: {APP}]")
@click.option(
    "--socket/--no-socket",
    default=None,
    help="Send through one WebSocket, or through a PUT beside a GET.  [default: the WebSocket"
    " with --orchestrator, of whose streaming places it takes one and not two]",
)
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False),
    help="Certificates to trust instead of the known authorities', such as a self-signed one.",
)
@click.option("--insecure", is_flag=True, help="Trust any certificate.")
@click.option(
    "--format",
    "output",
    type=click.Choice([name.value for name in Format]),
    default=Format.TEXT.value,
    show_default=True,
    help="How the transcript is written.",
)
@click.option("--realtime", is_flag=True, help="Send at the speed of speech, as a microphone does.")
@click.option(
    "--language", help="Whisper's language code, or auto; the service's default if left out."
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the job, such as mode=low_latency or keyterms=Livepeer,BYOC; repeatable.",
)
@click.option(
    "--chunk-ms",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Length of the pieces that --realtime sends.",
)
def main(files: tuple[str, ...], **given: Any) -> None:
    """Send each FILE (- is standard input) and print its transcript.

    WAV, FLAC, MP3, Ogg, WebM, MP4, MPEG-TS, and raw 16 kHz mono int16 PCM. The transcript goes to
    standard output, progress to standard error. Exit status 1 when any file fails.
    """
    orchestrator, app = given["orchestrator"], given["app"]
    if orchestrator and given["url"]:
        raise click.UsageError("--url and --orchestrator, expected one of them")
    if app and not orchestrator:
        raise click.UsageError("--app without --orchestrator, expected both")
    wanted = wanted_of(given)
    try:
        if orchestrator:
            failed = asyncio.run(send_reserved(files, orchestrator, app or APP, wanted))
        else:
            failed = asyncio.run(send_all(files, given["url"] or URL, wanted))
    except ClientError as error:
        click.echo(f"stream_wav: {error}", err=True)
        sys.exit(1)
    sys.exit(1 if failed else 0)


def wanted_of(given: dict[str, Any]) -> Wanted:
    """given: by the names of the command line. Raises click.UsageError."""
    for option in given["options"]:
        if "=" not in option:
            raise click.BadParameter(f"{option!r}, expected NAME=VALUE", param_hint="--option")
    options = dict(option.split("=", 1) for option in given["options"])
    if given["language"]:
        options["language"] = given["language"]
    socket = given["socket"]
    if socket is None:
        socket = given["orchestrator"] is not None
    piece_ms = given["chunk_ms"] if given["realtime"] else 0
    tls = tls_of(given["ca_file"], given["insecure"])
    return Wanted(Format(given["output"]), options, piece_ms, socket, tls)


def tls_of(ca_file: str | None, insecure: bool) -> Tls:
    """Raises click.UsageError."""
    if ca_file is None:
        return not insecure
    if insecure:
        raise click.UsageError("--ca-file and --insecure, expected one of them")
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (ssl.SSLError, OSError) as error:
        raise click.BadParameter(
            f"{ca_file}: {error}, expected certificates as PEM", param_hint="--ca-file"
        ) from None


async def send_reserved(files: tuple[str, ...], orchestrator: str, app: str, wanted: Wanted) -> int:
    """As `send_all`, in one session of an orchestrator. A signal that ends the program waits for
    the session to be stopped. Raises ClientError."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    told: list[int] = []

    def end(number: int) -> None:
        told.append(number)
        if task is not None:
            task.cancel()

    heeded = [it for it in ENDING if signal.getsignal(it) is not signal.SIG_IGN]  # as nohup's
    for number in heeded:
        loop.add_signal_handler(number, end, number)
    try:
        async with reserve(orchestrator, app, tls=wanted.tls) as session:
            return await send_all(files, session.app_url, wanted)
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)
        if told:  # Python would wait for the thread that waits for standard input
            signal.signal(told[0], signal.SIG_DFL)
            os.kill(os.getpid(), told[0])


async def send_all(files: tuple[str, ...], url: str, wanted: Wanted) -> int:
    """Send the files one after the other; how many could not be sent, or transcribed."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    failed = 0
    with progress:
        for name in files:
            try:
                with opened(name) as file:
                    await stream(file, url, wanted, progress)
            except (ServiceError, OSError) as error:
                click.echo(f"stream_wav: {name}: {error}", err=True)
                failed += 1
    return failed


@contextlib.contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
    else:
        with Path(name).open("rb") as file:
            yield file


async def stream(file: BinaryIO, url: str, wanted: Wanted, progress: Progress) -> None:
    """Send one file and print its transcript as it comes.

    Raises ClientError, Unreadable, and at the speed of speech UnsupportedAudio.
    """
    size = os.fstat(file.fileno()).st_size if file.seekable() else None
    bar = progress.add_task(Path(file.name).name, total=size)
    audio = counted(read(file), progress, bar)
    try:
        async with (
            bare_errors(),
            LiveClient(url, wanted.tls) as client,
            open_source() as source,
            asyncio.TaskGroup() as group,
        ):
            if wanted.piece_ms:
                # Only decoded audio has a pace, so a file is decoded here.
                group.create_task(feed(source, audio))
                audio = paced(source, wanted.piece_ms)
            await transcribe(client, audio, wanted)
    finally:
        progress.remove_task(bar)


async def transcribe(client: LiveClient, audio: AsyncIterator[bytes], wanted: Wanted) -> None:
    """Raises ClientError, and what `audio` raises."""
    if wanted.socket:
        await client.converse(audio, show, output=wanted.output, **wanted.options)
        return
    job_id = f"stream-wav-{uuid.uuid4().hex[:12]}"
    content_type = "audio/pcm" if wanted.piece_ms else None
    await client.transcribe(
        job_id, audio, show, output=wanted.output, content_type=content_type, **wanted.options
    )
    with contextlib.suppress(ClientError):
        await client.delete(job_id)


def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def feed(source: AudioSource, chunks: AsyncIterator[bytes]) -> None:
    """Raises Unreadable."""
    try:
        async for chunk in chunks:
            await source.send(chunk)
    except OSError as error:
        raise Unreadable(str(error)) from error
    await source.send_eof()


async def read(file: BinaryIO) -> AsyncIterator[bytes]:
    """The bytes of a file as they come, off the event loop: standard input may be slow."""
    read_some: Callable[[int], bytes] = getattr(file, "read1", file.read)
    while chunk := await asyncio.to_thread(read_some, READ_BYTES):
        yield chunk


async def counted(
    chunks: AsyncIterator[bytes], progress: Progress, bar: TaskID
) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        progress.advance(bar, len(chunk))
        yield chunk


async def paced(source: AudioSource, piece_ms: int) -> AsyncIterator[bytes]:
    """PCM in pieces of `piece_ms`, each when a microphone would have recorded its end."""
    piece_bytes = SAMPLE_RATE * piece_ms // 1000 * 2
    pending = b""
    sent = 0
    began = time.monotonic()
    async for samples in source:
        pending += (samples * 32768).astype("<i2").tobytes()
        while len(pending) >= piece_bytes:
            piece, pending = pending[:piece_bytes], pending[piece_bytes:]
            sent += len(piece)
            await asyncio.sleep(began + sent / BYTES_PER_SECOND - time.monotonic())
            yield piece
    if pending:
        yield pending


if __name__ == "__main__":
    main()
