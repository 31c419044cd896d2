"""Transcribes whole recordings: any number, of any length, decoded many windows at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

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
"""Frames (2 s) that are asked about voice in one call."""
MAX_WINDOW_SECONDS = 28.0
"""Measured: shorter windows cost words (docs/engine.md, Recordings)."""
MAX_SPLITS = 3
"""How often a window may be divided because its words leave out speech."""

Probabilities = Callable[[Sequence[VoiceRequest]], Sequence[NDArray[np.float32]]]
"""Of each request the voice probabilities, float32 (n,), of its frames."""
_Heard = tuple[RecordingWindow, Hypothesis]


@dataclass(frozen=True, slots=True)
class Passage:
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
) -> Iterator[tuple[int, Passage]]:
    """Pairs of a recording's index and its next passage; those of each recording come in order.

    recordings: blocks of float32 (n,), 16 kHz mono, read as they are needed. Holds the audio of one
    batch of windows. Synchronous, for the thread that owns the models. Raises DecodeError.
    """
    windows = (
        (number, window)
        for number, blocks in enumerate(recordings)
        for window in plan_windows(voice, blocks, options)
    )
    last_ends = [0.0] * len(recordings)
    while batch := list(islice(windows, min(max_batch, model.max_batch))):
        heard = _hear(model, [window for _, window in batch], options, MAX_SPLITS)
        for (number, _), parts in zip(batch, heard, strict=True):
            for window, hypothesis in parts:
                passage = _passage(window, hypothesis, last_ends[number])
                if passage.text:
                    last_ends[number] = passage.end
                    yield number, passage


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


def _hear(
    model: Model, windows: Sequence[RecordingWindow], options: RecordingOptions, num_splits: int
) -> list[list[_Heard]]:
    """What was heard in each window: one hypothesis, or those of its parts, where its words leave
    out speech and it was divided. Raises DecodeError."""
    heard = [[it] for it in _decode(model, windows, options)]
    if num_splits == 0:
        return heard
    divided = {
        place: parts
        for place, [(window, hypothesis)] in enumerate(heard)
        if (parts := split_unheard(window, hypothesis.words))
    }
    again = iter(_hear(model, list(chain(*divided.values())), options, num_splits - 1))
    for place, parts in divided.items():
        heard[place] = list(chain(*islice(again, len(parts))))
    return heard


def _decode(
    model: Model, windows: Sequence[RecordingWindow], options: RecordingOptions
) -> Iterator[_Heard]:
    """As many at once as the model takes. Raises DecodeError."""
    for first in range(0, len(windows), model.max_batch):
        some = windows[first : first + model.max_batch]
        requests = [
            DecodeRequest(window.samples, 0.0, options.language, options.task) for window in some
        ]
        for window, answer in zip(some, model.decode(requests), strict=True):
            if isinstance(answer, DecodeError):
                raise answer
            yield window, believed(answer)


def _passage(window: RecordingWindow, hypothesis: Hypothesis, not_before: float) -> Passage:
    """not_before: where the passage before it ends, in seconds from the start of the recording."""
    voiced = [window.start + place for place in window.voiced]
    words = place_words(hypothesis.words, window.offset, not_before, window.end, voiced)
    start = words[0].start if words else max(window.offset, not_before)
    end = words[-1].end if words else window.end
    return Passage(start, end, hypothesis.text, words, hypothesis.language)
