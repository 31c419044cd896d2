"""Whisper's forward passes on a CPU, in C (`kernels/`): packs weights, owns memory.

Weights and activations are integers, with a scale per output and per row, so that sums are exact
and no row depends on its neighbours. The decoder, which is bound by memory, has int8 weights and
int16 activations; the encoder int8 for both where the processor multiplies bytes (AVX512-VNNI),
else int16.
"""

import ctypes
import math
from collections.abc import Generator, Iterator, Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from heapq import heappop, heappush
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisper_byoc.errors import ConfigurationError
from whisper_byoc.inference import network
from whisper_byoc.inference.checkpoint import Checkpoint, Pair
from whisper_byoc.inference.network import HEAD_WIDTH, Choice, Feed

NARROW, BYTES, WIDE = range(3)
"""`Format` of kernels.h."""
PARTS = ("convolution", "encoder", "cross K/V", "decoder step", "vocabulary projection")
"""`Part` of whisper.c, in order."""
FOLDER = Path(__file__).resolve().parent / "kernels"

Array = NDArray[Any]


def _struct(*fields: tuple[Any, str]) -> type[Structure]:
    """A struct as C declares it: a type and the names that have it, the next type and its names."""
    pairs = [(name, kind) for kind, names in fields for name in names.split()]
    return type("Struct", (Structure,), {"_fields_": pairs})


_Linear = _struct((c_int32, "outputs inputs format limit"), (c_void_p, "weight scale bias"))
_Norm = _struct((c_void_p, "gain shift"))
_Layer = _struct(
    (_Norm, "attention_norm"),
    (_Linear, "qkv out"),
    (_Norm, "cross_norm"),
    (_Linear, "cross_query cross_out"),
    (_Norm, "mlp_norm"),
    (_Linear, "up down"),
)
_Model = _struct(
    (c_int32, "state heads mels vocabulary encoder_layers decoder_layers num_watched threads"),
    (_Linear, "conv1 conv2 cross_kv words"),
    (_Norm, "encoder_norm decoder_norm"),
    (c_void_p, "audio_positions text_positions embedding encoder decoder"),
    (c_void_p, "watched workspace seconds"),
)
_Encoded = _struct((c_void_p, "keys values bias"), (c_int32, "length"))
_Cache = _struct((_Encoded, "window"), (c_void_p, "own scores slots"))
_Row = _struct((c_int32, "cache token position"))
_Best = _struct((c_int32, "token"), (c_float, "logit"))
_Wanted = _struct((c_int32, "row num_best"), (c_void_p, "mask best"))
_Choice = _struct((c_int32, "token"), (c_float, "logit log_sum"))

_LAYOUTS = {
    name: [ctypes.sizeof(struct), *(getattr(struct, field[0]).offset for field in struct._fields_)]
    for name, struct in {
        "Linear": _Linear,
        "Norm": _Norm,
        "Layer": _Layer,
        "Model": _Model,
        "Encoded": _Encoded,
        "Cache": _Cache,
        "Row": _Row,
        "Best": _Best,
        "Wanted": _Wanted,
        "Choice": _Choice,
    }.items()
}
"""Size and offsets of the fields of every struct that C shares with us, as they are here."""


class Library:
    """The C library built for one instruction set: `avx512` or `avx2`.

    Raises OSError when it was not built, ConfigurationError when it was built from another version
    of the C. torch must have been imported: its OpenMP is used.
    """

    @staticmethod
    def path(instructions: str) -> Path:
        return FOLDER / f"{instructions}{EXTENSION_SUFFIXES[0]}"

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        _check_layouts(library, path)
        self.lanes: int = library.whisper_lanes()
        self.tile: int = library.whisper_tile()
        self.takes_bytes = bool(library.whisper_takes_bytes())
        model, encoded, pointer, number = POINTER(_Model), POINTER(_Encoded), c_void_p, c_int32

        def function(name: str, result: Any, *arguments: Any) -> Any:
            found = library[f"whisper_{name}"]
            found.restype, found.argtypes = result, arguments
            return found

        self.encode_workspace = function("encode_workspace", c_int64, model, number)
        window = [pointer, pointer, number, encoded]
        self.encode = function("encode", None, model, *window, number, number)
        self.append = function("append", None, model, encoded, *[number] * 3, encoded, number)
        self.decode_workspace = function("decode_workspace", c_int64, model, *[number] * 3)
        rows = [pointer, pointer, number, pointer, number]
        self.decode = function("decode", None, model, *rows, number, pointer, pointer)


