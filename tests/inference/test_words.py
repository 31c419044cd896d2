"""Which words the tokens of a decode make."""

import pytest

from whisper_byoc.decode import Evidence
from whisper_byoc.inference.words import Piece, whole_words


def pieces(text: str) -> list[Piece]:
    """Divided at `|`; `_` stands for a space. Each is half a second long and less certain than the
    one before."""
    return [
        Piece(it, [n], n, n + 0.5, 0.9 - n / 10, Evidence(n, n / 10, 0.9 - n / 10))
        for n, it in enumerate(text.replace("_", " ").split("|"))
    ]


@pytest.mark.parametrize(
    ("text", "continued", "expected"),
    [
        pytest.param("_cold|-|hearted|_man", False, "cold-hearted man", id="hyphens"),
        pytest.param("Oh,|_no", False, "Oh, no", id="no space at the very beginning"),
        pytest.param(",|_is|_it", True, "is it", id="punctuation behind what is final"),
        pytest.param("-sposed|_man", True, "sposed man", id="letters behind what is final"),
        pytest.param(".|-|-", True, "", id="nothing else"),
    ],
)
def test_words_are_whole(text: str, continued: bool, expected: str) -> None:
    whole = whole_words(pieces(text), continued=continued)
    assert " ".join(piece.word.strip() for piece in whole) == expected


def test_a_whole_word_is_as_certain_as_its_least_part() -> None:
    [word] = whole_words(pieces("_cold|-|hearted"), continued=False)
    seen = word.evidence
    assert (word.start, word.end, word.probability) == pytest.approx((0, 2.5, 0.7))
    assert (seen.attended, seen.tail_mass, seen.probability) == pytest.approx((2, 0.2, 0.7))
