"""What is believed of a hypothesis, and where a long one is cut."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import Hypothesis
from whisper_byoc.streaming.hypothesis import (
    MIN_WORD_SECONDS,
    believed,
    choose_cut,
    place_words,
    quietest,
)
from whisper_byoc.transcript import Word


def heard(text: str, probability: float = 0.9, **signs: Any) -> Hypothesis:
    words = tuple(Word(word, n, n + 1, probability) for n, word in enumerate(text.split()))
    return Hypothesis(text, "en", words, **signs)


LOOPS = 2.5


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        pytest.param(heard("hello there"), "hello there", id="plain words"),
        pytest.param(heard(""), "", id="no text"),
        pytest.param(heard("you", no_speech_prob=0.7, avg_logprob=-1.2), "", id="no speech"),
        pytest.param(
            heard("you", no_speech_prob=0.7, avg_logprob=-0.2),
            "you",
            id="improbable speech with sure words",
        ),
        pytest.param(
            heard("you", probability=0.28, no_speech_prob=0.9, avg_logprob=-0.7),
            "",
            id="a lone improbable word in what is probably no speech",
        ),
        pytest.param(
            heard("you", probability=0.28, no_speech_prob=0.5), "you", id="a lone word in speech"
        ),
        pytest.param(
            heard("thank you", probability=0.28, no_speech_prob=0.9), "thank you", id="two words"
        ),
        pytest.param(
            heard("oh la la la la la", compression_ratio=LOOPS), "oh la", id="one word five times"
        ),
        pytest.param(
            heard("I am. I am. I am, i am. so", compression_ratio=LOOPS),
            "I am. so",
            id="two words four times, whatever their punctuation",
        ),
        pytest.param(
            heard("a b c a b c a b c d", compression_ratio=LOOPS),
            "a b c d",
            id="three words three times",
        ),
        pytest.param(
            heard("no no no no no no", compression_ratio=1.9),
            "no no no no no no",
            id="repeated words that do not compress well",
        ),
        pytest.param(
            heard("one two three four one two three four", compression_ratio=LOOPS),
            "one two three four one two three four",
            id="a sentence said twice",
        ),
    ],
)
def test_what_is_believed_of_a_hypothesis(hypothesis: Hypothesis, expected: str) -> None:
    kept = believed(hypothesis)
    assert kept.text == expected
    assert " ".join(word.text for word in kept.words) == expected


times = st.floats(-5, 40, allow_nan=False)


@given(st.lists(st.tuples(times, times), max_size=30), st.floats(0, 100), st.floats(0, 100))
def test_placed_words_are_in_order_and_within_their_window(
    spans: list[tuple[float, float]], offset: float, not_before: float
) -> None:
    not_after = max(not_before, offset + 30)
    words = [Word(str(index), *span, 0.5) for index, span in enumerate(spans)]
    placed = place_words(words, offset, not_before, not_after)
    assert [word.text for word in placed] == [word.text for word in words]
    limits = [time for word in placed for time in (word.start, word.end)]
    assert limits == sorted(limits)
    assert all(not_before - 1e-9 <= time <= not_after + 1e-9 for time in limits)
    room = (not_after - not_before) / max(1, len(placed))
    shortest = min(MIN_WORD_SECONDS, room) - 1e-9
    assert all(word.end - word.start >= shortest for word in placed)


def test_case_recordings_14_words_of_one_moment_share_the_time_around_it() -> None:
    words = spoken((1.0, 1.0), (1.0, 1.0), (1.0, 1.5), (3.0, 3.0))
    placed = place_words(words, 0.0, 0.0, 3.0)
    assert [(round(it.start, 3), round(it.end, 3)) for it in placed] == [
        (1.0, 1.06), (1.06, 1.12), (1.12, 1.5), (2.94, 3.0),
    ]  # fmt: skip


def test_silence_around_words_is_not_theirs() -> None:
    voiced = [round(place * SAMPLE_RATE) for place in (11.0, 11.032, 11.5, 13.0)]
    words = spoken((0.0, 1.2), (1.2, 2.9), (2.9, 3.5), (3.5, 4.0))
    placed = place_words(words, 10.0, 0.0, 20.0, voiced)
    times = [(word.start, word.end) for word in placed]
    assert times == [
        pytest.approx((10.94, 11.164)),
        pytest.approx((11.44, 11.632)),
        pytest.approx((12.94, 13.132)),
        pytest.approx((13.5, 14.0)),
    ]


def noise(
    seconds: float, *quiet: tuple[float, float]
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, round(seconds * SAMPLE_RATE))
    for start, end in quiet:
        samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] *= 0.01
    return samples.astype(np.float32)


def spoken(*spans: tuple[float, float]) -> list[Word]:
    return [Word(f"word{index}", start, end, 0.9) for index, (start, end) in enumerate(spans)]


def test_the_cut_falls_into_the_quietest_gap_between_words() -> None:
    samples = noise(20, (2.9, 3.1), (11.9, 12.2))
    words = spoken((1, 2.9), (3.1, 9), (9, 12), (12.2, 15), (15, 18))
    cut = choose_cut(samples, words)
    assert cut.num_words == 3
    assert 11.9 <= cut.sample / SAMPLE_RATE <= 12.2


def test_words_near_the_live_edge_are_not_cut_off() -> None:
    samples = noise(20, (19.3, 19.5))
    cut = choose_cut(samples, spoken((1, 9), (9, 14), (14, 19.4), (19.5, 20)))
    assert cut.num_words <= 2


@pytest.mark.parametrize("words", [[], spoken((0.5, 1.5)), spoken((0, 19.9))], ids=len)
def test_without_a_gap_the_quietest_place_of_the_later_half_is_taken(words: list[Word]) -> None:
    samples = noise(20, (4, 5), (13, 13.4))
    cut = choose_cut(samples, words)
    assert 13 <= cut.sample / SAMPLE_RATE <= 13.4
    assert cut.num_words == sum((word.start + word.end) / 2 < 13 for word in words)


@given(st.floats(0.05, 3), st.floats(-1, 4), st.floats(-1, 4))
def test_the_quietest_place_lies_within_the_samples(
    seconds: float, start: float, stop: float
) -> None:
    samples = noise(seconds)
    place, energy = quietest(samples, min(start, stop), max(start, stop))
    assert 0 <= place <= len(samples)
    assert energy >= 0
