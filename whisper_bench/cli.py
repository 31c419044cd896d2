"""The commands of the benchmark: what users ask for, and how it ends."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from whisper_bench.endings import run_endings, show_endings
from whisper_bench.files import Recording, read_recordings, seconds_of
from whisper_bench.live import draw, parse_counts, run_live, serve, show_live
from whisper_bench.machine import machine, versions
from whisper_bench.manifest import BadInput
from whisper_bench.offline import DECODE_SECONDS, make_ctranslate2, measure, parse_peers, show
from whisper_bench.peers import OURS, PEERS, SERVER
from whisper_bench.setup import MODEL, ROOT, Setup
from whisper_bench.terminal import tell
from whisper_bench.word_times import run_word_times, show_word_times
from whisper_byoc.errors import ServiceError
from whisper_byoc.settings import num_cores
from whisper_byoc.weights.accepting import find_weights

manifest_option = click.option(
    "--manifest", type=click.Path(path_type=Path), required=True, help="TSV of files."
)
filter_option = click.option(
    "--filter", "prefixes", multiple=True, help="Only files that begin so; repeatable."
)
models_option = click.option(
    "--models-dir",
    type=click.Path(path_type=Path),
    default=ROOT / "models",
    envvar="WHISPER_MODEL_DIRECTORY",
    show_envvar=True,
    help="Folder of the weights and their manifest.",
)


@click.group()
def main() -> None:
    """Measure accuracy, speed and memory, beside other programs on the same machine."""


@contextmanager
def exiting() -> Iterator[None]:
    """Tell what went wrong and exit: 2 for bad input, 1 for other failures, 130 when stopped."""
    try:
        yield
    except (ServiceError, OSError) as error:
        tell(str(error))
        sys.exit(2 if isinstance(error, BadInput) else 1)
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(130)


@contextmanager
def serving(setup: Setup) -> Iterator[Setup]:
    """The set-up with a service that is started for it. Raises NoServer."""
    with serve(setup) as (url, process):
        yield replace(setup, url=url, process=process)


seconds_option = click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, help="Of each stream, at least."
)
json_option = click.option(
    "--json", "only_json", is_flag=True, help="Print the line of JSON and no table."
)
url_option = click.option(
    "--url", default="", help="The service that runs there, not one started for this."
)
options_option = click.option(
    "--option", "options", multiple=True, help="NAME=VALUE for every source; repeatable."
)


def read_for_streams(
    manifest: Path, prefixes: tuple[str, ...], models_dir: Path, url: str = ""
) -> tuple[list[Recording], Setup]:
    """What the commands about live streams begin with. Raises BadInput and MissingModel."""
    recordings = read_recordings(manifest, prefixes)
    weights = find_weights(models_dir, MODEL)
    return recordings, Setup(models_dir, weights, num_cores(), url, "batched", "cpu", 8)


def about(seconds: float) -> dict[str, Any]:
    """What every report about live streams begins with."""
    return {
        "machine": machine(num_cores()),
        "versions": versions(),
        "model": MODEL,
        "seconds": seconds,
    }


@main.command()
@manifest_option
@filter_option
@click.option("--streams", default="1,4,8,16", help="How many at once, with commas between.")
@seconds_option
@click.option(
    "--tracks",
    type=click.IntRange(1),
    default=1,
    help="Different streams that every number of them hears, one after another if need be.",
)
@url_option
@json_option
@options_option
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Draw lag against streams into this file."
)
@models_option
def live(
    manifest: Path,
    prefixes: tuple[str, ...],
    streams: str,
    seconds: float,
    tracks: int,
    url: str,
    only_json: bool,
    options: tuple[str, ...],
    picture: Path | None,
    models_dir: Path,
) -> None:
    """Streams at the pace of speech: how late words come, and what that costs.

    Files are joined into streams, with half a second between. Each stream is sent at 1×; when
    words were spoken, and what can be heard in it, comes from an offline pass over the same audio.
    The last line printed is a JSON object.
    """
    with exiting():
        counts = parse_counts(streams)
        if picture is not None and find_spec("matplotlib") is None:
            raise BadInput("matplotlib is not installed, expected it for --picture")
        recordings, setup = read_for_streams(manifest, prefixes, models_dir, url)
        figures = run_live(recordings, counts, tracks, seconds, setup, options)
        report = about(seconds) | {"streams": figures}
        if picture is not None:
            draw(report, picture)
    if not only_json:
        show_live(report)
    print(json.dumps(report))


@main.command()
@manifest_option
@filter_option
@seconds_option
@click.option(
    "--half",
    type=click.Choice(["both", "first", "second"]),
    default="both",
    help="Every other stream, to choose settings on one half and report them on the other.",
)
@click.option(
    "--latency", type=click.FloatRange(0, 10), default=0.05, help="Seconds that a decode takes."
)
@json_option
@click.option(
    "--option", "options", multiple=True, help="NAME=VALUE of the streaming settings; repeatable."
)
@models_option
def replay(
    manifest: Path,
    prefixes: tuple[str, ...],
    seconds: float,
    half: str,
    latency: float,
    only_json: bool,
    options: tuple[str, ...],
    models_dir: Path,
) -> None:
    """The streaming rules in stream time: as `live`, without its waiting, and always the same.

    Every decode is taken to last --latency, so lags do not tell how fast the machine is. Files are
    joined with others of their folder, each once. The last line printed is a JSON object.
    """
    # It brings torch, which the other commands leave to processes of their own.
    from whisper_bench.replay import run_replay, show_replay

    with exiting():
        recordings, setup = read_for_streams(manifest, prefixes, models_dir)
        figures = run_replay(recordings, seconds, half, latency, setup, options)
        report = about(seconds) | {"latency": latency, "half": half, "streams": figures}
    if not only_json:
        show_replay(report)
    print(json.dumps(report))


@main.command()
@manifest_option
@filter_option
@click.option("--trials", type=click.IntRange(1, 10_000), default=500, help="How many streams.")
@click.option("--streams", "at_once", type=click.IntRange(1, 1000), default=8, help="At once.")
@click.option("--seed", type=int, default=0, help="Of the places.")
@url_option
@json_option
@options_option
@models_option
def endings(
    manifest: Path,
    prefixes: tuple[str, ...],
    trials: int,
    at_once: int,
    seed: int,
    url: str,
    only_json: bool,
    options: tuple[str, ...],
    models_dir: Path,
) -> None:
    """Streams that end at random places: is the last word there?

    Each is the beginning of a file, sent at 1×. Its last word has to be the one that an offline
    pass over the same audio ends with, unless the end fell inside a word. The last line printed is
    a JSON object.
    """
    with exiting():
        recordings, setup = read_for_streams(manifest, prefixes, models_dir, url)
        figures = run_endings(recordings, trials, at_once, seed, setup, options)
        report = about(figures.pop("seconds")) | figures
    if not only_json:
        show_endings(report)
    print(json.dumps(report))


@main.command()
@manifest_option
@filter_option
@url_option
@json_option
@models_option
def words(
    manifest: Path, prefixes: tuple[str, ...], url: str, only_json: bool, models_dir: Path
) -> None:
    """When words were spoken, against a forced alignment.

    Of every file with a .words.tsv beside it (start, end, word): as a whole file through OpenAI's
    door, and live in stream time. The last line printed is a JSON object.
    """
    with exiting():
        recordings, setup = read_for_streams(manifest, prefixes, models_dir, url)
        runs = run_word_times(recordings, manifest.parent, setup)
        report = {"machine": machine(num_cores()), "versions": versions(), "model": MODEL}
        report |= {"runs": runs}
    if not only_json:
        show_word_times(report)
    print(json.dumps(report))


@main.command()
@manifest_option
@filter_option
@click.option("--limit", type=click.IntRange(1), help="Only the first files.")
@click.option("--peers", default="", help=f"With commas between: {', '.join(PEERS)}.")
@click.option("--json", "only_json", is_flag=True, help="Print the line of JSON and no table.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=num_cores,
    help="Of each run; all cores when left out.",
)
@click.option("--batch", type=click.IntRange(1), default=1, help="Files given at once.")
@click.option(
    "--engine", type=click.Choice(["batched", "reference"]), default="batched", help="Of ours."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Of ours.")
@click.option("--profile", is_flag=True, help="Show where ours spends its time.")
@click.option("--repeats", type=click.IntRange(1), default=1, help="Take the median of so many.")
@click.option(
    "--effort",
    type=click.Choice(["quick", "thorough"]),
    default="thorough",
    help="Of ours, and of the service.",
)
@click.option("--door", is_flag=True, help="Measure a service that is started for this, too.")
@click.option("--url", default="", help="Measure the service that runs there, too.")
@models_option
def offline(
    manifest: Path,
    prefixes: tuple[str, ...],
    limit: int | None,
    peers: str,
    only_json: bool,
    threads: int,
    batch: int,
    engine: str,
    device: str,
    profile: bool,
    repeats: int,
    effort: str,
    door: bool,
    url: str,
    models_dir: Path,
) -> None:
    """Whole files: WER, RTF and peak memory of this project and its peers.

    The manifest has columns `file` (beside it) and `reference text`. Every run has a process of its
    own; for each file they take turns. Timed is samples in, text out; of a service, a WAV to its
    door for recordings, /v1/audio/transcriptions, and its answer. The last line printed is a JSON
    object.
    """
    with exiting():
        runs = [OURS, *parse_peers(peers), *([SERVER] if url or door else [])]
        recordings = read_recordings(manifest, prefixes, limit)
        longest = max(seconds_of([recording]) for recording in recordings)
        if "openai-decode" in runs and longest > DECODE_SECONDS:
            tell(f"openai-decode hears only the first {DECODE_SECONDS} s of a file")
        setup = Setup(
            models_dir, find_weights(models_dir, MODEL), threads, url, engine, device, batch, effort
        )
        if any(run.startswith("faster-whisper") for run in runs):
            make_ctranslate2(setup)
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        report = {
            "machine": machine(threads),
            "versions": versions(),
            "model": MODEL,
            "batch": batch,
            "files": len(recordings),
            "audio_seconds": round(seconds_of(recordings), 3),
            "effort": effort,
        }
        with serving(setup) if door else nullcontext(setup) as setup:
            report["runs"] = measure(runs, recordings, setup, repeats)
    if not only_json:
        show(report, profile)
    print(json.dumps(report))
