"""Writes CTranslate2's format, as its documentation has it, for tests of what reads it."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

Tensors = dict[str, NDArray[Any]]


def ctranslate2_file(
    tensors: Mapping[str, NDArray[Any]],
    aliases: Mapping[str, str] | None = None,
    *,
    version: int = 6,
    specification: str = "WhisperSpec",
    revision: int = 3,
) -> bytes:
    parts = [struct.pack("<I", version), string(specification), struct.pack("<I", revision)]
    parts.append(struct.pack("<I", len(tensors)))
    parts += [tensor(name, array) for name, array in tensors.items()]
    parts.append(struct.pack("<I", len(aliases or {})))
    parts += [string(name) + string(target) for name, target in (aliases or {}).items()]
    return b"".join(parts)


def tensor(name: str, array: NDArray[Any]) -> bytes:
    head = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    return (
        string(name)
        + head
        + struct.pack("<BI", CODES[array.dtype.name], array.nbytes)
        + (array.astype(array.dtype.newbyteorder("<")).tobytes())
    )


def string(text: str) -> bytes:
    raw = text.encode("ascii") + b"\0"
    return struct.pack("<H", len(raw)) + raw


def whisper_tensors(width: int = 64, audio_layers: int = 1, text_layers: int = 2) -> Tensors:
    """A Whisper of random weights, small enough to be made in a moment."""
    random = np.random.default_rng(20)
    tensors: Tensors = {}

    def add(name: str, *shape: int) -> None:
        tensors[name] = random.standard_normal(shape).astype(np.float16)

    def add_linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}/weight", outputs, inputs)
        add(f"{name}/bias", outputs)

    def add_norm(name: str) -> None:
        add(f"{name}/gamma", width)
        add(f"{name}/beta", width)

    def add_layer(name: str) -> None:
        add_norm(f"{name}/self_attention/layer_norm")
        add_linear(f"{name}/self_attention/linear_0", 3 * width, width)
        tensors[f"{name}/self_attention/linear_0/bias"][width : 2 * width] = 0
        add_linear(f"{name}/self_attention/linear_1", width, width)
        add_norm(f"{name}/ffn/layer_norm")
        add_linear(f"{name}/ffn/linear_0", 4 * width, width)
        add_linear(f"{name}/ffn/linear_1", width, 4 * width)

    add("encoder/conv1/weight", width, 80, 3)
    add("encoder/conv1/bias", width)
    add("encoder/conv2/weight", width, width, 3)
    add("encoder/conv2/bias", width)
    add("encoder/position_encodings/encodings", 20, width)
    add_norm("encoder/layer_norm")
    add("decoder/embeddings/weight", 51864, width)
    add("decoder/position_encodings/encodings", 12, width)
    add_norm("decoder/layer_norm")
    for layer in range(audio_layers):
        add_layer(f"encoder/layer_{layer}")
    for layer in range(text_layers):
        add_layer(f"decoder/layer_{layer}")
        attention = f"decoder/layer_{layer}/attention"
        add_norm(f"{attention}/layer_norm")
        add_linear(f"{attention}/linear_0", width, width)
        add_linear(f"{attention}/linear_1", 2 * width, width)
        tensors[f"{attention}/linear_1/bias"][:width] = 0
        add_linear(f"{attention}/linear_2", width, width)
    tensors["decoder/num_heads"] = np.array(width // 64, dtype=np.int16)
    return tensors
