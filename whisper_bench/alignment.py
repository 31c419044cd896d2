"""How far the times of words are from those of a forced alignment (pure)."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

from whisper_bench.manifest import BadInput
from whisper_byoc.transcript import Word

_COLUMNS = ["start", "end", "word"]
_TOLERANCE = 0.0005
"""Seconds: times are rounded to milliseconds."""


def parse_alignment(text: str, name: str) -> list[Word]:
    """The words of a tab-separated table that begins with start, end (seconds) and word, with a
    header. Raises BadInput, `name` being what it calls the table."""
    header, *rows = [line.split("\t") for line in text.splitlines() if line.strip()] or [[]]
    if header[:3] != _COLUMNS:
        raise BadInput(f"{name} has the columns {', '.join(header)}, expected start, end, word")
    try:
        return [Word(row[2], float(row[0]), float(row[1]), 1.0) for row in rows]
    except (IndexError, ValueError) as error:
        raise BadInput(f"{name} has a line without times and a word ({error})") from error


def summarise_times(
    heard: Sequence[tuple[Sequence[Word], float]], said: Sequence[Sequence[Word]]
) -> dict[str, Any]:
    """Of several recordings, of each the words with its length in seconds, and what was said.

    Errors are in milliseconds, over the words that both have, in order: the median and the 90 % of
    the absolute ones, and the median of those with a sign (late is positive).
    """
    starts: list[float] = []
    ends: list[float] = []
    for (words, _), spoken in zip(heard, said, strict=True):
        for ours, theirs in matched(words, spoken):
            starts.append(1000 * (ours.start - theirs.start))
            ends.append(1000 * (ours.end - theirs.end))
    pairs = [pair for words, _ in heard for pair in pairwise(words)]
    return {
        "words": sum(len(words) for words, _ in heard),
        "matched": len(starts),
        "start": _spread(starts),
        "end": _spread(ends),
        "without_duration": sum(
            word.end - word.start < _TOLERANCE for words, _ in heard for word in words
        ),
        "overlapping": sum(a.end > b.start + _TOLERANCE for a, b in pairs),
        "outside": sum(
            word.start < 0 or word.end > seconds + _TOLERANCE
            for words, seconds in heard
            for word in words
        ),
    }


def matched(heard: Sequence[Word], said: Sequence[Word]) -> list[tuple[Word, Word]]:
    """Words that were heard as they were said, each with the one that it is."""
    ours, theirs = ([_plain(word) for word in words] for words in (heard, said))
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    return [
        (heard[block.a + number], said[block.b + number])
        for block in blocks
        for number in range(block.size)
        if ours[block.a + number]
    ]


def _plain(word: Word) -> str:
    return re.sub(r"[^a-z0-9']", "", word.text.lower())


def _spread(errors: Sequence[float]) -> dict[str, float] | None:
    if len(errors) < 2:
        return None
    sizes = [abs(error) for error in errors]
    return {
        "median": round(median(sizes), 1),
        "p90": round(quantiles(sizes, n=10)[-1], 1),
        "bias": round(median(errors), 1),
    }
