"""The part of `benchmark.py replay` that streams recordings in stream time, without waiting."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track as progress
from rich.table import Table

from whisper_bench.files import Recording, seconds_of
from whisper_bench.live import (
    GAP_SECONDS,
    ROWS,
    Track,
    hear_offline,
    joined,
    summarise_live,
    to_samples,
)
from whisper_bench.manifest import BadInput
from whisper_bench.setup import Setup
from whisper_bench.terminal import cell, tell
from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import FRAME_SAMPLES, DecodeRequest, Hypothesis
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.engine import load_models
from whisper_byoc.inference.model import Model
from whisper_byoc.inference.voice import VoiceModel, VoiceRequest, VoiceState
from whisper_byoc.settings import ModelSettings, StreamingSettings
from whisper_byoc.streaming.transcriber import Transcriber
from whisper_byoc.streaming.utterance import Purpose, Window
from whisper_byoc.transcript import EndReason, Event

STEP_FRAMES = 3
"""Of audio that comes at once: 96 ms, about what `live` sends (CHUNK_SECONDS)."""
MAX_BATCH = 16
"""Windows that are given to the model at once."""
SHORTEST_SECONDS = 10
"""Of a stream: what is left of a folder is measured if it has so much."""


def run_replay(
    recordings: Sequence[Recording],
    seconds: float,
    half: str,
    latency: float,
    setup: Setup,
    options: Sequence[str],
) -> dict[str, Any]:
    """Figures over all streams and by folder. Raises BadInput.

    latency: what every decode takes in stream time. half: `first` or `second`, to choose settings
    on one and report them on the other; streams take turns.
    """
    settings = parse_settings(options)
    named = join_once(recordings, seconds)
    if half != "both":
        named = named[0 if half == "first" else 1 :: 2]
    if not named:
        raise BadInput(
            f"half {half!r} of the files is empty, expected more than one stream of"
            f" {SHORTEST_SECONDS} s"
        )
    groups = [group for group, _ in named]
    [model] = load_models(ModelSettings(directory=setup.models_dir))
    tracks = hear_offline([track for _, track in named], setup)
    seen = replay(model, VoiceModel(), tracks, settings, latency)

    def figures(places: Sequence[int]) -> dict[str, Any]:
        return summarise_live([tracks[n] for n in places], [seen[n] for n in places])

    by_group = {
        group: figures([n for n, it in enumerate(groups) if it == group])
        for group in dict.fromkeys(groups)
    }
    return {"all": figures(range(len(tracks)))} | by_group


def parse_settings(options: Sequence[str]) -> StreamingSettings:
    """Raises BadInput."""
    values = dict(option.split("=", 1) for option in options if "=" in option)
    if len(values) < len(options):
        raise BadInput(f"options are {', '.join(options)}, expected each once, as NAME=VALUE")
    try:
        return StreamingSettings.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise BadInput(
            f"option {'.'.join(map(str, problem['loc']))} is {problem['input']!r}, expected one of"
            f" the streaming settings and its values: {problem['msg']}"
        ) from None


def join_once(recordings: Sequence[Recording], seconds: float) -> list[tuple[str, Track]]:
    """Every recording once, those of a folder joined into streams of at least `seconds`; what
    remains of a folder is a stream when it has SHORTEST_SECONDS. Each with its folder's name."""
    tracks: list[tuple[str, Track]] = []
    for group, members in groupby(recordings, key=lambda recording: recording.clip.group):
        parts: list[Recording] = []
        for recording in members:
            parts.append(recording)
            if seconds_of(parts) + GAP_SECONDS * len(parts) >= seconds:
                tracks.append((group, joined(parts)))
                parts = []
        if seconds_of(parts) + GAP_SECONDS * len(parts) >= SHORTEST_SECONDS:
            tracks.append((group, joined(parts)))
    return tracks


