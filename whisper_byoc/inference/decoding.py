"""Tokens of many windows at once, under Whisper's rules (openai-whisper's decoding.py)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from whisper.tokenizer import Tokenizer

from whisper_byoc.inference.network import Ask, Choice, Encoded, Feed, Network

SPARE_TOKENS = 16
"""More than what can be said in the seconds of a window: a short one may hold fast words only."""


@dataclass(frozen=True, slots=True)
class Window:
    """One encoded window, ready to be decoded.

    num_frames: how many of the encoded are of real audio; prefix: tokens up to the first free one;
    sot: where among them Whisper's start is; seconds: of real audio; tokens_per_second: more than
    speech can have in its language; draft: tokens that are tried first, all in one pass;
    num_forced: how many tokens at the end of the prefix are the beginning of the text.
    """

    encoded: Encoded
    num_frames: int
    prefix: tuple[int, ...]
    sot: int
    seconds: float
    tokens_per_second: float
    draft: tuple[int, ...] = ()
    num_forced: int = 0


@dataclass(slots=True)
class Decoded:
    """Tokens of one window without prefix and end; attention is (heads, rows, keys), where the rows
    are of the queries that produced the window's forced tokens, its tokens, and the end.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    no_speech_prob: float = 0.0
    complete: bool = False
    """Whether the end of the text was reached, and not the cap."""
    overlong: bool = False
    """Whether that cap was how much can be said in the window, and not the decoder's positions."""
    attention: NDArray[np.float32] | None = None

    @property
    def avg_logprob(self) -> float:
        """Whisper's: the end of the text counts as a token."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


class Rules:
    """Which tokens may come next, for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer, num_tokens: int, network: Network) -> None:
        self.end = tokenizer.eot
        self.no_speech = tokenizer.no_speech
        never = {
            *tokenizer.non_speech_tokens,
            tokenizer.transcribe,
            tokenizer.translate,
            tokenizer.sot,
            tokenizer.sot_prev,
            tokenizer.sot_lm,
            tokenizer.no_speech,
            tokenizer.no_timestamps,
            *tokenizer.all_language_tokens,
        }
        later = np.zeros(num_tokens, dtype=np.float32)
        later[sorted(never)] = -math.inf
        later[tokenizer.timestamp_begin :] = -math.inf
        first = later.copy()
        first[[*tokenizer.encode(" "), tokenizer.eot]] = -math.inf
        self._masks = later, first
        self._prepared = [network.mask(mask) for mask in self._masks]

    def ask(self, place: int, is_first: bool) -> Ask:
        """What may follow the token at a place of a feed: as a text's first, or as a later one."""
        return Ask(place, self._prepared[is_first])

    def choose(self, choice: Choice) -> tuple[int, float]:
        """The greedy token and its log-probability. Raises ValueError where no token may come: the
        logits are no numbers."""
        if choice.token < 0:
            raise ValueError("no token may follow, expected some logit above −∞")
        return choice.token, choice.logit - choice.log_sum

    def sample(
        self,
        logits: Tensor,
        is_first: bool,
        temperature: float,
        generator: torch.Generator | None,
    ) -> tuple[int, float]:
        """A text's first token, or a later one, drawn at a temperature above 0, and its
        log-probability at 1."""
        allowed = logits.cpu() + torch.from_numpy(self._masks[is_first])
        probabilities = (allowed / temperature).softmax(-1)
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        return token, float(allowed[token] - allowed.logsumexp(-1))


class Decode:
    """One window on its way: what to feed next, and what came of it. Owns a stream of the network
    from `open` to `close`."""

    def __init__(
        self,
        network: Network,
        window: Window,
        rules: Rules,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.window = window
        self.result = Decoded()
        self.done = False
        self._network = network
        self._rules = rules
        self._temperature = temperature
        self._generator = generator
        positions = network.dims.n_text_ctx
        room = max(1, min(positions // 2, positions - len(window.prefix)))
        spoken = window.seconds * window.tokens_per_second
        self._most_spoken = spoken  # without the spare ones: a window of 28 s has no room for them
        self._cap = min(room, round(spoken) + SPARE_TOKENS)
        # A draft longer than any text could be is no draft of this window.
        self._draft = window.draft[: self._cap - 1] if temperature == 0 else ()
        self._num_forced = window.num_forced
        self._stream: Any = None
        self._begun = False

    def open(self) -> None:
        """Raises ValueError when the network has no room for the prefix and what follows."""
        self._stream = self._network.open(
            self.window.encoded, positions=len(self.window.prefix) + self._cap
        )

    def close(self) -> None:
        if self._stream is not None:
            self._network.close(self._stream)
            self._stream = None

    def feed(self) -> Feed:
        if self._begun:
            return Feed(self._stream, self.result.tokens[-1:], [self._rules.ask(0, False)])
        tokens = (*self.window.prefix, *self._draft)
        asks = [Ask(self.window.sot)] if self._rules.no_speech is not None else []
        first = len(self.window.prefix) - 1
        asks += [
            self._rules.ask(place, is_first=place == first and not self._num_forced)
            for place in range(first, len(tokens))
        ]
        return Feed(self._stream, tokens, asks)

    def receive(self, choices: Sequence[Choice], logits: Tensor) -> None:
        """The answers to `feed`, and their logits, (asks, vocabulary). Raises ValueError."""
        drafts = () if self._begun else self._draft
        first = 0
        if not self._begun and self._rules.no_speech is not None:
            self.result.no_speech_prob = float(logits[0].softmax(-1)[self._rules.no_speech])
            first = 1
        self._begun = True
        for index in range(len(drafts) + 1):
            token = self._receive_answer(choices[first + index], logits[first + index])
            if self.done:
                break
            if index < len(drafts) and token != drafts[index]:
                # What was fed behind the first other token is overwritten.
                self._stream.length -= len(drafts) - index
                break
        if self.done:
            last = len(self.window.prefix) - 1 + len(self.result.tokens) + self.result.complete
            begin = len(self.window.prefix) - 1 - self._num_forced
            self.result.attention = self._stream.attention(begin, last)

    def _receive_answer(self, choice: Choice, logits: Tensor) -> int:
        """Take the next token of the text, or its end."""
        result, rules = self.result, self._rules
        if self._temperature == 0:
            token, logprob = rules.choose(choice)
        else:
            is_first = not result.tokens and not self._num_forced
            token, logprob = rules.sample(logits, is_first, self._temperature, self._generator)
        result.logprobs.append(logprob)
        if token == rules.end:
            result.complete = True
        else:
            result.tokens.append(token)
        self.done = result.complete or len(result.tokens) >= self._cap
        result.overlong = not result.complete and len(result.tokens) >= self._most_spoken
        return token


def step(network: Network, decodes: Sequence[Decode]) -> None:
    """One pass for all of them: the beginning for those that are new, a token for the others."""
    feeds = [decode.feed() for decode in decodes]
    choices, logits = network.forward(feeds)
    first = 0
    for decode, answers in zip(decodes, choices, strict=True):
        decode.receive(answers, logits[first : first + len(answers)])
        first += len(answers)


def decode_all(network: Network, decodes: Sequence[Decode]) -> None:
    """Decode until all are done; none waits for another."""
    running = list(decodes)
    try:
        for decode in decodes:
            decode.open()
        while running:
            step(network, running)
            running = [decode for decode in running if not decode.done]
    finally:
        for decode in decodes:
            decode.close()
