"""How often partials are made."""

import pytest

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.settings import StreamingSettings
from whisper_byoc.streaming.pace import PartialPace

SETTINGS = StreamingSettings(partial_interval=0.5)


def partials(pace: PartialPace, seconds: float, answer_seconds: float) -> list[float]:
    """When partials are made, in seconds, of speech that begins at 0, looked at every 0.1 s."""
    pace.begin(0)
    made = []
    for tenth in range(round(seconds * 10)):
        place = tenth * SAMPLE_RATE // 10
        if pace.is_due(place):
            pace.receive_partial(place, 0)
            pace.receive_answer(answer_seconds)
            made.append(tenth / 10)
    return made


def test_the_first_comes_soon_and_the_others_by_the_interval() -> None:
    pace = PartialPace(SETTINGS)
    assert partials(pace, 2.5, 0.0) == [0.4, 0.9, 1.4, 1.9, 2.4]
    assert (pace.num_made, pace.num_dropped) == (5, 0)


def test_an_engine_that_takes_long_is_asked_less_often_and_what_is_left_out_is_counted() -> None:
    pace = PartialPace(SETTINGS)
    # The time of an answer counts for the interval behind the next partial.
    assert partials(pace, 5.0, 1.0) == [0.4, 0.9, 2.4, 3.9]
    assert (pace.num_made, pace.num_dropped) == (4, 4)


def test_silence_between_utterances_makes_no_partial_due() -> None:
    pace = PartialPace(SETTINGS)
    partials(pace, 1.0, 0.0)
    pace.begin(60 * SAMPLE_RATE)
    assert not pace.is_due(60 * SAMPLE_RATE)
    pace.receive_partial(61 * SAMPLE_RATE, 60 * SAMPLE_RATE)
    assert pace.num_dropped == 0


@pytest.mark.parametrize(("interval", "due"), [(0.2, True), (2.0, False)])
def test_other_settings_count_from_the_newest_audio_on(interval: float, due: bool) -> None:
    pace = PartialPace(StreamingSettings(partial_interval=1.0))
    pace.begin(0)
    pace.receive_partial(SAMPLE_RATE, 0)
    pace.receive_settings(StreamingSettings(partial_interval=interval), SAMPLE_RATE)
    assert pace.is_due(round(1.3 * SAMPLE_RATE)) == due
    pace.make_due(SAMPLE_RATE)
    assert pace.is_due(SAMPLE_RATE)
