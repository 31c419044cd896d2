"""Whisper's encoder and decoder over fused weights, in the format of the machine.

The mathematics is openai-whisper's model.py. Different are: one product for query, key and value,
one for the keys and values of all cross-attentions, any number of frames up to 1500, and caches of
fixed size for a batch of streams.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whisper_byoc.inference.precision import Branch, FloatLayer, Int8Layer, Layer

HEAD_WIDTH = 64
"""Of every Whisper model."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The `dims` of an OpenAI checkpoint."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int


Norm = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class _Block:
    attention_norm: Norm
    qkv: Layer
    out: Layer
    mlp_norm: Norm
    up: Layer
    down: Layer


@dataclass(frozen=True, slots=True)
class _CrossAttention:
    norm: Norm
    query: Layer
    out: Layer


@dataclass(slots=True)
class Cache:
    """Keys and values of a batch of B streams.

    own: (layers, 2, B, heads, positions, 64), filled up to `length`. cross: (layers, 2, B, heads,
    S, 64), and bias (B, 1, 1, S), added to its attention scores: −∞ where a stream has no key.
    """

    own: Tensor
    cross: Tensor
    bias: Tensor
    length: int = 0


class Network:
    """One set of weights. Not for two threads at once."""

    def __init__(
        self, dims: Dimensions, weights: Mapping[str, Tensor], branch: Branch, device: str
    ) -> None:
        self.dims = dims
        self.branch = branch
        self.device = device
        self._dtype = branch.dtype
        parts = _Parts(weights, branch, device)
        self._conv = [
            (parts.tensor(f"{name}.weight"), parts.tensor(f"{name}.bias"))
            for name in ("encoder.conv1", "encoder.conv2")
        ]
        self._audio_positions = parts.tensor("encoder.positional_embedding")
        self._encoder = [parts.block(f"encoder.blocks.{i}") for i in range(dims.n_audio_layer)]
        self._encoder_norm = parts.norm("encoder.ln_post")
        self._cross_kv = parts.cross_kv(dims.n_text_layer)
        self._embedding = parts.tensor("decoder.token_embedding.weight")
        self._text_positions = parts.tensor("decoder.positional_embedding")
        names = [f"decoder.blocks.{i}" for i in range(dims.n_text_layer)]
        self._decoder = [(parts.block(name), parts.cross_attention(name)) for name in names]
        self._decoder_norm = parts.norm("decoder.ln")
        self._vocabulary = parts.vocabulary()

    def encode(self, mel: Tensor) -> Tensor:
        """Keys and values of the cross-attentions, (layers, 2, heads, n, 64).

        mel: float32 (n_mels, 2n), n at most 1500.
        """
        features = mel[None].to(self.device, self._dtype)
        for stride, (weight, bias) in enumerate(self._conv, start=1):
            features = F.gelu(F.conv1d(features, weight, bias, stride=stride, padding=1))
        features = features.transpose(1, 2)
        features = features + self._audio_positions[: features.shape[1]]
        for block in self._encoder:
            query, key, value = self._heads(block.qkv(_norm(features, block.attention_norm)), 3)
            attended = F.scaled_dot_product_attention(query, key, value)
            features = features + block.out(_merge(attended))
            features = features + _mlp(features, block)
        features = _norm(features, self._encoder_norm)
        kv = self._cross_kv(features[0])
        shape = (len(kv), self.dims.n_text_layer, 2, self.dims.n_text_head, HEAD_WIDTH)
        return kv.reshape(shape).permute(1, 2, 3, 0, 4).contiguous()

    def new_cache(self, cross: list[Tensor], biases: list[Tensor], positions: int) -> Cache:
        """A cache for the streams whose `encode` results are `cross`, each with its bias (n,)."""
        longest = max(len(bias) for bias in biases)
        layers, two, heads, _, width = cross[0].shape
        shape = (layers, two, len(cross), heads)
        own = torch.zeros(*shape, positions, width, device=self.device, dtype=self._dtype)
        bias = torch.zeros(len(cross), 1, 1, longest, device=self.device, dtype=self._dtype)
        cache = Cache(own, own.new_zeros(*shape, longest, width), bias.fill_(-math.inf))
        for index, (kv, bias) in enumerate(zip(cross, biases, strict=True)):
            cache.cross[:, :, index, :, : len(bias)] = kv
            cache.bias[index, 0, 0, : len(bias)] = bias
        return cache

    def decode(
        self, tokens: Tensor, cache: Cache, watch: Callable[[int, Tensor], None] | None = None
    ) -> Tensor:
        """The decoder's output at each of the tokens, (B, n, state); they enter the cache.

        tokens: int64 (B, n), at positions `cache.length` on. watch: is given each layer's number
        and its cross-attention queries (B, heads, n, 64).
        """
        start, stop = cache.length, cache.length + tokens.shape[1]
        x = self._embedding[tokens] + self._text_positions[start:stop]
        mask = self._causal_mask(start, stop)
        for index, (block, cross) in enumerate(self._decoder):
            query, key, value = self._heads(block.qkv(_norm(x, block.attention_norm)), 3)
            own = cache.own[index, :, :, :, :stop]
            own[0, :, :, start:], own[1, :, :, start:] = key, value
            attended = F.scaled_dot_product_attention(query, own[0], own[1], attn_mask=mask)
            x = x + block.out(_merge(attended))
            (query,) = self._heads(cross.query(_norm(x, cross.norm)), 1)
            if watch is not None:
                watch(index, query)
            keys, values = cache.cross[index]
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=cache.bias)
            x = x + cross.out(_merge(attended))
            x = x + _mlp(x, block)
        cache.length = stop
        return _norm(x, self._decoder_norm)

    def logits(self, x: Tensor) -> Tensor:
        """float32 (…, vocabulary) of decoder outputs (…, state)."""
        return self._vocabulary(x).float()

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """(B, n, parts · state) → (parts, B, heads, n, 64)."""
        return x.reshape(*x.shape[:2], parts, -1, HEAD_WIDTH).permute(2, 0, 3, 1, 4)

    def _causal_mask(self, start: int, stop: int) -> Tensor | None:
        if stop - start == 1:
            return None
        mask = torch.full((stop - start, stop), -math.inf, device=self.device, dtype=self._dtype)
        return mask.triu(start + 1)