def _check_layouts(library: ctypes.CDLL, path: Path) -> None:
    """Compare our structs with those that the library was compiled with."""
    mend = f"{path} was built from another version of the C: install the package again"
    try:
        length = c_int32.in_dll(library, "whisper_layouts_length").value
        found = iter((c_int32 * length).in_dll(library, "whisper_layouts"))
    except ValueError as error:
        raise ConfigurationError(f"a library without layouts of its structs, {mend}") from error
    for name, expected in _LAYOUTS.items():
        layout = list(islice(found, len(expected)))
        if layout != expected:
            raise ConfigurationError(
                f"{name} has the size and offsets {layout}, expected {expected}: {mend}"
            )
    if rest := list(found):
        raise ConfigurationError(f"{len(rest)} more numbers of layouts, expected none: {mend}")


@dataclass(frozen=True, slots=True)
class NativeEncoded:
    """keys, values: float16 (layers, heads, length, 64), keys in blocks of `lanes` positions
    with the position last; bias: float32 (length,), −∞ from position `used` on."""

    keys: Array
    values: Array
    bias: Array
    num_frames: int
    used: int

    @property
    def record(self) -> tuple[int, ...]:
        """The fields of `_Encoded`."""
        arrays = (self.keys, self.values, self.bias)
        return (*(array.ctypes.data for array in arrays), len(self.bias))


class _Pool:
    """The keys and values of a cache's tokens and of those of its forks, and who holds which.

    own: float32 (room, layers, heads, 2, 64). holders: how many caches hold a slot of the room.
    """

    def __init__(self, own: Array, num_forks: int) -> None:
        self.own, self.num_forks = own, num_forks
        self.holders = np.zeros(len(own), dtype=np.int32)
        self.free = list(range(len(self.holders)))  # a heap: the lowest are already in memory

    def take(self) -> int:
        """There is one: the room is for every cache's positions."""
        slot = heappop(self.free)
        self.holders[slot] = 1
        return slot

    def give_back(self, slots: Array) -> None:
        self.holders[slots] -= 1
        for slot in slots[self.holders[slots] == 0].tolist():
            heappush(self.free, slot)


class NativeCache:
    """See `network.Cache`. slots: int32 (positions,), where in the pool its first `held` tokens
    are; scores: float32 (positions, heads, keys), what the alignment heads' queries gave with the
    window's keys; a fork has none."""

    def __init__(self, encoded: NativeEncoded, pool: _Pool, slots: Array, scores: Array) -> None:
        self.encoded, self.pool, self.slots, self.scores = encoded, pool, slots, scores
        self.length, self.held, self.positions, self.is_open = 0, 0, len(slots), True
        # The fields of `_Cache`, once: numpy takes a microsecond for each address.
        addresses = (pool.own.ctypes.data, scores.ctypes.data if scores.size else 0)
        self.record = (encoded.record, *addresses, slots.ctypes.data)

    def take(self, num_tokens: int) -> None:
        """Make room for so many behind `length`, which grows; no fork sees what is written."""
        pool, end = self.pool, self.length + num_tokens
        for position in range(self.length, end):
            if position < self.held:
                slot = self.slots[position]
                if pool.holders[slot] == 1:
                    continue
                pool.holders[slot] -= 1
            self.slots[position] = pool.take()
        self.length, self.held = end, max(end, self.held)

    def attention(self, first: int, last: int) -> NDArray[np.float32]:
        scores = self.scores[first:last].transpose(1, 0, 2) + self.encoded.bias
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        result: NDArray[np.float32] = weights / weights.sum(axis=-1, keepdims=True)
        return result


