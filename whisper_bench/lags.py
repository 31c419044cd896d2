"""How late the words of a live stream came, from what a reader saw and when (pure)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum

from whisper_byoc.streaming.finality import core
from whisper_byoc.transcript import Event, Final, Partial, Word


@dataclass(frozen=True, slots=True)
class StreamLags:
    """Of one stream, in seconds.

    partial, final: from the end of each word in the audio to its first appearance, and to its
    becoming final; of words that the offline transcript has, too. finalize: from the end of the
    audio to the last final word, None when none came after it. tail_words_lost: words at the end
    of the offline transcript that did not come, nor others in their place. num_shown, num_changed:
    words shown in partials, and those of them that became another word or none.
    """

    text: str
    partial: tuple[float, ...]
    final: tuple[float, ...]
    finalize: float | None
    tail_words_lost: int
    num_shown: int
    num_changed: int


@dataclass(slots=True)
class _FinalWord:
    core: str
    first_seen: float
    final: float


def measure_lags(
    seen: Sequence[tuple[float, Event]], offline: Sequence[Word], audio_end: float
) -> StreamLags:
    """seen: every event of a stream with its time, in seconds from the stream's first sample, audio
    going in at 1×; offline: the words of the same audio and when they were spoken; audio_end: when
    the last sample went in."""
    heard, num_shown, num_changed = _follow(seen)
    spoken = [word for word in offline if core(word.text)]
    matcher = SequenceMatcher(
        None, [core(word.text) for word in spoken], [word.core for word in heard], autojunk=False
    )
    pairs = [
        (spoken[block.a + n], heard[block.b + n])
        for block in matcher.get_matching_blocks()
        for n in range(block.size)
    ]
    after = [word.final for word in heard if word.final > audio_end]
    return StreamLags(
        text=" ".join(event.text for _, event in seen if isinstance(event, Final)),
        partial=tuple(word.first_seen - said.end for said, word in pairs),
        final=tuple(word.final - said.end for said, word in pairs),
        finalize=max(after) - audio_end if after else None,
        tail_words_lost=_num_lost(spoken, heard, pairs),
        num_shown=num_shown,
        num_changed=num_changed,
    )


def _follow(seen: Sequence[tuple[float, Event]]) -> tuple[list[_FinalWord], int, int]:
    """The final words in order, each with when it was first seen in its place; how many words
    partials have shown; and how many of those are not what stands in their place at last."""
    finals: defaultdict[int, list[_FinalWord]] = defaultdict(list)  # by utterance
    shown: defaultdict[tuple[int, int], list[tuple[float, str]]] = defaultdict(list)
    for time, event in seen:
        match event:
            case Partial():
                first = len(finals[event.utterance])
                for place, word in enumerate(event.text.split(), start=first):
                    shown[event.utterance, place].append((time, core(word)))
            case Final():
                for word in event.text.split():
                    finals[event.utterance].append(_FinalWord(core(word), time, time))
    num_changed = 0
    for (utterance, place), looks in shown.items():
        words = finals[utterance]
        final = words[place] if place < len(words) else None
        num_changed += sum(final is None or text != final.core for _, text in looks)
        if final is not None:
            same = [time for time, text in looks if text == final.core]
            final.first_seen = min([final.first_seen, *same])
    heard = [word for utterance in sorted(finals) for word in finals[utterance]]
    return heard, sum(map(len, shown.values())), num_changed


def _num_lost(
    spoken: Sequence[Word],
    heard: Sequence[_FinalWord],
    pairs: Sequence[tuple[Word, _FinalWord]],
) -> int:
    """Words behind the last one that both have, beyond those that stand in their place."""
    said, written = pairs[-1] if pairs else (None, None)
    behind = len(spoken) - next((n for n, it in enumerate(spoken, start=1) if it is said), 0)
    instead = len(heard) - next((n for n, it in enumerate(heard, start=1) if it is written), 0)
    return max(0, behind - instead)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median and 95th percentile to three digits, as reports have them; None of nothing."""
    found = {f"p{percent}": percentile(values, percent) for percent in (50, 95)}
    return {key: None if it is None else round(it, 3) for key, it in found.items()}


class Ending(StrEnum):
    """What became of the last word of a stream that was ended at some place."""

    SAME = "same"
    """It is the last word of the offline transcript of the same audio."""
    INSIDE = "inside"
    """It is not, and the stream ended inside a word."""
    OTHER = "other"
    """Another word stands in its place: it was heard, but differently."""
    LOST = "lost"
    """Nothing stands in its place."""


_EDGE_SECONDS = 0.15
"""Times of words are this wrong at times: p95 0.22 s late, p5 0.06 s early (docs/streaming.md)."""


def compare_endings(streamed: str, offline: str, words: Sequence[Word], cut: float) -> Ending:
    """streamed, offline: transcripts of audio that was cut off at `cut` seconds; words: those of
    the whole of it, with their times."""
    heard = [core(word) for word in streamed.split()]
    expected = [core(word) for word in offline.split()]
    if heard[-1:] == expected[-1:]:
        return Ending.SAME
    if any(word.start - _EDGE_SECONDS < cut < word.end + _EDGE_SECONDS for word in words):
        return Ending.INSIDE
    matcher = SequenceMatcher(None, expected, heard, autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size]
    behind = len(heard) - (blocks[-1].b + blocks[-1].size if blocks else 0)
    return Ending.OTHER if behind else Ending.LOST
