"""The part of `benchmark.py endings` that ends streams at random places."""

import asyncio
import random
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from whisper_bench.lags import Ending, compare_endings, percentile
from whisper_bench.live import Track, hear_offline, parse_options, serve, stream_one
from whisper_bench.manifest import Clip
from whisper_bench.setup import Setup
from whisper_bench.terminal import tell
from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.client import LiveClient
from whisper_byoc.transcript import Event, Final

SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 12.0


def run_endings(
    clips: Sequence[Clip],
    audio: Sequence[bytes],
    trials: int,
    at_once: int,
    seed: int,
    setup: Setup,
    options: Sequence[str],
) -> dict[str, Any]:
    """What became of the last words. Raises BadInput, ClientError and NoServer."""
    query = parse_options(options)
    dice = random.Random(seed)
    whole = hear_offline(
        [Track(sound, clip.reference) for clip, sound in zip(clips, audio, strict=True)], setup
    )
    places = [
        n for n, track in enumerate(whole) if track.seconds > SHORTEST_SECONDS and track.words
    ]
    chosen = [dice.choice(places) for _ in range(trials)]
    cuts = [
        dice.uniform(SHORTEST_SECONDS, min(LONGEST_SECONDS, whole[place].seconds))
        for place in chosen
    ]
    beginnings = [
        Track(whole[place].audio[: 2 * round(cut * SAMPLE_RATE)], "")
        for place, cut in zip(chosen, cuts, strict=True)
    ]
    tracks = hear_offline(beginnings, setup)
    with serve(setup) as (url, _):
        seen = asyncio.run(stream_endings(url, tracks, at_once, query))
    kinds = [
        compare_endings(_text(events), track.offline, whole[place].words, cut)
        for place, cut, track, events in zip(chosen, cuts, tracks, seen, strict=True)
    ]
    finalize = [
        last - track.seconds
        for track, events in zip(tracks, seen, strict=True)
        if (last := max((time for time, it in events if isinstance(it, Final)), default=0.0))
        > track.seconds
    ]
    return {
        "seconds": round(sum(track.seconds for track in tracks) / trials, 2),
        "trials": trials,
        "at_once": at_once,
        "endings": {kind.value: kinds.count(kind) for kind in Ending},
        "finalize": {
            name: None if (it := percentile(finalize, percent)) is None else round(it, 3)
            for name, percent in (("p50", 50), ("p95", 95))
        },
        "others": [
            {
                "file": clips[place].file,
                "seconds": round(cut, 2),
                "ending": kind,
                "streamed": " ".join(_text(events).split()[-4:]),
                "offline": " ".join(track.offline.split()[-4:]),
            }
            for place, cut, track, events, kind in zip(
                chosen, cuts, tracks, seen, kinds, strict=True
            )
            if kind is not Ending.SAME
        ],
    }


async def stream_endings(
    url: str, tracks: Sequence[Track], at_once: int, query: dict[str, str]
) -> list[list[tuple[float, Event]]]:
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


def _text(events: Sequence[tuple[float, Event]]) -> str:
    return " ".join(event.text for _, event in events if isinstance(event, Final))


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
