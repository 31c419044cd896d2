"""The course of a search with made-up logits, against one that follows every text."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.test_decoding import (
    NUM_TOKENS,
    TEXT,
    TOKENIZER,
    ScriptedNetwork,
    logits_for,
    window,
)
from whisper_byoc.inference.beam_search import BeamSearch, Search
from whisper_byoc.inference.decoding import (
    Course,
    Decoded,
    EncodedWindow,
    Rules,
    Straight,
    decode_in_steps,
    in_groups,
)

FEW = (1000, 2000, 3000)
"""Tokens of made-up texts."""
MOST = Search(heat=0, margin=30)
"""The most probable text is chosen."""


def words(tokens: Sequence[int]) -> list[str]:
    return list(map(str, tokens))


def search(network: ScriptedNetwork, *windows: EncodedWindow, how: Search = MOST) -> list[Decoded]:
    rules = Rules(TOKENIZER, NUM_TOKENS, network)
    courses = [BeamSearch(it, rules, how, words) for it in windows]
    for _ in decode_in_steps(network, courses):
        assert network.num_open <= sum(course.num_caches for course in courses)
    assert network.num_open == 0
    return [course.result for course in courses]


def random_logits(seed: int, longest: int) -> Any:
    """Of a few tokens and the end, by all that came before; behind `longest` only the end."""

    def logits_of(tokens: Sequence[int]) -> torch.Tensor:
        logits = torch.full((NUM_TOKENS,), -50.0)
        chance = torch.Generator().manual_seed(hash((seed, *tokens)) % 2**31)
        logits[[*FEW, TOKENIZER.eot]] = torch.randn(4, generator=chance) * 2
        if len(tokens) - 2 >= longest:
            logits[list(FEW)] = -50.0
        return logits

    return logits_of


def all_texts(logits_of: Any, longest: int) -> dict[tuple[int, ...], float]:
    """Every text that has an end, with its log-probability."""
    rules = Rules(TOKENIZER, NUM_TOKENS, ScriptedNetwork(None))
    texts = {}
    for length in range(1, longest + 1):
        for text in product(FEW, repeat=length):
            total = 0.0
            for place, token in enumerate((*text, TOKENIZER.eot)):
                allowed = logits_of([TOKENIZER.sot, TOKENIZER.no_timestamps, *text[:place]])
                allowed = allowed + torch.from_numpy(rules._masks[place == 0])
                total += float(allowed.log_softmax(-1)[token])
            texts[text] = total
    return texts


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_wide_search_finds_the_most_probable_text(seed: int) -> None:
    logits_of = random_logits(seed, longest=3)
    texts = all_texts(logits_of, 3)
    believed = [total for text, total in texts.items() if total / (len(text) + 1) >= -1]
    expected = max(believed or texts.values())
    [found] = search(ScriptedNetwork(logits_of), window(), how=replace(MOST, width=40))
    assert texts[tuple(found.tokens)] == pytest.approx(expected, abs=1e-3)
    assert sum(found.logprobs) == pytest.approx(expected, abs=1e-3)
    assert found.complete


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_one_beam_is_the_greedy_text(seed: int, longest: int) -> None:
    logits_of = random_logits(seed, longest)
    [found] = search(ScriptedNetwork(logits_of), window(), how=replace(MOST, width=1))
    network = ScriptedNetwork(logits_of)
    course = Straight(window(), Rules(TOKENIZER, NUM_TOKENS, network))
    for _ in decode_in_steps(network, [course]):
        pass
    assert found.tokens == course.result.tokens
    assert found.logprobs == pytest.approx(course.result.logprobs)
    assert found.no_speech_prob == course.result.no_speech_prob
    assert found.attention.shape == course.result.attention.shape


def test_a_window_does_not_depend_on_the_others() -> None:
    logits_of = random_logits(7, longest=9)
    how = Search(width=4)
    [alone] = search(ScriptedNetwork(logits_of), window(), how=how)
    together = search(ScriptedNetwork(logits_of), window(0), window(), window(2), how=how)
    assert (together[1].tokens, together[1].logprobs) == (alone.tokens, alone.logprobs)


def test_a_search_ends_when_no_other_text_can_come_near() -> None:
    network = ScriptedNetwork(logits_for(TEXT))
    [far] = search(network, window(seconds=20), how=Search(width=5, margin=5.0))
    assert far.tokens == TEXT
    assert network.num_passes == len(TEXT) + 2


def test_texts_without_an_end_have_the_cap() -> None:
    [result] = search(ScriptedNetwork(logits_for([1000] * 448)), window(2), how=Search(width=3))
    assert len(result.tokens) == 32
    assert (result.complete, result.overlong) == (False, True)


def test_an_improbable_text_gives_way_to_one_that_is_believed() -> None:
    """ "8" and its end have less to lose than ten digits, and yet are no likely text."""

    def logits_of(tokens: Sequence[int]) -> torch.Tensor:
        logits = torch.full((NUM_TOKENS,), -50.0)
        text = tokens[2:]
        if not text:
            logits[[1000, 2000]] = torch.tensor([0.0, -0.2])
        elif text == [1000]:
            logits[[TOKENIZER.eot, 3000]] = torch.tensor([0.0, 4.0])
        else:
            logits[TOKENIZER.eot if len(text) > 8 else 3000 + len(text)] = 0.0
            logits[4000] = -1.0
        return logits

    [result] = search(ScriptedNetwork(logits_of), window(), how=Search(width=2, heat=0))
    assert len(result.tokens) > 1
    assert result.avg_logprob >= -1


def test_where_no_token_may_come_it_says_so() -> None:
    network = ScriptedNetwork(lambda tokens: torch.full((NUM_TOKENS,), -math.inf))
    with pytest.raises(ValueError, match="no token may follow"):
        search(network, window())
    assert network.num_open == 0


def test_as_many_go_together_as_there_are_caches_for() -> None:
    rules = Rules(TOKENIZER, NUM_TOKENS, ScriptedNetwork(None))
    wide: list[Course] = [BeamSearch(window(), rules, Search(width=10), words) for _ in range(3)]
    assert [len(group) for group in in_groups([*wide, Straight(window(), rules)], 23)] == [2, 2]
    assert [len(group) for group in in_groups(wide, 5)] == [1, 1, 1]
    assert list(in_groups([], 5)) == []
