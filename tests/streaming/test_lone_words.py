"""A word with nothing around it, with real voice activity and real weights."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MODELS
from whisper_byoc.audio.ffmpeg import Decoder
from whisper_byoc.audio.formats import Container, Gap, Samples
from whisper_byoc.audio.level import Leveller
from whisper_byoc.decode import DecodeRequest, Hypothesis
from whisper_byoc.inference.engine import load_models
from whisper_byoc.inference.voice import VoiceModel, VoiceRequest, VoiceState
from whisper_byoc.settings import ModelSettings, StreamingSettings
from whisper_byoc.streaming.hypothesis import believed
from whisper_byoc.streaming.recording import RecordingPlanner

pytestmark = [pytest.mark.anyio, pytest.mark.model]
SAID = {
    "digits-jackson": "three one four one five nine two six five three",
    "digits-theo": "eight zero zero five five five zero one nine nine",
}
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGITS = dict(zip(NAMES, "0123456789", strict=True))
SOUNDS = {"two": {"to", "too"}, "four": {"for"}}
GAP = 1_000


async def samples_of(path: Path) -> Samples:
    decoder = await Decoder.start(Container.FLAC)
    try:
        await decoder.send(await asyncio.to_thread(path.read_bytes))
        await decoder.send_eof()
        return np.concatenate([piece async for piece in decoder if not isinstance(piece, Gap)])
    finally:
        await decoder.close()


def clips(samples: Samples) -> list[Samples]:
    """The words, cut where a silence of zeros is between them: from their first sample on."""
    sounds = np.flatnonzero(samples)
    breaks = np.flatnonzero(np.diff(sounds) > GAP)
    starts, ends = sounds[np.r_[0, breaks + 1]], sounds[np.r_[breaks, len(sounds) - 1]]
    return [samples[start : end + 1] for start, end in zip(starts, ends, strict=True)]


def hear(recordings: list[Samples]) -> list[str]:
    """The text of each, as a recording of its own."""
    voice = VoiceModel()
    [model] = load_models(ModelSettings(directory=MODELS, names=("tiny.en",)))
    texts = []
    for samples in recordings:
        leveller = Leveller()
        levelled = np.concatenate([leveller.receive_samples(samples), leveller.receive_end()])
        [probabilities] = voice.probabilities([VoiceRequest.of(levelled, VoiceState())])
        planner = RecordingPlanner(StreamingSettings(), 28.0)
        windows = [*planner.receive_audio(levelled, probabilities.tolist()), *planner.receive_end()]
        answers = model.decode([DecodeRequest(window.samples, 0.0) for window in windows])
        found = [believed(it).text for it in answers if isinstance(it, Hypothesis)]
        texts.append(" ".join(found).strip())
    return texts


def is_right(said: str, text: str) -> bool:
    return text.lower().strip(" .,!?") in {said, DIGITS[said], *SOUNDS.get(said, ())}


@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["cut at the word", "a second around it"])
async def test_case_recordings_03_of_twenty_words_alone_at_most_one_is_empty(
    speech_dir: Path, seconds: float
) -> None:
    """openai-whisper has 11 right and none empty of those that are cut at the word."""
    words: list[str] = []
    recordings: list[Samples] = []
    for name, said in SAID.items():
        words += said.split()
        recordings += clips(await samples_of(speech_dir / "en" / "phone" / f"{name}.flac"))
    assert len(recordings) == len(words) == 20
    around = np.zeros(round(seconds * 16_000), np.float32)
    texts = hear([np.concatenate([around, it, around]) for it in recordings])
    assert sum(not text for text in texts) <= 1, texts
    assert sum(map(is_right, words, texts)) >= 14, texts


async def test_case_recordings_03_the_three_of_the_list(speech_dir: Path) -> None:
    samples = await samples_of(speech_dir / "en" / "phone" / "digits-jackson.flac")
    second = np.zeros(16_000, np.float32)
    four, three = samples[22_566 : 22_566 + 6_498], samples[105_004 : 105_004 + 7_142]
    six = np.concatenate([second, samples[76_346 : 76_346 + 13_844], second])
    texts = hear([four, three, six])
    assert all(map(is_right, ("four", "three", "six"), texts)), texts
