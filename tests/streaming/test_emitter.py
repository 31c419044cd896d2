"""Events of a stream: numbers without gaps, times that never run backwards."""

import numpy as np

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import Hypothesis
from whisper_byoc.streaming.emitter import EventEmitter
from whisper_byoc.streaming.utterance import Purpose, Utterance, Window
from whisper_byoc.transcript import End, Endpoint, EndReason, Failure, Final, Partial, Word

HEARD = Hypothesis("", "en")


def window(start: float, end: float) -> Window:
    samples = np.zeros(round((end - start) * SAMPLE_RATE), dtype=np.float32)
    return Window(round(start * SAMPLE_RATE), samples, Purpose.PARTIAL, "", "")


def said(*times: tuple[float, float]) -> list[Word]:
    return [Word(f"w{number}", *it, 0.9) for number, it in enumerate(times)]


def test_a_partial_is_told_once_and_taken_back_at_the_endpoint() -> None:
    emitter, utterance = EventEmitter(), Utterance(0, end=2 * SAMPLE_RATE)
    emitter.emit_partial(utterance, window(0, 1), "you")
    emitter.emit_partial(utterance, window(0, 2), "you")
    emitter.emit_endpoint(utterance)
    assert emitter.take() == [
        Partial(0, 0, 0.0, 1.0, "you"), Partial(1, 0, 2.0, 2.0, ""), Endpoint(2, 0, 2.0),
    ]  # fmt: skip
    assert emitter.take() == []


def test_words_do_not_begin_before_the_last_ones_end() -> None:
    emitter, utterance = EventEmitter(), Utterance(0)
    emitter.emit_final(utterance, window(0, 2), said((0.5, 1.5)), HEARD)
    emitter.emit_final(utterance, window(0, 4), said((1.0, 2.0), (2.0, 5.0)), HEARD)
    emitter.emit_partial(utterance, window(0, 4.5), "more")
    first, second, partial = emitter.take()
    assert isinstance(first, Final)
    assert isinstance(second, Final)
    assert isinstance(partial, Partial)
    assert [(it.start, it.end) for it in second.words] == [(1.5, 2.0), (2.0, 4.0)]
    assert (partial.start, partial.end) == (4.0, 4.5)


def test_words_are_told_without_the_delay_of_the_weights() -> None:
    emitter, utterance = EventEmitter(), Utterance(0)
    late = Hypothesis("", "en", word_delay=0.25)
    emitter.emit_final(utterance, window(2, 4), said((0.0, 0.5), (0.5, 1.5)), late)
    [final] = emitter.take()
    assert isinstance(final, Final)
    assert [(it.start, it.end) for it in final.words] == [(1.75, 2.25), (2.25, 3.25)]


def test_an_utterance_of_which_nothing_was_told_takes_no_number() -> None:
    emitter, noise, speech = EventEmitter(), Utterance(0, end=1), Utterance(2)
    emitter.emit_final(noise, window(0, 1), [], HEARD)
    emitter.emit_endpoint(noise)
    emitter.emit_final(speech, window(1, 3), said((0.0, 1.0)), HEARD)
    [final] = emitter.take()
    assert isinstance(final, Final)
    assert (final.seq, final.utterance) == (0, 0)


def test_a_failure_is_told_before_the_end() -> None:
    emitter = EventEmitter()
    emitter.emit_end(1.0, EndReason.ERROR, ("decode_failed", "no memory"))
    assert emitter.take() == [
        Failure(0, "decode_failed", "no memory"), End(1, 1.0, EndReason.ERROR),
    ]  # fmt: skip
