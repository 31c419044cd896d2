"""How late the words of a live stream came, from what a reader saw and when (pure)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from whisper_byoc.streaming.commit import core
from whisper_byoc.transcript import Event, Final, Partial, Word


@dataclass(frozen=True, slots=True)
class StreamLags:
    """Of one stream, in seconds.

    partial, final: from the end of each word in the audio to its first appearance, and to its
    becoming final; of words that the offline transcript has, too. finalize: from the end of the
    audio to the last final word, None when none came after it. tail_words_lost: words at the end
    of the offline transcript that did not come. num_shown, num_changed: words shown in partials,
    and those of them that became another word or none.
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
    finals: defaultdict[int, list[_FinalWord]] = defaultdict(list)
    shown: defaultdict[tuple[int, int], list[tuple[float, str]]] = defaultdict(list)
    texts: list[str] = []
    for time, event in seen:
        match event:
            case Partial():
                first = len(finals[event.utterance])
                for place, word in enumerate(event.text.split(), start=first):
                    shown[event.utterance, place].append((time, core(word)))
            case Final():
                texts.append(event.text)
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
        text=" ".join(texts),
        partial=tuple(word.first_seen - said.end for said, word in pairs),
        final=tuple(word.final - said.end for said, word in pairs),
        finalize=max(after) - audio_end if after else None,
        tail_words_lost=_num_lost(spoken, pairs),
        num_shown=sum(map(len, shown.values())),
        num_changed=num_changed,
    )


def _num_lost(spoken: Sequence[Word], pairs: Sequence[tuple[Word, _FinalWord]]) -> int:
    """Words behind the last one that both have."""
    if not pairs:
        return len(spoken)
    last = pairs[-1][0]
    return len(spoken) - 1 - next(n for n, word in enumerate(spoken) if word is last)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]
