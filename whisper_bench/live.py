"""The part of `benchmark.py live` that serves, streams and measures.

What brings torch is imported where it is used: the process that streams is to be without it.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from whisper_bench.files import Recording, seconds_of
from whisper_bench.lags import StreamLags, measure_lags, percentile, spread
from whisper_bench.manifest import BadInput
from whisper_bench.processes import call_in_process
from whisper_bench.scoring import word_error_rate
from whisper_bench.setup import Setup
from whisper_bench.terminal import cell, tell
from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.audio.pcm import PcmDecoder
from whisper_byoc.client import LiveClient
from whisper_byoc.errors import ServiceError
from whisper_byoc.transcript import Event, Final, Partial, Word

CHUNK_SECONDS = 0.1
GAP_SECONDS = 0.5
START_SECONDS = 120


class NoServer(ServiceError):
    """The service that was to be measured did not start."""

    code = "no_server"
    text = "the service did not start: {problem}"

    problem: str


@dataclass(frozen=True, slots=True)
class Track:
    """One stream's audio, 16 kHz mono int16, what is said in it, and what an offline pass heard."""

    audio: bytes
    reference: str
    offline: str = ""
    words: tuple[Word, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.audio) / 2 / SAMPLE_RATE


def parse_counts(text: str) -> list[int]:
    """Raises BadInput."""
    try:
        counts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > 1000:
        raise BadInput(f"streams is {text!r}, expected numbers from 1 to 1000 with commas between")
    return counts


def parse_options(options: Sequence[str]) -> dict[str, str]:
    """The query of every source. Raises BadInput."""
    for option in options:
        if "=" not in option:
            raise BadInput(f"option is {option!r}, expected NAME=VALUE")
    return dict(option.split("=", 1) for option in options)


