"""The windows of a recording that is there as a whole: long, and cut where nobody speaks (pure)."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import FRAME_SAMPLES, MAX_WINDOW_SECONDS
from whisper_byoc.settings import StreamingSettings
from whisper_byoc.streaming.hypothesis import AFTER_WORD_END, WORD_END_MARGIN, quietest
from whisper_byoc.streaming.samples import Excerpt, SampleBuffer
from whisper_byoc.streaming.vad import MEASURED, SpeechDetector, SpeechEnd, SpeechStart, VoiceRules
from whisper_byoc.transcript import Word

MAX_PAUSE_SECONDS = 2.0
"""Speech on both sides of a longer pause is not decoded in one window."""
_UNHEARD_SECONDS = 1.0
"""Of speech between two words, from which on it was left out and not just hurried over."""
_LEAST_PART = SAMPLE_RATE // 2
"""Samples of the shorter part of a window that is divided: less would hold no whole word."""
_LONE = round(1.5 * SAMPLE_RATE)
"""Samples from the first to the last speech of a window, up to which it is a word or two alone."""
_BEFORE_LONE, _AFTER_LONE = round(0.4 * SAMPLE_RATE), round(0.8 * SAMPLE_RATE)
"""Samples around such words, silence where the recording has none. Whisper takes a word for no
speech that begins at the first sample or stands between much silence (docs/engine.md)."""


@dataclass(frozen=True, slots=True)
class RecordingWindow(Excerpt):
    """Audio of a recording to be decoded once; voiced: the first samples of the frames of 512 that
    hold speech, counted from the start of the window. silent: samples of silence at its end that
    the recording has not; where `start` is negative, there is such silence before it, too."""

    voiced: tuple[int, ...] = ()
    silent: int = 0

    @property
    def end(self) -> float:
        """Where what it has of the recording ends, in seconds from the start of that."""
        return (self.start + len(self.samples) - self.silent) / SAMPLE_RATE


def frame_lone_words(window: RecordingWindow) -> RecordingWindow:
    """A window with a word or two and nothing else, with as much around them as Whisper likes to
    hear; any other window unchanged."""
    if not window.voiced:
        return window
    first, last = window.voiced[0], window.voiced[-1] + FRAME_SAMPLES
    if last - first > _LONE:
        return window
    start = first - _BEFORE_LONE
    if window.start > 0:  # behind another window; before the first there is nothing
        start = max(start, 0)
    samples = window.samples[max(0, start) :]
    before = max(0, -start)
    after = max(0, last + _AFTER_LONE - len(window.samples))
    return RecordingWindow(
        window.start + start,
        np.pad(samples, (before, after)),
        tuple(place - start for place in window.voiced),
        after,
    )


def split_unheard(window: RecordingWindow, words: Sequence[Word]) -> list[RecordingWindow]:
    """A window in two, where its words leave out speech; empty when they do not.

    A decoder without timestamps may end a text at a change of speaker, or leap over a sentence.
    The cut is at the quietest place behind the word before the gap.
    """
    ends = [0.0, *(word.end for word in words)]
    starts = [*(word.start for word in words), len(window.samples) / SAMPLE_RATE]
    gaps = []
    for end, start in zip(ends, starts, strict=True):
        first, last = (end + WORD_END_MARGIN) * SAMPLE_RATE, (start - WORD_END_MARGIN) * SAMPLE_RATE
        voiced = sum(first <= place and place + FRAME_SAMPLES <= last for place in window.voiced)
        gaps.append((voiced * FRAME_SAMPLES / SAMPLE_RATE, end, start))
    unheard, end, start = max(gaps)
    if unheard < _UNHEARD_SECONDS or not words:
        return []
    cut, _ = quietest(window.samples, end - AFTER_WORD_END, min(start, end + 1.0))
    if not _LEAST_PART <= cut <= len(window.samples) - _LEAST_PART:
        return []
    return [
        RecordingWindow(
            window.start + first,
            window.samples[first:stop],
            tuple(place - first for place in window.voiced if first <= place < stop),
        )
        for first, stop in pairwise((0, cut, len(window.samples)))
    ]


class RecordingPlanner:
    """Audio goes in by `receive_audio`, whole windows come out, in order.

    Utterances that follow one another go together up to `max_seconds`; one that is longer is cut at
    its quietest place. Holds the audio of one window and of what `receive_audio` brings.
    """

    def __init__(
        self, settings: StreamingSettings, max_seconds: float, rules: VoiceRules = MEASURED
    ) -> None:
        if not 2 <= max_seconds <= MAX_WINDOW_SECONDS:
            raise ValueError(f"max_seconds is {max_seconds}, expected 2 to {MAX_WINDOW_SECONDS}")
        self._rules = rules
        self._max_samples = round(max_seconds * SAMPLE_RATE)
        self._detector = SpeechDetector(settings, rules)
        self._audio = SampleBuffer()
        self._group: tuple[int, int] | None = None
        """First and last place of utterances that are over, and will be one window."""
        self._open: int | None = None
        """Where the speech begins that is going on."""
        self._num_speech_frames = 0
        """Of that speech."""
        self._voiced: deque[int] = deque()
        """Places of the frames that hold speech and are in no window yet."""
        self._windows: list[RecordingWindow] = []

    @property
    def pending_from(self) -> int:
        """The first place of what may still come in a window; what lies before has been in one, or
        held no speech."""
        first = self._group[0] if self._group is not None else self._open
        return self._audio.end if first is None else first

    def receive_audio(
        self, samples: NDArray[np.float32], voice: Sequence[float]
    ) -> list[RecordingWindow]:
        """The windows that are whole with the next audio.

        samples: float32 (n,), 16 kHz mono; voice: the probability of each of its frames of 512.
        Only the last block of a recording may end within a frame.
        """
        frames = count(self._audio.end, FRAME_SAMPLES)
        self._audio.append(samples)
        for frame, value in zip(frames, voice, strict=False):
            if change := self._detector.receive_probability(value):
                self._receive_change(change)
            if value >= self._rules.speech_threshold:
                self._num_speech_frames += 1
                self._voiced.append(frame)
            end = min(frame + FRAME_SAMPLES, self._audio.end)
            if self._open is not None and end - self._open >= self._max_samples:
                self._cut(self._open, end)
        if self._group is not None and self._open is None:
            # Speech that begins now would bring its pre-roll with it.
            pause = self._audio.end - self._rules.pre_roll_samples - self._group[1]
            if pause > MAX_PAUSE_SECONDS * SAMPLE_RATE:
                self._flush()
        self._drop_audio()
        return self._take()

    def receive_gap(self, num_samples: int) -> list[RecordingWindow]:
        """The windows before a place where so many samples are missing, which is no pause to
        decode over."""
        windows = self.receive_end()
        self._detector.skip(num_samples)
        self._audio.skip(num_samples)
        return windows

    def receive_end(self) -> list[RecordingWindow]:
        """The last windows of what has come; if more audio comes, it begins windows of its own."""
        if self._detector.in_speech:
            self._receive_change(self._detector.end_speech())
        self._flush()
        return self._take()

    def _receive_change(self, change: SpeechStart | SpeechEnd) -> None:
        match change:
            case SpeechStart(start):
                self._open = max(start, self._audio.start)
                self._num_speech_frames = 0
            case SpeechEnd(end):
                assert self._open is not None
                if self._num_speech_frames >= self._rules.min_speech_frames:
                    self._add(self._open, min(end, self._audio.end))
                self._open = None

    def _add(self, start: int, end: int) -> None:
        """Put an utterance behind those before it, or begin a new window with it."""
        if self._group is not None:
            first, last = self._group
            pause = start - last
            if end - first <= self._max_samples and pause <= MAX_PAUSE_SECONDS * SAMPLE_RATE:
                start = first
            else:
                self._flush()
        self._group = start, end

    def _cut(self, start: int, end: int) -> None:
        """Speech has gone on for as long as a window may be: cut it in its later half."""
        self._flush()
        seconds = (end - start) / SAMPLE_RATE
        place, _ = quietest(self._audio.copy(start, end), seconds / 2, seconds)
        self._group = start, start + place
        self._flush()
        self._open = start + place
        # What remains is speech, however short it turns out to be.
        self._num_speech_frames = self._rules.min_speech_frames

    def _flush(self) -> None:
        """The utterances that were put together are a whole window."""
        if self._group is None:
            return
        (start, end), self._group = self._group, None
        while self._voiced and self._voiced[0] < start:
            self._voiced.popleft()
        voiced = tuple(place - start for place in self._voiced if place < end)
        window = RecordingWindow(start, self._audio.copy(start, end), voiced)
        self._windows.append(frame_lone_words(window))

    def _take(self) -> list[RecordingWindow]:
        windows, self._windows = self._windows, []
        return windows

    def _drop_audio(self) -> None:
        """Keep the windows that are not whole yet, and the pre-roll of speech that may begin."""
        needed = self._audio.end - self._rules.pre_roll_samples - FRAME_SAMPLES
        for start in (self._open, self._group and self._group[0]):
            if start is not None:
                needed = min(needed, start)
        self._audio.drop_before(needed)
