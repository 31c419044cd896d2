"""One checkpoint: its dimensions and alignment heads, its layers as both networks want them."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import whisper
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""Weight and bias of a linear layer or a convolution, gain and shift of a norm."""

_LAYER = {
    "attention_norm": ["attn_ln"],
    "qkv": ["attn.query", "attn.key", "attn.value"],
    "out": ["attn.out"],
    "mlp_norm": ["mlp_ln"],
    "up": ["mlp.0"],
    "down": ["mlp.2"],
}
_CROSS_ATTENTION = {
    "cross_norm": ["cross_attn_ln"],
    "cross_query": ["cross_attn.query"],
    "cross_out": ["cross_attn.out"],
}
"""Our names for the parts of a layer, and openai-whisper's for what is joined in each."""


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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """tensors: by openai-whisper's names. alignment_heads: (layer, head) pairs of the decoder whose
    attention follows the audio, so that word times can be read from it."""

    dims: Dimensions
    tensors: Mapping[str, Tensor]
    alignment_heads: Sequence[tuple[int, int]]

    @classmethod
    def load(cls, path: Path, name: str) -> Self:
        """name: Whisper's name of the weights. The tensors stay in the file until they are used."""
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        dims = Dimensions(**loaded["dims"])
        return cls(dims, loaded["model_state_dict"], _alignment_heads(name, dims))

    def joined(self, *names: str) -> Pair:
        """The layers of these names as one whose outputs stand side by side. Whisper's keys have no
        bias: theirs is 0."""
        weights = [self.tensors[f"{name}.weight"] for name in names]
        biases = [
            self.tensors.get(f"{name}.bias", torch.zeros(len(weight)))
            for name, weight in zip(names, weights, strict=True)
        ]
        return torch.cat(weights), torch.cat(biases)

    def layers(self, side: str) -> list[dict[str, Pair]]:
        """The layers of "encoder" or "decoder", by parts; those named cross_* are the latter's."""
        dims = self.dims
        parts, count = _LAYER, dims.n_audio_layer
        if side == "decoder":
            parts, count = parts | _CROSS_ATTENTION, dims.n_text_layer
        return [
            {
                part: self.joined(*(f"{side}.blocks.{index}.{name}" for name in names))
                for part, names in parts.items()
            }
            for index in range(count)
        ]

    def cross_kv(self) -> Pair:
        """Keys and values of every cross-attention, layer by layer: all see the same frames."""
        names = [f"decoder.blocks.{index}.cross_attn" for index in range(self.dims.n_text_layer)]
        return self.joined(*(f"{name}.{part}" for name in names for part in ("key", "value")))


def _alignment_heads(name: str, dims: Dimensions) -> list[tuple[int, int]]:
    """Those that OpenAI found for the weights of this name; for others all of the decoder's later
    half, as openai-whisper has it."""
    known = whisper._ALIGNMENT_HEADS.get(name)
    if known is None:
        layers = range(dims.n_text_layer // 2, dims.n_text_layer)
        return [(layer, head) for layer in layers for head in range(dims.n_text_head)]
    marks = np.frombuffer(gzip.decompress(base64.b85decode(known)), dtype=bool)
    rows = marks.reshape(dims.n_text_layer, dims.n_text_head)
    return [(int(layer), int(head)) for layer, head in np.argwhere(rows)]