class NativeNetwork:
    """See `network.Network`. threads: how many compute each pass, the calling one among them."""

    def __init__(self, checkpoint: Checkpoint, library: Library, threads: int) -> None:
        self.dims = checkpoint.dims
        self._library = library
        self._kept: list[Any] = []  # what C has pointers to
        self._num_watched = len(checkpoint.alignment_heads)
        self._workspace = np.empty(0, dtype=np.uint8)
        self._spare = self._workspace
        self._seconds = np.zeros(len(PARTS))
        self._model = _Packer(checkpoint, library, self._kept).model()
        self._model.threads = threads
        self._model.seconds = self._seconds.ctypes.data
        self._logits = torch.empty(1, self._model.words.outputs)

    def tail(self, level: float) -> NativeEncoded:
        silence = self.encode(network.silence(level, self.dims))
        frames = network.TAIL_FRAMES
        tail = self._new_encoded(0, len(frames))
        self._append(silence, frames, tail, 0)
        return tail

    def encode(self, mel: Tensor, tail: NativeEncoded | None = None) -> NativeEncoded:
        return network.last_of(self.encode_in_steps(mel, tail))

    def encode_in_steps(
        self, mel: Tensor, tail: NativeEncoded | None = None
    ) -> Generator[None, None, NativeEncoded]:
        network.check_mel(mel, self.dims)
        num_frames = mel.shape[1] // 2
        behind = range(0)
        if tail is not None:
            behind = range(network.first_behind(num_frames), tail.used)
        encoded = self._new_encoded(num_frames, num_frames + len(behind))
        rows = np.zeros((2 * num_frames + 2, len(mel)), dtype=np.float32)
        rows[1:-1] = mel.numpy().T
        # Another window may be encoded before this one is: each has a workspace.
        needed = self._library.encode_workspace(self._model, num_frames) + 64
        workspace, self._spare = self._spare, np.empty(0, dtype=np.uint8)
        if len(workspace) < needed:
            workspace = np.empty(needed, dtype=np.uint8)
        arguments = _aligned(workspace), rows.ctypes.data, num_frames, _Encoded(*encoded.record)
        for part in range(self.dims.n_audio_layer + 1):
            self._library.encode(self._model, *arguments, part, part + 1)
            if part < self.dims.n_audio_layer:
                yield
        self._spare = max(workspace, self._spare, key=len)
        if tail is not None:
            self._append(tail, behind, encoded, num_frames)
            encoded.bias[num_frames : encoded.used] = np.log(network.TAIL_STRIDE)
        return encoded

    @property
    def seconds(self) -> dict[str, float]:
        return dict(zip(PARTS, self._seconds.tolist(), strict=True))

    def mask(self, values: NDArray[np.float32]) -> int:
        mask = np.ascontiguousarray(values, dtype=np.float32)
        self._kept.append(mask)
        return int(mask.ctypes.data)

    def open(self, encoded: NativeEncoded, positions: int, forks: int = 0) -> NativeCache:
        dims = self.dims
        network.check_positions(positions, dims)
        # What is never written to takes no memory.
        room = positions * (1 + forks)
        own = np.empty((room, dims.n_text_layer, dims.n_text_head, 2, HEAD_WIDTH), np.float32)
        scores = np.empty((positions, self._num_watched, len(encoded.bias)), dtype=np.float32)
        slots = np.zeros(positions, dtype=np.int32)
        return NativeCache(encoded, _Pool(own, forks), slots, scores)

    def fork(self, cache: NativeCache) -> NativeCache:
        network.check_fork(cache, cache.pool.num_forks)
        cache.pool.num_forks -= 1
        slots = cache.slots.copy()
        fork = NativeCache(cache.encoded, cache.pool, slots, np.empty(0, dtype=np.float32))
        fork.length = fork.held = cache.length
        cache.pool.holders[slots[: fork.held]] += 1
        return fork

    def close(self, cache: NativeCache) -> None:
        if not cache.is_open:
            return
        cache.is_open = False
        cache.pool.give_back(cache.slots[: cache.held])
        cache.pool.num_forks += not cache.scores.size

    def forward(self, feeds: Sequence[Feed]) -> tuple[list[list[Choice]], Tensor]:
        network.check_feeds(feeds, self.dims)
        caches = np.array([feed.cache.record for feed in feeds], dtype=_Cache)
        row_list: list[tuple[int, int, int]] = []
        wanted_list: list[tuple[int, int, int, int]] = []
        best = np.empty(sum(ask.num_best for feed in feeds for ask in feed.asks), dtype=_Best)
        named = best.ctypes.data
        longest = 0  # scores that a row may have: of its window's keys, or of its own tokens'
        for number, feed in enumerate(feeds):
            cache = feed.cache
            for at, mask, num_best in feed.asks:
                wanted_list.append((len(row_list) + at, num_best, mask or 0, named))
                named += num_best * best.itemsize
            places = enumerate(feed.tokens, start=cache.length)
            row_list += [(number, token, position) for position, token in places]
            cache.take(len(feed.tokens))
            longest = max(longest, cache.length, len(cache.encoded.bias))
        rows, wanted = np.array(row_list, dtype=_Row), np.array(wanted_list, dtype=_Wanted)
        if len(wanted) > len(self._logits):
            self._logits = torch.empty(len(wanted), self._model.words.outputs)
        choices = np.empty(len(wanted), dtype=_Choice)
        self._reserve(self._library.decode_workspace(self._model, len(rows), len(wanted), longest))
        self._library.decode(
            self._model,
            caches.ctypes.data,
            *(rows.ctypes.data, len(rows)),
            *(wanted.ctypes.data, len(wanted)),
            longest,
            self._logits.data_ptr(),
            choices.ctypes.data,
        )
        answers, names = iter(choices.tolist()), iter(best.tolist())
        result = [[_choice(next(answers), names, ask.num_best) for ask in it.asks] for it in feeds]
        return result, self._logits[: len(wanted), : self.dims.n_vocab]

    def _new_encoded(self, num_frames: int, used: int) -> NativeEncoded:
        dims, lanes = self.dims, self._library.lanes
        length = -(-used // lanes) * lanes
        shape = (dims.n_text_layer, dims.n_text_head, length, HEAD_WIDTH)
        keys, values = (np.empty(shape, dtype=np.float16) for _ in range(2))
        # Positions behind the last: finite, and with −∞ added to their scores
        values[:, :, used:] = 0
        keys.reshape(*shape[:2], -1, HEAD_WIDTH, lanes)[:, :, used // lanes :] = 0
        bias = np.zeros(length, dtype=np.float32)
        bias[used:] = -np.inf
        return NativeEncoded(keys, values, bias, num_frames, used)

    def _append(self, source: NativeEncoded, positions: range, to: NativeEncoded, at: int) -> None:
        """Copy keys and values from some positions of one window to another's, from `at` on."""
        part = (positions.start, positions.step, len(positions))
        records = [_Encoded(*encoded.record) for encoded in (source, to)]
        self._library.append(self._model, records[0], *part, records[1], at)

    def _reserve(self, num_bytes: int) -> None:
        if len(self._workspace) < num_bytes + 64:
            self._workspace = np.empty(num_bytes + 64, dtype=np.uint8)
            self._model.workspace = _aligned(self._workspace)


def _aligned(workspace: Array) -> int:
    """The first address in it that 64 divides."""
    return -(-int(workspace.ctypes.data) // 64) * 64


def _choice(answer: tuple[int, float, float], names: Iterator[tuple[int, float]], n: int) -> Choice:
    """names: the best of all asks from this one on, of which n are its."""
    token, logit, log_sum = answer
    return Choice(token, logit, log_sum, [best for best in islice(names, n) if best[0] >= 0])


class _Packer:
    """Lays out the tensors of a checkpoint for C; `kept` holds what C points to."""

    def __init__(self, checkpoint: Checkpoint, library: Library, kept: list[Any]) -> None:
        self._checkpoint, self._library, self._kept = checkpoint, library, kept
        self._encoder_format = BYTES if library.takes_bytes else WIDE

    def model(self) -> Any:
        """A `_Model` without threads, workspace and seconds."""
        checkpoint, dims, encoder = self._checkpoint, self._checkpoint.dims, self._encoder_format
        embedding = checkpoint.tensors["decoder.token_embedding.weight"]
        watched = torch.full((dims.n_text_layer, dims.n_text_head), -1, dtype=torch.int32)
        for number, (layer, head) in enumerate(checkpoint.alignment_heads):
            watched[layer, head] = number
        # The log-mel, from which all else is computed, is int16 in C in any case.
        conv1 = NARROW if encoder == BYTES else encoder
        return _Model(
            state=dims.n_text_state,
            heads=dims.n_text_head,
            mels=dims.n_mels,
            vocabulary=dims.n_vocab,
            encoder_layers=dims.n_audio_layer,
            decoder_layers=dims.n_text_layer,
            num_watched=len(checkpoint.alignment_heads),
            conv1=self._convolution("encoder.conv1", conv1),
            conv2=self._convolution("encoder.conv2", encoder),
            cross_kv=self._linear(checkpoint.cross_kv(), encoder),
            words=self._linear((embedding, torch.zeros(len(embedding))), NARROW),
            encoder_norm=self._norm(checkpoint.joined("encoder.ln_post")),
            decoder_norm=self._norm(checkpoint.joined("decoder.ln")),
            audio_positions=self._copy(checkpoint.tensors["encoder.positional_embedding"]),
            text_positions=self._copy(checkpoint.tensors["decoder.positional_embedding"]),
            embedding=self._copy(embedding, torch.float16),
            encoder=self._layers("encoder", encoder),
            decoder=self._layers("decoder", NARROW),
            watched=self._keep(watched),
        )

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _copy(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        """Keep a copy: one tensor of a checkpoint keeps all of its file in memory."""
        return self._keep(tensor.to(dtype, copy=True))

    def _norm(self, norm: Pair) -> Structure:
        return _Norm(*map(self._copy, norm))

    def _layers(self, side: str, layout: int) -> int:
        """Where an array of `_Layer` is."""
        packed = [
            _Layer(
                **{
                    part: self._norm(pair) if part.endswith("norm") else self._linear(pair, layout)
                    for part, pair in layer.items()
                }
            )
            for layer in self._checkpoint.layers(side)
        ]
        array = (_Layer * len(packed))(*packed)
        self._kept.append(array)
        return ctypes.addressof(array)

    def _convolution(self, name: str, layout: int) -> Structure:
        """(out, in, 3) as a product with windows of three frames, (out, 3 · in)."""
        weight, bias = self._checkpoint.joined(name)
        return self._linear((weight.permute(0, 2, 1).flatten(1), bias), layout)

    def _linear(self, layer: Pair, layout: int) -> Structure:
        """Weight (outputs, inputs) and bias in a layout of kernels.h, at `Linear`."""
        weight, bias = layer
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
        biases[:outputs] = bias
        arrays = map(self._keep, (packed, scales, biases))
        return _Linear(padded, inputs, layout, limit, *arrays)
