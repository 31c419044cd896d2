"""The part of `benchmark.py offline` that measures whole files."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import resources
from importlib.util import find_spec
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from whisper_bench.files import Recording, read_audio, seconds_of
from whisper_bench.manifest import BadInput
from whisper_bench.peers import BASELINE, OURS, PEERS, SERVER
from whisper_bench.processes import (
    Answer,
    RunProcess,
    call_in_process,
    open_process,
    peak_rss_mb,
)
from whisper_bench.scoring import Result, add_speedups, summarise
from whisper_bench.setup import MODEL, Setup
from whisper_bench.terminal import cell, tell

WARM_UP = resources.files("whisper_byoc") / "data" / "warm-up.wav"
DECODE_SECONDS = 30
"""Whisper's window: what openai-decode hears of a file."""
ROWS = {
    "RTF": "rtf",
    f"times as fast as {BASELINE}": f"speedup_over_{BASELINE}",
    "median s a file": "median_seconds_per_file",
    "WER %": "wer",
    "loops": "loops",
    "words on non-speech": "words_on_nonspeech",
    "peak RSS, MB": "peak_rss_mb",
    "load s": "load_seconds",
}


def parse_peers(text: str) -> list[str]:
    """Raises BadInput."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in PEERS:
            raise BadInput(f"peer is {name!r}, expected some of {', '.join(PEERS)}")
        # No image has it; told before its weights are fetched and others are loaded.
        if name.startswith("faster-whisper") and find_spec("faster_whisper") is None:
            raise BadInput(f"faster-whisper is not installed, expected it for the peer {name}")
    return names


def make_ctranslate2(setup: Setup) -> None:
    """What faster-whisper loads, where it is missing. Raises ConfigurationError and OSError."""
    if not (setup.ctranslate2_dir / "model.bin").is_file():
        # In a process of its own, since it brings torch, which this one is to be without.
        call_in_process(fetch_ctranslate2, setup)


def fetch_ctranslate2(setup: Setup) -> None:
    from whisper_bench.faster_whisper_files import keep_for_benchmark

    keep_for_benchmark(setup)


def measure(
    runs: Sequence[str], recordings: Sequence[Recording], setup: Setup, repeats: int
) -> dict[str, dict[str, Any]]:
    """Figures by run: every run on every batch of recordings in turn. Raises RunFailed."""
    with ExitStack() as stack:
        processes = [stack.enter_context(warm_process(run, setup)) for run in runs]
        before = {process.run: dict(process.profile) for process in processes}
        results = transcribe_in_turns(processes, recordings, setup.batch, repeats)
    # Only now: whisper brings torch, and its threads
    from whisper.normalizers import EnglishTextNormalizer

    normalise, total = EnglishTextNormalizer(), seconds_of(recordings)
    figures = {run: summarise(results[run], total, normalise) for run in runs}
    for process in processes:
        peak: float | None = process.peak_rss_mb
        if process.run == SERVER:  # of another one's memory only what we have started is to be seen
            peak = None if setup.process is None else peak_rss_mb(setup.process)
        load_seconds = round(process.load_seconds, 2)
        figures[process.run] |= {
            "peak_rss_mb": peak and round(peak, 1),
            "load_seconds": load_seconds,
        }
        if process.profile:
            spent = {k: v - before[process.run].get(k, 0) for k, v in process.profile.items()}
            figures[process.run]["profile"] = shares(spent, results[process.run])
    add_speedups(figures, BASELINE)
    return figures


@contextmanager
def warm_process(run: str, setup: Setup) -> Iterator[RunProcess]:
    """The process of a run that has transcribed something. Raises RunFailed."""
    with open_process(run, setup) as process, resources.as_file(WARM_UP) as clip:
        process.transcribe([read_audio(clip)])
        tell(f"{run} is warm, loading took {process.load_seconds:.1f} s")
        yield process


def transcribe_in_turns(
    processes: Sequence[RunProcess], recordings: Sequence[Recording], batch: int, repeats: int
) -> dict[str, list[Result]]:
    """What each run made of each recording: `batch` of them at a time, `repeats` times.

    Which run begins changes from turn to turn, so that none always finds the machine as a certain
    other one left it. The seconds that a batch took are shared out among its recordings by their
    length. Raises RunFailed.
    """
    results: dict[str, list[Result]] = {process.run: [] for process in processes}
    for number, first in enumerate(range(0, len(recordings), batch)):
        together = recordings[first : first + batch]
        audio = [recording.audio for recording in together]
        answers: dict[str, list[Answer]] = {run: [] for run in results}
        for turn in range(repeats):
            place = (number + turn) % len(processes)
            for process in [*processes[place:], *processes[:place]]:
                answers[process.run].append(process.transcribe(audio))
        whole = seconds_of(together)
        for run, given in answers.items():
            for index, recording in enumerate(together):
                share = seconds_of([recording]) / whole
                seconds = tuple(answer.seconds * share for answer in given)
                results[run].append(Result(recording.clip, given[0].texts[index], seconds))
        took = (f"{run} {median(a.seconds for a in given):.2f} s" for run, given in answers.items())
        files = ", ".join(recording.clip.file for recording in together)
        tell(f"{first + len(together)}/{len(recordings)} {files[:60]}: {', '.join(took)}")
    return results


def shares(spent: dict[str, float], results: Sequence[Result]) -> dict[str, float]:
    """Percent of a run's time by part; the rest is Python, and what goes with it."""
    total = sum(sum(result.seconds) for result in results)
    known = {part: round(100 * seconds / total, 1) for part, seconds in spent.items()}
    return known | {"rest": round(100 - sum(known.values()), 1)}


def show(report: dict[str, Any], profile: bool) -> None:
    about, runs = report["machine"], report["runs"]
    table = Table("", *runs)
    table.title = (
        f"{report['files']} files, {report['audio_seconds'] / 60:.1f} min, {MODEL},"
        f" {report['batch']} at a time"
    )
    table.caption = f"{about['cpu']}, {about['cores']} threads, {' '.join(about['flags'])}"
    for title, key in ROWS.items():
        table.add_row(title, *(cell(values.get(key)) for values in runs.values()))
    table.add_section()
    for group in runs[OURS]["wer_by_group"]:
        rates = (cell(values["wer_by_group"][group]) for values in runs.values())
        table.add_row(f"WER % in {group}", *rates)
    if profile:
        table.add_section()
        told = {run: values.get("profile", {}) for run, values in runs.items()}
        for part in dict.fromkeys(part for parts in told.values() for part in parts):
            table.add_row(f"% of time in {part}", *(cell(told[run].get(part)) for run in runs))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
