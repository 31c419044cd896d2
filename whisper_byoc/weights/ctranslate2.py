"""Reads a Whisper model in CTranslate2's format and turns it back into OpenAI's checkpoint.

The format is a flat list of named arrays, so reading it executes nothing, and every length
is compared with the bytes that are there. Version 6, little-endian:

    u32 version, string specification, u32 its revision
    u32 count, then per tensor: string name, u8 rank, u32 per dimension, u8 dtype, u32 bytes, data
    u32 count, then per alias: string name, string name of the tensor it stands for

A string is a u16 length and that many bytes, the last of them NUL.
"""

import io
import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypedDict

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
"""Channels of one attention head: the same in every size of Whisper."""


class InvalidModelFile(ConfigurationError):
    """The bytes are not a whole Whisper model in CTranslate2's format."""

    code = "invalid_model_file"


class Checkpoint(TypedDict):
    """What `whisper.load_model` reads: the fields of `ModelDimensions`, and the weights."""

    dims: dict[str, int]
    model_state_dict: dict[str, torch.Tensor]


def read_ctranslate2(data: bytes | memoryview) -> dict[str, NDArray[Any]]:
    """All tensors by name, aliases included, as read-only views into `data`.

    Raises InvalidModelFile for bytes that are cut short or are anything else.
    """
    reader = _Reader(data)
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
    dims = _dimensions(tensors)
    weights: dict[str, torch.Tensor] = {}
    for source, target, shape, stacked in _plan(dims):
        array = _floats(tensors, source, shape)
        names = [target] if not stacked else [target.format(part) for part in stacked]
        for name, part in zip(names, np.split(array, len(names)), strict=True):
            if not name.endswith("key.bias"):
                # A copy: torch.save writes the whole memory behind a view.
                weights[name] = torch.from_numpy(part.astype(np.float16))
            elif part.any():  # Whisper's keys have none: dropping it would change the model
                raise InvalidModelFile(f"{source} adds to the keys, expected zeros there")
    return {"dims": dims, "model_state_dict": weights}


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write what `whisper.load_model` reads; the same bytes each time with the same torch.

    By way of memory: given a path, torch.save writes its name into the archive; and a full disk
    is an OSError then.
    """
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    path.write_bytes(buffer.getbuffer())


class _Reader:
    """Takes fields of the format out of untrusted bytes, one behind another.

    Its methods raise InvalidModelFile where the bytes end early or make no sense.
    """

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
        # Slicing a view copies nothing, so a size beyond the file costs nothing before it is seen.
        taken = self._data[self._position : self._position + size].toreadonly()
        if len(taken) < size:
            raise InvalidModelFile(
                f"file ends {len(taken)} bytes into {what} at byte {self._position},"
                f" expected {size} bytes"
            )
        self._position += size
        return taken


class _Move(NamedTuple):
    """A tensor of `shape` to the name `target`, or to one for each of the projections that are
    `stacked` in it, one under the other, with their names in place of `{}`."""

    source: str
    target: str
    shape: tuple[int, ...]
    stacked: tuple[str, ...] = ()


def _plan(dims: Mapping[str, int]) -> Iterator[_Move]:
    """Where every tensor goes."""
    audio, text = dims["n_audio_state"], dims["n_text_state"]
    for name, inputs in (("conv1", dims["n_mels"]), ("conv2", audio)):
        yield _Move(f"encoder/{name}/weight", f"encoder.{name}.weight", (audio, inputs, 3))
        yield _Move(f"encoder/{name}/bias", f"encoder.{name}.bias", (audio,))
    words = (dims["n_vocab"], text)
    yield _Move("decoder/embeddings/weight", "decoder.token_embedding.weight", words)
    for side, width, kind in (("encoder", audio, "audio"), ("decoder", text, "text")):
        positions = (dims[f"n_{kind}_ctx"], width)
        target = f"{side}.positional_embedding"
        yield _Move(f"{side}/position_encodings/encodings", target, positions)
        for layer in range(dims[f"n_{kind}_layer"]):
            source, target = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            yield from _attention(source, target, width)
            if side == "decoder":
                yield from _cross_attention(source, target, width, audio)
            yield from _norm(f"{source}/ffn/layer_norm", f"{target}.mlp_ln", width)
            yield from _linear(f"{source}/ffn/linear_0", f"{target}.mlp.0", 4 * width, width)
            yield from _linear(f"{source}/ffn/linear_1", f"{target}.mlp.2", width, 4 * width)
    yield from _norm("encoder/layer_norm", "encoder.ln_post", audio)
    yield from _norm("decoder/layer_norm", "decoder.ln", text)


def _attention(source: str, target: str, width: int) -> Iterator[_Move]:
    source += "/self_attention"
    yield from _norm(f"{source}/layer_norm", f"{target}.attn_ln", width)
    projections = ("query", "key", "value")
    yield from _linear(f"{source}/linear_0", f"{target}.attn.{{}}", width, width, projections)
    yield from _linear(f"{source}/linear_1", f"{target}.attn.out", width, width)


def _cross_attention(source: str, target: str, width: int, encoded: int) -> Iterator[_Move]:
    source, target = f"{source}/attention", f"{target}.cross_attn"
    yield from _norm(f"{source}/layer_norm", f"{target}_ln", width)
    yield from _linear(f"{source}/linear_0", f"{target}.query", width, width)
    yield from _linear(f"{source}/linear_1", f"{target}.{{}}", width, encoded, ("key", "value"))
    yield from _linear(f"{source}/linear_2", f"{target}.out", width, width)


def _norm(source: str, target: str, width: int) -> Iterator[_Move]:
    yield _Move(f"{source}/gamma", f"{target}.weight", (width,))
    yield _Move(f"{source}/beta", f"{target}.bias", (width,))


def _linear(
    source: str, target: str, outputs: int, inputs: int, stacked: tuple[str, ...] = ()
) -> Iterator[_Move]:
    rows = outputs * max(1, len(stacked))
    yield _Move(f"{source}/weight", f"{target}.weight", (rows, inputs), stacked)
    yield _Move(f"{source}/bias", f"{target}.bias", (rows,), stacked)


def _dimensions(tensors: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    audio_state, n_mels = _shape(tensors, "encoder/conv1/weight", 3)[:2]
    n_vocab, text_state = _shape(tensors, "decoder/embeddings/weight", 2)
    return {
        "n_mels": n_mels,
        "n_audio_ctx": _shape(tensors, "encoder/position_encodings/encodings", 2)[0],
        "n_audio_state": audio_state,
        "n_audio_head": _num_heads(audio_state),
        "n_audio_layer": _num_layers(tensors, "encoder"),
        "n_vocab": n_vocab,
        "n_text_ctx": _shape(tensors, "decoder/position_encodings/encodings", 2)[0],
        "n_text_state": text_state,
        "n_text_head": _num_heads(text_state),
        "n_text_layer": _num_layers(tensors, "decoder"),
    }


def _num_layers(tensors: Mapping[str, NDArray[Any]], side: str) -> int:
    layers = itertools.count()
    return next(n for n in layers if f"{side}/layer_{n}/ffn/linear_0/weight" not in tensors)


def _find(tensors: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in tensors:
        raise InvalidModelFile(f"{len(tensors)} tensors, expected {name} among them")
    return tensors[name]


def _shape(tensors: Mapping[str, NDArray[Any]], name: str, rank: int) -> tuple[int, ...]:
    shape = _find(tensors, name).shape
    if len(shape) != rank:
        raise InvalidModelFile(f"tensor {name} has shape {list(shape)}, expected rank {rank}")
    return shape


def _floats(tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    tensor = _find(tensors, name)
    if tensor.dtype.kind != "f":
        raise InvalidModelFile(f"tensor {name} holds {tensor.dtype}, expected floats")
    if tensor.shape != shape:
        found, expected = list(tensor.shape), list(shape)
        raise InvalidModelFile(f"tensor {name} has shape {found}, expected {expected}")
    return tensor


def _new_name(name: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    if name in tensors:
        raise InvalidModelFile(f"tensor {name} is there twice, expected it once")
    return name


def _num_heads(width: int) -> int:
    if width % HEAD_WIDTH:
        raise InvalidModelFile(f"model is {width} wide, expected a multiple of {HEAD_WIDTH}")
    return width // HEAD_WIDTH
