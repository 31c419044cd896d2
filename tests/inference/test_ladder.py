"""Which texts the ladder does not believe, and what it makes of speech that makes loops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from whisper.utils import compression_ratio

from tests.conftest import MODELS
from whisper_bench.files import read_audio
from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import DecodeRequest, Hypothesis, Rung, Trip
from whisper_byoc.inference.batched import BatchedModel
from whisper_byoc.inference.ladder import find_trip

TOO_LOUD = "That is much too loud for me. "


@pytest.mark.parametrize(
    ("text", "ratio", "no_speech", "logprob", "trip"),
    [
        pytest.param("A plain sentence.", 1.1, 0.1, -0.3, None, id="plain"),
        pytest.param("", 1.0, 0.9, -0.3, None, id="nothing said"),
        pytest.param("Mumbling.", 1.0, 0.1, -1.2, Trip.IMPROBABLE, id="improbable"),
        pytest.param("Mumbling.", 1.0, 0.7, -1.2, None, id="improbable and silent"),
        pytest.param(TOO_LOUD * 20, 9.0, 0.1, -0.2, Trip.LOOP, id="loop"),
        pytest.param(TOO_LOUD * 20, 9.0, 0.9, -0.2, Trip.LOOP, id="loop in silence"),
    ],
)
def test_trips(
    text: str, ratio: float, no_speech: float, logprob: float, trip: Trip | None
) -> None:
    assert find_trip(text, ratio, no_speech, logprob) is trip


def test_text_without_spaces_that_goes_round_in_circles_until_the_positions_are_full() -> None:
    text = "ขอบคุณที่รับชม" * 30
    ratio = compression_ratio(text)
    assert find_trip(text, ratio, 0.1, -0.2, complete=False) is Trip.LOOP


LOOPING = [
    ("en/noisy/2414-128291-0004_dishes_15dB.flac", 6.0),
    ("en/phone/digits-jackson.flac", 3.0),
]
"""1.5 s of a file from a second on. With some noise, the first attempt at most of them goes round
in circles until its cap; found by trying short cuts of all noisy and telephone files."""
NOISE = 0.3
"""Of the level of the speech."""
SEEDS = range(4)


@pytest.mark.model
def test_the_ladder_breaks_the_decoders_loops(speech_dir: Path) -> None:
    model = BatchedModel("tiny.en", MODELS / "tiny.en.pt", "cpu")
    requests = []
    for file, start in LOOPING:
        audio = np.frombuffer(read_audio(speech_dir / file), dtype="<i2") / np.float32(32768)
        first = round(start * SAMPLE_RATE)
        cut = audio[first : first + round(1.5 * SAMPLE_RATE)]
        level = float(np.sqrt(np.mean(cut**2))) * NOISE
        for seed in SEEDS:
            heard = cut + np.random.default_rng(seed).normal(size=len(cut)) * level
            requests.append(DecodeRequest(heard.astype(np.float32), deadline=0.0))
    answers = [answer for answer in model.decode(requests) if isinstance(answer, Hypothesis)]
    assert len(answers) == len(requests)
    assert all(len(answer.text.split()) <= 8 for answer in answers), answers
    tripped = [answer for answer in answers if answer.trip is Trip.CAP]
    assert len(tripped) >= 3, answers
    assert all(answer.rung is not Rung.FIRST for answer in tripped)
    once = model.decode([replace(request, retry=False) for request in requests])
    assert [getattr(answer, "trip", None) for answer in once] == [it.trip for it in answers]
    assert {getattr(answer, "rung", None) for answer in once} == {Rung.FIRST}