def run_live(
    recordings: Sequence[Recording],
    counts: Sequence[int],
    num_tracks: int,
    seconds: float,
    setup: Setup,
    options: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Figures by number of streams. Every number hears `num_tracks` different streams, or its own
    number where that is larger, so many at once. Raises BadInput, ClientError and NoServer."""
    query = parse_options(options)
    tracks = hear_offline(join(recordings, max(num_tracks, *counts), seconds), setup)
    figures: dict[str, dict[str, Any]] = {}
    with serve(setup) as (url, process):
        for count in counts:
            heard = tracks[: max(num_tracks, count)]
            rounds = [heard[first : first + count] for first in range(0, len(heard), count)]
            usage = Usage(process)
            seen = []
            for number, together in enumerate(rounds, start=1):
                title = f"{count} at once, round {number} of {len(rounds)}"
                seen += asyncio.run(stream_all(url, together, query, title))
            spent = usage.since_start(sum(track.seconds for track in heard))
            figures[str(count)] = summarise_live(heard, seen) | spent
            told = figures[str(count)]
            tell(f"{count} streams: final lag {told['final_lag']}, WER {told['wer']}")
    return figures


def join(recordings: Sequence[Recording], count: int, seconds: float) -> list[Track]:
    """`count` streams of at least `seconds`; recordings go round, so that no two begin alike."""
    going_round = itertools.cycle(recordings)
    tracks = []
    for _ in range(count):
        parts: list[Recording] = []
        while seconds_of(parts) + GAP_SECONDS * len(parts) < seconds:
            parts.append(next(going_round))
        tracks.append(joined(parts))
    return tracks


def joined(recordings: Sequence[Recording]) -> Track:
    """The recordings behind one another, with GAP_SECONDS of silence between."""
    gap = bytes(2 * round(GAP_SECONDS * SAMPLE_RATE))
    return Track(
        gap.join(recording.audio for recording in recordings),
        " ".join(recording.clip.reference for recording in recordings),
    )


def hear_offline(tracks: Sequence[Track], setup: Setup) -> list[Track]:
    """The tracks with what an offline pass made of them.

    In a process of its own, which is gone when streams are measured. Tracks that are alike, as they
    are where there are more streams than recordings, are heard once.
    """
    tell("an offline pass, to know when words are spoken")
    different = list(dict.fromkeys(tracks))
    heard = call_in_process(transcribe_tracks, different, setup)
    found = dict(zip(different, heard, strict=True))
    return [found[track] for track in tracks]


def transcribe_tracks(tracks: Sequence[Track], setup: Setup) -> list[Track]:
    """With what an offline pass made of them."""
    from whisper_bench.hearing import hear_recordings
    from whisper_byoc.decode import Effort
    from whisper_byoc.inference.engine import load_models
    from whisper_byoc.inference.voice import VoiceModel
    from whisper_byoc.settings import ModelSettings

    [model] = load_models(ModelSettings(directory=setup.models_dir))
    samples = [to_samples(track.audio) for track in tracks]
    heard = hear_recordings(model, VoiceModel().probabilities, samples, Effort.QUICK)
    return [
        Track(
            track.audio,
            track.reference,
            " ".join(passage.text for passage in passages),
            tuple(word for passage in passages for word in passage.words),
        )
        for track, passages in zip(tracks, heard, strict=True)
    ]


def to_samples(audio: bytes) -> NDArray[np.float32]:
    return PcmDecoder().receive_bytes(audio)


@contextmanager
def serve(setup: Setup) -> Iterator[tuple[str, int | None]]:
    """The URL of a service, and its process when it was started for this. Raises NoServer."""
    if setup.url:
        yield setup.url, None
        return
    environment = {
        **os.environ,
        "WHISPER_MODEL_DIRECTORY": str(setup.models_dir),
        "WHISPER_MODEL_THREADS": str(setup.threads),
    }
    command = [sys.executable, "-m", "whisper_byoc", "serve", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            url, lines = "", []
            for line in process.stdout:
                lines.append(line.strip())
                if "listening on " in line:
                    url = line.split("listening on ")[1].strip()
                if "ready after" in line:
                    break
            else:
                raise NoServer(lines[-1] if lines else "it said nothing")
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(START_SECONDS)


async def stream_all(
    url: str, tracks: Sequence[Track], query: dict[str, str], title: str
) -> list[list[tuple[float, Event]]]:
    """What a reader of each stream saw, and when, in seconds from the stream's first sample."""
    seconds = max(track.seconds for track in tracks)
    async with LiveClient(url) as client, asyncio.TaskGroup() as group:
        showing = group.create_task(show_progress(title, seconds))
        tasks = [
            # Not all in step: streams begin within one second.
            group.create_task(stream_one(client, track, number / len(tracks), query))
            for number, track in enumerate(tracks)
        ]
        await asyncio.wait(tasks)
        showing.cancel()
    return [task.result() for task in tasks]


async def show_progress(title: str, seconds: float) -> None:
    """A bar on the terminal until cancelled; one line where there is none."""
    console = Console(stderr=True)
    if not console.is_terminal:
        tell(title)
        return
    began = time.monotonic()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(title, total=seconds)
        while True:
            progress.update(bar, completed=time.monotonic() - began)
            await asyncio.sleep(0.25)


async def stream_one(
    client: LiveClient, track: Track, delay: float, query: dict[str, str]
) -> list[tuple[float, Event]]:
    await asyncio.sleep(delay)
    began = time.monotonic()
    seen: list[tuple[float, Event]] = []
    rest = ""

    async def paced() -> AsyncIterator[bytes]:
        size = 2 * round(CHUNK_SECONDS * SAMPLE_RATE)
        for number, start in enumerate(range(0, len(track.audio), size), start=1):
            # A chunk is there when its last sample has been spoken.
            await asyncio.sleep(max(0.0, began + number * CHUNK_SECONDS - time.monotonic()))
            yield track.audio[start : start + size]

    def receive(text: str) -> None:
        nonlocal rest
        *lines, rest = (rest + text).split("\n")
        now = time.monotonic() - began
        seen.extend((now, event) for line in lines if (event := parse_event(line)))

    job_id = f"benchmark-{uuid.uuid4().hex[:12]}"
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send(job_id, paced(), "audio/pcm", **query))
        async for text in client.output(job_id):
            receive(text)
    await client.delete(job_id)
    return seen


def parse_event(line: str) -> Event | None:
    """What was said, in a line of NDJSON; places and times are the reader's to tell."""
    document = json.loads(line) if line else {}
    match document.get("type"):
        case "partial":
            return Partial(0, document["utterance"], 0.0, 0.0, document["text"])
        case "final":
            return Final(0, document["utterance"], 0.0, 0.0, document["text"], (), "en")
        case "error":
            raise NoServer(document["message"])
    return None


