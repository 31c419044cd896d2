"""Recordings in, passages out: with scripted weights, and once with real ones."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import jiwer
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak
from tests.scripted import ScriptedModel as Held
from whisper_bench.hearing import hear_recordings
from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import DecodeRequest, Effort, Hypothesis
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.batch_thread import BatchThread
from whisper_byoc.inference.batched import BatchedModel
from whisper_byoc.inference.engine import Engine
from whisper_byoc.inference.voice import VoiceActivity, VoiceModel, VoiceRequest
from whisper_byoc.jobs.hearing import MAX_WINDOWS_OUT, Hearing
from whisper_byoc.jobs.shared import Inference
from whisper_byoc.metrics import Metrics
from whisper_byoc.streaming.passages import Passage
from whisper_byoc.transcript import Word

Samples = NDArray[np.float32]
TIMEOUT = 60


class ScriptedModel:
    """Says how long each window was, and remembers how many came together."""

    name, device, branch, max_batch = "scripted", "cpu", "scripted", 16
    languages = frozenset({"en"})

    def __init__(self) -> None:
        self.num_heard = 0

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Hypothesis | DecodeError]:
        self.num_heard += len(requests)
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


def transcribe(model: ScriptedModel, *recordings: Samples) -> list[list[Passage]]:
    return hear_recordings(model, loud_is_voice, recordings, Effort.QUICK)


def test_passages_of_a_recording_come_in_order_and_say_where_they_were() -> None:
    model = ScriptedModel()
    far_apart = np.concatenate([speech(2), silence(6), speech(4)])
    heard = transcribe(model, speech(3), silence(5), far_apart, speech(1))
    assert [len(passages) for passages in heard] == [1, 0, 2, 1]
    assert model.num_heard == 4
    first, second = heard[2]
    assert [first.start, first.end] == pytest.approx([0.1, 2.1], abs=0.1)
    assert [second.start, second.end] == pytest.approx([7.9, 12.0], abs=0.1)
    assert (first.detail.seek, second.detail.seek) == (0, 700)


def test_times_do_not_fall() -> None:
    [passages] = transcribe(ScriptedModel(), speech(100))
    limits = [time for passage in passages for time in (passage.start, passage.end)]
    assert limits == sorted(limits)
    assert limits[-1] <= 100


@pytest.mark.parametrize("seconds", [0, 0.01, 3])
def test_nothing_said_is_nothing_found(seconds: float) -> None:
    model = ScriptedModel()
    assert transcribe(model, silence(seconds)) == [[]]
    assert model.num_heard == 0


def test_a_window_that_cannot_be_decoded_is_told() -> None:
    with pytest.raises(DecodeError, match="too loud"):
        transcribe(ScriptedModel(), speech(3) * 2)


def test_what_a_window_left_out_is_heard_in_parts() -> None:
    """A decoder that hears but the first five seconds of anything."""

    class Lazy(ScriptedModel):
        def _answer(self, request: DecodeRequest) -> Hypothesis:
            seconds = min(5.0, len(request.samples) / SAMPLE_RATE)
            return Hypothesis("word", "en", (Word("word", 0.0, seconds, 0.9),))

    model = Lazy()
    heard = transcribe(model, speech(12), speech(3), speech(9))
    ends = [[(round(it.start), round(it.end)) for it in passages] for passages in heard]
    assert ends == [[(0, 5), (5, 10), (10, 12)], [(0, 3)], [(0, 5), (5, 9)]]
    assert model.num_heard == 9


@asynccontextmanager
async def open_inference(
    model: Held | ScriptedModel,
    voice: Callable[[Sequence[VoiceRequest]], list[Samples]] = loud_is_voice,
) -> AsyncIterator[Inference]:
    engine, thread = Engine([model]), BatchThread("voice", voice, 32)
    async with asyncio.timeout(TIMEOUT), engine.serve(), thread.serve():
        yield Inference(engine, VoiceActivity(thread), Metrics())


def ask(samples: Samples) -> DecodeRequest:
    return DecodeRequest(samples, math.inf)


async def hear(inference: Inference, *pieces: Samples) -> list[Passage]:
    hearing, passages = Hearing(inference, ask), list[Passage]()
    async with asyncio.TaskGroup() as group:
        group.create_task(hearing.run(passages.append))
        for piece in pieces:
            await hearing.receive_samples(piece)
        await hearing.receive_end()
    assert hearing.heard_seconds == pytest.approx(sum(map(len, pieces)) / SAMPLE_RATE)
    return passages


@pytest.mark.anyio
async def test_pieces_of_any_size_give_the_same() -> None:
    whole = np.concatenate([speech(3), silence(6), speech(37), silence(5), speech(7)])
    cuts = np.cumsum([1, 511, 512, 513, 40_000, 7, 100_001, 0, 300_000])
    async with open_inference(ScriptedModel()) as inference:
        expected = await hear(inference, whole)
        assert len(expected) == 4
        assert await hear(inference, *np.split(whole, cuts)) == expected
        assert await hear(inference, *np.split(whole, 1000)) == expected


async def start_hearing(hearing: Hearing, group: asyncio.TaskGroup) -> asyncio.Task[None]:
    """With more speech than there is room for while nothing is decoded."""

    async def bring() -> None:
        for _ in range(100):
            await hearing.receive_samples(np.concatenate([speech(4), silence(6)]))
        await hearing.receive_end()

    return group.create_task(bring())


def scripted() -> Held:
    """A model that holds every batch until its gate opens."""
    model = Held()
    model._warm = True
    model.gate.clear()
    return model


@pytest.mark.anyio
async def test_a_recording_is_read_as_it_is_decoded() -> None:
    model = scripted()
    async with open_inference(model) as inference, asyncio.TaskGroup() as group:
        hearing, passages = Hearing(inference, ask), list[Passage]()
        bringing = await start_hearing(hearing, group)
        running = group.create_task(hearing.run(passages.append))
        assert await asyncio.to_thread(model.asked.wait, TIMEOUT)
        await until(lambda: inference.places.locked())
        assert not bringing.done()
        assert len(hearing._out) == model.max_batch < MAX_WINDOWS_OUT
        assert hearing._planner._audio.end < 70 * SAMPLE_RATE
        assert hearing.heard_seconds == 0
        model.gate.set()
        await running
        assert len(passages) == 100
        assert set(model.batches) <= {1, 2, 3, 4}
        assert not inference.places.locked()
        assert 0 < hearing.decode_seconds < TIMEOUT


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_who_leaves_frees_every_place(how: str) -> None:
    """At once, though a batch is still in the thread."""
    model = scripted()
    async with open_inference(model) as inference, asyncio.TaskGroup() as group:
        hearing = Hearing(inference, ask)
        bringing = await start_hearing(hearing, group)
        running = group.create_task(hearing.run(lambda _: None))
        await until(lambda: inference.places.locked())
        other = group.create_task(hear(inference, speech(3)))
        if how == "cancelled":
            running.cancel()
            await asyncio.wait({running})
            hearing.close()
        else:
            hearing.close()
            await running
        await bringing
        await until(lambda: inference.engine.num_waiting == 1)
        assert not model.gate.is_set()
        model.gate.set()
        [passage] = await other
        assert passage.text == "w0 w1 w2"


@pytest.mark.anyio
async def test_recordings_take_turns() -> None:
    """One that comes while another has every place waits for a batch of it, not for all."""
    model = scripted()
    async with open_inference(model) as inference, asyncio.TaskGroup() as group:
        hearing = Hearing(inference, ask)
        await start_hearing(hearing, group)
        group.create_task(hearing.run(lambda _: None))
        await until(lambda: inference.places.locked())
        short = group.create_task(hear(inference, speech(2)))
        for _ in range(100):
            await asyncio.sleep(0)
        model.gate.set()
        await short
        assert hearing.heard_seconds < 300


@pytest.mark.anyio
async def test_a_long_gap_is_passed_over_and_times_go_on_behind_it() -> None:
    async with open_inference(ScriptedModel()) as inference:
        hearing, passages = Hearing(inference, ask), list[Passage]()
        async with asyncio.TaskGroup() as group:
            group.create_task(hearing.run(passages.append))
            await hearing.receive_samples(speech(3.01))
            await hearing.receive_gap(3600 * SAMPLE_RATE)
            await hearing.receive_samples(speech(2))
            await hearing.receive_gap(5 * SAMPLE_RATE)
            await hearing.receive_end()
        starts = [(round(it.start), round(it.end)) for it in passages]
        assert starts == [(0, 3), (3603, 3605)]
        assert inference.metrics.exposition().count(b'purpose="recording"') > 0


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
    blocks: list[Samples] = []
    foxes, position = [], 0
    for number in range(4 * len(SENTENCES)):
        if number % len(SENTENCES) == 0:
            foxes.append(position / SAMPLE_RATE)
        blocks += [spoken[number % len(SENTENCES)], silence(1)]
        position += len(blocks[-2]) + len(blocks[-1])
    model = BatchedModel("tiny.en", MODELS / "tiny.en.pt", "cpu")
    voice, recording = VoiceModel().probabilities, np.concatenate(blocks)
    [passages] = hear_recordings(model, voice, [recording], Effort.QUICK)
    heard = plain(" ".join(passage.text for passage in passages))
    assert jiwer.wer(plain(" ".join(SENTENCES * 4)), heard) < 0.05, heard
    words = [word for passage in passages for word in passage.words]
    times = [word.start for word in words if plain(word.text) == "fox"]
    assert len(times) == 4
    assert all(0 < time - start < 2 for time, start in zip(times, foxes, strict=True))


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ")
