"""Which of several texts has the least expected word errors (pure).

The choice is of Stolcke, König and Weintraub 1997, "Explicit word error minimization in N-best list
rescoring": each text is as probable as the decoder found it, and the others are what it would have
been measured against.
"""

import math
from collections.abc import Sequence


def least_risk(texts: Sequence[Sequence[str]], logprobs: Sequence[float], heat: float) -> int:
    """The place of the text that is expected to have the fewest errors; of equal ones the first.

    texts: words of each. logprobs: of the whole texts, up to a constant. heat: what they are
    divided by; at 0 the most probable text is taken, far above 1 all of them count the same.
    """
    best = max(logprobs)
    if heat <= 0:
        return logprobs.index(best)
    weights = [math.exp((logprob - best) / heat) for logprob in logprobs]
    # Texts of the same words are one: their distances are counted once.
    together: dict[tuple[str, ...], float] = {}
    for text, weight in zip(texts, weights, strict=True):
        together[tuple(text)] = together.get(tuple(text), 0.0) + weight
    distinct = list(together)
    risks = dict.fromkeys(distinct, 0.0)
    for place, one in enumerate(distinct):
        for other in distinct[:place]:
            distance = count_edits(one, other)
            risks[one] += together[other] * distance
            risks[other] += together[one] * distance
    return min(range(len(texts)), key=lambda place: risks[tuple(texts[place])])


def count_edits(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words have to be replaced, left out or put in to turn one into the other.

    Levenshtein's distance, a whole row as one integer (Hyyrö 2003, "A bit-vector algorithm for
    computing Levenshtein and Damerau edit distances"): texts of a beam have a hundred words.
    """
    one, other = _different(one, other)
    if not one or not other:
        return len(one) + len(other)
    places: dict[str, int] = {}
    for bit, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << bit
    whole, last = (1 << len(one)) - 1, 1 << len(one) - 1
    up, down, distance = whole, 0, len(one)  # where a row rises and falls by one
    for word in other:
        same = places.get(word, 0)
        diagonal = (((same & up) + up) ^ up) | same | down
        rises = down | ~(diagonal | up)
        falls = up & diagonal
        distance += bool(rises & last) - bool(falls & last)
        rises = rises << 1 | 1
        up = (falls << 1 | ~(diagonal | rises)) & whole
        down = rises & diagonal & whole
    return distance


def _different(one: Sequence[str], other: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Without the words that both begin with, and both end with."""
    length = min(len(one), len(other))
    first = 0
    while first < length and one[first] == other[first]:
        first += 1
    last = 0
    while last < length - first and one[-1 - last] == other[-1 - last]:
        last += 1
    return one[first : len(one) - last], other[first : len(other) - last]
