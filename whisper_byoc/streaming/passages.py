"""The passages of a recording: what was heard in a window, between its pauses (pure)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from whisper_byoc.decode import Hypothesis
from whisper_byoc.streaming.hypothesis import place_words
from whisper_byoc.streaming.recording import RecordingWindow
from whisper_byoc.transcript import SegmentDetail, Word, join_words

PAUSE_SECONDS = 0.85
"""Between two words, from which on they are in two passages. The silence there is 0.16 s longer,
since words keep a margin: about as long as what ends an utterance of a live stream."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What was said between two pauses, or in what is left of a window; times in seconds from the
    start of the recording."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...]
    language: str
    detail: SegmentDetail


def passages_of(
    window: RecordingWindow, hypothesis: Hypothesis, not_before: float
) -> Iterator[Passage]:
    """None where nothing was heard. not_before: where the passage before these ends, in seconds
    from the start of the recording."""
    language, detail = hypothesis.language, _detail(window, hypothesis)
    voiced = [window.start + place for place in window.voiced]
    offset = window.offset - hypothesis.word_delay
    words = place_words(hypothesis.words, offset, not_before, window.end, voiced)
    if not words and hypothesis.text:
        start = max(window.offset, not_before)
        yield Passage(start, window.end, hypothesis.text, (), language, detail)
    for first, stop in pairwise(_borders(words)):
        part = words[first:stop]
        text = join_words((word.text for word in part), language)
        tokens = _tokens(hypothesis, first, stop)
        yield Passage(
            part[0].start, part[-1].end, text, part, language, replace(detail, tokens=tokens)
        )


def _borders(words: Sequence[Word]) -> list[int]:
    """Indices of the words with a pause before them, of the first, and of what follows the last;
    empty where there is no word."""
    pauses = [
        index
        for index, (before, word) in enumerate(pairwise(words), start=1)
        if word.start - before.end >= PAUSE_SECONDS
    ]
    return [0, *pauses, len(words)] if words else []


def _tokens(hypothesis: Hypothesis, first: int, stop: int) -> tuple[int, ...]:
    """Of some of the words. What belongs to no word goes with the last."""
    places = [0, *accumulate(evidence.num_tokens for evidence in hypothesis.evidence)]
    if len(places) != len(hypothesis.words) + 1:  # a loop was left out: which tokens is not known
        places = [0] * (len(hypothesis.words) + 1)
    return hypothesis.tokens[places[first] : places[stop] if stop < len(places) - 1 else None]


def _detail(window: RecordingWindow, hypothesis: Hypothesis) -> SegmentDetail:
    return SegmentDetail(
        seek=round(window.offset * 100),
        tokens=hypothesis.tokens,
        temperature=hypothesis.temperature,
        avg_logprob=hypothesis.avg_logprob,
        compression_ratio=hypothesis.compression_ratio,
        no_speech_prob=hypothesis.no_speech_prob,
    )
