"""Whisper's forward passes in torch: fp16 on a CUDA device, fp32 as the weights are meant.

The mathematics is openai-whisper's model.py. Different are: one product for query, key and value,
one for the keys and values of all cross-attentions, any number of frames up to 1500, and caches
that are slots of shared tensors, so that the shapes of a step depend on its size only and a
CUDA graph can repeat it.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from whisper_byoc.inference import network
from whisper_byoc.inference.checkpoint import Checkpoint, Dimensions, Pair
from whisper_byoc.inference.network import HEAD_WIDTH, MAX_FRAMES, Choice, Feed


@dataclass(frozen=True, slots=True)
class TorchEncoded:
    """kv: (layers, 2, heads, length, 64); bias: (length,), added to the scores."""

    kv: Tensor
    bias: Tensor
    num_frames: int


@dataclass(slots=True)
class TorchCache:
    """See `network.Cache`. slot: which of the network's; spare: those for further forks, which it
    shares with its root, of which it is a fork."""

    network: "TorchNetwork"
    slot: int
    positions: int
    spare: list[int]
    root: "TorchCache | None" = None
    length: int = 0
    is_open: bool = True

    def attention(self, first: int, last: int) -> NDArray[np.float32]:
        slots, length = self.network.slots, self.network.slots.lengths[self.slot]
        queries = slots.queries[:, self.slot, first:last].float()
        heads = self.network.alignment_heads
        keys = torch.stack([slots.cross[layer, 0, self.slot, head] for layer, head in heads])
        scores = queries @ keys[:, :length].float().transpose(1, 2) / math.sqrt(HEAD_WIDTH)
        scores += slots.bias[self.slot, 0, 0, :length].float()
        result: NDArray[np.float32] = scores.softmax(-1).cpu().numpy()
        return result


class _Slots:
    """Room for `count` caches.

    own: (layers, 2, slots, heads, positions, 64); cross: (layers, 2, slots, heads, 1500, 64); bias:
    (slots, 1, 1, 1500), −∞ where a window has no key; queries: (alignment heads, slots, positions,
    64); lengths: of each slot's window and tail, in frames.
    """

    def __init__(
        self, dims: Dimensions, count: int, num_watched: int, device: str, dtype: torch.dtype
    ) -> None:
        shape = (dims.n_text_layer, 2, count, dims.n_text_head)

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(*sizes, device=device, dtype=dtype)

        self.own = zeros(*shape, dims.n_text_ctx, HEAD_WIDTH)
        self.cross = zeros(*shape, MAX_FRAMES, HEAD_WIDTH)
        self.bias = zeros(count, 1, 1, MAX_FRAMES)
        self.queries = zeros(num_watched, count, dims.n_text_ctx, HEAD_WIDTH)
        self.free = list(range(count))[::-1]
        self.lengths = [0] * count

    def take(self, encoded: TorchEncoded, count: int) -> list[int]:
        """Some with a window's keys. Raises ValueError where there are not so many."""
        if count > len(self.free):
            num_open = len(self.lengths) - len(self.free)
            raise ValueError(f"{num_open} caches are open, {count} more do not fit, expected fewer")
        taken, length = [self.free.pop() for _ in range(count)], encoded.kv.shape[3]
        for slot in taken:
            self.cross[:, :, slot, :, :length] = encoded.kv
            self.bias[slot, 0, 0, :length] = encoded.bias
            self.bias[slot, 0, 0, length:] = -math.inf
            self.lengths[slot] = length
        return taken

    def give_back(self, slots: Sequence[int]) -> None:
        self.free += slots
        self.free.sort(reverse=True)  # the lowest are taken first, so that a step stays small
        for slot in slots:
            self.lengths[slot] = 0


