"""What the benchmark says of word times."""

import pytest

from whisper_bench.alignment import matched, parse_alignment, summarise_times
from whisper_bench.manifest import BadInput
from whisper_byoc.transcript import Word

TABLE = "start\tend\tword\tutterance\n0.5\t1.0\tfor\ta\n1.0\t1.5\ta\ta\n1.5\t2.0\tfull\ta\n"


def heard(*words: tuple[str, float, float]) -> list[Word]:
    return [Word(*word, 0.9) for word in words]


def test_words_are_compared_with_those_that_were_said() -> None:
    said = parse_alignment(TABLE, "x")
    ours = heard(("For", 0.6, 1.1), ("the", 1.1, 1.1), ("full,", 1.4, 2.2), ("hour", 2.2, 2.4))
    assert [pair[0].text for pair in matched(ours, said)] == ["For", "full,"]
    figures = summarise_times([(ours, 2.3)], [said])
    assert (figures["words"], figures["matched"]) == (4, 2)
    assert figures["start"]["median"] == pytest.approx(100)
    assert figures["start"]["bias"] == pytest.approx(0, abs=0.1)
    assert figures["end"]["bias"] == pytest.approx(150)
    assert (figures["without_duration"], figures["overlapping"], figures["outside"]) == (1, 0, 1)


def test_words_that_overlap_are_counted_within_a_recording() -> None:
    said = parse_alignment(TABLE, "x")
    ours = heard(("for", 0.5, 1.2), ("a", 1.1, 1.5))
    figures = summarise_times([(ours, 2.0), (heard(("full", 0.0, 1.0)), 2.0)], [said, said])
    assert figures["overlapping"] == 1
    assert summarise_times([], [])["start"] is None


@pytest.mark.parametrize("text", ["", "word\tstart\n", "start\tend\tword\n1\tx\ta\n", "a\n"])
def test_what_is_no_alignment_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="x has"):
        parse_alignment(text, "x")
