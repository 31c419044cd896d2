"""How transcripts are scored."""

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_bench.manifest import Clip
from whisper_bench.scoring import (
    Result,
    add_speedups,
    count_edits,
    is_overlong,
    summarise,
    word_error_rate,
)

CLIPS = [
    Clip("en/accent/one.flac", "one two"),
    Clip("en/long/two.flac", "three"),
    Clip("nonspeech/dishes.flac", ""),
    Clip("other/de/drei.flac", "drei"),
]


@pytest.mark.parametrize(
    ("pairs", "rate"),
    [
        pytest.param([("a b c d", "a b c d")], 0.0, id="right"),
        pytest.param([("a b c d", "a x c")], 50.0, id="a substitution and a deletion"),
        pytest.param([("a", "b c d")], 300.0, id="more edits than words"),
        pytest.param([("a b c d", "")], 100.0, id="nothing heard"),
        pytest.param([("a", "b"), ("c d e", "c d e")], 25.0, id="pooled, not a mean of rates"),
        pytest.param([("a", "a"), ("", "b c")], 0.0, id="what nobody said is left out"),
        pytest.param([("", "b")], None, id="no reference"),
    ],
)
def test_word_error_rate(pairs: list[tuple[str, str]], rate: float | None) -> None:
    assert word_error_rate(pairs) == rate


words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


@given(words, words)
def test_edits_are_counted_as_jiwer_counts_them(said: list[str], heard: list[str]) -> None:
    rate = jiwer.wer(" ".join(said), " ".join(heard))
    assert count_edits(said, heard) == pytest.approx(rate * len(said))


@pytest.mark.parametrize(
    ("num_said", "num_heard", "loop"),
    [(2, 6, False), (2, 7, True), (3, 7, False), (3, 8, True), (0, 50, False)],
)
def test_a_loop_is_half_as_much_again_and_three_words(
    num_said: int, num_heard: int, loop: bool
) -> None:
    assert is_overlong("a " * num_said, "b " * num_heard) is loop


def test_a_run_in_figures() -> None:
    results = [
        Result(CLIPS[0], "One, TWO", (9.0, 1.0, 2.0)),
        Result(CLIPS[1], " ".join(["three"] * 5), (0.5,)),
        Result(CLIPS[2], "Thank you.", (0.1, 0.3)),
    ]
    figures = summarise(results, 27.0, lambda text: text.lower().replace(",", ""))
    assert figures == {
        "rtf": 0.1,
        "wer": 133.33,
        "loops": 1,
        "looping_files": ["en/long/two.flac"],
        "words_on_nonspeech": 2,
        "seconds": 2.7,
        "median_seconds_per_file": 0.5,
        "wer_by_group": {"en/accent": 0.0, "en/long": 400.0},
    }


def test_what_was_not_measured_is_none() -> None:
    speech = summarise([Result(CLIPS[0], "one two", (1.0,))], 1.0, str.lower)
    silence = summarise([Result(CLIPS[2], "", (1.0,))], 1.0, str.lower)
    assert (speech["wer"], speech["words_on_nonspeech"]) == (0.0, None)
    assert (silence["wer"], silence["words_on_nonspeech"]) == (None, 0)


def test_speedups_are_ratios_of_total_times() -> None:
    runs = {"ours": {"seconds": 2.0}, "openai": {"seconds": 7.0}}
    add_speedups(runs, "openai")
    assert [run["speedup_over_openai"] for run in runs.values()] == [3.5, 1.0]
    alone = {"ours": {"seconds": 2.0}}
    add_speedups(alone, "openai")
    assert alone == {"ours": {"seconds": 2.0}}
