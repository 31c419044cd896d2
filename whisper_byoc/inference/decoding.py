"""Tokens of many windows at once, under Whisper's rules (openai-whisper's decoding.py)."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from whisper.tokenizer import Tokenizer

from whisper_byoc.inference.network import Ask, Cache, Choice, Encoded, Feed, Network

SPARE_TOKENS = 16
"""Added to what can be said in a window's seconds: a short one may hold nothing but fast words."""


@dataclass(frozen=True, slots=True)
class EncodedWindow:
    """One window, encoded and ready to be decoded.

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
    """The text of one window: tokens without prefix and end. attention: float32 (heads, rows,
    keys), a row for each query that produced a forced token, a token of the text, or the end."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of the tokens and, where it was reached, of the end."""
    no_speech_prob: float = 0.0
    complete: bool = False
    """Whether the end of the text was reached, and not the cap."""
    overlong: bool = False
    """Whether that cap was how much can be said in the window, and not the decoder's positions."""
    attention: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))

    @property
    def avg_logprob(self) -> float:
        """Whisper's: the end of the text counts as a token."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


class Rules:
    """Which tokens may come next, for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer, num_tokens: int, network: Network) -> None:
        self.end = tokenizer.eot
        self.no_speech = tokenizer.no_speech
        later = np.zeros(num_tokens, dtype=np.float32)
        later[list(tokenizer.non_speech_tokens)] = -math.inf
        # Behind the end are start, languages, tasks and all other specials, timestamps the last.
        later[tokenizer.eot + 1 :] = -math.inf
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
        self, logits: Tensor, is_first: bool, temperature: float, generator: torch.Generator
    ) -> tuple[int, float]:
        """A text's first token, or a later one, drawn at a temperature above 0, and its
        log-probability at 1."""
        allowed = logits.cpu() + torch.from_numpy(self._masks[is_first])
        probabilities = (allowed / temperature).softmax(-1)
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        return token, float(allowed[token] - allowed.logsumexp(-1))


class _Decode:
    """One window on its way: what to feed next, and what came of it.

    positions: how many tokens the decoder can take. `cache` is set, and owned, by `decode_all`.
    """

    cache: Cache

    def __init__(
        self, window: EncodedWindow, rules: Rules, temperature: float, positions: int
    ) -> None:
        self.result = Decoded()
        self._window = window
        self._rules = rules
        self._temperature = temperature
        self._generator = torch.Generator().manual_seed(0)  # the same audio, the same words
        room = max(1, min(positions // 2, positions - len(window.prefix)))
        spoken = window.seconds * window.tokens_per_second
        self._most_spoken = spoken  # without the spare ones: a window of 28 s has no room for them
        self._cap = min(room, round(spoken) + SPARE_TOKENS)
        # A draft longer than any text could be is no draft of this window.
        self._draft = window.draft[: self._cap - 1] if temperature == 0 else ()

    @property
    def positions(self) -> int:
        """How many the prefix and the longest text take."""
        return len(self._window.prefix) + self._cap

    @property
    def done(self) -> bool:
        return self.result.complete or len(self.result.tokens) >= self._cap

    @property
    def _begun(self) -> bool:
        return bool(self.result.logprobs)

    def feed(self) -> Feed:
        """At first the prefix and the draft behind it, then the token that was chosen last."""
        window, ask = self._window, self._rules.ask
        if self._begun:
            return Feed(self.cache, self.result.tokens[-1:], [ask(0, False)])
        tokens = (*window.prefix, *self._draft)
        last, *drafted = range(len(window.prefix) - 1, len(tokens))
        asks = [ask(last, not window.num_forced), *(ask(place, False) for place in drafted)]
        return Feed(self.cache, tokens, [Ask(window.sot), *asks])

    def receive(self, choices: Sequence[Choice], logits: Tensor) -> None:
        """The answers to `feed`, and their logits, (asks, vocabulary). Raises ValueError."""
        draft: Sequence[int] = ()
        if not self._begun:
            self.result.no_speech_prob = float(logits[0].softmax(-1)[self._rules.no_speech])
            choices, logits, draft = choices[1:], logits[1:], self._draft
        for index, choice in enumerate(choices):
            token = self._receive_answer(choice, logits[index])
            if self.done:
                break
            if index < len(draft) and token != draft[index]:
                # What was fed behind the first other token is overwritten.
                self.cache.length -= len(draft) - index
                break
        if self.done:
            free = len(self._window.prefix) - 1
            last = free + len(self.result.tokens) + self.result.complete
            self.result.attention = self.cache.attention(free - self._window.num_forced, last)

    def _receive_answer(self, choice: Choice, logits: Tensor) -> int:
        """Take the next token of the text, or its end."""
        result, rules = self.result, self._rules
        if self._temperature == 0:
            token, logprob = rules.choose(choice)
        else:
            is_first = not result.tokens and not self._window.num_forced
            token, logprob = rules.sample(logits, is_first, self._temperature, self._generator)
        result.logprobs.append(logprob)
        if token == rules.end:
            result.complete = True
        else:
            result.tokens.append(token)
        result.overlong = not result.complete and len(result.tokens) >= self._most_spoken
        return token


def decode_all(
    network: Network, rules: Rules, windows: Sequence[EncodedWindow], temperature: float = 0.0
) -> list[Decoded]:
    """Decode until all are done, greedily at temperature 0; none waits for another.

    Raises ValueError when the network has no room for a prefix and the text behind it.
    """
    positions = network.dims.n_text_ctx
    decodes = [_Decode(window, rules, temperature, positions) for window in windows]
    with ExitStack() as caches:
        for window, decode in zip(windows, decodes, strict=True):
            decode.cache = network.open(window.encoded, decode.positions)
            caches.callback(network.close, decode.cache)
        running = decodes
        while running:
            choices, logits = network.forward([decode.feed() for decode in running])
            rows = torch.split(logits, [len(answers) for answers in choices])
            for decode, answers, answered in zip(running, choices, rows, strict=True):
                decode.receive(answers, answered)
            running = [decode for decode in running if not decode.done]
    return [decode.result for decode in decodes]
