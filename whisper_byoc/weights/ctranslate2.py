"""Reads a Whisper model in CTranslate2's format and turns it back into OpenAI's checkpoint.

The format is a flat list of named arrays, so reading it executes nothing, and every length
is compared with the bytes that are there. Version 6, little-endian:

    u32 version, string specification, u32 its revision
    u32 count, then per tensor: string name, u8 rank, u32 per dimension, u8 dtype, u32 bytes, data
    u32 count, then per alias: string name, string name of the tensor it stands for

A string is a u16 length and that many bytes, the last of them NUL.
"""

import io
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from whisper_byoc.errors import ConfigurationError

VERSION: Final = 6
SPECIFICATION: Final = "WhisperSpec"
REVISION: Final = 3
MAX_RANK: Final = 8
"""Whisper's tensors have rank 3 at most; numpy refuses more than 64."""

DTYPES: Final = (
    np.dtype("<f4"),
    np.dtype("<i1"),
    np.dtype("<i2"),
    np.dtype("<i4"),
    np.dtype("<f2"),
)
"""By the format's dtype code."""

HEAD_WIDTH: Final = 64
"""Of every Whisper size."""


class InvalidModelFile(ConfigurationError):
    """The bytes are not a whole Whisper model in CTranslate2's format."""

    code = "invalid_model_file"


class Checkpoint(TypedDict):
    """What `whisper.load_model` reads: the fields of `ModelDimensions`, and the weights."""

    dims: dict[str, int]
    model_state_dict: dict[str, torch.Tensor]


def read_ctranslate2(data: bytes | memoryview | Path) -> dict[str, NDArray[Any]]:
    """All tensors by name, aliases included, as read-only views into `data`.

    Raises InvalidModelFile for bytes that are cut short or are anything else.
    """
    reader = _Reader(data.read_bytes() if isinstance(data, Path) else data)
    reader.expect("version", reader.u32(), VERSION)
    reader.expect("specification", reader.string(), SPECIFICATION)
    reader.expect("revision", reader.u32(), REVISION)
    tensors: dict[str, NDArray[Any]] = {}
    for _ in range(reader.u32()):
        name = _new_name(reader.string(), tensors)
        tensors[name] = reader.tensor(name)
    for _ in range(reader.u32()):
        name = _new_name(reader.string(), tensors)
        target = reader.string()
        if target not in tensors:
            raise InvalidModelFile(f"alias {name} stands for {target!r}, expected a tensor's name")
        tensors[name] = tensors[target]
    reader.expect_end()
    return tensors


