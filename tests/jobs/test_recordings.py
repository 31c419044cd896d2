"""Recordings in, passages out: with scripted weights, and once with real ones."""

from collections.abc import Iterator, Sequence

import jiwer
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak
from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import DecodeRequest, Hypothesis
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.batched import BatchedModel
from whisper_byoc.inference.voice import VoiceModel, VoiceRequest
from whisper_byoc.jobs.recordings import Passage, RecordingOptions, transcribe_recordings
from whisper_byoc.transcript import Word

Samples = NDArray[np.float32]
OPTIONS = RecordingOptions()


class ScriptedModel:
    """Says how long each window was, and remembers how many came together."""

    name, device, branch, max_batch = "scripted", "cpu", "scripted", 16
    languages = frozenset({"en"})

    def __init__(self) -> None:
        self.batches: list[int] = []

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Hypothesis | DecodeError]:
        self.batches.append(len(requests))
        return [self._answer(request) for request in requests]

    def _answer(self, request: DecodeRequest) -> Hypothesis | DecodeError:
        seconds = len(request.samples) / SAMPLE_RATE
        if request.samples.max() > 0.9:
            return DecodeError("too loud")
        return Hypothesis(f"{seconds:.1f}", "en", (Word(f"{seconds:.1f}", 0.1, seconds, 0.9),))


def loud_is_voice(requests: Sequence[VoiceRequest]) -> list[Samples]:
    return [
        (np.abs(request.frames).max(axis=1, initial=0) > 0.1).astype(np.float32)
        for request in requests
    ]


def speech(seconds: float) -> Samples:
    return np.full(round(seconds * SAMPLE_RATE), 0.5, dtype=np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)


def transcribe(model: ScriptedModel, *recordings: list[Samples], batch: int = 4) -> list[Passage]:
    found = transcribe_recordings(model, loud_is_voice, recordings, OPTIONS, batch)
    return [passage for _, passage in found]


def test_windows_of_all_recordings_go_together() -> None:
    model = ScriptedModel()
    recordings = [[speech(3)], [silence(5)], [speech(2), silence(6), speech(4)], [speech(1)]]
    found = list(transcribe_recordings(model, loud_is_voice, recordings, OPTIONS, 3))
    assert [number for number, _ in found] == [0, 2, 2, 3]
    assert model.batches == [3, 1]
    first, second = found[1][1], found[2][1]
    assert [first.start, first.end] == pytest.approx([0.1, 2.1], abs=0.1)
    assert [second.start, second.end] == pytest.approx([7.9, 12.0], abs=0.1)


def test_times_do_not_fall() -> None:
    passages = transcribe(ScriptedModel(), [speech(100)])
    limits = [time for passage in passages for time in (passage.start, passage.end)]
    assert limits == sorted(limits)
    assert limits[-1] <= 100


@pytest.mark.parametrize("recording", [[], [silence(0)], [silence(0.01)], [silence(3)]])
def test_nothing_said_is_nothing_found(recording: list[Samples]) -> None:
    model = ScriptedModel()
    assert transcribe(model, recording) == []
    assert model.batches == []


def test_blocks_of_any_size_give_the_same() -> None:
    whole = np.concatenate([speech(3), silence(6), speech(7)])
    cuts = np.cumsum([1, 511, 512, 513, 40_000, 7])
    expected = transcribe(ScriptedModel(), [whole])
    assert len(expected) == 2
    assert transcribe(ScriptedModel(), np.split(whole, cuts)) == expected


def test_a_window_that_cannot_be_decoded_is_told() -> None:
    with pytest.raises(DecodeError, match="too loud"):
        transcribe(ScriptedModel(), [speech(3) * 2])


def test_what_a_window_left_out_is_heard_in_parts() -> None:
    """A decoder that hears but the first five seconds of anything."""

    class Lazy(ScriptedModel):
        def _answer(self, request: DecodeRequest) -> Hypothesis:
            seconds = min(5.0, len(request.samples) / SAMPLE_RATE)
            return Hypothesis("word", "en", (Word("word", 0.0, seconds, 0.9),))

    model = Lazy()
    passages = transcribe(model, [speech(12)], [speech(3)], [speech(9)])
    ends = [(round(passage.start), round(passage.end)) for passage in passages]
    assert ends == [(0, 5), (5, 10), (10, 12), (0, 3), (0, 5), (5, 9)]
    assert model.batches == [3, 4, 2]


def test_long_recordings_are_read_as_they_are_needed() -> None:
    num_read = 0

    def hours() -> Iterator[Samples]:
        nonlocal num_read
        for _ in range(160):
            num_read += 1
            yield np.concatenate([speech(4), silence(6)])

    model = ScriptedModel()
    found = transcribe_recordings(model, loud_is_voice, [hours()], OPTIONS, 8)
    next(found)
    assert num_read < 20
    assert sum(1 for _ in found) == 159
    assert set(model.batches) == {8}


def test_a_batch_is_never_more_than_the_model_takes() -> None:
    model = ScriptedModel()
    transcribe(model, *([speech(1)] for _ in range(40)), batch=100)
    assert model.batches == [16, 16, 8]


SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "We are going to the theater tomorrow.",
    "Please keep your ticket until the end of the journey.",
    "There is a small garden behind the old house.",
    "My brother has bought a new bicycle.",
    "The train to the coast leaves at nine.",
    "Nobody knows where the money has gone.",
    "She has been reading the same book for weeks.",
)


@pytest.mark.model
def test_a_long_recording_is_heard_from_end_to_end(speak: Speak) -> None:
    """Two minutes of sentences with pauses: all are there, in order, at their times."""
    spoken = [speak(sentence) for sentence in SENTENCES]
    blocks, foxes, position = [], [], 0
    for number in range(4 * len(SENTENCES)):
        if number % len(SENTENCES) == 0:
            foxes.append(position / SAMPLE_RATE)
        blocks += [spoken[number % len(SENTENCES)], silence(1)]
        position += len(blocks[-2]) + len(blocks[-1])
    model = BatchedModel("tiny.en", MODELS / "tiny.en.pt", "cpu")
    found = transcribe_recordings(model, VoiceModel().probabilities, [blocks], OPTIONS, 3)
    passages = [passage for _, passage in found]
    heard = plain(" ".join(passage.text for passage in passages))
    assert jiwer.wer(plain(" ".join(SENTENCES * 4)), heard) < 0.05, heard
    words = [word for passage in passages for word in passage.words]
    times = [word.start for word in words if plain(word.text) == "fox"]
    assert len(times) == 4
    assert all(0 < time - start < 2 for time, start in zip(times, foxes, strict=True))


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ")
