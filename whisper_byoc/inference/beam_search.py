"""Several texts of a window at once, under Whisper's rules, and the choice among them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from whisper_byoc.decode import MAX_NO_SPEECH_PROBABILITY, MIN_AVG_LOGPROB
from whisper_byoc.inference.decoding import Decoded, EncodedWindow, Rules, attention_of
from whisper_byoc.inference.minimum_risk import least_risk
from whisper_byoc.inference.network import Ask, Cache, Choice, Feed, Network

Words = Callable[[Sequence[int]], Sequence[str]]
"""The words of a text's tokens, as they are compared."""


@dataclass(frozen=True, slots=True)
class Search:
    """width: how many texts are followed at once, and how many are chosen among.

    heat: of the choice among them (`least_risk`). margin: by how much a text's log-probability may
    be under that of the best; what is further below is given up.
    """

    width: int = 10
    heat: float = 1.5
    margin: float = 5.0


class _Text(NamedTuple):
    """logprobs: of its tokens and, where it has one, of its end; total: their sum."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0

    @property
    def avg_logprob(self) -> float:
        return self.total / len(self.logprobs)

    def with_next(self, token: int | None, logprob: float) -> "_Text":
        """None: it ends."""
        tokens = self.tokens if token is None else (*self.tokens, token)
        return _Text(tokens, (*self.logprobs, logprob), self.total + logprob)


class BeamSearch:
    """A course of several texts: whichever of their next tokens are the most probable go on.

    It ends when as many texts have an end, or no other can come near, or the cap is reached. The
    text that was chosen is then fed once more, in one pass, to see where it was heard.
    """

    def __init__(self, window: EncodedWindow, rules: Rules, search: Search, words: Words) -> None:
        self.result = Decoded()
        self.done = False
        self.num_caches = 1 + search.width
        self._window, self._rules, self._search, self._words = window, rules, search, words
        self._beams: list[tuple[_Text, Cache]] = []
        self._ended: list[_Text] = []
        self._chosen: _Text | None = None

    def open(self, network: Network) -> None:
        window, positions = self._window, network.dims.n_text_ctx
        self._cap = window.cap(positions)
        self._network = network
        room = len(window.prefix) + self._cap
        self._root = network.open(window.encoded, room, forks=self._search.width)

    def close(self) -> None:
        for _, cache in self._beams:
            self._network.close(cache)
        self._network.close(self._root)

    def feeds(self) -> list[Feed]:
        """At first the prefix, then the last token of each beam, at last the text chosen."""
        window, ask, count = self._window, self._rules.ask, self._search.width + 1
        if self._chosen:
            return [Feed(self._root, self._chosen.tokens, [])]
        if self._beams:
            later = [ask(0, False, count)]
            return [Feed(cache, text.tokens[-1:], later) for text, cache in self._beams]
        first = ask(len(window.prefix) - 1, not window.num_forced, count)
        return [Feed(self._root, window.prefix, [Ask(window.sot), first])]

    def receive(self, answers: Sequence[Sequence[Choice]], logits: Tensor) -> None:
        if self._chosen:
            self._finish()
            return
        if self._beams:
            self._go_on([answer for [answer] in answers])
        else:
            self.result.no_speech_prob = self._rules.no_speech_prob(logits[0])
            self._begin(answers[0][1])
        if self._is_over():
            self._choose()

    def _begin(self, answer: Choice) -> None:
        texts = self._best([(_Text(), self._root)], [answer])
        self._beams = [(text, self._network.fork(self._root)) for text, _ in texts]

    def _go_on(self, answers: Sequence[Choice]) -> None:
        """The first to go on from a beam takes its cache over; others fork it."""
        texts = self._best(self._beams, answers)
        going_on = {id(cache) for _, cache in texts}
        for _, cache in self._beams:
            if id(cache) not in going_on:
                self._network.close(cache)
        self._beams = []
        for text, cache in texts:
            if id(cache) in going_on:
                going_on.remove(id(cache))
                self._beams.append((text, cache))
            else:
                self._beams.append((text, self._network.fork(cache)))

    def _best(
        self, beams: Sequence[tuple[_Text, Cache]], answers: Sequence[Choice]
    ) -> list[tuple[_Text, Cache]]:
        """The most probable texts that go on, with the cache of what they go on from. Those that
        end, and are as probable, are put aside. Raises ValueError where no token may come."""
        candidates = [
            (text.total + logit - answer.log_sum, text, token, logit - answer.log_sum, cache)
            for (text, cache), answer in zip(beams, answers, strict=True)
            for token, logit in answer.best
        ]
        if not candidates:
            raise ValueError("no token may follow, expected some logit above −∞")
        candidates.sort(key=lambda it: -it[0])
        ended = (text.total for text in self._ended if self._is_believable(text))
        best = max([candidates[0][0], *ended])
        worst = best - self._search.margin
        going_on: list[tuple[_Text, Cache]] = []
        for total, text, token, logprob, cache in candidates:
            if len(going_on) == self._search.width or total < worst:
                break
            if token != self._rules.end:
                going_on.append((text.with_next(token, logprob), cache))
            elif len(self._ended) < self._search.width:
                self._ended.append(text.with_next(None, logprob))
        return going_on

    def _is_over(self) -> bool:
        if not self._beams or len(self._ended) >= self._search.width:
            return True
        return len(self._beams[0][0].tokens) >= self._cap

    def _choose(self) -> None:
        """One of those that have an end; where none has, of those that reached the cap."""
        complete = bool(self._ended)
        texts = self._ended or [text for text, _ in self._beams]
        texts = [text for text in texts if self._is_believable(text)] or texts
        texts = sorted(texts, key=lambda text: -text.total)
        place = least_risk(
            [self._words(text.tokens) for text in texts],
            [text.total for text in texts],
            self._search.heat,
        )
        self._chosen = chosen = texts[place]
        result = self.result
        result.tokens, result.logprobs = list(chosen.tokens), list(chosen.logprobs)
        result.complete = complete
        result.overlong = not complete and len(chosen.tokens) >= self._window.most_spoken
        for _, cache in self._beams:
            self._network.close(cache)
        self._beams = []
        if not chosen.tokens:
            self._finish()

    def _is_believable(self, text: _Text) -> bool:
        """Whether the ladder would not find it improbable."""
        silent = self.result.no_speech_prob > MAX_NO_SPEECH_PROBABILITY
        return silent or text.avg_logprob >= MIN_AVG_LOGPROB

    def _finish(self) -> None:
        self.result.attention = attention_of(self.result, self._window, self._root)
        self.done = True
