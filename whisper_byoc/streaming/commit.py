"""Which words of a hypothesis may become final while the utterance goes on (pure).

Three kinds of evidence: that successive hypotheses agree, that the decoder looked far enough from
the live edge for the word, and that it was sure of it. `docs/streaming.md` says how the rules were
chosen; they are those of policies C and E there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

from whisper_byoc.decode import Evidence
from whisper_byoc.transcript import Word

MAX_TAIL_MASS = 0.5
"""Share of a token's attention behind the end of the audio beyond which it was not heard yet."""
MAX_JUMP_BACK = 3.0
"""Seconds by which attention may fall back from one word to the next."""


class Policy(StrEnum):
    """What asks for how much evidence."""

    EAGER = "eager"
    """Two hypotheses that agree."""
    QUICK = "quick"
    """For a hypothesis every half second: two that agree, more certain the nearer to the edge."""
    CAREFUL = "careful"
    """For one every second: one look will do for a word that is probable and far from the edge."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The uncommitted words of one hypothesis, each with its evidence; audio_end: seconds from the
    start of the window to the end of its audio."""

    words: tuple[Word, ...]
    evidence: tuple[Evidence, ...]
    audio_end: float


def core(word: str) -> str:
    """What is compared of a word: its letters and digits in lower case, or itself without any."""
    return re.sub(r"[^\w]", "", word.lower()) or word


def agreement(words: Sequence[Word], *others: Sequence[Word]) -> int:
    """How many words, from the first, all have in common."""
    columns = zip(words, *others, strict=False)
    return sum(
        1 for _ in takewhile(lambda column: len({core(w.text) for w in column}) == 1, columns)
    )


def num_safe(heard: Heard, distance: float) -> int:
    """How many words, from the first, were looked for at least `distance` seconds before the end
    of the audio, without a jump back, and not behind its end."""
    latest = 0.0
    for number, seen in enumerate(heard.evidence):
        behind = seen.attended > heard.audio_end - distance
        if behind or seen.tail_mass > MAX_TAIL_MASS or seen.attended < latest - MAX_JUMP_BACK:
            return number
        latest = max(latest, seen.attended)
    return len(heard.evidence)


def num_to_commit(policy: Policy, heard: Heard, earlier: Sequence[Sequence[Word]]) -> int:
    """How many words of a hypothesis may become final.

    earlier: the words of the hypotheses before it in the same utterance, the last one first,
    without those that have been committed since. The last word waits: it may be half of a word.
    An engine that gives no evidence asks for three hypotheses that agree.
    """
    two = agreement(heard.words, earlier[0]) if earlier else 0
    three = agreement(heard.words, *earlier[:2]) if len(earlier) >= 2 else 0
    match policy:
        case Policy.EAGER:
            number = two
        case Policy.QUICK:
            number = _num_quick(heard, two, three)
        case Policy.CAREFUL:
            number = _num_careful(heard, two, three, len(earlier[0]) if earlier else 0)
    return max(0, min(number, len(heard.words) - 1))


def _num_quick(heard: Heard, two: int, three: int) -> int:
    near, far = num_safe(heard, 0.5), num_safe(heard, 1.2)
    for number, seen in enumerate(heard.evidence):
        agreed = number < two
        sure = agreed and number < near and seen.probability >= 0.7
        if not (sure or (agreed and number < far) or number < three):
            return number
    return max(three, len(heard.evidence))


def _num_careful(heard: Heard, two: int, three: int, num_before: int) -> int:
    near, far = num_safe(heard, 0.2), num_safe(heard, 0.8)
    for number, seen in enumerate(heard.evidence):
        contradicted = two <= number < num_before
        sure = number < far and seen.probability >= 0.95 and not contradicted
        if not (sure or (number < two and number < near) or number < three):
            return number
    return max(three, len(heard.evidence))
