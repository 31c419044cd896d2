"""Our forward passes against openai-whisper's, on real weights and real speech."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
import whisper
from numpy.typing import NDArray
from whisper.tokenizer import get_tokenizer

from tests.conftest import MODELS, Speak
from whisper_bench.files import read_audio
from whisper_bench.reference import ReferenceModel
from whisper_byoc.decode import DecodeRequest, Effort, Hypothesis, Rung, Task
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.batched import BatchedModel, log_mel, silence_level
from whisper_byoc.inference.engine import Engine
from whisper_byoc.inference.network import MAX_FRAMES, Feed, Network
from whisper_byoc.inference.precision import Branch, runs_here
from whisper_byoc.inference.torch_network import TorchNetwork
from whisper_byoc.transcript import Word

pytestmark = pytest.mark.model
WEIGHTS = MODELS / "tiny.en.pt"
SENTENCES = (
    "The train to the harbour leaves at nine.",
    "Please keep your ticket until the end of the journey.",
    "There is a small garden behind the old house.",
    "We are going to need another bottle of water, said the driver, and stopped at the corner.",
    "Yes.",
)


@pytest.fixture(scope="module")
def clips(speak: Speak) -> list[NDArray[np.float32]]:
    return [speak(sentence) for sentence in SENTENCES]


@pytest.fixture(scope="module")
def exact() -> BatchedModel:
    """In fp32 and padded to 30 s, as the reference computes."""
    return BatchedModel("tiny.en", WEIGHTS, "cpu", branch=Branch.FP32, full_padding=True)


@pytest.fixture(scope="module")
def fast() -> BatchedModel:
    """As the server runs on this machine."""
    return BatchedModel("tiny.en", WEIGHTS, "cpu")


@pytest.fixture(scope="module")
def reference() -> ReferenceModel:
    return ReferenceModel("tiny.en", WEIGHTS, "cpu")


@pytest.fixture(scope="module")
def multilingual() -> BatchedModel:
    return BatchedModel("base", MODELS / "base.pt", "cpu")


def request(samples: NDArray[np.float32], **options: object) -> DecodeRequest:
    return DecodeRequest(samples, deadline=0.0, **options)  # type: ignore[arg-type]


def decoded(model: BatchedModel | ReferenceModel, *requests: DecodeRequest) -> list[Hypothesis]:
    answers = model.decode(requests)
    assert not [answer for answer in answers if isinstance(answer, DecodeError)]
    return [answer for answer in answers if isinstance(answer, Hypothesis)]


def test_the_log_mel_is_whispers(clips: list[NDArray[np.float32]]) -> None:
    expected = whisper.log_mel_spectrogram(clips[0], padding=480_000)[:, :3000]
    assert torch.allclose(log_mel(clips[0], MAX_FRAMES, 80), expected, atol=1e-5)
    assert silence_level(expected) == pytest.approx(float(expected[:, -1].max()), abs=1e-4)


def test_exact_and_padded_it_gives_the_references_words(
    exact: BatchedModel, reference: ReferenceModel, clips: list[NDArray[np.float32]]
) -> None:
    requests = [request(clip) for clip in clips]
    for ours, theirs in zip(decoded(exact, *requests), decoded(reference, *requests), strict=True):
        assert ours.text == theirs.text
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=0.02)
        assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=0.02)
        assert ours.compression_ratio == theirs.compression_ratio
        assert [word.text for word in ours.words] == [word.text for word in theirs.words]
        assert times(ours.words) == pytest.approx(times(theirs.words), abs=0.25)
        differences = np.abs(np.array(times(ours.words)) - times(theirs.words))
        assert np.median(differences) <= 0.04


def times(words: tuple[Word, ...]) -> list[float]:
    return [time for word in words for time in (word.start, word.end)]


def test_as_it_runs_it_hears_the_same_sentences(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    heard = " ".join(answer.text for answer in decoded(fast, *map(request, clips)))
    assert jiwer.wer(plain(" ".join(SENTENCES)), plain(heard)) <= 0.1, heard


def plain(text: str) -> str:
    letters = text.lower().replace("harbour", "harbor")
    return "".join(character for character in letters if character.isalpha() or character == " ")


def test_words_do_not_depend_on_the_batch(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    together = decoded(fast, *map(request, clips))
    alone = [answer for clip in clips for answer in decoded(fast, request(clip))]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


def test_right_sized_windows_see_that_speech_has_ended(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    """Without the silent tail the decoder goes on for ever (design, section 5)."""
    for answer in decoded(fast, *map(request, clips)):
        assert answer.rung is Rung.FIRST
        assert len(answer.text.split()) <= 20


def test_word_times_lie_within_the_window(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    for clip, answer in zip(clips, decoded(fast, *map(request, clips)), strict=True):
        limits = times(answer.words)
        assert limits == sorted(limits)
        assert limits[0] >= 0
        assert limits[-1] <= len(clip) / 16_000 + 0.02
        assert all(0 < word.probability <= 1 for word in answer.words)
        assert " ".join(word.text for word in answer.words) == answer.text


def test_prompts_of_different_lengths_go_together(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    prompts = (None, "A journey.", "At the railway station in the harbour. " * 60)
    requests = [request(clips[1], prompt=prompt) for prompt in prompts]
    for answer in decoded(fast, *requests):
        assert answer.text.endswith("journey.")


@pytest.mark.parametrize(
    "prompt", ["<|endoftext|>", "🎉" * 1000, "\0"], ids=["special", "emoji", "nul"]
)
def test_a_prompt_of_any_text_does_no_harm(
    fast: BatchedModel,
    reference: ReferenceModel,
    clips: list[NDArray[np.float32]],
    prompt: str,
) -> None:
    decoded(fast, request(clips[1], prompt=prompt))
    if len(prompt) < 100:
        decoded(reference, request(clips[1], prompt=prompt))


@pytest.mark.parametrize("seconds", [0.0, 0.02, 30.0], ids=["nothing", "one frame", "30 s"])
def test_windows_of_any_length_are_taken(fast: BatchedModel, seconds: float) -> None:
    noise = np.random.default_rng(1).normal(size=round(seconds * 16_000)) * 0.001
    (answer,) = decoded(fast, request(noise.astype(np.float32)))
    assert answer.language == "en"


def test_what_will_not_decode_climbs_the_ladder(fast: BatchedModel) -> None:
    noise = np.random.default_rng(2).uniform(-0.5, 0.5, 16_000 * 6).astype(np.float32)
    (answer,) = decoded(fast, request(noise))
    (again,) = decoded(fast, request(noise))
    assert answer == again


@pytest.mark.skipif(not runs_here(Branch.AVX2), reason="no AVX2 on this machine")
def test_the_branch_of_older_processors_hears_the_same(clips: list[NDArray[np.float32]]) -> None:
    model = BatchedModel("tiny.en", WEIGHTS, "cpu", branch=Branch.AVX2)
    heard = " ".join(answer.text for answer in decoded(model, *map(request, clips)))
    assert jiwer.wer(plain(" ".join(SENTENCES)), plain(heard)) <= 0.1, heard


def test_a_draft_changes_the_cost_and_not_the_words(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    for clip in clips:
        (plainly,) = decoded(fast, request(clip))
        words = plainly.text.split()
        drafts = [
            plainly.text,
            " ".join(words[:3]),
            "Something else.",
            f"{words[0]} no",
            "a " * 500,
        ]
        for answer in decoded(fast, *(request(clip, draft=draft) for draft in drafts)):
            assert answer == plainly


def test_a_language_is_detected_given_and_translated(
    multilingual: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    detected, given, translated = decoded(
        multilingual,
        request(clips[1], language=None),
        request(clips[1], language="en"),
        request(clips[1], language="de", task=Task.TRANSLATE),
    )
    assert detected.language == given.language == "en"
    assert detected.text == given.text
    assert given.text.endswith("journey.")
    assert translated.language == "en"
    assert translated.text


def test_real_speech_in_other_languages(multilingual: BatchedModel, speech_dir: Path) -> None:
    """Detection, and right-sized windows beside padded ones, over whole files of five languages."""
    lines = (speech_dir / "manifest.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.startswith("other/")]
    files = [(row[0], row[0].split("/")[1], row[-1]) for row in rows]
    clips = [np.frombuffer(read_audio(speech_dir / file), dtype="<i2") for file, _, _ in files]
    requests = [
        request(clip.astype(np.float32) / np.float32(32768), language=None) for clip in clips
    ]
    sized = decoded(multilingual, *requests)
    padded_model = BatchedModel("base", MODELS / "base.pt", "cpu", full_padding=True)
    padded = decoded(padded_model, *requests)
    assert [answer.language for answer in sized] == [language for _, language, _ in files]
    rates = [
        jiwer.cer([letters(text) for _, _, text in files], [letters(a.text) for a in answers])
        for answers in (sized, padded)
    ]
    assert rates[0] < 0.2, rates
    assert rates[0] <= rates[1] + 0.03, rates


def letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_hears_the_same_sentences(clips: list[NDArray[np.float32]]) -> None:
    model = BatchedModel("tiny.en", WEIGHTS, "cuda")
    assert model.branch is Branch.FP16
    heard = " ".join(answer.text for answer in decoded(model, *map(request, clips)))
    assert jiwer.wer(plain(" ".join(SENTENCES)), plain(heard)) <= 0.1, heard


@pytest.mark.parametrize("num_forced", [150, 222, 223, 230])
def test_prompt_and_forced_words_share_the_positions(fast: BatchedModel, num_forced: int) -> None:
    """With 30 s of audio all three together would be more than the 448 that the decoder has."""
    noise = np.random.default_rng(3).normal(size=480_000).astype(np.float32) * 0.1
    texts = {"prompt": "harbour " * 300, "forced": "and " * num_forced, "draft": "a " * 300}
    (answer,) = fast.decode([request(noise, **texts, retry=False)])
    assert isinstance(answer, Hypothesis)


@pytest.mark.parametrize("name", ["fast", "reference"])
def test_behind_forced_words_come_the_others(
    request: pytest.FixtureRequest, clips: list[NDArray[np.float32]], name: str
) -> None:
    model: BatchedModel | ReferenceModel = request.getfixturevalue(name)
    (whole,) = decoded(model, DecodeRequest(clips[1], deadline=0.0))
    words = whole.text.split()
    # openai-whisper cannot end a text where its prefix ends.
    for count in (1, 3, len(words) - 1, *([len(words)] if name == "fast" else [])):
        forced = " ".join(words[:count])
        (rest,) = decoded(model, DecodeRequest(clips[1], deadline=0.0, forced=forced))
        assert rest.text == " ".join(words[count:])
        assert [word.text for word in rest.words] == words[count:]
        starts = [word.start for word in rest.words]
        assert starts == pytest.approx([it.start for it in whole.words[count:]], abs=0.3)


def test_the_evidence_of_a_word_tells_where_it_was_heard(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    for clip, answer in zip(clips, decoded(fast, *map(request, clips)), strict=True):
        assert len(answer.evidence) == len(answer.words)
        for word, seen in zip(answer.words, answer.evidence, strict=True):
            assert word.start - 0.7 <= seen.attended <= word.end + 0.7
            assert 0 <= seen.tail_mass <= 1
            assert 0 < seen.probability <= word.probability + 1e-6
        assert answer.evidence[-1].attended <= len(clip) / 16_000 + 0.02


def test_a_hypothesis_has_its_tokens_and_temperature(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    (answer,) = decoded(fast, request(clips[0]))
    tokenizer = get_tokenizer(multilingual=False)
    assert tokenizer.decode(list(answer.tokens)).strip() == answer.text
    assert answer.temperature == 0


def test_a_thorough_decode_does_not_depend_on_its_neighbours(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    """Nor on whether they are thorough; and it is the same in steps."""
    thorough = [request(clip, effort=Effort.THOROUGH) for clip in clips]
    alone = [decoded(fast, it)[0] for it in thorough]
    assert decoded(fast, *thorough) == alone
    quick = decoded(fast, *map(request, clips))
    mixed = [one for pair in zip(thorough, map(request, clips), strict=True) for one in pair]
    assert decoded(fast, *mixed)[::2] == alone
    assert decoded(fast, *mixed)[1::2] == quick
    steps = fast.decode_in_steps(thorough)
    for _ in steps:
        assert decoded(fast, request(clips[0])) == quick[:1]  # another batch, in between
        break
    assert decoded(fast, *map(request, clips)) == quick
    steps.close()


@pytest.mark.parametrize("branch", [Branch.FP32, None], ids=["torch", "native"])
def test_a_thorough_decode_hears_the_sentences(
    clips: list[NDArray[np.float32]], branch: Branch | None
) -> None:
    model = BatchedModel("tiny.en", WEIGHTS, "cpu", branch=branch)
    answers = decoded(model, *(request(clip, effort=Effort.THOROUGH) for clip in clips))
    heard = " ".join(answer.text for answer in answers)
    assert jiwer.wer(plain(" ".join(SENTENCES)), plain(heard)) <= 0.05, heard
    for clip, answer in zip(clips, answers, strict=True):
        assert [word.text for word in answer.words] == answer.text.split()
        assert answer.words[-1].end <= len(clip) / 16_000 + 0.02
        assert len(answer.evidence) == len(answer.words)
        assert all(0 < word.probability <= 1 for word in answer.words)


@pytest.mark.anyio
async def test_a_live_window_does_not_wait_for_those_of_a_recording(
    fast: BatchedModel, clips: list[NDArray[np.float32]]
) -> None:
    long = [DecodeRequest(np.tile(clip, 4), math.inf, effort=Effort.THOROUGH) for clip in clips[:4]]
    alone = decoded(fast, *long)
    [expected] = decoded(fast, request(clips[4]))
    engine = Engine([fast])
    async with asyncio.timeout(60), engine.serve(), asyncio.TaskGroup() as group:
        recording = [group.create_task(engine.decode(it)) for it in long]
        for _ in range(10):  # until the thread has them
            await asyncio.sleep(0)
        assert engine.num_waiting == 0
        for _ in range(3):
            assert await engine.decode(request(clips[4])) == expected
        assert not any(task.done() for task in recording)
        assert [await task for task in recording] == alone


class FailingNetwork:
    """A network that fails at a chosen place, for the window that has a chosen number of frames."""

    def __init__(self, network: Network, phase: str, frames: int, error: Exception) -> None:
        self._network, self._phase = network, phase
        self._frames, self._error = frames, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def encode(self, mel: torch.Tensor, tail: Any = None) -> Any:
        self._fail("encode", mel.shape[1] // 2)
        return self._network.encode(mel, tail)

    def encode_in_steps(self, mel: torch.Tensor, tail: Any = None) -> Any:
        yield
        return self.encode(mel, tail)

    def open(self, encoded: Any, positions: int, forks: int = 0) -> Any:
        self._fail("open", encoded.num_frames)
        cache = self._network.open(encoded, positions, forks)
        if self._phase == "words" and encoded.num_frames == self._frames:
            return Unattended(cache)
        return cache

    def forward(self, feeds: Sequence[Feed]) -> Any:
        for feed in feeds:
            self._fail("decode", feed.cache.encoded.num_frames)
        return self._network.forward(feeds)

    def _fail(self, phase: str, frames: int) -> None:
        if phase == self._phase and frames == self._frames:
            raise self._error


class Unattended:
    """A cache whose attention is of no head, so that no times can be made of it."""

    def __init__(self, cache: Any) -> None:
        object.__setattr__(self, "_cache", cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cache, name, value)

    def attention(self, first: int, last: int) -> Any:
        return np.empty(0)[first, last]


FAILURES = [
    pytest.param("encode", MemoryError("no memory"), "MemoryError: no memory", id="encode"),
    pytest.param("open", KeyError("slot"), "KeyError: 'slot'", id="open"),
    pytest.param("decode", OSError("gone"), "OSError: gone", id="decode"),
    pytest.param("words", TypeError(), "IndexError", id="words"),
]


@pytest.mark.parametrize(("phase", "error", "problem"), FAILURES)
def test_a_window_that_fails_harms_no_other(
    clips: list[NDArray[np.float32]], phase: str, error: Exception, problem: str
) -> None:
    model = BatchedModel("tiny.en", WEIGHTS, "cpu")
    expected = decoded(model, *map(request, clips))
    frames = math.ceil(len(clips[2]) / 16_000) * 50
    others = [n for n, clip in enumerate(clips) if math.ceil(len(clip) / 16_000) * 50 != frames]
    assert len(others) >= 3
    network = model._network
    model._network = FailingNetwork(network, phase, frames, error)
    answers = model.decode([request(clip) for clip in clips])
    assert isinstance(answers[2], DecodeError)
    assert problem in str(answers[2])
    assert [answers[n] for n in others] == [expected[n] for n in others]
    model._network = network
    assert decoded(model, *map(request, clips)) == expected


@pytest.mark.parametrize("name", ["fast", "reference"])
def test_samples_that_are_none_fail_alone(
    request: pytest.FixtureRequest, clips: list[NDArray[np.float32]], name: str
) -> None:
    model: BatchedModel | ReferenceModel = request.getfixturevalue(name)
    broken = np.array(["no", "samples"])
    unknown = np.full(16_000, np.nan, dtype=np.float32)
    wrong = [broken, unknown] if name == "fast" else [broken]
    requests = [DecodeRequest(samples, 0.0) for samples in (clips[0], *wrong, clips[1])]
    first, *failed, last = model.decode(requests)
    assert all(isinstance(answer, DecodeError) for answer in failed)
    assert [first, last] == decoded(model, requests[0], requests[-1])


def test_a_slot_is_given_back_whatever_fails(clips: list[NDArray[np.float32]]) -> None:
    """Slots are few on CUDA: failing windows that kept theirs would end the service one day."""
    model = BatchedModel("tiny.en", WEIGHTS, "cpu", branch=Branch.FP32)
    assert isinstance(model._network, TorchNetwork)
    free = list(model._network.slots.free)
    too_long = request(clips[4], forced="and " * 500)
    answer, failed = model.decode([request(clips[4]), too_long])
    assert isinstance(answer, Hypothesis)
    assert isinstance(failed, DecodeError)
    assert "positions is" in str(failed)
    assert model._network.slots.free == free
