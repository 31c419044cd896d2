"""Text in which the decoder went round in circles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.loops import is_loop, outside_loops


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("oh la la la la la", "oh la", id="one word five times"),
        pytest.param("oh la la la la", "oh la la la la", id="one word four times"),
        pytest.param("I am. I am. I am, i am. so", "I am. so", id="two words four times"),
        pytest.param("a b c a b c a b c d", "a b c d", id="three words three times"),
        pytest.param("a b c d a b c d", "a b c d a b c d", id="four words twice"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_of_a_run_the_first_round_stays(text: str, expected: str) -> None:
    words = text.split()
    assert " ".join(words[index] for index in outside_loops(words)) == expected


def test_a_loop_shows_both_signs() -> None:
    assert is_loop(["la"] * 50, 5.0)
    assert not is_loop(["la"] * 50, 2.4)
    assert not is_loop(["say", "it", "twice", "say", "it", "twice"], 5.0)


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_no_word_disappears_altogether(words: list[str]) -> None:
    kept = outside_loops(words)
    assert kept == sorted(set(kept))
    assert {words[index] for index in kept} == set(words)
