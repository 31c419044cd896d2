"""Windows of a whole recording: made-up voice in, samples that can be told apart by their place."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import FRAME_SAMPLES
from whisper_byoc.settings import StreamingSettings
from whisper_byoc.streaming.recording import RecordingPlanner, RecordingWindow, split_unheard
from whisper_byoc.streaming.vad import VoiceRules
from whisper_byoc.transcript import Word

SETTINGS = StreamingSettings(endpoint_silence=0.5)
RULES = VoiceRules(pre_roll=0.5)
FRAMES_PER_SECOND = SAMPLE_RATE / FRAME_SAMPLES


def windows_of(
    parts: list[tuple[float, bool]], max_seconds: float = 20.0, block_frames: int = 50
) -> tuple[list[RecordingWindow], int]:
    """The windows of seconds of speech and silence, and how many samples that were."""
    voice = [
        0.9 if speech else 0.01
        for seconds, speech in parts
        for _ in range(round(seconds * FRAMES_PER_SECOND))
    ]
    num_samples = len(voice) * FRAME_SAMPLES
    samples = (np.arange(num_samples) % 65536 / 65536).astype(np.float32)
    planner = RecordingPlanner(SETTINGS, max_seconds, RULES)
    windows = []
    for first in range(0, len(voice), block_frames):
        block = slice(first * FRAME_SAMPLES, (first + block_frames) * FRAME_SAMPLES)
        windows += planner.receive_audio(samples[block], voice[first : first + block_frames])
    return [*windows, *planner.receive_end()], num_samples


def spans(windows: list[RecordingWindow]) -> list[tuple[float, float]]:
    return [(round(window.offset, 1), round(window.end, 1)) for window in windows]


def test_utterances_with_short_pauses_go_together() -> None:
    windows, _ = windows_of([(1, False), (3, True), (1, False), (4, True), (1, False)])
    assert spans(windows) == [(0.5, 9.5)]


def test_a_long_pause_parts_them() -> None:
    windows, _ = windows_of([(3, True), (4, False), (4, True), (1, False)])
    assert spans(windows) == [(0.0, 3.5), (6.5, 11.5)]


def test_a_window_that_is_full_parts_them() -> None:
    windows, _ = windows_of([(8, True), (1, False), (8, True), (1, False), (8, True)])
    assert spans(windows) == [(0.0, 17.5), (17.5, 26.0)]


def test_speech_without_a_pause_is_cut_in_its_later_half() -> None:
    windows, num_samples = windows_of([(100, True)])
    assert windows[0].start == 0
    assert windows[-1].end == pytest.approx(num_samples / SAMPLE_RATE)
    for before, after in pairwise(windows):
        assert before.end == after.offset
        assert 10 <= before.end - before.offset <= 20


def test_silence_and_clicks_give_no_window() -> None:
    assert windows_of([(100, False), (0.04, True), (100, False)])[0] == []
    assert windows_of([])[0] == []


def test_a_window_is_given_when_it_is_whole_and_no_later() -> None:
    planner = RecordingPlanner(SETTINGS, 20.0, RULES)
    silence = np.zeros(FRAME_SAMPLES, dtype=np.float32)
    for _ in range(100):
        assert planner.receive_audio(silence, [0.9]) == []
    given_at = next(n for n in range(1000) if planner.receive_audio(silence, [0.0]))
    assert given_at * FRAME_SAMPLES / SAMPLE_RATE == pytest.approx(0.5 + 2.5, abs=0.1)


@pytest.mark.parametrize("seconds", [1.0, 31.0])
def test_windows_that_whisper_cannot_take_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="expected 2 to 30"):
        RecordingPlanner(SETTINGS, seconds, RULES)


def test_a_word_alone_has_some_silence_around_it() -> None:
    """Before it 0.4 s and behind it 0.8 s, whether the recording has more or less."""
    [window] = windows_of([(0.3, True)])[0]
    assert (window.start, window.voiced[0]) == (-6_400, 6_400)
    assert window.end == pytest.approx(0.288)
    assert not window.samples[:6_400].any()
    assert not window.samples[-window.silent :].any()
    assert window.silent == 12_800
    [window] = windows_of([(2, False), (0.3, True), (2, False)])[0]
    assert window.start == round(2 * FRAMES_PER_SECOND) * FRAME_SAMPLES - 6_400
    assert len(window.samples) >= 6_400 + 9 * FRAME_SAMPLES + 12_800


def test_more_than_a_word_is_as_it_was() -> None:
    [window] = windows_of([(2.0, True)])[0]
    assert (window.start, window.silent, len(window.samples)) == (0, 0, 62 * FRAME_SAMPLES)


@given(
    parts=st.lists(st.tuples(st.floats(0.1, 15), st.booleans()), max_size=12),
    max_seconds=st.floats(5, 28),
    block_frames=st.integers(1, 300),
)
@settings(max_examples=60, deadline=None)
def test_all_speech_is_in_one_window_and_none_is_too_long(
    parts: list[tuple[float, bool]], max_seconds: float, block_frames: int
) -> None:
    windows, num_samples = windows_of(parts, max_seconds, block_frames)
    covered = np.zeros(num_samples, dtype=int)
    for window in windows:
        assert len(window.samples) <= max_seconds * SAMPLE_RATE + FRAME_SAMPLES
        start, stop = max(0, window.start), round(window.end * SAMPLE_RATE)
        covered[start:stop] += 1
        expected = np.pad(
            np.arange(start, stop) % 65536 / 65536, (start - window.start, window.silent)
        )
        assert np.array_equal(window.samples, expected.astype(np.float32))
    assert covered.max(initial=0) <= 1
    position = 0
    for seconds, speech in parts:
        frames = round(seconds * FRAMES_PER_SECOND)
        stop = position + frames * FRAME_SAMPLES
        if speech and frames >= RULES.min_speech_frames:
            assert covered[position:stop].all()
        position = stop


def heard(*times: tuple[float, float]) -> list[Word]:
    return [Word("word", start, end, 0.9) for start, end in times]


def a_window(seconds: float, *spoken: tuple[float, float]) -> RecordingWindow:
    """Loud everywhere but in the tenth of a second before each stretch of speech."""
    samples = np.full(round(seconds * SAMPLE_RATE), 0.1, dtype=np.float32)
    for start, _ in spoken:
        samples[round((start - 0.1) * SAMPLE_RATE) : round(start * SAMPLE_RATE)] = 0
    frames = range(0, len(samples) - FRAME_SAMPLES, FRAME_SAMPLES)
    voiced = (frame for frame in frames if any(a <= frame / SAMPLE_RATE <= b for a, b in spoken))
    return RecordingWindow(5 * SAMPLE_RATE, samples, tuple(voiced))


@pytest.mark.parametrize(
    ("words", "cut"),
    [
        pytest.param([(0.5, 4.0), (4.5, 8.0)], None, id="all is heard"),
        pytest.param([(0.5, 4.0)], 4.45, id="the end is not"),
        pytest.param([(0.5, 2.0), (4.5, 8.0)], 2.0, id="the middle is not"),
        pytest.param([(0.5, 4.0), (5.3, 8.0)], None, id="less than a second is not"),
        pytest.param([], None, id="nothing is heard at all"),
    ],
)
def test_speech_that_was_left_out_is_decoded_again(
    words: list[tuple[float, float]], cut: float | None
) -> None:
    window = a_window(9.0, (0.5, 4.0), (4.5, 8.0))
    parts = split_unheard(window, heard(*words))
    if cut is None:
        assert parts == []
        return
    first, second = parts
    assert first.start == window.start
    assert second.start == first.start + len(first.samples)
    assert second.offset - window.offset == pytest.approx(cut, abs=0.5)
    assert np.array_equal(np.concatenate([first.samples, second.samples]), window.samples)
    assert len(first.voiced) + len(second.voiced) == len(window.voiced)
    assert all(0 <= place < len(part.samples) for part in parts for place in part.voiced)


def test_windows_know_where_speech_is() -> None:
    windows, _ = windows_of([(1, False), (3, True), (6, False), (2, True), (1, False)])
    seconds = [len(window.voiced) * FRAME_SAMPLES / SAMPLE_RATE for window in windows]
    assert seconds == pytest.approx([3, 2], abs=0.05)
    assert windows[1].voiced[0] / SAMPLE_RATE == pytest.approx(RULES.pre_roll, abs=0.05)
