"""The part of `benchmark.py endings` that ends streams at random places."""

import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from whisper_bench.files import Recording
from whisper_bench.lags import Ending, compare_endings, spread
from whisper_bench.live import Track, hear_offline, parse_options, serve, stream_one
from whisper_bench.manifest import BadInput
from whisper_bench.setup import Setup
from whisper_bench.terminal import tell
from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.client import LiveClient
from whisper_byoc.transcript import Event, Final

SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 12.0
"""Of a stream: what an utterance of a conversation lasts."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The beginning of a recording that is streamed, up to `cut` seconds. What was heard of it: the
    offline pass over the whole and over the beginning, and every event with its time in s."""

    file: str
    cut: float
    whole: Track
    beginning: Track
    seen: Sequence[tuple[float, Event]] = ()

    @property
    def streamed(self) -> str:
        """The final words."""
        return " ".join(event.text for _, event in self.seen if isinstance(event, Final))

    @property
    def ending(self) -> Ending:
        """What became of the last word."""
        return compare_endings(self.streamed, self.beginning.offline, self.whole.words, self.cut)

    @property
    def finalize(self) -> float | None:
        """From the end of the audio to the last final, in s; None when none came after it."""
        last = max((time for time, it in self.seen if isinstance(it, Final)), default=0.0)
        return last - self.beginning.seconds if last > self.beginning.seconds else None


def run_endings(
    recordings: Sequence[Recording],
    num_trials: int,
    at_once: int,
    seed: int,
    setup: Setup,
    options: Sequence[str],
) -> dict[str, Any]:
    """What became of the last words. Raises BadInput, ClientError and NoServer."""
    query = parse_options(options)
    trials = heard_offline(choose(recordings, num_trials, seed), setup)
    beginnings = [trial.beginning for trial in trials]
    with serve(setup) as (url, _):
        seen = asyncio.run(stream_endings(url, beginnings, at_once, query))
    trials = [replace(trial, seen=events) for trial, events in zip(trials, seen, strict=True)]
    return summarise_endings(trials) | {"at_once": at_once}


def choose(recordings: Sequence[Recording], num_trials: int, seed: int) -> list[Trial]:
    """Recordings in which somebody speaks, and where each of them is cut off, by chance.

    Raises BadInput where there is none that is long enough.
    """
    dice = random.Random(seed)
    wholes = [(it.clip.file, Track(it.audio, it.clip.reference)) for it in recordings]
    usable = [it for it in wholes if it[1].seconds > SHORTEST_SECONDS and it[1].reference]
    if not usable:
        raise BadInput(f"no file has words and more than {SHORTEST_SECONDS} s, expected one")
    trials = []
    for file, whole in [dice.choice(usable) for _ in range(num_trials)]:
        cut = dice.uniform(SHORTEST_SECONDS, min(LONGEST_SECONDS, whole.seconds))
        beginning = Track(whole.audio[: 2 * round(cut * SAMPLE_RATE)], "")
        trials.append(Trial(file, cut, whole, beginning))
    return trials


def heard_offline(trials: Sequence[Trial], setup: Setup) -> list[Trial]:
    """The trials with what an offline pass made of the recordings and of their beginnings."""
    tracks = [track for trial in trials for track in (trial.whole, trial.beginning)]
    heard = iter(hear_offline(tracks, setup))
    return [replace(trial, whole=next(heard), beginning=next(heard)) for trial in trials]


def summarise_endings(trials: Sequence[Trial]) -> dict[str, Any]:
    """The report's figures. `others`: the trials whose last word is not the offline pass's."""
    kinds = [trial.ending for trial in trials]
    finalize = [seconds for trial in trials if (seconds := trial.finalize) is not None]
    return {
        "seconds": round(sum(trial.beginning.seconds for trial in trials) / len(trials), 2),
        "trials": len(trials),
        "endings": {kind.value: kinds.count(kind) for kind in Ending},
        "finalize": spread(finalize),
        "others": [
            {
                "file": trial.file,
                "seconds": round(trial.cut, 2),
                "ending": kind,
                "streamed": " ".join(trial.streamed.split()[-4:]),
                "offline": " ".join(trial.beginning.offline.split()[-4:]),
            }
            for trial, kind in zip(trials, kinds, strict=True)
            if kind is not Ending.SAME
        ],
    }


async def stream_endings(
    url: str, tracks: Sequence[Track], at_once: int, query: dict[str, str]
) -> list[list[tuple[float, Event]]]:
    """What a reader of each stream saw, and when, in s from the stream's first sample."""
    gate = asyncio.Semaphore(at_once)
    done = 0

    async def one(client: LiveClient, track: Track) -> list[tuple[float, Event]]:
        nonlocal done
        async with gate:
            seen = await stream_one(client, track, 0.0, query)
        done += 1
        if done % 50 == 0:
            tell(f"{done} of {len(tracks)} streams")
        return seen

    async with LiveClient(url) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(client, track)) for track in tracks]
    return [task.result() for task in tasks]


def show_endings(report: dict[str, Any]) -> None:
    table = Table("last word", "streams")
    table.title = (
        f"{report['trials']} streams that end at random places, {report['at_once']} at once"
    )
    for kind, number in report["endings"].items():
        table.add_row(kind, str(number))
    finalize = report["finalize"]
    table.caption = f"end of audio → last final p50 / p95: {finalize['p50']} / {finalize['p95']} s"
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
