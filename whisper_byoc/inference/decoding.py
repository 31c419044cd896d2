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

from whisper_byoc.decode import Span
from whisper_byoc.inference.network import NUM_TIMESTAMPS, Ask, Choice, Encoded, Feed, Network

TOKENS_PER_SECOND = 8
SPARE_TOKENS = 16
"""Speech has fewer than 8 tokens a second; a decode that needs more goes round in circles."""
TIMESTAMP_SECONDS = 0.02
MAX_FIRST_TIME = 50
"""Whisper's: the first timestamp is at most 1 s, in steps of 0.02 s."""


@dataclass(frozen=True, slots=True)
class Window:
    """One encoded window, ready to be decoded.

    num_frames: how many of the encoded are of real audio; prefix: tokens up to the first free one;
    sot: where among them Whisper's start is; seconds: of real audio; draft: tokens that are tried
    first, all in one pass; timestamps: whether the text is to hold Whisper's; num_forced: how many
    tokens at the end of the prefix are the beginning of the text.
    """

    encoded: Encoded
    num_frames: int
    prefix: tuple[int, ...]
    sot: int
    seconds: float
    draft: tuple[int, ...] = ()
    timestamps: bool = False
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
    attention: NDArray[np.float32] | None = None
    num_drafted: int = 0
    """How many tokens came from the draft."""

    @property
    def avg_logprob(self) -> float:
        """Whisper's: the end of the text counts as a token."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


def spans_of(tokens: Sequence[int], tokenizer: Tokenizer, end: float) -> tuple[Span, ...]:
    """The text between timestamps; what has no second one lasts until `end`, in seconds."""
    spans: list[Span] = []
    start, text = 0.0, list[int]()
    for token in tokens:
        if token < tokenizer.timestamp_begin:
            text.append(token)
            continue
        time = (token - tokenizer.timestamp_begin) * TIMESTAMP_SECONDS
        if text:
            spans.append(Span(start, time, str(tokenizer.decode(text)).strip()))
            text = []
        start = time
    if text:
        spans.append(Span(start, max(start, end), str(tokenizer.decode(text)).strip()))
    return tuple(spans)


class Rules:
    """Which tokens may come next, for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer, num_tokens: int, network: Network) -> None:
        self.end = tokenizer.eot
        self.no_speech = tokenizer.no_speech
        self.first_time = num_tokens - NUM_TIMESTAMPS
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
        later[self.first_time :] = -math.inf
        first = later.copy()
        first[[*tokenizer.encode(" "), tokenizer.eot]] = -math.inf
        only_end = np.full(num_tokens, -math.inf, dtype=np.float32)
        only_end[tokenizer.eot] = 0
        nothing = np.full(num_tokens, -math.inf, dtype=np.float32)
        self._masks = [later, first, only_end, nothing]
        self._prepared = [network.mask(mask) for mask in self._masks]

    def ask(self, index: int, tokens: Sequence[int], timestamps: bool) -> tuple[Ask, int]:
        """What may follow the given tokens of a text, and the number of its mask."""
        if not timestamps:
            number = 0 if tokens else 1
            return Ask(index, self._prepared[number]), number
        number, first, end = self._timestamp_rules(tokens)
        return Ask(index, self._prepared[number], first, end), number

    def _timestamp_rules(self, tokens: Sequence[int]) -> tuple[int, int, int]:
        """Timestamps come in pairs and do not fall; one within the first second comes first."""
        begin = self.first_time
        if not tokens:
            return 3, begin, begin + MAX_FIRST_TIME + 1
        times = [token for token in tokens if token >= begin]
        is_time = tokens[-1] >= begin
        closed = len(tokens) < 2 or tokens[-2] >= begin
        if is_time and closed:
            return 0, 0, 0  # a pair is complete: text
        if is_time:
            return 2, times[-1], begin + NUM_TIMESTAMPS  # its second half, or the end
        last = times[-1] + 1 if times else begin
        return 0, last, begin + NUM_TIMESTAMPS

    def choose(self, choice: Choice) -> tuple[int, float]:
        """The greedy token and its log-probability; a timestamp where all of them together are more
        probable than any text."""
        if choice.time_sum > choice.text_logit:
            return choice.time, choice.time_logit - choice.time_sum
        total = float(np.logaddexp(choice.text_sum, choice.time_sum))
        if choice.time_logit > choice.text_logit:
            return choice.time, choice.time_logit - total
        return choice.text, choice.text_logit - total

    def sample(
        self,
        logits: Tensor,
        ask: Ask,
        number: int,
        temperature: float,
        generator: torch.Generator | None,
    ) -> tuple[int, float]:
        """A token drawn at a temperature above 0, and its log-probability at 1."""
        allowed = logits.cpu() + torch.from_numpy(self._masks[number])
        times = slice(ask.first_time, ask.end_time)
        allowed[times] = logits[times].cpu()
        if ask.end_time and allowed[times].logsumexp(-1) > allowed[: self.first_time].max():
            allowed[: self.first_time] = -math.inf
        probabilities = (allowed / temperature).softmax(-1)
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        return token, float(allowed[token] - allowed.logsumexp(-1))


