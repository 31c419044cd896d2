"""Whole recordings: any number, of any length, decoded many windows at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.decode import DecodeRequest, Hypothesis, Task
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.model import Model
from whisper_byoc.inference.voice import VoiceRequest, VoiceState
from whisper_byoc.settings import StreamingSettings
from whisper_byoc.streaming.frames import FrameBlocks
from whisper_byoc.streaming.hypothesis import believed, place_words
from whisper_byoc.streaming.recording import RecordingPlanner, RecordingWindow, split_unheard
from whisper_byoc.transcript import Word

BLOCK_FRAMES = 64
MAX_WINDOW_SECONDS = 28.0
MAX_SPLITS = 3
"""How often a window may be divided because its words leave out speech."""

Probabilities = Callable[[Sequence[VoiceRequest]], Sequence[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Segment:
    """What was said in one window; times in seconds from the start of the recording."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...]
    language: str


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """What the windows of a recording have in common; see `DecodeRequest`."""

    language: str | None = "en"
    task: Task = Task.TRANSCRIBE
    max_seconds: float = MAX_WINDOW_SECONDS
    streaming: StreamingSettings = field(default_factory=StreamingSettings)


def transcribe_recordings(
    model: Model,
    voice: Probabilities,
    recordings: Sequence[Iterable[NDArray[np.float32]]],
    options: RecordingOptions,
    max_batch: int,
) -> Iterator[tuple[int, Segment]]:
    """The number of a recording and its next segment, those of each recording in order.

    recordings: blocks of float32 (n,), 16 kHz mono, read as they are needed. Holds the windows of
    one batch. Synchronous, for the thread that owns the models. Raises DecodeError.
    """
    max_batch = min(max_batch, model.max_batch)
    waiting: list[tuple[int, RecordingWindow]] = []
    last_ends = [0.0] * len(recordings)
    for number, blocks in enumerate(recordings):
        for window in plan_windows(voice, blocks, options):
            waiting.append((number, window))
            if len(waiting) == max_batch:
                yield from _decode(model, waiting, options, last_ends)
                waiting = []
    if waiting:
        yield from _decode(model, waiting, options, last_ends)


def plan_windows(
    voice: Probabilities, blocks: Iterable[NDArray[np.float32]], options: RecordingOptions
) -> Iterator[RecordingWindow]:
    """The windows of one recording, as soon as each is whole."""
    planner = RecordingPlanner(options.streaming, options.max_seconds)
    state = VoiceState()
    for block in _in_frames(blocks):
        [probabilities] = voice([VoiceRequest.of(block, state)])
        yield from planner.receive_audio(block, probabilities.tolist())
    yield from planner.receive_end()


def _in_frames(blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    frames = FrameBlocks(BLOCK_FRAMES)
    for block in blocks:
        yield from frames.receive_samples(block)
    yield frames.receive_end()


def _decode(
    model: Model,
    windows: Sequence[tuple[int, RecordingWindow]],
    options: RecordingOptions,
    last_ends: list[float],
) -> Iterator[tuple[int, Segment]]:
    for found in _hear(model, [window for _, window in windows], options, MAX_SPLITS):
        number = windows[found.place][0]
        segment = _segment(found.window, found.hypothesis, last_ends[number])
        if segment.text:
            last_ends[number] = segment.end
            yield number, segment


@dataclass(frozen=True, slots=True)
class _Heard:
    """A window, or part of the one at `place`, and what was heard in it."""

    place: int
    window: RecordingWindow
    hypothesis: Hypothesis


def _hear(
    model: Model, windows: Sequence[RecordingWindow], options: RecordingOptions, num_splits: int
) -> list[_Heard]:
    """Decode windows together; those whose words leave out speech once more, in two parts."""
    heard: list[_Heard] = []
    parts: list[tuple[int, RecordingWindow]] = []
    for first in range(0, len(windows), model.max_batch):
        some = windows[first : first + model.max_batch]
        answers = model.decode([_request(window, options) for window in some])
        for place, (window, answer) in enumerate(zip(some, answers, strict=True), start=first):
            if isinstance(answer, DecodeError):
                raise answer
            hypothesis = believed(answer)
            split = split_unheard(window, hypothesis.words) if num_splits else []
            parts += [(place, part) for part in split]
            if not split:
                heard.append(_Heard(place, window, hypothesis))
    if parts:
        again = _hear(model, [part for _, part in parts], options, num_splits - 1)
        heard += [_Heard(parts[it.place][0], it.window, it.hypothesis) for it in again]
    return sorted(heard, key=lambda it: (it.place, it.window.start))


def _request(window: RecordingWindow, options: RecordingOptions) -> DecodeRequest:
    return DecodeRequest(
        window.samples,
        deadline=0.0,
        language=options.language,
        task=options.task,
    )


def _segment(window: RecordingWindow, hypothesis: Hypothesis, not_before: float) -> Segment:
    voiced = [window.start + place for place in window.voiced]
    words = place_words(hypothesis.words, window.offset, not_before, window.end, voiced)
    start = words[0].start if words else max(window.offset, not_before)
    end = words[-1].end if words else window.end
    return Segment(start, end, hypothesis.text, words, hypothesis.language)
