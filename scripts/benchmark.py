"""Measure accuracy, speed and memory, beside other programs on the same machine.

A worker process imports this module again, so what is heavy is imported where it is used: the
memory of a run is its own.
"""

import json
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import click
import numpy as np
from numpy.typing import NDArray

from whisper_bench.manifest import BadInput, Clip, parse_manifest, select_clips
from whisper_bench.scoring import Result, add_speedups, summarise
from whisper_byoc.errors import ServiceError
from whisper_byoc.weights.accepting import find_weights

if TYPE_CHECKING:
    from whisper_byoc.inference.voice import VoiceRequest

ROOT = Path(__file__).resolve().parents[1]
MODEL = "tiny.en"
WARM_UP = ROOT / "whisper_byoc" / "data" / "warm-up.wav"
SAMPLE_RATE = 16_000
DECODE_SECONDS = 30
CPU_FLAGS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16")
PACKAGES = (
    "whisper-byoc",
    "torch",
    "openai-whisper",
    "faster-whisper",
    "ctranslate2",
    "onnxruntime",
)

Samples = NDArray[np.float32]


class Transcribe(Protocol):
    """One run, loaded: recordings in, texts out, in order."""

    def __call__(self, recordings: Sequence[Samples], /) -> list[str]: ...


class RunFailed(ServiceError):
    """One run cannot go on, so there is nothing to compare."""

    code = "run_failed"

    def __init__(self, run: str, problem: str) -> None:
        super().__init__(run, problem)
        self.run, self.problem = run, problem

    def __str__(self) -> str:
        return f"run {self.run} failed: {self.problem}"


@dataclass(frozen=True, slots=True)
class Setup:
    """What every worker is told. weights: the checkpoint that all but faster-whisper read; engine:
    of `ours`; batch: recordings given at once."""

    models_dir: Path
    weights: Path
    threads: int
    url: str
    engine: str
    device: str
    batch: int

    @property
    def ctranslate2_dir(self) -> Path:
        return self.models_dir / "ctranslate2" / MODEL


def load_ours(setup: Setup, engine: str = "") -> Transcribe:
    """Recordings as a whole: voice activity, windows, decodes, word times."""
    from whisper_byoc.inference.engine import load_models
    from whisper_byoc.inference.voice import VoiceModel
    from whisper_byoc.jobs.recordings import RecordingOptions, transcribe_recordings
    from whisper_byoc.settings import Device, EngineKind, ModelSettings

    prepare_torch(setup.threads)
    [model] = load_models(
        ModelSettings(
            directory=setup.models_dir,
            names=(MODEL,),
            device=Device(setup.device),
            engine=EngineKind(engine or setup.engine),
            threads=setup.threads,
        )
    )
    voice = VoiceModel()

    class Ours:
        seconds: ClassVar[dict[str, float]] = {"voice activity": 0.0}

        def __call__(self, recordings: Sequence[Samples]) -> list[str]:
            texts: list[list[str]] = [[] for _ in recordings]
            blocks = [[samples] for samples in recordings]
            found = transcribe_recordings(
                model, self._probabilities, blocks, RecordingOptions(), setup.batch
            )
            for number, segment in found:
                texts[number].append(segment.text)
            return [" ".join(parts) for parts in texts]

        def _probabilities(self, requests: "Sequence[VoiceRequest]") -> list[Samples]:
            began = time.perf_counter()
            result = voice.probabilities(requests)
            self.seconds["voice activity"] += time.perf_counter() - began
            return result

        def profile(self) -> dict[str, float]:
            return self.seconds | dict(getattr(model, "seconds", {}))

    return Ours()


def load_openai(setup: Setup) -> Transcribe:
    """openai-whisper's `transcribe` as it comes."""
    import whisper

    prepare_torch(setup.threads)
    model = whisper.load_model(str(setup.weights), device="cpu")
    return one_by_one(
        lambda samples: str(model.transcribe(samples, language="en", fp16=False)["text"])
    )


