"""How late words came, from made-up readers of made-up streams."""

import pytest

from whisper_bench.lags import Ending, compare_endings, measure_lags, percentile
from whisper_byoc.transcript import Event, Final, Partial, Word

OFFLINE = (
    Word("Ask", 0.0, 0.5, 1.0),
    Word("not", 0.5, 1.0, 1.0),
    Word("what,", 1.0, 2.0, 1.0),
)


def partial(text: str, utterance: int = 0) -> Partial:
    return Partial(0, utterance, 0.0, 0.0, text)


def final(text: str, utterance: int = 0) -> Final:
    return Final(0, utterance, 0.0, 0.0, text, (), "en")


def test_lags_are_counted_from_the_end_of_a_word() -> None:
    seen: list[tuple[float, Event]] = [
        (0.7, partial("ask")),
        (1.2, partial("ask knot")),
        (1.5, partial("ask not")),
        (1.8, final("Ask")),
        (1.8, partial("not")),
        (2.4, final("not what,")),
    ]
    lags = measure_lags(seen, OFFLINE, audio_end=2.2)
    assert lags.partial == pytest.approx([0.2, 0.5, 0.4])
    assert lags.final == pytest.approx([1.3, 1.4, 0.4])
    assert lags.finalize == pytest.approx(0.2)
    assert lags.text == "Ask not what,"
    assert (lags.tail_words_lost, lags.num_shown, lags.num_changed) == (0, 6, 1)


def test_words_that_did_not_come_are_lost_and_have_no_lag() -> None:
    lags = measure_lags([(1.0, final("ask")), (1.5, final("never", 1))], OFFLINE, 3.0)
    assert lags.final == pytest.approx([0.5])
    assert lags.tail_words_lost == 1
    assert lags.finalize is None
    assert measure_lags([], OFFLINE, 3.0).tail_words_lost == 3
    assert measure_lags([], (), 3.0).tail_words_lost == 0


def test_a_partial_that_was_taken_back_has_changed() -> None:
    lags = measure_lags([(1.0, partial("you")), (2.0, partial(""))], (), 3.0)
    assert (lags.num_shown, lags.num_changed) == (1, 1)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([1.0], 95, 1.0), ([1.0, 2.0, 3.0, 4.0], 50, 2.0), ([1.0, 2.0], 95, 2.0)],
)
def test_percentile(values: list[float], percent: float, expected: float | None) -> None:
    assert percentile(values, percent) == expected


@pytest.mark.parametrize(
    ("streamed", "offline", "cut", "ending"),
    [
        pytest.param("ask Not.", "Ask not", 1.2, Ending.SAME, id="same letters"),
        pytest.param("", "", 0.1, Ending.SAME, id="nothing said"),
        pytest.param("ask", "ask knot", 0.8, Ending.INSIDE, id="the end fell inside a word"),
        pytest.param("ask", "ask not", 2.6, Ending.LOST, id="nothing in its place"),
        pytest.param("ask knot", "ask not", 2.6, Ending.OTHER, id="heard as another word"),
        pytest.param("", "ask", 2.6, Ending.LOST, id="nothing at all"),
    ],
)
def test_the_last_word_of_a_stream_that_ends_anywhere(
    streamed: str, offline: str, cut: float, ending: Ending
) -> None:
    assert compare_endings(streamed, offline, OFFLINE, cut) is ending
