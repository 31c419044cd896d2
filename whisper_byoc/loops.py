"""Text in which the decoder went round in circles (pure)."""

import re
from collections.abc import Sequence

MAX_COMPRESSION_RATIO = 2.4
"""Above it Whisper takes a text for a loop (openai-whisper, transcribe.py)."""

_ROUNDS = {1: 5, 2: 4}
"""How often so many words have to be said in a row to make a loop; people do say "no, no, no"."""
_ROUNDS_OF_MORE = 3
_MAX_WORDS = 12
"""Of one round."""


def is_loop(words: Sequence[str], compression_ratio: float) -> bool:
    """Whether a text shows both signs of a loop: it compresses well, and repeats itself in a row.

    Compression alone is not enough: speech that says its sentences twice reaches it, and sampling
    at a higher temperature would only replace the right words by wrong ones.
    """
    if compression_ratio <= MAX_COMPRESSION_RATIO:
        return False
    return len(outside_loops(words)) < len(words)


def outside_loops(words: Sequence[str]) -> list[int]:
    """Indices of the words that stay when of every loop only the first round is kept.

    A loop is one word five times or more in a row, two words four times, or three to twelve words
    three times, whatever their case and punctuation.
    """
    cores = [re.sub(r"\W", "", word).lower() for word in words]
    kept = list(range(len(words)))
    for length in range(1, _MAX_WORDS + 1):
        rounds = _ROUNDS.get(length, _ROUNDS_OF_MORE)
        kept = _without_runs(kept, cores, length, rounds)
    return kept


def _without_runs(kept: list[int], cores: Sequence[str], length: int, rounds: int) -> list[int]:
    """Those of the indices `kept` that stay when loops with rounds of `length` words are reduced.
    cores: what is compared of every word."""
    result: list[int] = []
    place = 0
    while place < len(kept):
        first = [cores[index] for index in kept[place : place + length]]
        end = place + length
        while [cores[index] for index in kept[end : end + length]] == first:
            end += length
        if len(first) == length and end - place >= rounds * length:
            result += kept[place : place + length]
            place = end
        else:
            result.append(kept[place])
            place += 1
    return result