class Usage:
    """CPU time and memory of a process since this was made; nothing without a process."""

    def __init__(self, process: int | None) -> None:
        self._process = process
        self._began = self._cpu_seconds()

    def since_start(self, audio_seconds: float) -> dict[str, float | None]:
        if self._process is None:
            return {"cpu_seconds_per_audio_second": None, "rss_mb": None}
        spent = self._cpu_seconds() - self._began
        status = Path(f"/proc/{self._process}/status").read_text(encoding="utf-8")
        rss = int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6
        return {
            "cpu_seconds_per_audio_second": round(spent / audio_seconds, 4),
            "rss_mb": round(rss, 1),
        }

    def _cpu_seconds(self) -> float:
        if self._process is None:
            return 0.0
        fields = Path(f"/proc/{self._process}/stat").read_text(encoding="utf-8").rsplit(") ", 1)[1]
        return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")


def summarise_live(
    tracks: Sequence[Track], seen: Sequence[Sequence[tuple[float, Event]]]
) -> dict[str, Any]:
    from whisper.normalizers import EnglishTextNormalizer

    normalise = EnglishTextNormalizer()
    lags = [
        measure_lags(events, track.words, track.seconds)
        for track, events in zip(tracks, seen, strict=True)
    ]
    references = [normalise(track.reference) for track in tracks]

    def rate(texts: Sequence[str]) -> float | None:
        return word_error_rate(list(zip(references, map(normalise, texts), strict=True)))

    final_medians = [it for lag in lags if (it := percentile(lag.final, 50))]
    return {
        "partial_lag": spread([value for lag in lags for value in lag.partial]),
        "final_lag": spread([value for lag in lags for value in lag.final]),
        "finalize": spread([lag.finalize for lag in lags if lag.finalize is not None]),
        "fairness": round(max(final_medians) / min(final_medians), 2) if final_medians else None,
        "wer": rate([lag.text for lag in lags]),
        "offline_wer": rate([track.offline for track in tracks]),
        "words": sum(len(lag.text.split()) for lag in lags),
        "tail_words_lost": sum(lag.tail_words_lost for lag in lags),
        "changed_share": round(_share(lags), 4),
    }


def _share(lags: Sequence[StreamLags]) -> float:
    return sum(lag.num_changed for lag in lags) / max(1, sum(lag.num_shown for lag in lags))


ROWS = {
    "partial lag p50 / p95, s": "partial_lag",
    "final lag p50 / p95, s": "final_lag",
    "finalize → last final p50 / p95, s": "finalize",
    "largest / smallest median final lag": "fairness",
    "WER %": "wer",
    "WER % offline": "offline_wer",
    "final words": "words",
    "tail words lost": "tail_words_lost",
    "share of partial words that changed": "changed_share",
    "CPU s per s of audio": "cpu_seconds_per_audio_second",
    "RSS, MB": "rss_mb",
}


def show_live(report: dict[str, Any]) -> None:
    table = Table("streams", *report["streams"])
    table.title = f"{report['model']}, streams of {report['seconds']:.0f} s or more"
    table.caption = f"{report['machine']['cpu']}, {report['machine']['cores']} cores"
    for title, key in ROWS.items():
        cells = [values.get(key) for values in report["streams"].values()]
        if any(value is not None for value in cells):
            table.add_row(title, *map(cell, cells))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def draw(report: dict[str, Any], path: Path) -> None:
    """Lag against the number of streams, medians as lines and 95th percentiles dashed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    counts = [int(count) for count in report["streams"]]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for key, title, colour in (
        ("final_lag", "final", "#1f5fa8"),
        ("partial_lag", "partial", "#d2691e"),
        ("finalize", "end of audio → last final", "#3c8d40"),
    ):
        for percent, style in (("p50", "-"), ("p95", "--")):
            values = [figures[key][percent] for figures in report["streams"].values()]
            marked = [float("nan") if value is None else value for value in values]
            axes.plot(counts, marked, style, color=colour, marker="o", label=f"{title} {percent}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("streams at once, all speaking")
    axes.set_ylabel("seconds after the end of the word")
    axes.set_title(f"{report['machine']['cpu']}, {report['machine']['cores']} cores", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
