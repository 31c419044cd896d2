"""Which text is chosen, and the distance that it is chosen by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_bench.scoring import count_edits as by_rows
from whisper_byoc.inference.minimum_risk import count_edits, least_risk

texts = st.lists(st.sampled_from("abcd"), max_size=70)


@given(texts, texts)
def test_the_distance_is_levenshteins(one: list[str], other: list[str]) -> None:
    assert count_edits(one, other) == by_rows(one, other) == count_edits(other, one)


@given(texts, texts, texts)
def test_a_text_amid_others_is_as_far_as_on_its_own(
    one: list[str], other: list[str], around: list[str]
) -> None:
    assert count_edits([*around, *one, *around], [*around, *other, *around]) <= count_edits(
        one, other
    )
    assert count_edits(one, [*one, *around]) == len(around)


candidates = st.lists(
    st.tuples(st.lists(st.sampled_from("abc"), max_size=5), st.floats(-30, 0)),
    min_size=1,
    max_size=6,
)


@given(candidates, st.floats(0.1, 10))
def test_no_other_text_has_less_risk(found: list[tuple[list[str], float]], heat: float) -> None:
    words, logprobs = zip(*found, strict=True)
    weights = [2.718281828 ** ((logprob - max(logprobs)) / heat) for logprob in logprobs]
    risks = [
        sum(weight * by_rows(one, other) for other, weight in zip(words, weights, strict=True))
        for one in words
    ]
    chosen = least_risk(words, logprobs, heat)
    assert risks[chosen] == pytest.approx(min(risks), abs=1e-6)


@pytest.mark.parametrize(
    ("heat", "expected"),
    [
        pytest.param(0, 0, id="the most probable"),
        pytest.param(1, 1, id="what most of the probability agrees with, in most words"),
    ],
)
def test_what_several_texts_agree_on_wins(heat: float, expected: int) -> None:
    said = ["we sat all day", "he said all day", "he said all bay", "he said a day"]
    assert least_risk([text.split() for text in said], [-1.0, -1.1, -1.4, -1.5], heat) == expected


def test_of_the_same_words_the_first_is_taken() -> None:
    assert least_risk([["a"], ["b"], ["a"]], [-1.5, -1.0, -1.5], 1.0) == 0