def to_openai_checkpoint(tensors: Mapping[str, NDArray[Any]]) -> Checkpoint:
    """The same weights under OpenAI's names, fp16; the dimensions come from the shapes.

    Raises InvalidModelFile when a tensor is missing, has another shape or holds no floats
    (quantised models cannot be turned back).
    """
    weights = _Weights(tensors)
    audio_state, n_mels = weights.shape("encoder/conv1/weight", 3)[:2]
    n_audio_ctx = weights.shape("encoder/position_encodings/encodings", 2)[0]
    n_vocab, text_state = weights.shape("decoder/embeddings/weight", 2)
    n_text_ctx = weights.shape("decoder/position_encodings/encodings", 2)[0]
    audio_layers, text_layers = weights.num_layers("encoder"), weights.num_layers("decoder")

    weights.take("encoder/conv1/weight", "encoder.conv1.weight", audio_state, n_mels, 3)
    weights.take("encoder/conv1/bias", "encoder.conv1.bias", audio_state)
    weights.take("encoder/conv2/weight", "encoder.conv2.weight", audio_state, audio_state, 3)
    weights.take("encoder/conv2/bias", "encoder.conv2.bias", audio_state)
    weights.take_positions("encoder", n_audio_ctx, audio_state)
    for layer in range(audio_layers):
        source, target = f"encoder/layer_{layer}", f"encoder.blocks.{layer}"
        weights.take_self_attention(source, target, audio_state)
        weights.take_mlp(source, target, audio_state)
    weights.take_norm("encoder/layer_norm", "encoder.ln_post", audio_state)

    weights.take("decoder/embeddings/weight", "decoder.token_embedding.weight", n_vocab, text_state)
    weights.take_positions("decoder", n_text_ctx, text_state)
    for layer in range(text_layers):
        source, target = f"decoder/layer_{layer}", f"decoder.blocks.{layer}"
        weights.take_self_attention(source, target, text_state)
        weights.take_cross_attention(source, target, text_state, audio_state)
        weights.take_mlp(source, target, text_state)
    weights.take_norm("decoder/layer_norm", "decoder.ln", text_state)

    dims = {
        "n_mels": n_mels,
        "n_audio_ctx": n_audio_ctx,
        "n_audio_state": audio_state,
        "n_audio_head": _num_heads(audio_state),
        "n_audio_layer": audio_layers,
        "n_vocab": n_vocab,
        "n_text_ctx": n_text_ctx,
        "n_text_state": text_state,
        "n_text_head": _num_heads(text_state),
        "n_text_layer": text_layers,
    }
    return {"dims": dims, "model_state_dict": weights.taken}


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write what `whisper.load_model` reads; the same bytes each time with the same torch.

    By way of memory: given a path, torch.save writes its name into the archive; and a full disk
    is an OSError then.
    """
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    path.write_bytes(buffer.getbuffer())


class _Reader:
    """A position in bytes that nobody vouches for."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self._position = 0

    def u8(self) -> int:
        return self._take(1, "a byte")[0]

    def u16(self) -> int:
        return int(struct.unpack("<H", self._take(2, "a u16"))[0])

    def u32(self) -> int:
        return int(struct.unpack("<I", self._take(4, "a u32"))[0])

    def string(self) -> str:
        position = self._position
        raw = bytes(self._take(self.u16(), "a string"))
        try:
            text = raw.decode("ascii")
        except UnicodeDecodeError as error:
            raise InvalidModelFile(
                f"string at byte {position} is {raw[:40]!r}, expected ASCII"
            ) from error
        if not text.endswith("\0") or "\0" in text[:-1]:
            raise InvalidModelFile(
                f"string at byte {position} is {text[:40]!r}, expected one NUL, at its end"
            )
        return text[:-1]

    def tensor(self, name: str) -> NDArray[Any]:
        rank = self.u8()
        if rank > MAX_RANK:
            raise InvalidModelFile(f"tensor {name} has rank {rank}, expected at most {MAX_RANK}")
        shape = [self.u32() for _ in range(rank)]
        code = self.u8()
        if code >= len(DTYPES):
            raise InvalidModelFile(f"tensor {name} has dtype {code}, expected 0 to 4")
        size, expected = self.u32(), math.prod(shape) * DTYPES[code].itemsize
        if size != expected or not size:
            raise InvalidModelFile(
                f"tensor {name} has {size} bytes, expected {expected} for shape {shape}, none 0"
            )
        data = self._take(size, f"tensor {name}")
        return np.frombuffer(data, DTYPES[code]).reshape(shape)

    def expect(self, what: str, found: int | str, expected: int | str) -> None:
        if found != expected:
            raise InvalidModelFile(f"{what} is {found!r}, expected {expected!r}")

    def expect_end(self) -> None:
        if left := len(self._data) - self._position:
            raise InvalidModelFile(f"file goes on for {left} bytes, expected its end")

    def _take(self, size: int, what: str) -> memoryview:
        taken = self._data[self._position : self._position + size].toreadonly()
        if len(taken) < size:
            raise InvalidModelFile(
                f"file ends {len(taken)} bytes into {what} at byte {self._position},"
                f" expected {size} bytes"
            )
        self._position += size
        return taken


