"""Tokens of a batch of windows, under Whisper's rules (openai-whisper's decoding.py)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from whisper.tokenizer import Tokenizer

from whisper_byoc.inference.network import HEAD_WIDTH, Network

TOKENS_PER_SECOND = 8
SPARE_TOKENS = 16
"""Speech has fewer than 8 tokens a second; a decode that needs more goes round in circles."""


@dataclass(frozen=True, slots=True)
class Window:
    """One encoded window, ready to be decoded.

    cross: (layers, 2, heads, S, 64); bias: (S,), what is added to the attention scores of its
    keys; num_frames: how many of them, from the first, are of real audio; prefix: tokens up to the
    first free one; sot: where among them Whisper's start is; seconds: of real audio.
    """

    cross: Tensor
    bias: Tensor
    num_frames: int
    prefix: tuple[int, ...]
    sot: int
    seconds: float


@dataclass(slots=True)
class Decoded:
    """Tokens of one window without prefix and end; attention is (heads, rows, frames), where row i
    is of the query that produced token i, and the last row of the one that produced the end.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    no_speech_prob: float = 0.0
    complete: bool = False
    """Whether the end of the text was reached, and not the cap."""
    attention: Tensor | None = None

    @property
    def avg_logprob(self) -> float:
        """Whisper's: the end of the text counts as a token."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


class Rules:
    """Which tokens may come next; −∞ on the others is added to the logits."""

    def __init__(self, tokenizer: Tokenizer, num_tokens: int, device: str) -> None:
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
            *tokenizer.all_language_tokens,
        }
        self.later = torch.zeros(num_tokens, device=device)
        self.later[sorted(never)] = -math.inf
        self.later[tokenizer.timestamp_begin :] = -math.inf
        self.first = self.later.clone()
        self.first[[*tokenizer.encode(" "), tokenizer.eot]] = -math.inf


class _Watch:
    """Collects the queries of the alignment heads while a batch is decoded."""

    def __init__(self, heads: Sequence[tuple[int, int]]) -> None:
        self.heads = heads
        self._layers = {layer for layer, _ in heads}
        self._queries: dict[int, list[Tensor]] = {layer: [] for layer in self._layers}

    def __call__(self, layer: int, query: Tensor) -> None:
        if layer in self._layers:
            self._queries[layer].append(query)

    def attention(self, index: int, window: Window, rows: slice) -> Tensor:
        """float32 (heads, rows, frames) of one stream, over the frames of real audio."""
        scores = []
        for layer, head in self.heads:
            query = torch.cat([q[index, head] for q in self._queries[layer]])[rows]
            key = window.cross[layer, 0, head, : window.num_frames]
            scores.append(query.float() @ key.float().T)
        return (torch.stack(scores) / math.sqrt(HEAD_WIDTH)).softmax(-1)


def decode_batch(
    network: Network,
    windows: Sequence[Window],
    rules: Rules,
    *,
    temperature: float = 0.0,
    alignment_heads: Sequence[tuple[int, int]] = (),
    generator: torch.Generator | None = None,
) -> list[Decoded]:
    """Decode windows whose prefixes have the same length together, greedily at temperature 0."""
    prefix = len(windows[0].prefix)
    caps = [
        min(network.dims.n_text_ctx // 2, round(w.seconds * TOKENS_PER_SECOND) + SPARE_TOKENS)
        for w in windows
    ]
    cross, biases = [w.cross for w in windows], [w.bias for w in windows]
    cache = network.new_cache(cross, biases, prefix + max(caps))
    watch = _Watch(alignment_heads) if alignment_heads else None
    results = [Decoded() for _ in windows]
    tokens = torch.tensor([w.prefix for w in windows], device=network.device)
    output = network.decode(tokens, cache, watch)
    _set_no_speech(network, output, windows, rules, results)
    allowed = rules.first
    running = set(range(len(windows)))
    while running:
        logits = network.logits(output[:, -1]).add_(allowed)
        chosen = _choose(logits, temperature, generator)
        logprobs = (logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
        for index, token in enumerate(chosen.tolist()):
            if index in running:
                _receive(results[index], token, logprobs[index], caps[index], rules.end)
                if results[index].complete or len(results[index].tokens) >= caps[index]:
                    running.discard(index)
        if running:
            output = network.decode(chosen[:, None], cache, watch)
            allowed = rules.later
    if watch is not None:
        for index, (result, window) in enumerate(zip(results, windows, strict=True)):
            rows = slice(prefix - 1, prefix + len(result.tokens) - (not result.complete))
            result.attention = watch.attention(index, window, rows)
    return results


def _receive(result: Decoded, token: int, logprob: float, cap: int, end: int) -> None:
    result.logprobs.append(logprob)
    if token == end:
        result.complete = True
    else:
        result.tokens.append(token)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _set_no_speech(
    network: Network,
    output: Tensor,
    windows: Sequence[Window],
    rules: Rules,
    results: Sequence[Decoded],
) -> None:
    """The probability of no speech is read where the text's start was given."""
    if rules.no_speech is None:
        return
    starts = torch.stack([output[index, w.sot] for index, w in enumerate(windows)])
    probabilities = network.logits(starts).softmax(-1)[:, rules.no_speech]
    for result, probability in zip(results, probabilities.tolist(), strict=True):
        result.no_speech_prob = probability