def one_by_one(transcribe: Callable[[Samples], str]) -> Transcribe:
    return lambda recordings: [transcribe(samples) for samples in recordings]


def load_openai_decode(setup: Setup) -> Transcribe:
    """openai-whisper's `decode`: one window, greedily, without timestamps."""
    import whisper

    prepare_torch(setup.threads)
    model = whisper.load_model(str(setup.weights), device="cpu")
    options = whisper.DecodingOptions(
        language="en", temperature=0.0, without_timestamps=True, fp16=False
    )

    def transcribe(samples: Samples) -> str:
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(samples))
        return str(whisper.decode(model, mel, options).text)

    return one_by_one(transcribe)


def load_faster_whisper(setup: Setup, beam_size: int) -> Transcribe:
    """int8, everything but the beam as it comes."""
    model = open_faster_whisper(setup)

    def transcribe(samples: Samples) -> str:
        segments, _ = model.transcribe(samples, language="en", beam_size=beam_size)
        return "".join(segment.text for segment in segments)

    return one_by_one(transcribe)


def load_faster_whisper_batched(setup: Setup) -> Transcribe:
    """Its pipeline for batches, which takes one recording: ours behind one another, a clip each."""
    from faster_whisper import BatchedInferencePipeline

    pipeline = BatchedInferencePipeline(open_faster_whisper(setup))

    def transcribe(recordings: Sequence[Samples]) -> list[str]:
        ends = np.cumsum([len(samples) for samples in recordings]) / SAMPLE_RATE
        starts = [0.0, *ends[:-1].tolist()]
        clips = [{"start": a, "end": b} for a, b in zip(starts, ends.tolist(), strict=True)]
        segments, _ = pipeline.transcribe(
            np.concatenate(recordings),
            language="en",
            beam_size=1,
            vad_filter=False,
            clip_timestamps=clips,
            batch_size=setup.batch,
        )
        texts = [""] * len(recordings)
        for segment in segments:
            texts[int(np.searchsorted(ends, (segment.start + segment.end) / 2))] += segment.text
        return texts

    return transcribe


def open_faster_whisper(setup: Setup) -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(
        str(setup.ctranslate2_dir),
        device="cpu",
        compute_type="int8",
        cpu_threads=setup.threads,
        num_workers=1,
        local_files_only=True,
    )


def load_server(setup: Setup) -> Transcribe:
    """A running service, given each file as fast as it takes it."""
    import asyncio
    import uuid
    from collections.abc import AsyncIterator

    from whisper_byoc.client import LiveClient
    from whisper_byoc.transcript import Format

    async def whole(samples: Samples) -> AsyncIterator[bytes]:
        yield (samples * 32768).astype("<i2").tobytes()

    async def send(samples: Samples) -> str:
        job_id = f"benchmark-{uuid.uuid4().hex[:12]}"
        texts: list[str] = []
        async with LiveClient(setup.url) as client:
            await client.transcribe(
                job_id, whole(samples), texts.append, output=Format.TEXT, content_type="audio/pcm"
            )
            await client.delete(job_id)
        return "".join(texts)

    async def send_all(recordings: Sequence[Samples]) -> list[str]:
        return await asyncio.gather(*map(send, recordings))

    return lambda recordings: asyncio.run(send_all(recordings))


def prepare_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)  # for the temperatures above 0 that a bad window is decoded with


