"""The part of `benchmark.py words` that has recordings transcribed and compares word times."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from whisper_bench.alignment import parse_alignment, summarise_times
from whisper_bench.files import Recording
from whisper_bench.live import joined, serve
from whisper_bench.manifest import BadInput
from whisper_bench.setup import MODEL, Setup
from whisper_bench.terminal import cell
from whisper_byoc.errors import ServiceError
from whisper_byoc.settings import ModelSettings, StreamingSettings
from whisper_byoc.transcript import Final, Word

PATH = "/v1/audio/transcriptions"
Heard = list[tuple[list[Word], float]]


class Refused(ServiceError):
    """The service did not transcribe a recording."""

    code = "refused"
    text = "the service answered {status} for {file}: {found!r}, expected a transcript"

    status: int
    file: str
    found: str


def run_word_times(
    recordings: Sequence[Recording], folder: Path, setup: Setup
) -> dict[str, dict[str, Any]]:
    """Figures of whole recordings through OpenAI's door, and of the same streamed live, in stream
    time. Of each recording that has one, the alignment is `<name>.words.tsv` beside it.

    Raises BadInput, NoServer and Refused.
    """
    aligned = [(it, path) for it in recordings if (path := _alignment_of(it, folder)).is_file()]
    if not aligned:
        raise BadInput(f"no file in {folder} has a .words.tsv beside it, expected one")
    said = [parse_alignment(path.read_text("utf-8"), str(path)) for _, path in aligned]
    chosen = [recording for recording, _ in aligned]
    with serve(setup) as (url, _):
        whole = asyncio.run(transcribe_files(chosen, folder, url))
    live = stream_files(chosen, setup)
    return {name: summarise_times(it, said) for name, it in (("files", whole), ("live", live))}


def _alignment_of(recording: Recording, folder: Path) -> Path:
    return (folder / recording.clip.file).with_suffix(".words.tsv")


async def transcribe_files(recordings: Sequence[Recording], folder: Path, url: str) -> Heard:
    """The words of each, and its length. Raises Refused."""
    heard: Heard = []
    async with aiohttp.ClientSession() as session:
        for recording in recordings:
            path = folder / recording.clip.file
            form = aiohttp.FormData()
            form.add_field("file", await asyncio.to_thread(path.read_bytes), filename=path.name)
            form.add_field("model", MODEL)
            form.add_field("response_format", "verbose_json")
            form.add_field("timestamp_granularities[]", "word")
            timeout = aiohttp.ClientTimeout(None)
            async with session.post(url + PATH, data=form, timeout=timeout) as answer:
                if answer.status != 200:
                    raise Refused(answer.status, recording.clip.file, await answer.text())
                document = await answer.json()
            words = [Word(it["word"], it["start"], it["end"], 1.0) for it in document["words"]]
            heard.append((words, len(recording.audio) / 32_000))
    return heard


def stream_files(recordings: Sequence[Recording], setup: Setup) -> Heard:
    """The same of live streams, by the rules of streaming alone."""
    from whisper_bench.replay import replay  # it brings torch
    from whisper_byoc.inference.engine import load_models
    from whisper_byoc.inference.voice import VoiceModel

    [model] = load_models(ModelSettings(directory=setup.models_dir))
    tracks = [joined([recording]) for recording in recordings]
    seen = replay(model, VoiceModel(), tracks, StreamingSettings(), latency=0.05)
    finals = ([event for _, event in events if isinstance(event, Final)] for events in seen)
    words = ([word for final in it for word in final.words] for it in finals)
    return [(it, track.seconds) for it, track in zip(words, tracks, strict=True)]


ROWS = ("words", "matched", "start", "end", "without_duration", "overlapping", "outside")


def show_word_times(report: dict[str, Any]) -> None:
    """A line for files and one for live streams."""
    table = Table("", *ROWS)
    table.title = f"{report['model']}, errors in ms: median / p90 / bias"
    for name, figures in report["runs"].items():
        table.add_row(name, *(cell(figures[row]) for row in ROWS))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