class TorchNetwork:
    """See `network.Network`. num_slots: how many caches may be open."""

    def __init__(
        self, checkpoint: Checkpoint, device: str, dtype: torch.dtype, num_slots: int = 16
    ) -> None:
        self.dims = dims = checkpoint.dims
        self.device = device
        self.alignment_heads = checkpoint.alignment_heads
        self._dtype = dtype

        def ready(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype).contiguous()

        def pair(weight: Tensor, bias: Tensor) -> Pair:
            return ready(weight), ready(bias)

        def layers(side: str) -> list[dict[str, Pair]]:
            return [
                {part: pair(*found) for part, found in layer.items()}
                for layer in checkpoint.layers(side)
            ]

        self._conv = [pair(*checkpoint.joined(f"encoder.conv{step}")) for step in (1, 2)]
        self._audio_positions = ready(checkpoint.tensors["encoder.positional_embedding"])
        self._encoder = layers("encoder")
        self._encoder_norm = pair(*checkpoint.joined("encoder.ln_post"))
        self._cross_kv = pair(*checkpoint.cross_kv())
        self._embedding = ready(checkpoint.tensors["decoder.token_embedding.weight"])
        self._text_positions = ready(checkpoint.tensors["decoder.positional_embedding"])
        self._decoder = layers("decoder")
        self._decoder_norm = pair(*checkpoint.joined("decoder.ln"))
        self.slots = _Slots(dims, num_slots, len(self.alignment_heads), device, dtype)
        self._graphs: dict[int, _Graph] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Not told apart: a device works on while Python hands it the next part."""
        return {}

    @torch.inference_mode()
    def tail(self, level: float) -> TorchEncoded:
        silence = self.encode(network.silence(level, self.dims))
        frames = network.TAIL_FRAMES
        kv = silence.kv[:, :, :, frames.start :: frames.step].contiguous()
        return TorchEncoded(kv, silence.bias, 0)

    @torch.inference_mode()
    def encode(self, mel: Tensor, tail: TorchEncoded | None = None) -> TorchEncoded:
        network.check_mel(mel, self.dims)
        features = mel[None].to(self.device, self._dtype)
        for step, (weight, bias) in enumerate(self._conv, start=1):
            features = F.gelu(F.conv1d(features, weight, bias, stride=step, padding=1))
        features = features.transpose(1, 2)
        num_frames = features.shape[1]
        features = features + self._audio_positions[:num_frames]
        for layer in self._encoder:
            normal = _norm(features, layer["attention_norm"])
            query, key, value = _heads(F.linear(normal, *layer["qkv"]), 3)
            attended = F.scaled_dot_product_attention(query, key, value)
            features = features + F.linear(_merge(attended), *layer["out"])
            features = features + _mlp(features, layer)
        kv = F.linear(_norm(features, self._encoder_norm)[0], *self._cross_kv)
        kv = kv.reshape(num_frames, self.dims.n_text_layer, 2, -1, HEAD_WIDTH)
        kv = kv.permute(1, 2, 3, 0, 4)
        scores = torch.zeros(num_frames, device=self.device, dtype=self._dtype)
        if tail is not None:
            kv = torch.cat([kv, tail.kv[:, :, :, network.first_behind(num_frames) :]], dim=3)
            added = math.log(network.TAIL_STRIDE)
            scores = F.pad(scores, (0, kv.shape[3] - num_frames), value=added)
        return TorchEncoded(kv, scores, num_frames)

    def encode_in_steps(
        self, mel: Tensor, tail: TorchEncoded | None = None
    ) -> Generator[None, None, TorchEncoded]:
        """In one: on a device it is over in no time."""
        yield from ()
        return self.encode(mel, tail)

    def mask(self, values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    @torch.inference_mode()
    def open(self, encoded: TorchEncoded, positions: int, forks: int = 0) -> TorchCache:
        network.check_positions(positions, self.dims)
        slot, *spare = self.slots.take(encoded, 1 + forks)
        return TorchCache(self, slot, positions, spare[::-1])

    @torch.inference_mode()
    def fork(self, cache: TorchCache) -> TorchCache:
        network.check_fork(cache, len(cache.spare))
        slot, own, length = cache.spare.pop(), self.slots.own, cache.length
        own[:, :, slot, :, :length] = own[:, :, cache.slot, :, :length]
        root = cache.root or cache
        return TorchCache(self, slot, cache.positions, cache.spare, root, length)

    def close(self, cache: TorchCache) -> None:
        if not cache.is_open:
            return
        cache.is_open = False
        if cache.root and cache.root.is_open:
            cache.spare.append(cache.slot)
            return
        self.slots.give_back([cache.slot])
        if not cache.root:
            self.slots.give_back(cache.spare)
            cache.spare.clear()

    @torch.inference_mode()
    def forward(self, feeds: Sequence[Feed]) -> tuple[list[list[Choice]], Tensor]:
        """Slots up to the highest are all computed; those that are not fed are given a token at a
        position that they overwrite later."""
        network.check_feeds(feeds, self.dims)
        longest = max(len(feed.tokens) for feed in feeds)
        count = 1 + max(feed.cache.slot for feed in feeds)
        tokens = np.zeros((count, longest), dtype=np.int64)
        positions = np.full((count, longest), self.dims.n_text_ctx - 1)
        for feed in feeds:
            cache, number = feed.cache, len(feed.tokens)
            tokens[cache.slot, :number] = feed.tokens
            positions[cache.slot, :number] = range(cache.length, cache.length + number)
            cache.length += number
        used = max(feed.cache.length for feed in feeds)
        hidden = self._step(torch.from_numpy(tokens), torch.from_numpy(positions), used)
        asks = [(feed.cache.slot, ask) for feed in feeds for ask in feed.asks]
        if not asks:
            return [[] for _ in feeds], torch.empty(0, self.dims.n_vocab)
        rows = hidden[[slot for slot, _ in asks], [ask.at for _, ask in asks]]
        logits = F.linear(rows, self._embedding).float()
        masks = torch.stack([self._whole_mask(ask.mask) for _, ask in asks])
        answers = iter(_choose(logits + masks, [ask.num_best for _, ask in asks]))
        return [[next(answers) for _ in feed.asks] for feed in feeds], logits

    def _step(self, tokens: Tensor, positions: Tensor, used: int) -> Tensor:
        """The decoder's output (count, n, state) for tokens (count, n) of the first slots; used:
        the largest number of positions that one of their caches has filled."""
        if self.device == "cpu":
            return self._decode(tokens, positions, used, max(self.slots.lengths[: len(tokens)]))
        tokens, positions = tokens.to(self.device), positions.to(self.device)
        if tokens.shape[1] > 1:
            return self._decode(tokens, positions, self.dims.n_text_ctx, MAX_FRAMES)
        size = min(1 << (len(tokens) - 1).bit_length(), len(self.slots.lengths))
        graph = self._graphs.get(size) or self._graphs.setdefault(size, _Graph(self, size))
        return graph.replay(tokens, positions)

    def _decode(self, tokens: Tensor, positions: Tensor, used: int, length: int) -> Tensor:
        """See the first `used` positions of the caches' own keys and `length` of their windows'."""
        slots, count = self.slots, len(tokens)
        x = self._embedding[tokens] + self._text_positions[positions]
        reach = torch.arange(used, device=x.device) <= positions[:, :, None]
        mask = torch.zeros(reach.shape, device=x.device, dtype=x.dtype)
        mask = mask.masked_fill(~reach, -math.inf)[:, None]
        bias = slots.bias[:count, :, :, :length]
        rows = torch.arange(count, device=x.device)[:, None]
        for index, layer in enumerate(self._decoder):
            normal = _norm(x, layer["attention_norm"])
            query, key, value = _heads(F.linear(normal, *layer["qkv"]), 3)
            keys, values = slots.own[index, :, :count]
            keys[rows, :, positions] = key.transpose(1, 2)
            values[rows, :, positions] = value.transpose(1, 2)
            keys, values = keys[:, :, :used], values[:, :, :used]
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            x = x + F.linear(_merge(attended), *layer["out"])
            normal = _norm(x, layer["cross_norm"])
            (query,) = _heads(F.linear(normal, *layer["cross_query"]), 1)
            for watched, (watched_layer, head) in enumerate(self.alignment_heads):
                if watched_layer == index:
                    slots.queries[watched, rows, positions] = query[:, head]
            keys, values = slots.cross[index, :, :count, :, :length]
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)
            x = x + F.linear(_merge(attended), *layer["cross_out"])
            x = x + _mlp(x, layer)
        return _norm(x, self._decoder_norm)

    def _whole_mask(self, mask: Tensor | None) -> Tensor:
        if mask is not None:
            return mask
        return torch.zeros(len(self._embedding), device=self.device)


class _Graph:
    """A decode step of the first `size` slots as a CUDA graph: one launch for some 100 kernels."""

    def __init__(self, network: TorchNetwork, size: int) -> None:
        self._last = last = network.dims.n_text_ctx - 1
        self._tokens = torch.zeros(size, 1, dtype=torch.int64, device=network.device)
        self._positions = torch.full_like(self._tokens, last)

        def step() -> Tensor:
            return network._decode(self._tokens, self._positions, last + 1, MAX_FRAMES)

        # Kernels choose their workspaces in the first runs, which must not be captured.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._hidden = step()

    def replay(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens, positions: (count, 1), count at most `size`."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[count:] = self._last
        self._positions[:count] = positions
        self._graph.replay()
        return self._hidden[:count]


def _choose(allowed: Tensor, num_best: Sequence[int]) -> list[Choice]:
    """Of logits (asks, vocabulary), −∞ where a token may not come. num_best: of each ask."""
    logits, tokens = allowed.max(-1)
    tokens = torch.where(logits > -math.inf, tokens, -1)
    best = [
        [(token, logit) for token, logit in named[:count] if logit > -math.inf]
        for named, count in zip(_best(allowed, max(num_best)), num_best, strict=True)
    ]
    columns = (tokens.tolist(), logits.tolist(), allowed.logsumexp(-1).tolist(), best)
    return [Choice(*row) for row in zip(*columns, strict=True)]


def _best(allowed: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """The best tokens of each row with their logits."""
    if not count:
        return [[] for _ in allowed]
    logits, tokens = allowed.topk(count)
    rows = zip(tokens.tolist(), logits.tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def _heads(x: Tensor, parts: int) -> Tensor:
    """(B, n, parts · state) → (parts, B, heads, n, 64)."""
    return x.reshape(*x.shape[:2], parts, -1, HEAD_WIDTH).permute(2, 0, 3, 1, 4)


def _norm(x: Tensor, norm: Pair) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *norm)


def _mlp(x: Tensor, layer: dict[str, Pair]) -> Tensor:
    wide = F.gelu(F.linear(_norm(x, layer["mlp_norm"]), *layer["up"]))
    return F.linear(wide, *layer["down"])


def _merge(attended: Tensor) -> Tensor:
    """(B, heads, n, 64) → (B, n, state)."""
    return attended.transpose(1, 2).flatten(2)