OURS, SERVER, BASELINE = "ours", "server", "openai"
PEERS: dict[str, Callable[[Setup], Transcribe]] = {
    "reference": lambda setup: load_ours(setup, "reference"),
    BASELINE: load_openai,
    "openai-decode": load_openai_decode,
    "faster-whisper": lambda setup: load_faster_whisper(setup, beam_size=1),
    "faster-whisper-beam5": lambda setup: load_faster_whisper(setup, beam_size=5),
    "faster-whisper-batched": load_faster_whisper_batched,
}
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
LOADERS = {OURS: load_ours, SERVER: load_server, **PEERS}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker sends back for clips given at once. profile: seconds by part since it was
    loaded, where a run tells."""

    texts: list[str]
    seconds: float
    profile: dict[str, float]
    peak_rss_mb: float


def work(run: str, setup: Setup, connection: Connection) -> None:
    """A worker's life: load, then text for samples until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who then ends us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that libraries clean up
    try:
        began = time.perf_counter()
        transcribe = LOADERS[run](setup)
        connection.send(time.perf_counter() - began)
        while True:
            recordings = [
                np.frombuffer(audio, dtype="<i2").astype(np.float32) / np.float32(32768)
                for audio in connection.recv()
            ]
            began = time.perf_counter()
            texts = transcribe(recordings)
            seconds = time.perf_counter() - began
            profile = transcribe.profile() if hasattr(transcribe, "profile") else {}
            connection.send(Answer(texts, seconds, profile, peak_rss_mb()))
    except (EOFError, BrokenPipeError):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # on our way out already
    except Exception as error:  # whatever it is, the parent tells it with the run's name
        connection.send(RunFailed(run, f"{type(error).__name__}: {error}"))


def peak_rss_mb() -> float:
    """Of this process, since its program began."""
    try:
        # Where there is /proc: what getrusage tells there begins with the parent's peak, which
        # a process keeps when it starts another program.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Worker:
    """The parent's end of one run; `open_worker` starts it and ends it."""

    def __init__(
        self, run: str, process: multiprocessing.process.BaseProcess, connection: Connection
    ) -> None:
        self.run = run
        self._process, self._connection = process, connection
        self.load_seconds: float = self._receive()
        self.peak_rss_mb = 0.0
        self.profile: dict[str, float] = {}

    def transcribe(self, recordings: Sequence[bytes]) -> Answer:
        """Raises RunFailed. recordings: each 16 kHz mono int16."""
        with suppress(BrokenPipeError):  # `_receive` tells what became of it
            self._connection.send(recordings)
        answer: Answer = self._receive()
        self.peak_rss_mb, self.profile = answer.peak_rss_mb, answer.profile
        return answer

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            status = self._process.exitcode
            raise RunFailed(self.run, f"its worker ended with exit status {status}") from error
        if isinstance(answer, RunFailed):
            raise answer
        return answer


