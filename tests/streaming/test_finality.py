"""Which words become final, by the evidence there is for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.decode import Evidence
from whisper_byoc.streaming.finality import (
    BALANCED,
    LOW_LATENCY,
    Bar,
    Heard,
    agreement,
    core,
    num_final,
    num_safe,
)
from whisper_byoc.transcript import Word


def words(text: str) -> tuple[Word, ...]:
    return tuple(Word(word, n, n + 0.5, 0.9) for n, word in enumerate(text.split()))


def heard(
    text: str,
    *,
    ago: list[float],
    probability: float = 0.9,
    probabilities: list[float] | None = None,
    tail: float = 0.1,
    end: float = 10.0,
) -> Heard:
    """ago: how long before the end of the audio the decoder looked for each word, in seconds."""
    likely = probabilities or [probability] * len(ago)
    evidence = tuple(
        Evidence(end - seconds, tail, it) for seconds, it in zip(ago, likely, strict=True)
    )
    return Heard(words(text), evidence, end)


NEAR = [1.6, 1.4, 1.2, 0.8]


BAR = Bar(near=0.4, probability=0.7, far=1.0, late=1.8)


@pytest.mark.parametrize(
    ("now", "earlier", "number"),
    [
        pytest.param(heard("a b c d", ago=NEAR), [], 0, id="one look"),
        pytest.param(heard("a b c d", ago=NEAR), ["a b c"], 3, id="two agree"),
        pytest.param(heard("a b c d", ago=NEAR), ["A, b. x"], 2, id="up to there"),
        pytest.param(heard("a b", ago=[5, 4]), [], 1, id="late ones need no second look"),
        pytest.param(heard("a b", ago=[5, 4]), ["a b"], 1, id="the last waits"),
        pytest.param(
            heard("a b c", ago=[0.9, 0.3, 0.2]), ["a b c"], 1, id="the second is too near"
        ),
        pytest.param(
            heard("a b c", ago=[1.1, 0.9, 0.6], probability=0.5),
            ["a b c"],
            1,
            id="improbable ones have to be far",
        ),
        pytest.param(
            heard("a b c", ago=[0.9, 0.8, 0.7], probabilities=[0.9, 0.9, 0.6]),
            ["a b c"],
            1,
            id="one beside an improbable one has to be far",
        ),
        pytest.param(
            heard("a b c", ago=[1.2, 1.1, 1.0], tail=0.7), ["a b c"], 0, id="not heard yet"
        ),
        pytest.param(heard("a b c", ago=[0.5, 3.6, 0.4]), ["a b c"], 2, id="late after a jump"),
        pytest.param(Heard(words("a b c"), (), 9.0), ["a b c"], 0, id="no evidence, two looks"),
        pytest.param(
            Heard(words("a b c"), (), 9.0), ["a b c", "a b"], 2, id="no evidence, three looks"
        ),
        pytest.param(Heard((), (), 9.0), ["a b"], 0, id="nothing heard"),
    ],
)
def test_words_to_commit(now: Heard, earlier: list[str], number: int) -> None:
    assert num_final(BAR, now, [words(text) for text in earlier]) == number


def test_attention_that_jumps_back_is_not_safe() -> None:
    assert num_safe(heard("a b c", ago=[2.0, 5.5, 1.0]), 0.5) == 1


@given(
    texts=st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=3),
    seen=st.lists(
        st.tuples(st.floats(0, 10), st.floats(0, 1), st.floats(0, 1)), min_size=6, max_size=6
    ),
    bar=st.sampled_from([BALANCED, LOW_LATENCY]),
)
def test_more_agreement_never_commits_less(
    texts: list[list[str]], seen: list[tuple[float, float, float]], bar: Bar
) -> None:
    now = words(" ".join(texts[0]))
    evidence = tuple(Evidence(*it) for it in seen[: len(now)])
    current = Heard(now, evidence, 10.0)
    number = num_final(bar, current, [words(" ".join(text)) for text in texts[1:]])
    assert 0 <= number <= max(0, len(now) - 1)
    assert num_final(bar, current, [now, now]) >= number


def test_words_are_compared_by_their_letters() -> None:
    assert agreement(words("Hello, THERE you"), words("hello there. they")) == 2
    assert agreement(words("a"), ()) == 0
    assert core("?") == "?"
