"""A process for each run, so that its memory and its threads are its own."""

import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from whisper_bench.peers import LOADERS
from whisper_bench.setup import Setup
from whisper_byoc.audio.pcm import PcmDecoder
from whisper_byoc.errors import ServiceError

Result = TypeVar("Result")


def call_in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What `function` returns, in a process of its own that is gone afterwards: what it imports
    and allocates stays out of this one. Raises what `function` raises."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


class RunFailed(ServiceError):
    """One run cannot go on, so there is nothing to compare."""

    code = "run_failed"
    text = "run {run} failed: {problem}"

    run: str
    problem: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the process of a run sends back for recordings given at once.

    texts: one for each recording. seconds: from samples in to texts out. profile: seconds by part
    since the run was loaded; empty where it does not tell. peak_rss_mb: of the process so far.
    """

    texts: list[str]
    seconds: float
    profile: dict[str, float]
    peak_rss_mb: float


def serve_run(run: str, setup: Setup, connection: Connection) -> None:
    """What the process of a run does: load it, then answer with texts until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who then ends us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that libraries clean up
    try:
        began = time.perf_counter()
        transcribe = LOADERS[run](setup)
        connection.send(time.perf_counter() - began)
        while True:
            recordings = [PcmDecoder().receive_bytes(audio) for audio in connection.recv()]
            began = time.perf_counter()
            texts = transcribe(recordings)
            seconds = time.perf_counter() - began
            profile = transcribe.profile() if hasattr(transcribe, "profile") else {}
            connection.send(Answer(texts, seconds, profile, peak_rss_mb()))
    except (EOFError, BrokenPipeError):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # on our way out already
    except Exception as error:  # whatever it is, the parent tells it with the run's name
        connection.send(RunFailed(run, f"{type(error).__name__}: {error}"))


def peak_rss_mb(process: int | str = "self") -> float:
    """Of a process, this one for none, since its program began."""
    try:
        # Where there is /proc: what getrusage tells there begins with the parent's peak, which
        # a process keeps when it starts another program.
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class RunProcess:
    """The parent's end of the process of one run. `open_process` starts it and ends it."""

    def __init__(
        self, run: str, process: multiprocessing.process.BaseProcess, connection: Connection
    ) -> None:
        self.run = run
        self._process, self._connection = process, connection
        self.load_seconds: float = self._receive()
        self.peak_rss_mb = 0.0
        self.profile: dict[str, float] = {}

    def transcribe(self, recordings: Sequence[bytes]) -> Answer:
        """recordings: each 16 kHz mono int16. Raises RunFailed."""
        with suppress(BrokenPipeError):  # `_receive` tells what became of the process
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
            raise RunFailed(self.run, f"its process ended with exit status {status}") from error
        if isinstance(answer, RunFailed):
            raise answer
        return answer


@contextmanager
def open_process(run: str, setup: Setup) -> Iterator[RunProcess]:
    """The process of a run that is loaded; at exit it is gone, whatever it was doing.

    Raises RunFailed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_run, args=(run, setup, theirs), name=run, daemon=True)
    process.start()
    theirs.close()
    try:
        yield RunProcess(run, process, ours)
    finally:
        ours.close()
        process.terminate()
        process.join()