@contextmanager
def open_worker(run: str, setup: Setup) -> Iterator[Worker]:
    """A loaded worker; at exit its process is gone, whatever it was doing."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(run, setup, theirs), name=run, daemon=True)
    process.start()
    theirs.close()
    try:
        yield Worker(run, process, ours)
    finally:
        ours.close()
        process.terminate()
        process.join()


def read_audio(path: Path) -> bytes:
    """16 kHz mono int16, what openai-whisper makes of a file too. Raises BadInput."""
    import ffmpeg

    from whisper_byoc.audio.ffmpeg import find_ffmpeg

    if not path.is_file():
        raise BadInput(f"{path} is not there, expected the audio that the manifest names")
    stream = ffmpeg.input(str(path.resolve())).output("pipe:", f="s16le", ac=1, ar=SAMPLE_RATE)
    try:
        audio, _ = stream.global_args("-nostdin", "-loglevel", "error").run(
            cmd=find_ffmpeg(), capture_stdout=True, capture_stderr=True
        )
    except ffmpeg.Error as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise BadInput(f"{path}: {said[-1]}, expected audio that ffmpeg can read") from error
    if not audio:
        raise BadInput(f"{path} has no samples, expected some")
    return bytes(audio)


def read_clips(manifest: Path, prefixes: Sequence[str], limit: int | None) -> list[Clip]:
    """Raises BadInput."""
    try:
        clips = parse_manifest(manifest.read_text(encoding="utf-8"), str(manifest))
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot read {manifest}: {problem}, expected a table in UTF-8") from error
    chosen = select_clips(clips, prefixes)
    if not prefixes and (num_left_out := len(clips) - len(chosen)):
        tell(f"{num_left_out} files in other languages are left out, a --filter can name them")
    return chosen[:limit]


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


def seconds_of(audio: Sequence[bytes]) -> float:
    return sum(map(len, audio)) / 2 / SAMPLE_RATE


def num_cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(threads: int) -> dict[str, Any]:
    """CPU fields are of its first core; without /proc, what Python knows of it."""
    about: dict[str, str] = {}
    with suppress(FileNotFoundError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            about.setdefault(key.strip(), value.strip())
    flags = about.get("flags", "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": about.get("model name") or platform.processor() or platform.machine(),
        "cores": threads,
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_gb": round(memory / 1e9, 1),
    }


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
        found["commit"] = result.stdout.strip() or None
    except FileNotFoundError:
        found["commit"] = None
    return found


def show(report: dict[str, Any], profile: bool) -> None:
    from rich.console import Console
    from rich.table import Table

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


def cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def tell(line: str) -> None:
    print(f"benchmark: {line}", file=sys.stderr, flush=True)


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
    sys.path.insert(0, str(ROOT))  # for `scripts`: this one is started from anywhere


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


seconds_option = click.option(
    "--seconds", type=click.FloatRange(5), default=60.0, help="Of each stream, at least."
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
) -> tuple[list[Clip], list[bytes], Setup]:
    """What the commands about live streams begin with. Raises BadInput and MissingModel."""
    clips = read_clips(manifest, prefixes, None)
    audio = [read_audio(manifest.parent / clip.file) for clip in clips]
    weights = find_weights(models_dir, MODEL)
    return clips, audio, Setup(models_dir, weights, num_cores(), url, "batched", "cpu", 8)


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
    from scripts.live_benchmark import draw, parse_counts, run_live, show_live

    with exiting():
        counts = parse_counts(streams)
        clips, audio, setup = read_for_streams(manifest, prefixes, models_dir, url)
        figures = run_live(clips, audio, counts, tracks, seconds, setup, options)
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
    from scripts.replay_benchmark import run_replay, show_replay

    with exiting():
        clips, audio, setup = read_for_streams(manifest, prefixes, models_dir)
        figures = run_replay(clips, audio, seconds, half, latency, setup, options)
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
    from scripts.endings_benchmark import run_endings, show_endings

    with exiting():
        clips, audio, setup = read_for_streams(manifest, prefixes, models_dir, url)
        figures = run_endings(clips, audio, trials, at_once, seed, setup, options)
        report = about(figures.pop("seconds")) | figures
    if not only_json:
        show_endings(report)
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
    url: str,
    models_dir: Path,
) -> None:
    """Whole files: WER, RTF and peak memory of this project and its peers.

    The manifest has columns `file` (beside it) and `reference text`. Every run has a process of its
    own; for each file they take turns. Timed is samples in, text out. The last line printed is a
    JSON object.
    """
    with exiting():
        runs = [OURS, *parse_peers(peers), *([SERVER] if url else [])]
        clips = read_clips(manifest, prefixes, limit)
        audio = [read_audio(manifest.parent / clip.file) for clip in clips]
        if "openai-decode" in runs and max(map(len, audio)) > 2 * DECODE_SECONDS * SAMPLE_RATE:
            tell(f"openai-decode hears only the first {DECODE_SECONDS} s of a file")
        setup = Setup(
            models_dir, find_weights(models_dir, MODEL), threads, url, engine, device, batch
        )
        if any(run.startswith("faster-whisper") for run in runs):
            make_ctranslate2(setup)
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        report = {
            "machine": machine(threads),
            "versions": versions(),
            "model": MODEL,
            "batch": batch,
            "files": len(clips),
            "audio_seconds": round(seconds_of(audio), 3),
            "runs": measure(runs, clips, audio, setup, repeats),
        }
    if not only_json:
        show(report, profile)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
