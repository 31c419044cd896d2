"""The part of `benchmark.py offline` that measures whole files."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from whisper_bench.files import read_audio, seconds_of
from whisper_bench.manifest import BadInput, Clip
from whisper_bench.peers import BASELINE, OURS, PEERS, SERVER
from whisper_bench.scoring import Result, add_speedups, summarise
from whisper_bench.setup import MODEL, ROOT, Setup
from whisper_bench.terminal import cell, tell
from whisper_bench.workers import Answer, RunFailed, open_worker

WARM_UP = ROOT / "whisper_byoc" / "data" / "warm-up.wav"
DECODE_SECONDS = 30
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
    return names


def make_ctranslate2(setup: Setup) -> None:
    """In a process of its own, which converts and so needs torch. model.bin is put last."""
    if (setup.ctranslate2_dir / "model.bin").is_file():
        return
    command = [sys.executable, str(ROOT / "scripts" / "bake_model.py"), MODEL]
    command += ["--models-dir", str(setup.models_dir)]
    command += ["--keep-ctranslate2", str(setup.ctranslate2_dir.parent)]
    status = subprocess.run(command, stdout=sys.stderr).returncode
    if status:
        raise RunFailed("faster-whisper", f"bake_model.py ended with exit status {status}")


def measure(
    runs: Sequence[str], clips: Sequence[Clip], audio: Sequence[bytes], setup: Setup, repeats: int
) -> dict[str, dict[str, Any]]:
    """Every run on every batch of clips in turn. Raises RunFailed.

    The clips of a batch took the part of its seconds that they have of its audio.
    """
    results: dict[str, list[Result]] = {run: [] for run in runs}
    warm_up = read_audio(WARM_UP)
    with ExitStack() as stack:
        workers = []
        for run in runs:
            workers.append(stack.enter_context(open_worker(run, setup)))
            workers[-1].transcribe([warm_up])
            tell(f"{run} is warm, loading took {workers[-1].load_seconds:.1f} s")
        before = {worker.run: dict(worker.profile) for worker in workers}
        for number, first in enumerate(range(0, len(clips), setup.batch)):
            batch = slice(first, first + setup.batch)
            answers: dict[str, list[Answer]] = {run: [] for run in runs}
            for turn in range(repeats):
                place = (number + turn) % len(workers)
                for worker in workers[place:] + workers[:place]:
                    answers[worker.run].append(worker.transcribe(audio[batch]))
            whole = seconds_of(audio[batch])
            for run, given in answers.items():
                for index, clip in enumerate(clips[batch]):
                    share = seconds_of([audio[first + index]]) / whole
                    seconds = tuple(answer.seconds * share for answer in given)
                    results[run].append(Result(clip, given[0].texts[index], seconds))
            took = (f"{run} {median(a.seconds for a in answers[run]):.2f} s" for run in runs)
            files = ", ".join(clip.file for clip in clips[batch])
            tell(f"{min(len(clips), batch.stop)}/{len(clips)} {files[:60]}: {', '.join(took)}")
    # Only now: whisper brings torch, and its threads
    from whisper.normalizers import EnglishTextNormalizer

    normalise, total = EnglishTextNormalizer(), seconds_of(audio)
    figures = {run: summarise(results[run], total, normalise) for run in runs}
    for worker in workers:
        # A server's memory is not ours to see
        peak = None if worker.run == SERVER else round(worker.peak_rss_mb, 1)
        figures[worker.run] |= {"peak_rss_mb": peak, "load_seconds": round(worker.load_seconds, 2)}
        if worker.profile:
            spent = {k: v - before[worker.run].get(k, 0) for k, v in worker.profile.items()}
            figures[worker.run]["profile"] = shares(spent, results[worker.run])
    add_speedups(figures, BASELINE)
    return figures


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
