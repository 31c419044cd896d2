"""Whisper's forward passes on a CPU, in C (`kernels/`): packs weights, owns memory.

Weights and activations are integers, with a scale per output and per row, so that sums are exact
and no row depends on its neighbours. The decoder, which is bound by memory, has int8 weights and
int16 activations; the encoder int8 for both where the processor multiplies bytes (AVX512-VNNI),
else int16.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisper_byoc.errors import ConfigurationError
from whisper_byoc.inference.network import (
    HEAD_WIDTH,
    MAX_FRAMES,
    Choice,
    Dimensions,
    Feed,
    check_feeds,
    check_mel,
    check_positions,
)

MAX_ROWS = 64
"""Tokens of one call; longer prompts go in pieces."""
NARROW, BYTES, WIDE = range(3)
"""`Format` of kernels.h."""
PARTS = ("convolution", "encoder", "cross K/V", "decoder step", "vocabulary projection")
FOLDER = Path(__file__).resolve().parent / "kernels"

Array = NDArray[Any]


class _Linear(Structure):
    _fields_ = [
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("format", c_int32),
        ("limit", c_int32),
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
    ]


class _Norm(Structure):
    _fields_ = [("gain", c_void_p), ("shift", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        ("attention_norm", _Norm),
        ("qkv", _Linear),
        ("out", _Linear),
        ("cross_norm", _Norm),
        ("cross_query", _Linear),
        ("cross_out", _Linear),
        ("mlp_norm", _Norm),
        ("up", _Linear),
        ("down", _Linear),
    ]


class _Model(Structure):
    _fields_ = [
        ("state", c_int32),
        ("heads", c_int32),
        ("mels", c_int32),
        ("vocabulary", c_int32),
        ("encoder_layers", c_int32),
        ("decoder_layers", c_int32),
        ("threads", c_int32),
        ("conv1", _Linear),
        ("conv2", _Linear),
        ("cross_kv", _Linear),
        ("words", _Linear),
        ("encoder_norm", _Norm),
        ("decoder_norm", _Norm),
        ("audio_positions", c_void_p),
        ("text_positions", c_void_p),
        ("embedding", c_void_p),
        ("encoder", POINTER(_Layer)),
        ("decoder", POINTER(_Layer)),
        ("watched", c_void_p),
        ("workspace", c_void_p),
        ("seconds", c_void_p),
    ]


_STREAM = np.dtype(
    [
        ("keys", "u8"),
        ("values", "u8"),
        ("bias", "u8"),
        ("own", "u8"),
        ("length", "i4"),
        ("positions", "i4"),
        ("frames", "i4"),
    ],
    align=True,
)
_ROW = np.dtype(
    [("stream", "i4"), ("token", "i4"), ("position", "i4"), ("scores", "u8")], align=True
)
_WANTED = np.dtype([("row", "i4"), ("mask", "u8")], align=True)
_CHOICE = np.dtype([("token", "i4"), ("logit", "f4"), ("log_sum", "f4")])


def _layouts() -> dict[str, list[int]]:
    """Size and offsets of the fields of every struct that C shares with us, as they are here."""
    structs = (_Linear, _Norm, _Layer, _Model)
    layouts = {
        struct.__name__: [
            ctypes.sizeof(struct),
            *(getattr(struct, field[0]).offset for field in struct._fields_),
        ]
        for struct in structs
    }
    for name, dtype in (("_Stream", _STREAM), ("_Row", _ROW), ("_Wanted", _WANTED)):
        layouts[name] = _layout_of(dtype)
    return layouts | {"_Choice": _layout_of(_CHOICE)}


def _layout_of(dtype: np.dtype[Any]) -> list[int]:
    return [dtype.itemsize, *(offset for _, offset, *_ in (dtype.fields or {}).values())]


class Library:
    """The C library built for one instruction set: `avx512` or `avx2`.

    Raises OSError when it was not built, ConfigurationError when it was built from another version
    of the C. torch must have been imported: its OpenMP is used.
    """

    @staticmethod
    def path(instructions: str) -> Path:
        return FOLDER / f"{instructions}{EXTENSION_SUFFIXES[0]}"

    @classmethod
    def exists(cls, instructions: str) -> bool:
        return cls.path(instructions).exists()

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        _check_layouts(library, path)
        self.lanes: int = library.whisper_lanes()
        self.tile: int = library.whisper_tile()
        self.takes_bytes = bool(library.whisper_takes_bytes())
        model, pointer, number = POINTER(_Model), c_void_p, c_int32
        self.encode_workspace = library.whisper_encode_workspace
        self.encode_workspace.argtypes, self.encode_workspace.restype = [model, number], c_int64
        self.encode = library.whisper_encode
        self.encode.argtypes, self.encode.restype = (
            [model, pointer, number, pointer, pointer, number],
            None,
        )
        self.append = library.whisper_append
        self.append.argtypes, self.append.restype = (
            [model, pointer, pointer, *[number] * 4, pointer, pointer, number, number],
            None,
        )
        self.decode_workspace = library.whisper_decode_workspace
        self.decode_workspace.argtypes = [model, number, number, number]
        self.decode_workspace.restype = c_int64
        self.decode = library.whisper_decode
        self.decode.argtypes, self.decode.restype = (
            [model, pointer, pointer, number, pointer, number, number, pointer, pointer],
            None,
        )


def _check_layouts(library: ctypes.CDLL, path: Path) -> None:
    """Compare our structs with those that the library was compiled with."""
    mend = f"{path} was built from another version of the C: install the package again"
    try:
        length = c_int32.in_dll(library, "whisper_layouts_length").value
        found = iter((c_int32 * length).in_dll(library, "whisper_layouts"))
    except ValueError as error:
        raise ConfigurationError(f"a library without layouts of its structs, {mend}") from error
    for name, expected in _layouts().items():
        layout = list(islice(found, len(expected)))
        if layout != expected:
            raise ConfigurationError(
                f"{name.removeprefix('_')} has the size and offsets {layout}, expected {expected}:"
                f" {mend}"
            )
    if rest := list(found):
        raise ConfigurationError(f"{len(rest)} more numbers of layouts, expected none: {mend}")


class NativeEncoded:
    """keys, values: float16 (layers, heads, length, 64), keys in blocks of `lanes` positions
    with the position last; bias: float32 (length,)."""

    __slots__ = ("bias", "keys", "length", "num_frames", "used", "values")

    def __init__(self, keys: Array, values: Array, bias: Array, num_frames: int, used: int) -> None:
        self.keys, self.values, self.bias = keys, values, bias
        self.num_frames, self.used, self.length = num_frames, used, len(bias)


class NativeStream:
    """own: float32 (layers, heads, 2, positions, 64); scores: float32 (positions, heads, keys)."""

    __slots__ = (
        *("encoded", "is_open", "length", "own", "positions"),
        *("record", "scores", "scores_at", "scores_step"),
    )

    def __init__(self, encoded: NativeEncoded, own: Array, scores: Array) -> None:
        self.encoded, self.own, self.scores, self.length = encoded, own, scores, 0
        self.positions, self.is_open = own.shape[3], True
        self.scores_at, self.scores_step = scores.ctypes.data, scores[:1].nbytes
        self.record = (
            encoded.keys.ctypes.data,
            encoded.values.ctypes.data,
            encoded.bias.ctypes.data,
            own.ctypes.data,
            encoded.length,
            self.positions,
            encoded.length,
        )

    def attention(self, first: int, last: int) -> NDArray[np.float32]:
        scores = self.scores[first:last].transpose(1, 0, 2) + self.encoded.bias
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        result: NDArray[np.float32] = weights / weights.sum(axis=-1, keepdims=True)
        return result


class NativeNetwork:
    """See `network.Network`. threads: that compute each pass, the calling one among them."""

    def __init__(
        self,
        dims: Dimensions,
        weights: Mapping[str, Tensor],
        library: Library,
        alignment_heads: Sequence[tuple[int, int]],
        threads: int,
    ) -> None:
        self.dims = dims
        self._library = library
        self._kept: list[Any] = []  # what C has pointers to
        self._num_watched = len(alignment_heads)
        self._workspace = np.empty(0, dtype=np.uint8)
        self._logits = torch.empty(0, 0)
        watched = np.full((dims.n_text_layer, dims.n_text_head), -1, dtype=np.int32)
        for index, (layer, head) in enumerate(alignment_heads):
            watched[layer, head] = index
        self._seconds = np.zeros(len(PARTS))
        self._model = self._pack(weights, watched)
        self._model.threads = threads
        self._model.seconds = self._seconds.ctypes.data

    def encode(
        self, mel: Tensor, tail: NativeEncoded | None = None, stride: int = 1
    ) -> NativeEncoded:
        check_mel(mel, self.dims)
        num_frames = mel.shape[1] // 2
        skipped = 0 if tail is None else _first_behind(num_frames, stride)
        count = 0 if tail is None else max(0, tail.used - skipped)
        encoded = self._new_encoded(num_frames, num_frames + count)
        rows = np.zeros((2 * num_frames + 2, len(mel)), dtype=np.float32)
        rows[1:-1] = mel.numpy().T
        self._reserve(self._library.encode_workspace(self._model, num_frames))
        keys, values = encoded.keys.ctypes.data, encoded.values.ctypes.data
        self._library.encode(
            self._model, rows.ctypes.data, num_frames, keys, values, encoded.length
        )
        if tail is not None and count:
            self._append(tail, skipped, 1, count, encoded, num_frames)
            encoded.bias[num_frames : num_frames + count] = np.log(stride)
        return encoded

    def thin(self, encoded: NativeEncoded, stride: int) -> NativeEncoded:
        if encoded.num_frames != MAX_FRAMES:
            raise ValueError(f"a window has {encoded.num_frames} frames, expected {MAX_FRAMES}")
        count = len(range(stride // 2, MAX_FRAMES, stride))
        thin = self._new_encoded(0, count)
        self._append(encoded, stride // 2, stride, count, thin, 0)
        return thin

    @property
    def seconds(self) -> dict[str, float]:
        """Where time has gone since the weights were loaded."""
        return dict(zip(PARTS, self._seconds.tolist(), strict=True))

    def mask(self, values: NDArray[np.float32]) -> int:
        mask = np.ascontiguousarray(values, dtype=np.float32)
        self._kept.append(mask)
        return int(mask.ctypes.data)

    def open(self, encoded: NativeEncoded, positions: int) -> NativeStream:
        dims = self.dims
        check_positions(positions, dims)
        shape = (dims.n_text_layer, dims.n_text_head, 2, positions, HEAD_WIDTH)
        scores = (positions, self._num_watched, encoded.length)
        own = np.empty(shape, dtype=np.float32)
        return NativeStream(encoded, own, np.empty(scores, dtype=np.float32))

    def close(self, stream: NativeStream) -> None:
        stream.is_open = False

    def forward(self, feeds: Sequence[Feed]) -> tuple[list[list[Choice]], Tensor]:
        check_feeds(feeds, self.dims)
        streams = np.array([feed.stream.record for feed in feeds], dtype=_STREAM)
        rows: list[tuple[int, int, int, int]] = []
        wanted: list[tuple[int, int]] = []
        longest = int(streams["length"].max())
        for number, feed in enumerate(feeds):
            stream = feed.stream
            wanted += [(len(rows) + ask.at, ask.mask or 0) for ask in feed.asks]
            for position, token in enumerate(feed.tokens, start=stream.length):
                scores = stream.scores_at + position * stream.scores_step
                rows.append((number, token, position, scores if self._num_watched else 0))
            stream.length += len(feed.tokens)
            longest = max(longest, stream.length)
        if len(wanted) > len(self._logits):
            self._logits = torch.empty(len(wanted), self._model.words.outputs)
        choices = np.empty(len(wanted), dtype=_CHOICE)
        done = 0
        for first in range(0, len(rows), MAX_ROWS):
            part = rows[first : first + MAX_ROWS]
            asked = [(row - first, mask) for row, mask in wanted[done:] if row < first + len(part)]
            self._decode(streams, part, asked, longest, done, choices)
            done += len(asked)
        answers = iter(choices.tolist())
        result = [[Choice(*next(answers)) for _ in feed.asks] for feed in feeds]
        return result, self._logits[: len(wanted), : self.dims.n_vocab]

    def _decode(
        self,
        streams: Array,
        rows: list[tuple[int, int, int, int]],
        asked: list[tuple[int, int]],
        longest: int,
        at: int,
        choices: Array,
    ) -> None:
        """Compute rows, and what is asked about them into logits and choices from `at` on.

        longest: how many scores a row may have, of its window's keys or of its own tokens'.
        """
        row_array, asked_array = np.array(rows, dtype=_ROW), np.array(asked, dtype=_WANTED)
        self._reserve(self._library.decode_workspace(self._model, len(rows), len(asked), longest))
        self._library.decode(
            self._model,
            streams.ctypes.data,
            row_array.ctypes.data,
            len(rows),
            asked_array.ctypes.data,
            len(asked),
            longest,
            self._logits[at:].data_ptr() if asked else 0,
            choices[at:].ctypes.data if asked else 0,
        )

    def _new_encoded(self, num_frames: int, used: int) -> NativeEncoded:
        dims, library = self.dims, self._library
        length = -(-used // library.lanes) * library.lanes
        shape = (dims.n_text_layer, dims.n_text_head, length, HEAD_WIDTH)
        keys, values = (np.empty(shape, dtype=np.float16) for _ in range(2))
        # Positions behind the last: finite, and with −∞ added to their scores
        values[:, :, used:] = 0
        keys.reshape(*shape[:2], -1, HEAD_WIDTH, library.lanes)[:, :, used // library.lanes :] = 0
        bias = np.zeros(length, dtype=np.float32)
        bias[used:] = -np.inf
        return NativeEncoded(keys, values, bias, num_frames, used)

    def _append(
        self,
        source: NativeEncoded,
        first: int,
        stride: int,
        count: int,
        target: NativeEncoded,
        at: int,
    ) -> None:
        self._library.append(
            self._model,
            *(array.ctypes.data for array in (source.keys, source.values)),
            *(source.length, first, stride, count),
            *(array.ctypes.data for array in (target.keys, target.values)),
            *(target.length, at),
        )

    def _reserve(self, num_bytes: int) -> None:
        if len(self._workspace) < num_bytes + 64:
            self._workspace = np.empty(num_bytes + 64, dtype=np.uint8)
            self._model.workspace = -(-self._workspace.ctypes.data // 64) * 64

    def _pack(self, weights: Mapping[str, Tensor], watched: Array) -> _Model:
        dims = self.dims
        pack = _Packer(weights, self._library, self._kept)
        layers = range(dims.n_text_layer)
        names = [
            f"decoder.blocks.{i}.cross_attn.{part}" for i in layers for part in ("key", "value")
        ]
        embedding = weights["decoder.token_embedding.weight"]
        model = _Model(
            state=dims.n_text_state,
            heads=dims.n_text_head,
            mels=dims.n_mels,
            vocabulary=dims.n_vocab,
            encoder_layers=dims.n_audio_layer,
            decoder_layers=dims.n_text_layer,
            conv1=pack.convolution("encoder.conv1", exact=True),
            conv2=pack.convolution("encoder.conv2"),
            cross_kv=pack.linear(names, encoder=True),
            words=pack.pack(embedding, None, NARROW),
            encoder_norm=pack.norm("encoder.ln_post"),
            decoder_norm=pack.norm("decoder.ln"),
            audio_positions=pack.copy(weights["encoder.positional_embedding"]),
            text_positions=pack.copy(weights["decoder.positional_embedding"]),
            embedding=pack.copy(embedding, torch.float16),
            encoder=pack.layers("encoder", dims.n_audio_layer),
            decoder=pack.layers("decoder", dims.n_text_layer),
        )
        self._kept.append(watched)
        model.watched = watched.ctypes.data
        return model


class _Packer:
    """Takes the tensors of a checkpoint and lays them out for C; `kept` holds what C points to."""

    def __init__(self, weights: Mapping[str, Tensor], library: Library, kept: list[Any]) -> None:
        self._weights, self._library, self._kept = weights, library, kept

    def keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def copy(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        """Keep a copy: one tensor of a checkpoint keeps all of its file in memory."""
        return self.keep(tensor.to(dtype, copy=True))

    def norm(self, name: str) -> _Norm:
        gain, shift = (self._weights[f"{name}.{part}"] for part in ("weight", "bias"))
        return _Norm(self.copy(gain), self.copy(shift))

    def layers(self, side: str, count: int) -> "ctypes.Array[_Layer]":
        layers = [self._layer(f"{side}.blocks.{i}", side == "encoder") for i in range(count)]
        array = (_Layer * count)(*layers)
        self._kept.append(array)
        return array

    def _layer(self, name: str, encoder: bool) -> _Layer:
        attention = [f"{name}.attn.{part}" for part in ("query", "key", "value")]
        layer = _Layer(
            attention_norm=self.norm(f"{name}.attn_ln"),
            qkv=self.linear(attention, encoder),
            out=self.linear([f"{name}.attn.out"], encoder),
            mlp_norm=self.norm(f"{name}.mlp_ln"),
            up=self.linear([f"{name}.mlp.0"], encoder),
            down=self.linear([f"{name}.mlp.2"], encoder),
        )
        if not encoder:
            layer.cross_norm = self.norm(f"{name}.cross_attn_ln")
            layer.cross_query = self.linear([f"{name}.cross_attn.query"], encoder)
            layer.cross_out = self.linear([f"{name}.cross_attn.out"], encoder)
        return layer

    def linear(self, names: list[str], encoder: bool) -> _Linear:
        """The layers of these names side by side; Whisper's keys have no bias."""
        weights = [self._weights[f"{name}.weight"].float() for name in names]
        biases = [
            self._weights.get(f"{name}.bias", torch.zeros(len(weight))).float()
            for name, weight in zip(names, weights, strict=True)
        ]
        layout = self._encoder_format if encoder else NARROW
        return self.pack(torch.cat(weights), torch.cat(biases), layout)

    def convolution(self, name: str, exact: bool = False) -> _Linear:
        """(out, in, 3) as a product with windows of three frames, (out, 3 · in)."""
        weight = self._weights[f"{name}.weight"].float().permute(0, 2, 1).flatten(1)
        bias = self._weights[f"{name}.bias"].float()
        layout = self._encoder_format
        return self.pack(weight, bias, NARROW if exact and layout == BYTES else layout)

    @property
    def _encoder_format(self) -> int:
        return BYTES if self._library.takes_bytes else WIDE

    def pack(self, weight: Tensor, bias: Tensor | None, layout: int) -> _Linear:
        """weight: (outputs, inputs). The layout is in kernels.h, at `Linear`."""
        tile, outputs, inputs = self._library.tile, *weight.shape
        padded = -(-outputs // tile) * tile
        group = 4 if layout == BYTES else 2
        # Wide: as many bits for weights as for activations, in sums that int32 can hold.
        limit = math.isqrt((2**31 - 1) // inputs) if layout == WIDE else 127
        dtype = (torch.int8, torch.uint8, torch.int16)[layout]
        packed = torch.zeros((padded // tile, inputs // group, tile, group), dtype=dtype)
        scales, biases = torch.zeros(padded), torch.zeros(padded)
        # By the tile: the vocabulary's copies in fp32 would be what most memory is needed for.
        for number in range(len(packed)):
            part = slice(number * tile, min(outputs, (number + 1) * tile))
            rows = weight[part].float()
            scale = rows.abs().amax(1).clamp_min(1e-8) / limit
            rows = (rows / scale[:, None]).round_() + 128 * (layout == BYTES)
            groups = rows.reshape(len(rows), -1, group).transpose(0, 1)
            packed[number, :, : len(rows)] = groups.to(packed.dtype)
            scales[part] = scale
        if bias is not None:
            biases[:outputs] = bias
        return _Linear(
            outputs=padded,
            inputs=inputs,
            format=layout,
            limit=limit,
            weight=self.keep(packed),
            scale=self.keep(scales),
            bias=self.keep(biases),
        )


def _first_behind(num_frames: int, stride: int) -> int:
    """The first of `thin`'s frames that lies behind num_frames."""
    return max(0, -(-(num_frames - stride // 2) // stride))
