"""Which words become final, by the evidence there is for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.decode import Evidence
from whisper_byoc.streaming.commit import Heard, Policy, agreement, core, num_to_commit
from whisper_byoc.transcript import Word


def words(text: str) -> tuple[Word, ...]:
    return tuple(Word(word, n, n + 0.5, 0.9) for n, word in enumerate(text.split()))


def heard(
    text: str, *, ago: list[float], probability: float = 0.9, tail: float = 0.1, end: float = 10.0
) -> Heard:
    """ago: how long before the end of the audio the decoder looked for each word, in seconds."""
    evidence = tuple(Evidence(end - seconds, tail, probability) for seconds in ago)
    return Heard(words(text), evidence, end)


FAR = [5.0, 4.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("policy", "now", "earlier", "number"),
    [
        pytest.param(Policy.QUICK, heard("a b c d", ago=FAR), [], 0, id="one look"),
        pytest.param(Policy.QUICK, heard("a b c d", ago=FAR), ["a b c"], 3, id="two agree"),
        pytest.param(Policy.QUICK, heard("a b c d", ago=FAR), ["A, b. x"], 2, id="up to there"),
        pytest.param(Policy.QUICK, heard("a b", ago=[5, 4]), ["a b"], 1, id="the last waits"),
        pytest.param(
            Policy.QUICK,
            heard("a b c", ago=[0.9, 0.4, 0.2]),
            ["a b c"],
            1,
            id="the second is too near",
        ),
        pytest.param(
            Policy.QUICK,
            heard("a b c", ago=[2, 0.9, 0.6], probability=0.5),
            ["a b c"],
            1,
            id="improbable ones have to be far",
        ),
        pytest.param(
            Policy.QUICK,
            heard("a b c", ago=[0.1, 0.1, 0.1], probability=0.1),
            ["a b c", "a b c"],
            2,
            id="three agree",
        ),
        pytest.param(
            Policy.QUICK, heard("a b c", ago=FAR[:3], tail=0.7), ["a b c"], 0, id="not heard yet"
        ),
        pytest.param(
            Policy.QUICK, heard("a b c d", ago=[2, 9, 2, 2]), ["a b c d"], 1, id="a jump back"
        ),
        pytest.param(Policy.EAGER, heard("a b c", ago=[0, 0, 0]), ["a b c"], 2, id="eager"),
        pytest.param(
            Policy.CAREFUL, heard("a b c", ago=FAR[:3], probability=0.99), [], 2, id="sure at once"
        ),
        pytest.param(
            Policy.CAREFUL,
            heard("a b c", ago=FAR[:3], probability=0.99),
            ["a x"],
            1,
            id="contradicted",
        ),
        pytest.param(Policy.CAREFUL, heard("a b c", ago=FAR[:3]), [], 0, id="not sure"),
        pytest.param(
            Policy.CAREFUL, heard("a b c", ago=[2, 0.3, 0.1]), ["a b c"], 2, id="agreed and heard"
        ),
        pytest.param(
            Policy.QUICK, Heard(words("a b c"), (), 9.0), ["a b c"], 0, id="no evidence, two looks"
        ),
        pytest.param(
            Policy.QUICK,
            Heard(words("a b c"), (), 9.0),
            ["a b c", "a b"],
            2,
            id="no evidence, three looks",
        ),
        pytest.param(Policy.QUICK, Heard((), (), 9.0), ["a b"], 0, id="nothing heard"),
    ],
)
def test_words_to_commit(policy: Policy, now: Heard, earlier: list[str], number: int) -> None:
    assert num_to_commit(policy, now, [words(text) for text in earlier]) == number


@given(
    texts=st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=3),
    seen=st.lists(
        st.tuples(st.floats(0, 10), st.floats(0, 1), st.floats(0, 1)), min_size=6, max_size=6
    ),
    policy=st.sampled_from(list(Policy)),
)
def test_more_agreement_never_commits_less(
    texts: list[list[str]], seen: list[tuple[float, float, float]], policy: Policy
) -> None:
    now = words(" ".join(texts[0]))
    evidence = tuple(Evidence(*it) for it in seen[: len(now)])
    current = Heard(now, evidence, 10.0)
    number = num_to_commit(policy, current, [words(" ".join(text)) for text in texts[1:]])
    assert 0 <= number <= max(0, len(now) - 1)
    assert num_to_commit(policy, current, [now, now]) >= number


def test_words_are_compared_by_their_letters() -> None:
    assert agreement(words("Hello, THERE you"), words("hello there. they")) == 2
    assert agreement(words("a"), ()) == 0
    assert core("?") == "?"
