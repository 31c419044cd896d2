"""Send audio files, or standard input, to a running service and print the transcript."""

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.audio.source import AudioSource, open_source
from whisper_byoc.client import ClientError, LiveClient
from whisper_byoc.errors import ServiceError, bare_errors
from whisper_byoc.transcript import Format

BYTES_PER_SECOND = SAMPLE_RATE * 2
READ_BYTES = 65536


class Unreadable(ServiceError):
    """A file was opened and cannot be read; among the service's errors, so that `bare_errors`
    takes it out of a task group, too."""

    code = "unreadable"
    text = "cannot be read: {problem}"

    problem: str


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True))
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The service.")
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
def main(
    files: tuple[str, ...],
    url: str,
    output: str,
    realtime: bool,
    language: str | None,
    options: tuple[str, ...],
    chunk_ms: int,
) -> None:
    """Send each FILE (- is standard input) and print its transcript.

    WAV, FLAC, MP3, Ogg, WebM, MP4, MPEG-TS, and raw 16 kHz mono int16 PCM. The transcript goes to
    standard output, progress to standard error. Exit status 1 when any file fails.
    """
    for option in options:
        if "=" not in option:
            raise click.BadParameter(f"{option!r}, expected NAME=VALUE", param_hint="--option")
    query = dict(option.split("=", 1) for option in options)
    if language:
        query["language"] = language
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
            piece_ms = chunk_ms if realtime else 0
            try:
                with opened(name) as file:
                    asyncio.run(stream(file, url, Format(output), query, piece_ms, progress))
            except (ServiceError, OSError) as error:
                click.echo(f"stream_wav: {name}: {error}", err=True)
                failed += 1
    sys.exit(1 if failed else 0)


@contextlib.contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
    else:
        with Path(name).open("rb") as file:
            yield file


async def stream(
    file: BinaryIO,
    url: str,
    output: Format,
    options: dict[str, str],
    realtime_ms: int,
    progress: Progress,
) -> None:
    """Send one file and print its transcript as it comes.

    realtime_ms: length of the pieces that are sent at the speed of speech; 0 sends all at once.
    Raises ClientError, Unreadable, and with `realtime_ms` UnsupportedAudio.
    """
    size = os.fstat(file.fileno()).st_size if file.seekable() else None
    bar = progress.add_task(Path(file.name).name, total=size)
    job_id = f"stream-wav-{uuid.uuid4().hex[:12]}"
    audio = counted(read(file), progress, bar)
    try:
        async with (
            bare_errors(),
            LiveClient(url) as client,
            open_source() as source,
            asyncio.TaskGroup() as group,
        ):
            content_type = None
            if realtime_ms:
                # Only decoded audio has a pace, so a file is decoded here.
                group.create_task(feed(source, audio))
                audio, content_type = paced(source, realtime_ms), "audio/pcm"
            await client.transcribe(
                job_id, audio, show, output=output, content_type=content_type, **options
            )
            with contextlib.suppress(ClientError):
                await client.delete(job_id)
    finally:
        progress.remove_task(bar)


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
