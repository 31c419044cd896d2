"""Tokens of many windows at once, under Whisper's rules (openai-whisper's decoding.py)."""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from whisper.tokenizer import Tokenizer

from whisper_byoc.inference.network import Ask, Cache, Choice, Encoded, Feed, Network

SPARE_TOKENS = 16
"""Added to what can be said in a window's seconds: a short one may hold nothing but fast words."""

MAX_ROWS = 192
"""Tokens of one pass: bounds how long it takes. Only the first pass of a window and, of a search,
the last have more than one for each text."""


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

    @property
    def most_spoken(self) -> float:
        """Tokens that can be said in it, without the spare ones, for which 28 s have no room."""
        return self.seconds * self.tokens_per_second

    def cap(self, positions: int) -> int:
        """How many tokens its text may have, of a decoder of so many positions."""
        room = max(1, min(positions // 2, positions - len(self.prefix)))
        return min(room, round(self.most_spoken) + SPARE_TOKENS)


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

    def ask(self, place: int, is_first: bool, num_best: int = 0) -> Ask:
        """What may follow the token at a place of a feed: as a text's first, or as a later one."""
        return Ask(place, self._prepared[is_first], num_best)

    def choose(self, choice: Choice) -> tuple[int, float]:
        """The greedy token and its log-probability. Raises ValueError where no token may come: the
        logits are no numbers."""
        if choice.token < 0:
            raise ValueError("no token may follow, expected some logit above −∞")
        return choice.token, choice.logit - choice.log_sum

    def no_speech_prob(self, logits: Tensor) -> float:
        """logits: (vocabulary,), of what follows Whisper's start."""
        return float(logits.softmax(-1)[self.no_speech])

    def sample(
        self, logits: Tensor, is_first: bool, temperature: float, generator: torch.Generator
    ) -> tuple[int, float]:
        """A text's first token, or a later one, drawn at a temperature above 0, and its
        log-probability at 1."""
        allowed = logits.cpu() + torch.from_numpy(self._masks[is_first])
        probabilities = (allowed / temperature).softmax(-1)
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        return token, float(allowed[token] - allowed.logsumexp(-1))


class Course(Protocol):
    """One window on its way to a text: what is fed next, and what came of it."""

    @property
    def result(self) -> Decoded: ...

    @property
    def done(self) -> bool: ...

    @property
    def num_caches(self) -> int:
        """How many it may have open at once."""
        ...

    def open(self, network: Network) -> None:
        """Take the caches that it needs. Raises ValueError when there is no room for them."""
        ...

    def close(self) -> None:
        """Give all of them back."""
        ...

    def feeds(self) -> list[Feed]:
        """For the next pass."""
        ...

    def receive(self, answers: Sequence[Sequence[Choice]], logits: Tensor) -> None:
        """The answers to `feeds`, and the logits of all their asks, (asks, vocabulary). Raises
        ValueError."""
        ...


class Straight:
    """A course of one text: the most probable token each time, or at a temperature above 0 one
    that is drawn."""

    num_caches = 1

    def __init__(self, window: EncodedWindow, rules: Rules, temperature: float = 0.0) -> None:
        self.result = Decoded()
        self._window = window
        self._rules = rules
        self._temperature = temperature
        self._generator = torch.Generator().manual_seed(0)  # the same audio, the same words

    def open(self, network: Network) -> None:
        window, positions = self._window, network.dims.n_text_ctx
        self._cap = window.cap(positions)
        # A draft longer than any text could be is no draft of this window.
        self._draft = window.draft[: self._cap - 1] if self._temperature == 0 else ()
        self._network = network
        self._cache = network.open(window.encoded, len(window.prefix) + self._cap)

    def close(self) -> None:
        self._network.close(self._cache)

    @property
    def done(self) -> bool:
        return self.result.complete or len(self.result.tokens) >= self._cap

    @property
    def _begun(self) -> bool:
        return bool(self.result.logprobs)

    def feeds(self) -> list[Feed]:
        """At first the prefix and the draft behind it, then the token that was chosen last."""
        window, ask = self._window, self._rules.ask
        if self._begun:
            return [Feed(self._cache, self.result.tokens[-1:], [ask(0, False)])]
        tokens = (*window.prefix, *self._draft)
        last, *drafted = range(len(window.prefix) - 1, len(tokens))
        asks = [ask(last, not window.num_forced), *(ask(place, False) for place in drafted)]
        return [Feed(self._cache, tokens, [Ask(window.sot), *asks])]

    def receive(self, answers: Sequence[Sequence[Choice]], logits: Tensor) -> None:
        [choices] = answers
        draft: Sequence[int] = ()
        if not self._begun:
            self.result.no_speech_prob = self._rules.no_speech_prob(logits[0])
            choices, logits, draft = choices[1:], logits[1:], self._draft
        for index, choice in enumerate(choices):
            token = self._receive_answer(choice, logits[index])
            if self.done:
                break
            if index < len(draft) and token != draft[index]:
                # What was fed behind the first other token is overwritten.
                self._cache.length -= len(draft) - index
                break
        if self.done:
            self.result.attention = attention_of(self.result, self._window, self._cache)

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
        result.overlong = not result.complete and len(result.tokens) >= self._window.most_spoken
        return token


def attention_of(result: Decoded, window: EncodedWindow, cache: Cache) -> NDArray[np.float32]:
    """See `Decoded`. cache: holds the prefix, and of the text all but a last token without end."""
    free = len(window.prefix) - 1
    last = free + len(result.tokens) + result.complete
    return cache.attention(free - window.num_forced, last)


def decode_in_steps(network: Network, courses: Sequence[Course]) -> Generator[None, None, None]:
    """Take all to their ends, a pass at each step; none waits for another.

    Raises ValueError when the network has no room for a prefix and the text behind it.
    """
    with ExitStack() as opened:
        for course in courses:
            course.open(network)
            opened.callback(course.close)
        running = list(courses)
        while running:
            together = [(course, course.feeds()) for course in running]
            together = together[: _num_fitting([feeds for _, feeds in together])]
            waiting = running[len(together) :]
            answers, logits = network.forward([feed for _, feeds in together for feed in feeds])
            answered = iter(answers)
            for course, feeds in together:
                own = list(islice(answered, len(feeds)))
                count = sum(map(len, own))
                course.receive(own, logits[:count])
                logits = logits[count:]
            # Those that found no room in this pass are the first in the next.
            running = [*waiting, *(course for course, _ in together if not course.done)]
            yield


def _num_fitting(feeds: Sequence[Sequence[Feed]]) -> int:
    """How many, from the first, have together at most `MAX_ROWS` tokens; at least one."""
    rows = accumulate(sum(len(feed.tokens) for feed in some) for some in feeds)
    return max(1, sum(count <= MAX_ROWS for count in rows))


def in_groups(courses: Sequence[Course], most: int) -> Iterator[list[Course]]:
    """In order, as many together as need at most so many caches; at least one."""
    group: list[Course] = []
    for course in courses:
        if group and sum(it.num_caches for it in [*group, course]) > most:
            yield group
            group = []
        group.append(course)
    if group:
        yield group