class _Weights:
    """Moves tensors from CTranslate2's names to OpenAI's; `taken` collects them."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._tensors = tensors
        self.taken: dict[str, torch.Tensor] = {}

    def num_layers(self, side: str) -> int:
        layer = 0
        while f"{side}/layer_{layer}/ffn/linear_0/weight" in self._tensors:
            layer += 1
        return layer

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self._find(name).shape
        if len(shape) != rank:
            raise InvalidModelFile(f"tensor {name} has shape {list(shape)}, expected rank {rank}")
        return shape

    def take(self, source: str, target: str, *shape: int) -> None:
        self._put(target, self._floats(source, shape))

    def take_positions(self, side: str, length: int, width: int) -> None:
        source = f"{side}/position_encodings/encodings"
        self.take(source, f"{side}.positional_embedding", length, width)

    def take_norm(self, source: str, target: str, width: int) -> None:
        self.take(f"{source}/gamma", f"{target}.weight", width)
        self.take(f"{source}/beta", f"{target}.bias", width)

    def take_linear(self, source: str, target: str, outputs: int, inputs: int) -> None:
        self.take(f"{source}/weight", f"{target}.weight", outputs, inputs)
        self.take(f"{source}/bias", f"{target}.bias", outputs)

    def take_stacked(
        self, source: str, target: str, parts: tuple[str, ...], outputs: int, inputs: int
    ) -> None:
        """Several projections in one matrix, one under the other."""
        rows = (outputs * len(parts), inputs)
        weights = np.split(self._floats(f"{source}/weight", rows), len(parts))
        biases = np.split(self._floats(f"{source}/bias", rows[:1]), len(parts))
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            self._put(f"{target}.{part}.weight", weight)
            if part != "key":
                self._put(f"{target}.{part}.bias", bias)
            elif bias.any():  # Whisper's keys have none: dropping it would change the model
                raise InvalidModelFile(f"{source}/bias adds to the keys, expected zeros there")

    def take_self_attention(self, source: str, target: str, width: int) -> None:
        attention = f"{source}/self_attention"
        self.take_norm(f"{attention}/layer_norm", f"{target}.attn_ln", width)
        stacked = ("query", "key", "value")
        self.take_stacked(f"{attention}/linear_0", f"{target}.attn", stacked, width, width)
        self.take_linear(f"{attention}/linear_1", f"{target}.attn.out", width, width)

    def take_cross_attention(self, source: str, target: str, width: int, encoded: int) -> None:
        attention = f"{source}/attention"
        self.take_norm(f"{attention}/layer_norm", f"{target}.cross_attn_ln", width)
        self.take_linear(f"{attention}/linear_0", f"{target}.cross_attn.query", width, width)
        stacked = ("key", "value")
        self.take_stacked(f"{attention}/linear_1", f"{target}.cross_attn", stacked, width, encoded)
        self.take_linear(f"{attention}/linear_2", f"{target}.cross_attn.out", width, width)

    def take_mlp(self, source: str, target: str, width: int) -> None:
        self.take_norm(f"{source}/ffn/layer_norm", f"{target}.mlp_ln", width)
        self.take_linear(f"{source}/ffn/linear_0", f"{target}.mlp.0", 4 * width, width)
        self.take_linear(f"{source}/ffn/linear_1", f"{target}.mlp.2", width, 4 * width)

    def _find(self, name: str) -> NDArray[Any]:
        if name not in self._tensors:
            raise InvalidModelFile(f"{len(self._tensors)} tensors, expected {name} among them")
        return self._tensors[name]

    def _floats(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        tensor = self._find(name)
        if tensor.dtype.kind != "f":
            raise InvalidModelFile(f"tensor {name} holds {tensor.dtype}, expected floats")
        if tensor.shape != shape:
            raise InvalidModelFile(
                f"tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
        return tensor

    def _put(self, name: str, tensor: NDArray[Any]) -> None:
        """A copy: torch.save writes the whole memory behind a view."""
        self.taken[name] = torch.from_numpy(tensor.astype(np.float16))


def _new_name(name: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    if name in tensors:
        raise InvalidModelFile(f"tensor {name} is there twice, expected it once")
    return name


def _num_heads(width: int) -> int:
    if width % HEAD_WIDTH:
        raise InvalidModelFile(f"model is {width} wide, expected a multiple of {HEAD_WIDTH}")
    return width // HEAD_WIDTH
