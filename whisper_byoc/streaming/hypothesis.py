"""What to believe of a hypothesis, when its words were spoken, and where a long one may be cut
(pure)."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import (
    FRAME_SAMPLES,
    MAX_NO_SPEECH_PROBABILITY,
    MIN_AVG_LOGPROB,
    Hypothesis,
)
from whisper_byoc.loops import is_loop, outside_loops
from whisper_byoc.transcript import Word

MIN_LONE_PROBABILITY = 0.35
"""Of a single word in what is probably no speech: "you" in music and noise has 0.06 to 0.28, said
by somebody 0.41 and more (docs/streaming.md)."""

_ENERGY_WINDOW = round(0.08 * SAMPLE_RATE)
_ENERGY_STEP = round(0.01 * SAMPLE_RATE)
"""Samples over which energy is measured, and by which the next place to measure begins later."""
_BEFORE_WORD_END = 0.2
AFTER_WORD_END = 0.1
"""Seconds around a word's end in which a cut is looked for: attention puts ends 0.10 s late on
average, p5 -0.06 s, p95 +0.22 s."""
WORD_END_MARGIN = 0.3
"""Seconds by which the times of words may be wrong."""
MIN_WORD_SECONDS = 0.06
"""Of a word in the stream; the shortest in speech, as "a", have about as much."""
_BEFORE_SPEECH, _AFTER_SPEECH = 0.06, 0.1
"""Seconds that a word may have outside the frames of speech between its times."""
_EARLIEST_CUT = 0.4
"""Share of a long window that a cut leaves out at least, so that it gains room."""
_LIVE_EDGE_SECONDS = 1.0
"""Before the end of a window, in which words may still change."""


def believed(hypothesis: Hypothesis) -> Hypothesis:
    """The hypothesis without what the decoder made up.

    That is all of it when it is probably no speech (`no_speech_prob`) and the text, or the only
    word, is improbable; and of a loop that no further attempt broke, every round but the first.
    """
    silent = hypothesis.no_speech_prob > MAX_NO_SPEECH_PROBABILITY
    lone = len(hypothesis.words) == 1 and hypothesis.words[0].probability < MIN_LONE_PROBABILITY
    if silent and (lone or hypothesis.avg_logprob < MIN_AVG_LOGPROB):
        return replace(hypothesis, text="", words=())
    text = hypothesis.text.split()
    if not is_loop(text, hypothesis.compression_ratio):
        return hypothesis
    kept_text = " ".join(text[index] for index in outside_loops(text))
    kept = outside_loops([word.text for word in hypothesis.words])
    words = tuple(hypothesis.words[index] for index in kept)
    return replace(hypothesis, text=kept_text, words=words)


def place_words(
    words: Iterable[Word],
    offset: float,
    not_before: float,
    not_after: float,
    voiced: Sequence[int] = (),
) -> tuple[Word, ...]:
    """Words of a window in stream time: shifted by `offset`, in order, within the two limits.

    offset, not_before, not_after: in seconds of the stream. voiced: first samples in the stream of
    the frames that hold speech, in order. They are needed since attention gives the silence around
    a word to the word: the first word of a window would begin with its pre-roll. Every word lasts:
    attention may put several into one moment.
    """
    placed: list[Word] = []
    earliest = not_before
    for word in words:
        start, end = _within_speech(word.start + offset, word.end + offset, voiced)
        start = min(max(start, earliest), not_after)
        end = min(max(end, start), not_after)
        placed.append(Word(word.text, start, end, word.probability))
        earliest = end
    return _lasting(placed, not_before, not_after)


def _lasting(words: Sequence[Word], not_before: float, not_after: float) -> tuple[Word, ...]:
    """Words in order within the limits, none shorter than MIN_WORD_SECONDS, or than its share where
    there is no room: those behind a short one begin later, and before the end earlier."""
    room = max(0.0, not_after - not_before)
    shortest = min(MIN_WORD_SECONDS, room / max(1, len(words)))
    starts: list[float] = []
    ends: list[float] = []
    for word in words:
        starts.append(max(word.start, ends[-1] if ends else not_before))
        ends.append(max(word.end, starts[-1] + shortest))
    latest = not_after
    for place in reversed(range(len(words))):
        ends[place] = min(ends[place], latest)
        starts[place] = latest = min(starts[place], ends[place] - shortest)
    times = zip(words, starts, ends, strict=True)
    return tuple(Word(word.text, start, end, word.probability) for word, start, end in times)


def _within_speech(start: float, end: float, voiced: Sequence[int]) -> tuple[float, float]:
    """The times of a word, in seconds, without the silence on both sides of its speech, but for a
    margin; unchanged when no frame between them holds speech."""
    first = bisect_left(voiced, start * SAMPLE_RATE)
    last = bisect_left(voiced, end * SAMPLE_RATE) - 1
    if first > last:
        return start, end
    begins = voiced[first] / SAMPLE_RATE - _BEFORE_SPEECH
    ends = (voiced[last] + FRAME_SAMPLES) / SAMPLE_RATE + _AFTER_SPEECH
    return max(start, begins), min(end, ends)


@dataclass(frozen=True, slots=True)
class Cut:
    """The first `num_words` words end before `sample` of the window, the others begin after."""

    sample: int
    num_words: int


def choose_cut(samples: NDArray[np.float32], words: Sequence[Word]) -> Cut:
    """Where to divide a window that has grown too long, at the quietest gap between two words.

    samples: float32 (n,), 16 kHz; words: of this window, in window time. The cut leaves out the
    beginning, so that it gains room, and the last second, whose words may still change. With no
    gap to choose from, the quietest place of the later half is taken.
    """
    seconds = len(samples) / SAMPLE_RATE
    latest = seconds - _LIVE_EDGE_SECONDS
    gaps = []
    for number, (word, following) in enumerate(pairwise(words), start=1):
        if word.end >= seconds * _EARLIEST_CUT and following.start <= latest:
            stop = max(word.end + AFTER_WORD_END, following.start)
            sample, energy = quietest(samples, word.end - _BEFORE_WORD_END, stop)
            gaps.append((energy, sample, number))
    if gaps:
        _, sample, number = min(gaps)
        return Cut(sample, number)
    sample, _ = quietest(samples, seconds / 2, latest)
    return Cut(sample, sum((word.start + word.end) / 2 * SAMPLE_RATE < sample for word in words))


def quietest_at_word_end(samples: NDArray[np.float32], end: float) -> tuple[int, float]:
    """As `quietest`, around the end of a word, which is in seconds."""
    return quietest(samples, end - _BEFORE_WORD_END, end + AFTER_WORD_END)


def quietest(samples: NDArray[np.float32], start: float, stop: float) -> tuple[int, float]:
    """Centre (in samples) and mean square of the quietest 80 ms that begin in start..stop (s)."""
    first = max(0, round(start * SAMPLE_RATE) - _ENERGY_WINDOW // 2)
    last = min(len(samples), round(stop * SAMPLE_RATE) + _ENERGY_WINDOW // 2)
    region = samples[first:last]
    if len(region) <= _ENERGY_WINDOW:
        energy = float(np.dot(region, region)) / max(1, len(region))
        return min(first + len(region) // 2, len(samples)), energy
    power = np.concatenate([[0.0], np.cumsum(region.astype(np.float64) ** 2)])
    energies = (power[_ENERGY_WINDOW:] - power[:-_ENERGY_WINDOW])[::_ENERGY_STEP] / _ENERGY_WINDOW
    place = int(np.argmin(energies))
    return first + place * _ENERGY_STEP + _ENERGY_WINDOW // 2, float(energies[place])
