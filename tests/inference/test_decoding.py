"""The rules of a decode against openai-whisper's own, and its course with made-up logits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.decoding import SuppressBlank, SuppressTokens
from whisper.tokenizer import get_tokenizer

from whisper_byoc.inference.checkpoint import Dimensions
from whisper_byoc.inference.decoding import (
    Decoded,
    EncodedWindow,
    Rules,
    Straight,
    decode_in_steps,
)
from whisper_byoc.inference.network import Ask, Choice, Feed

TOKENIZER = get_tokenizer(False)
NUM_TOKENS = 51864
BEGIN = TOKENIZER.timestamp_begin
DIMENSIONS = Dimensions(80, 1500, 64, 1, 1, NUM_TOKENS, 448, 64, 1, 1)


class ScriptedCache:
    positions = 448
    is_open = True

    def __init__(self) -> None:
        self.length = 0
        self.tokens: list[int] = []

    def attention(self, first: int, last: int) -> Any:
        return np.full((1, last - first, 100), 0.01, dtype=np.float32)


class ScriptedNetwork:
    """Answers with `logits_of` the tokens that a cache holds."""

    dims = DIMENSIONS
    seconds: dict[str, float] = {}  # noqa: RUF012

    def __init__(self, logits_of: Any) -> None:
        self._logits_of = logits_of
        self.num_passes = 0
        self.num_open = 0

    def mask(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values)

    def encode(self, mel: Any, tail: Any = None) -> Any: ...

    def encode_in_steps(self, mel: Any, tail: Any = None) -> Any: ...

    def tail(self, level: float) -> Any: ...

    def open(self, encoded: Any, positions: int, forks: int = 0) -> ScriptedCache:
        self.num_open += 1
        return ScriptedCache()

    def fork(self, cache: Any) -> ScriptedCache:
        self.num_open += 1
        fork = ScriptedCache()
        fork.length, fork.tokens = cache.length, list(cache.tokens)
        return fork

    def close(self, cache: Any) -> None:
        self.num_open -= 1

    def forward(self, feeds: Sequence[Feed]) -> tuple[list[list[Choice]], torch.Tensor]:
        self.num_passes += 1
        rows, choices = [], []
        for cache, tokens, asks in feeds:
            before = cache.tokens[: cache.length]
            for ask in asks:
                logits = self._logits_of([*before, *tokens[: ask.at + 1]])
                rows.append(logits)
            choices.append(
                [
                    choose(row, ask)
                    for row, ask in zip(rows[len(rows) - len(asks) :], asks, strict=True)
                ]
            )
            cache.tokens = [*before, *tokens]
            cache.length = len(cache.tokens)
        return choices, torch.stack(rows) if rows else torch.empty(0, NUM_TOKENS)


def choose(logits: torch.Tensor, ask: Ask) -> Choice:
    allowed = logits + (0 if ask.mask is None else ask.mask)
    best = [(int(it), float(allowed[it])) for it in allowed.topk(ask.num_best).indices]
    best = [it for it in best if it[1] > -np.inf]
    return Choice(int(allowed.argmax()), float(allowed.max()), float(allowed.logsumexp(-1)), best)


def whispers_choice(logits: torch.Tensor, tokens: list[int]) -> tuple[int, float]:
    never = [*TOKENIZER.non_speech_tokens, *range(TOKENIZER.eot + 1, BEGIN)]
    row = logits.clone()[None]
    row[:, BEGIN:] = -np.inf
    history = torch.tensor([[TOKENIZER.sot, *tokens]])
    for rule in (SuppressBlank(TOKENIZER, 1), SuppressTokens(never)):
        rule.apply(row, history)
    token = int(row[0].argmax())
    return token, float(row[0].log_softmax(-1)[token])


@given(seed=st.integers(0, 10_000), num_texts=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_choices_are_whispers(seed: int, num_texts: int) -> None:
    rules = Rules(TOKENIZER, NUM_TOKENS, ScriptedNetwork(None))
    logits = torch.randn(NUM_TOKENS, generator=torch.Generator().manual_seed(seed)) * 4
    # What is suppressed would often be the best.
    logits[[*TOKENIZER.non_speech_tokens[:20], *TOKENIZER.encode(" "), TOKENIZER.eot]] += 8
    ask = rules.ask(0, is_first=num_texts == 0)
    token, logprob = rules.choose(choose(logits, ask))
    expected, expected_logprob = whispers_choice(logits, [1000] * num_texts)
    assert token == expected
    assert logprob == pytest.approx(expected_logprob, abs=1e-3)


def test_no_token_is_made_of_logits_that_are_no_numbers() -> None:
    rules = Rules(TOKENIZER, NUM_TOKENS, ScriptedNetwork(None))
    with pytest.raises(ValueError, match="no token may follow"):
        rules.choose(Choice(-1, -np.inf, -np.inf))


def logits_for(text: Sequence[int]) -> Any:
    """A made-up decoder that says `text` after the prefix of two tokens, whatever came before."""

    def logits_of(tokens: Sequence[int]) -> torch.Tensor:
        place = len(tokens) - 2
        logits = torch.zeros(NUM_TOKENS)
        logits[text[place] if 0 <= place < len(text) else TOKENIZER.eot] = 9.0
        return logits

    return logits_of


def decode(
    network: ScriptedNetwork, *windows: EncodedWindow, temperature: float = 0.0
) -> list[Decoded]:
    rules = Rules(TOKENIZER, NUM_TOKENS, network)
    courses = [Straight(window, rules, temperature) for window in windows]
    for _ in decode_in_steps(network, courses):
        pass
    assert network.num_open == 0
    return [course.result for course in courses]


def window(seconds: float = 5.0, draft: tuple[int, ...] = ()) -> EncodedWindow:
    encoded: Any = None
    prefix = TOKENIZER.sot, TOKENIZER.no_timestamps
    return EncodedWindow(encoded, 100, prefix, 0, seconds, 8, draft)


TEXT = [1000, 2000, 3000, 4000]


@pytest.mark.parametrize(
    ("draft", "num_passes"),
    [
        pytest.param((), 5, id="none"),
        pytest.param(TEXT, 1, id="all of it"),
        pytest.param(TEXT[:2], 3, id="its beginning"),
        pytest.param([*TEXT, 5000, 6000], 1, id="more than it"),
        pytest.param([1000, 9, 3000, 4000], 4, id="another word"),
        pytest.param([9, 9], 5, id="nothing of it"),
        pytest.param([1000] * 999, 4, id="longer than any text"),
    ],
)
def test_a_draft_saves_passes_and_changes_nothing(draft: Sequence[int], num_passes: int) -> None:
    network = ScriptedNetwork(logits_for(TEXT))
    [result] = decode(network, window(draft=tuple(draft)))
    [plain] = decode(ScriptedNetwork(logits_for(TEXT)), window())
    assert result.tokens == plain.tokens == TEXT
    assert result.logprobs == pytest.approx(plain.logprobs)
    assert result.complete
    assert network.num_passes == num_passes


def test_windows_leave_the_batch_when_they_are_done() -> None:
    network = ScriptedNetwork(logits_for([1000] * 40))
    short, long = decode(network, window(seconds=0), window(seconds=4))
    assert (len(short.tokens), short.complete) == (16, False)
    assert (len(long.tokens), long.complete) == (40, True)
    assert network.num_passes == 41


def test_what_fails_in_the_middle_is_given_back() -> None:
    def logits_of(tokens: Sequence[int]) -> torch.Tensor:
        if len(tokens) > 4:
            raise RuntimeError("out of memory")
        logits: torch.Tensor = logits_for(TEXT)(tokens)
        return logits

    network = ScriptedNetwork(logits_of)
    with pytest.raises(RuntimeError, match="out of memory"):
        decode(network, window(), window())
    assert network.num_open == 0


def test_sampling_keeps_the_rules() -> None:
    network = ScriptedNetwork(lambda tokens: torch.zeros(NUM_TOKENS))
    [result] = decode(network, window(seconds=20), temperature=1.0)
    never = {*TOKENIZER.non_speech_tokens, *range(TOKENIZER.eot + 1, NUM_TOKENS)}
    assert len(result.tokens) > 20
    assert not never & set(result.tokens)


@pytest.mark.parametrize(
    ("seconds", "rate", "num_tokens", "overlong"),
    [
        pytest.param(2, 8, 32, True, id="more than can be said"),
        pytest.param(28, 8, 224, True, id="as much as can be said fills the positions"),
        pytest.param(28, 32, 224, False, id="positions are full before"),
    ],
)
def test_a_text_is_overlong_when_its_audio_cannot_hold_it(
    seconds: float, rate: float, num_tokens: int, overlong: bool
) -> None:
    endless = replace(window(seconds), tokens_per_second=rate)
    [result] = decode(ScriptedNetwork(logits_for([1000] * 448)), endless)
    assert len(result.tokens) == num_tokens
    assert (result.complete, result.overlong) == (False, overlong)