@dataclass(slots=True)
class _Stream:
    """One stream's rules, the audio that has not come yet, and the answer on its way."""

    transcriber: Transcriber
    samples: NDArray[np.float32]
    voice: list[float]
    position: int = 0
    answer: tuple[float, Hypothesis] | None = None
    seen: list[tuple[float, Event]] = field(default_factory=list)

    def receive_audio(self) -> None:
        if self.position < len(self.samples):
            end = self.position + STEP_FRAMES * FRAME_SAMPLES
            first = self.position // FRAME_SAMPLES
            voice = self.voice[first : first + STEP_FRAMES]
            self.transcriber.receive_audio(self.samples[self.position : end], voice)
            self.position = min(end, len(self.samples))
            if self.position == len(self.samples):
                self.transcriber.receive_end(EndReason.EOF)

    def receive_answer(self, now: float, latency: float) -> None:
        if self.answer is not None and self.answer[0] <= now:
            self.transcriber.receive_hypothesis(self.answer[1], latency)
            self.collect(self.answer[0])
            self.answer = None

    def next_window(self, now: float) -> Window | None:
        if self.answer is not None or self.transcriber.ended:
            return None
        window = self.transcriber.next_window(live=self.position < len(self.samples))
        self.collect(now)
        return window

    def collect(self, now: float) -> None:
        self.seen += [(now, event) for event in self.transcriber.events_to_send()]


def replay(
    model: Model,
    voice: VoiceModel,
    tracks: Sequence[Track],
    settings: StreamingSettings,
    latency: float,
) -> list[list[tuple[float, Event]]]:
    """Every event of each stream with its time in the stream, in seconds."""
    streams = []
    for track in tracks:
        samples = to_samples(track.audio)
        frames = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
        [values] = voice.probabilities([VoiceRequest(frames, VoiceState())])
        streams.append(_Stream(Transcriber(settings), samples, values.tolist()))
    step = STEP_FRAMES * FRAME_SAMPLES / SAMPLE_RATE
    steps = round(max(track.seconds for track in tracks) / step) + 1
    tell(f"{len(tracks)} streams, {sum(track.seconds for track in tracks) / 60:.1f} min")
    number = 0
    console = Console(stderr=True)
    for _ in progress(range(steps), "stream time", console=console, transient=True):
        number += 1
        _advance(model, streams, number * step, latency)
    while not all(stream.transcriber.ended for stream in streams):
        number += 1
        _advance(model, streams, number * step, latency)
    return [stream.seen for stream in streams]


def _advance(model: Model, streams: Sequence[_Stream], now: float, latency: float) -> None:
    asked: list[tuple[_Stream, Window]] = []
    for stream in streams:
        stream.receive_audio()
        stream.receive_answer(now, latency)
        if (window := stream.next_window(now)) is not None:
            asked.append((stream, window))
    for first in range(0, len(asked), MAX_BATCH):
        batch = asked[first : first + MAX_BATCH]
        answers = model.decode([_request(window) for _, window in batch])
        for (stream, _), answer in zip(batch, answers, strict=True):
            if isinstance(answer, DecodeError):
                raise answer
            stream.answer = now + latency, answer


def _request(window: Window) -> DecodeRequest:
    return DecodeRequest(
        window.samples,
        deadline=0.0,
        retry=window.purpose is not Purpose.PARTIAL,
        forced=window.forced,
        draft=window.draft,
    )


COLUMNS = ("wer", "offline_wer", "partial_lag", "final_lag", "finalize", "words", "tail_words_lost")


def show_replay(report: dict[str, Any]) -> None:
    """A line for each folder."""
    titles = {key: title for title, key in ROWS.items()}
    table = Table("", *(titles[key] for key in COLUMNS))
    table.title = f"{report['model']}, in stream time, a decode takes {report['latency']:g} s"
    for folder, figures in report["streams"].items():
        table.add_row(folder, *(cell(figures[key]) for key in COLUMNS))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
