"""Where the next window of an utterance begins."""

import numpy as np
import pytest

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import FRAME_SAMPLES
from whisper_byoc.streaming.samples import SampleBuffer
from whisper_byoc.streaming.utterance import Purpose, Utterance, Window
from whisper_byoc.transcript import Word

START = 5 * SAMPLE_RATE


def spoken(seconds: float) -> tuple[Utterance, SampleBuffer]:
    """An utterance that begins at 5 s and has speech from end to end; its stream is noise."""
    audio = SampleBuffer()
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, START + round(seconds * SAMPLE_RATE))
    audio.append(noise.astype(np.float32))
    frames = list(range(START, audio.end, FRAME_SAMPLES))
    return Utterance(START, speech_frames=frames), audio


def words(*ends: float) -> list[Word]:
    return [Word(f"w{end:g}", end - 0.4, end, 0.9) for end in ends]


def seconds(window: Window, place: int | None) -> float:
    assert place is not None
    return (place - window.start) / SAMPLE_RATE


def test_a_window_begins_with_the_final_words_in_it_and_goes_on_with_what_was_shown() -> None:
    utterance, audio = spoken(4)
    first = utterance.window(Purpose.PARTIAL, audio)
    utterance.receive_finals(words(1, 2), first)
    utterance.partial = "w3"
    window = utterance.window(Purpose.PARTIAL, audio)
    assert (window.start, window.forced, window.draft) == (START, "w1 w2", "w3")
    assert len(window.samples) == 4 * SAMPLE_RATE


def test_of_hypotheses_the_last_two_are_kept_without_what_has_become_final() -> None:
    utterance, audio = spoken(4)
    for ends in ([1.0], [1.0, 2.0], [1.0, 2.0, 3.0]):
        utterance.receive_heard(tuple(words(*ends)))
    utterance.receive_finals(words(1), utterance.window(Purpose.PARTIAL, audio))
    texts = [[word.text for word in heard] for heard in utterance.heard]
    assert texts == [["w2", "w3"], ["w2"]]


@pytest.mark.parametrize(
    ("purpose", "length", "found"),
    [(Purpose.PARTIAL, 4.0, True), (Purpose.PARTIAL, 3.0, False), (Purpose.FINAL, 3.0, True)],
    ids=["a second and more", "less, while more may come", "less, and no more comes"],
)
def test_speech_behind_the_last_word_is_found(purpose: Purpose, length: float, found: bool) -> None:
    utterance, audio = spoken(length)
    window = utterance.window(purpose, audio)
    place = utterance.unheard_from(window, words(1.0, 2.0))
    assert (place is not None) == found
    if found:
        assert 1.8 <= seconds(window, place) <= 2.4


def test_a_final_word_is_not_decoded_again_whatever_the_last_hypothesis_says() -> None:
    utterance, audio = spoken(8)
    window = utterance.window(Purpose.PARTIAL, audio)
    utterance.receive_finals(words(3.0, 4.0), window)
    assert seconds(window, utterance.unheard_from(window, words(2.0))) >= 3.8


def test_a_cut_is_behind_all_final_words() -> None:
    utterance, audio = spoken(8)
    window = utterance.window(Purpose.CUT, audio)
    utterance.receive_finals(words(3.0, 7.5), window)
    cut = utterance.choose_cut(window, words(2.0))
    assert cut.num_words == 0
    assert cut.sample / SAMPLE_RATE >= 7.3


def test_without_a_word_nothing_is_left_out() -> None:
    utterance, audio = spoken(8)
    assert utterance.unheard_from(utterance.window(Purpose.PARTIAL, audio), []) is None


def test_a_long_window_is_cut_at_a_final_word_and_forgets_those_before() -> None:
    utterance, audio = spoken(10)
    utterance.shorten(audio)
    assert utterance.start == START
    window = utterance.window(Purpose.PARTIAL, audio)
    utterance.receive_finals(words(1, 2, 4, 8), window)
    utterance.shorten(audio)
    cut = seconds(window, utterance.start)
    assert min(abs(cut - 3.95), abs(cut - 7.95)) <= 0.15
    assert all(end > utterance.start - 0.1 * SAMPLE_RATE for _, end in utterance.finals)
    assert utterance.speech_frames[0] >= utterance.start