class Decode:
    """One window on its way: what to feed next, and what came of it."""

    def __init__(
        self,
        network: Network,
        window: Window,
        rules: Rules,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        keep_attention: bool = True,
    ) -> None:
        self.window = window
        self.result = Decoded()
        self.done = False
        self._rules = rules
        self._temperature = temperature
        self._generator = generator
        self._keep_attention = keep_attention
        positions = network.dims.n_text_ctx
        most = max(1, min(positions // 2, positions - len(window.prefix)))
        self._cap = min(most, round(window.seconds * TOKENS_PER_SECOND) + SPARE_TOKENS)
        # A draft longer than any text could be is no draft of this window.
        self._draft = window.draft[: self._cap - 1] if temperature == 0 else ()
        positions = len(window.prefix) + max(self._cap, len(self._draft) + 1)
        self.stream = network.open(window.encoded, positions)
        self._forced = window.prefix[len(window.prefix) - window.num_forced :]
        self._numbers: list[int] = []
        self._begun = False

    def feed(self) -> Feed:
        tokens: tuple[int, ...] = (*self.result.tokens[-1:],)
        asks: list[Ask] = []
        drafts: tuple[int, ...] = ()
        if not self._begun:
            tokens = self.window.prefix
            drafts = self._draft
            if self._rules.no_speech is not None:
                asks.append(Ask(self.window.sot))
        self._numbers = []
        for count in range(len(drafts) + 1):
            text = [*self._forced, *self.result.tokens, *drafts[:count]]
            ask, number = self._rules.ask(len(tokens) - 1 + count, text, self.window.timestamps)
            asks.append(ask)
            self._numbers.append(number)
        self._asks = asks
        return Feed(self.stream, (*tokens, *drafts), asks)

    def receive(self, choices: Sequence[Choice], logits: Tensor) -> None:
        """The answers to `feed`, and their logits, (asks, vocabulary)."""
        drafts = self._draft if not self._begun else ()
        offset = len(choices) - len(self._numbers)
        if offset:
            assert self._rules.no_speech is not None
            self.result.no_speech_prob = float(logits[0].softmax(-1)[self._rules.no_speech])
        self._begun = True
        for index, number in enumerate(self._numbers):
            token, logprob = self._choose(choices, logits, offset + index, number)
            self._receive_token(token, logprob)
            if self.done:
                break
            if index < len(drafts) and token != drafts[index]:
                # What was fed behind the first other token is overwritten.
                self.stream.length -= len(drafts) - index
                break
            self.result.num_drafted += index < len(drafts)
        if self.done and self._keep_attention:
            first = len(self.window.prefix) - 1
            last = first + len(self.result.tokens) + self.result.complete
            first -= self.window.num_forced
            self.result.attention = self.stream.attention(first, last)

    def _choose(
        self, choices: Sequence[Choice], logits: Tensor, index: int, number: int
    ) -> tuple[int, float]:
        if self._temperature == 0:
            return self._rules.choose(choices[index])
        return self._rules.sample(
            logits[index], self._asks[index], number, self._temperature, self._generator
        )

    def _receive_token(self, token: int, logprob: float) -> None:
        self.result.logprobs.append(logprob)
        if token == self._rules.end:
            self.result.complete = True
        else:
            self.result.tokens.append(token)
        self.done = self.result.complete or len(self.result.tokens) >= self._cap


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
    running: list[Any] = list(decodes)
    try:
        while running:
            step(network, running)
            running = [decode for decode in running if not decode.done]
    finally:
        for decode in decodes:
            network.close(decode.stream)
