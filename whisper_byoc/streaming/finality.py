"""Which words of a hypothesis may become final while the utterance goes on (pure).

Three kinds of evidence: that two successive hypotheses agree, that the decoder looked far enough
from the live edge for the word, and that it was sure of it and of its neighbours.
`docs/streaming.md` says how the figures were chosen.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from whisper_byoc.decode import Evidence
from whisper_byoc.transcript import Word

MAX_TAIL_MASS = 0.5
"""Share of a token's attention behind the end of the audio beyond which it was not heard yet."""
MAX_JUMP_BACK = 3.0
"""Seconds by which attention may fall back from one word to the next before it counts as lost."""


@dataclass(frozen=True, slots=True)
class Bar:
    """How far from the end of the audio, in seconds, the decoder must have looked for a word.

    near: for a word on which two hypotheses agree, when it and its neighbours have at least
    `probability`. far: for a word on which two agree. late: for any, since waiting for longer
    changes few.
    """

    near: float
    probability: float
    far: float
    late: float


BALANCED = Bar(near=0.3, probability=0.6, far=0.8, late=1.6)
LOW_LATENCY = Bar(near=0.2, probability=0.5, far=0.6, late=1.2)


@dataclass(frozen=True, slots=True)
class Heard:
    """The words of one hypothesis that are not yet final.

    evidence: of each word; empty from engines that give none. audio_end: seconds from the start of
    the window to the end of its audio.
    """

    words: tuple[Word, ...]
    evidence: tuple[Evidence, ...]
    audio_end: float


def core(word: str) -> str:
    """What is compared of a word: its letters and digits in lower case, or all of it if it has
    none."""
    return re.sub(r"[^\w]", "", word.lower()) or word


def agreement(words: Sequence[Word], *others: Sequence[Word]) -> int:
    """How many words, from the first on, several hypotheses have in common."""
    columns = zip(words, *others, strict=False)
    return sum(
        1 for _ in takewhile(lambda column: len({core(w.text) for w in column}) == 1, columns)
    )


def num_safe(heard: Heard, distance: float) -> int:
    """How many words, from the first on, the decoder looked for at least `distance` seconds before
    the end of the audio, not behind its end, and without a jump back."""
    latest = 0.0
    for number, seen in enumerate(heard.evidence):
        behind = seen.attended > heard.audio_end - distance
        if behind or seen.tail_mass > MAX_TAIL_MASS or seen.attended < latest - MAX_JUMP_BACK:
            return number
        latest = max(latest, seen.attended)
    return len(heard.evidence)


def num_final(bar: Bar, heard: Heard, earlier: Sequence[Sequence[Word]]) -> int:
    """How many words of a hypothesis may become final.

    earlier: the words of the hypotheses before it in the same utterance, the newest first, without
    those that have become final since. The last word is never among them: it may be half of a word.
    Without evidence, words become final on which three hypotheses agree.
    """
    if heard.evidence:
        agreed = agreement(heard.words, earlier[0]) if earlier else 0
        number = _num_evident(bar, heard, agreed)
    else:
        number = agreement(heard.words, *earlier[:2]) if len(earlier) >= 2 else 0
    return max(0, min(number, len(heard.words) - 1))


def _num_evident(bar: Bar, heard: Heard, agreed: int) -> int:
    near, far = num_safe(heard, bar.near), num_safe(heard, bar.far)
    for number, seen in enumerate(heard.evidence):
        around = heard.evidence[max(0, number - 1) : number + 2]
        sure = number < near and min(it.probability for it in around) >= bar.probability
        late = seen.attended <= heard.audio_end - bar.late
        if not (late or (number < agreed and (sure or number < far))):
            return number
    return len(heard.evidence)
