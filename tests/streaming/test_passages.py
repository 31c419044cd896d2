"""A window and its hypothesis in, passages out."""

import numpy as np

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import Evidence, Hypothesis
from whisper_byoc.streaming.passages import Passage, passages_of
from whisper_byoc.streaming.recording import RecordingWindow
from whisper_byoc.transcript import Word


def evidence(num_tokens: int) -> Evidence:
    return Evidence(0.0, 0.0, 1.0, num_tokens)


def passages(hypothesis: Hypothesis, not_before: float = 0.0) -> list[Passage]:
    samples = np.zeros(10 * SAMPLE_RATE, np.float32)
    return list(passages_of(RecordingWindow(20 * SAMPLE_RATE, samples), hypothesis, not_before))


WORDS = (
    Word("one", 0.0, 1.0, 0.9),
    Word("two", 1.5, 2.0, 0.8),
    Word("three", 4.0, 5.0, 0.7),
)


def test_words_with_a_pause_between_are_two_passages_each_with_its_tokens() -> None:
    counted = (evidence(1), evidence(2), evidence(1))
    first, second = passages(
        Hypothesis(
            "one two three", "en", WORDS, -0.3, 0.1, 1.2, evidence=counted, tokens=(1, 2, 3, 4, 5)
        )
    )
    assert (first.start, first.end, first.text) == (20.0, 22.0, "one two")
    assert (second.start, second.end, second.text) == (24.0, 25.0, "three")
    assert (first.detail.tokens, second.detail.tokens) == ((1, 2, 3), (4, 5))
    assert {it.detail.seek for it in (first, second)} == {2000}
    assert {it.detail.avg_logprob for it in (first, second)} == {-0.3}


def test_tokens_that_nobody_has_counted_go_with_the_last() -> None:
    first, second = passages(Hypothesis("one two three", "en", WORDS, tokens=(1, 2, 3)))
    assert (first.detail.tokens, second.detail.tokens) == ((), (1, 2, 3))


def test_a_text_without_words_has_the_whole_window() -> None:
    [passage] = passages(Hypothesis("one", "en"), not_before=21.0)
    assert (passage.start, passage.end, passage.text) == (21.0, 30.0, "one")


def test_languages_without_spaces_are_written_so() -> None:
    [passage, _] = passages(Hypothesis("", "ja", WORDS))
    assert passage.text == "onetwo"


def test_nothing_heard_is_no_passage() -> None:
    assert passages(Hypothesis("", "en")) == []
