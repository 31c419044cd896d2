"""Where speech begins and ends."""

import pytest

from whisper_byoc.decode import FRAME_SAMPLES
from whisper_byoc.settings import StreamingSettings
from whisper_byoc.streaming.vad import SpeechDetector, SpeechEnd, SpeechStart, VoiceRules

SETTINGS = StreamingSettings(endpoint_silence=0.5)
RULES = VoiceRules(pre_roll=0.3)
SPEECH, UNSURE, SILENCE = 0.9, 0.4, 0.1
PRE_ROLL = 4800
ENDPOINT_FRAMES = 16  # 0.5 s is 15.6 frames


def detect(*values: float) -> list[SpeechStart | SpeechEnd]:
    detector = SpeechDetector(SETTINGS, RULES)
    return [change for value in values if (change := detector.receive_probability(value))]


def test_silence_changes_nothing() -> None:
    assert detect(*[SILENCE] * 100) == []


def test_unsure_frames_do_not_begin_speech() -> None:
    assert detect(*[UNSURE] * 100) == []


def test_speech_begins_with_its_pre_roll() -> None:
    assert detect(*[SILENCE] * 50, SPEECH) == [SpeechStart(50 * FRAME_SAMPLES - PRE_ROLL)]


def test_the_pre_roll_does_not_reach_before_the_stream() -> None:
    assert detect(SILENCE, SPEECH) == [SpeechStart(0)]


def test_speech_ends_after_the_endpoint_silence() -> None:
    changes = detect(SPEECH, *[SILENCE] * ENDPOINT_FRAMES)
    assert changes == [SpeechStart(0), SpeechEnd((1 + ENDPOINT_FRAMES) * FRAME_SAMPLES)]
    assert detect(SPEECH, *[SILENCE] * (ENDPOINT_FRAMES - 1)) == [SpeechStart(0)]


def test_speech_stops_the_silence_timer() -> None:
    pause = [SILENCE] * (ENDPOINT_FRAMES - 1)
    assert detect(SPEECH, *pause, SPEECH, *pause) == [SpeechStart(0)]


def test_unsure_frames_neither_start_nor_stop_the_silence_timer() -> None:
    assert detect(SPEECH, *[UNSURE] * 100) == [SpeechStart(0)]
    changes = detect(SPEECH, SILENCE, *[UNSURE] * (ENDPOINT_FRAMES - 1))
    assert changes == [SpeechStart(0), SpeechEnd((1 + ENDPOINT_FRAMES) * FRAME_SAMPLES)]


def test_the_pre_roll_does_not_reach_into_the_previous_utterance() -> None:
    changes = detect(SPEECH, *[SILENCE] * ENDPOINT_FRAMES, SPEECH)
    end = (1 + ENDPOINT_FRAMES) * FRAME_SAMPLES
    assert changes == [SpeechStart(0), SpeechEnd(end), SpeechStart(end)]


@pytest.mark.parametrize("num_frames", [1, 7], ids=["at once", "after some frames"])
def test_speech_can_be_ended_from_outside(num_frames: int) -> None:
    detector = SpeechDetector(SETTINGS, RULES)
    for _ in range(num_frames):
        detector.receive_probability(SPEECH)
    assert detector.in_speech
    assert detector.end_speech() == SpeechEnd(num_frames * FRAME_SAMPLES)
    assert not detector.in_speech