class _Parts:
    """Takes the tensors of a checkpoint and gives layers."""

    def __init__(self, weights: Mapping[str, Tensor], branch: Branch, device: str) -> None:
        self._weights = weights
        self._branch = branch
        self._device = device

    def tensor(self, name: str) -> Tensor:
        return self._weights[name].to(self._device, self._branch.dtype).contiguous()

    def norm(self, name: str) -> Norm:
        return self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")

    def layer(self, name: str) -> Layer:
        return self._layer([name])

    def block(self, name: str) -> _Block:
        attention = [f"{name}.attn.{part}" for part in ("query", "key", "value")]
        return _Block(
            attention_norm=self.norm(f"{name}.attn_ln"),
            qkv=self._layer(attention),
            out=self.layer(f"{name}.attn.out"),
            mlp_norm=self.norm(f"{name}.mlp_ln"),
            up=self.layer(f"{name}.mlp.0"),
            down=self.layer(f"{name}.mlp.2"),
        )

    def cross_attention(self, name: str) -> _CrossAttention:
        return _CrossAttention(
            norm=self.norm(f"{name}.cross_attn_ln"),
            query=self.layer(f"{name}.cross_attn.query"),
            out=self.layer(f"{name}.cross_attn.out"),
        )

    def cross_kv(self, layers: int) -> Layer:
        names = [f"decoder.blocks.{i}.cross_attn" for i in range(layers)]
        return self._layer([f"{name}.{part}" for name in names for part in ("key", "value")])

    def vocabulary(self) -> Layer:
        weight = self._weights["decoder.token_embedding.weight"].float()
        if self._branch in (Branch.BF16, Branch.INT8):
            return Int8Layer(weight, None, torch.float32)
        return FloatLayer(weight, None, self._branch.dtype, self._device)

    def _layer(self, names: list[str]) -> Layer:
        """The layers of these names side by side; Whisper's keys have no bias."""
        weights = [self._weights[f"{name}.weight"].float() for name in names]
        biases = [
            self._weights.get(f"{name}.bias", torch.zeros(len(weight))).float()
            for name, weight in zip(names, weights, strict=True)
        ]
        weight, bias = torch.cat(weights), torch.cat(biases)
        if self._branch is Branch.INT8:
            return Int8Layer(weight, bias, torch.float32)
        return FloatLayer(weight, bias, self._branch.dtype, self._device)


def _norm(x: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *norm)


def _mlp(x: Tensor, block: _Block) -> Tensor:
    return block.down(F.gelu(block.up(_norm(x, block.mlp_norm))))


def _merge(attended: Tensor) -> Tensor:
    """(B, heads, n, 64) → (B, n, state)."""
    return attended.transpose(1, 2).flatten(2)
