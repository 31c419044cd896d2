"""The reader of CTranslate2's format, and the way back to OpenAI's names."""

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.weights.ctranslate2_files import (
    Tensors,
    ctranslate2_file,
    string,
    tensor,
    whisper_tensors,
)
from whisper_byoc.weights.ctranslate2 import (
    InvalidModelFile,
    read_ctranslate2,
    save_checkpoint,
    to_openai_checkpoint,
)

names = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=12)
arrays = st.sampled_from(["<f4", "<i1", "<i2", "<i4", "<f2"]).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
)
files = st.dictionaries(names, arrays, max_size=4)

SMALL = ctranslate2_file(
    {"one": np.arange(6, dtype=np.float32).reshape(2, 3), "two": np.array(7, dtype=np.int16)},
    {"again": "one"},
)


@given(files)
def test_what_was_written_is_read(tensors: Tensors) -> None:
    found = read_ctranslate2(ctranslate2_file(tensors))
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(files, st.data())
def test_a_file_cut_anywhere_is_refused(tensors: Tensors, data: st.DataObject) -> None:
    whole = ctranslate2_file(tensors)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(InvalidModelFile, match=r"expected"):
        read_ctranslate2(whole[:cut])


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
@settings(max_examples=400)
def test_a_changed_byte_gives_other_tensors_or_is_refused(position: int, byte: int) -> None:
    changed = bytearray(SMALL)
    changed[position] = byte
    with suppress(InvalidModelFile):
        read_ctranslate2(bytes(changed))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidModelFile):
        read_ctranslate2(data)


HEAD = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<I", 3)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param(
            ctranslate2_file({}, version=5), "version is 5, expected 6", id="another version"
        ),
        pytest.param(
            ctranslate2_file({}, specification="TransformerSpec"),
            "specification is 'TransformerSpec', expected 'WhisperSpec'",
            id="a model of another kind",
        ),
        pytest.param(
            ctranslate2_file({}, revision=2), "revision is 2, expected 3", id="another revision"
        ),
        pytest.param(
            ctranslate2_file({}) + b"more", "goes on for 4 bytes", id="bytes after the end"
        ),
        pytest.param(
            ctranslate2_file({}, {"again": "one"}), "'one', expected a tensor's", id="a loose alias"
        ),
        pytest.param(
            ctranslate2_file({"one": np.zeros(1, np.int8)}, {"one": "one"}),
            "one is there twice",
            id="a name taken twice",
        ),
        pytest.param(
            struct.pack("<IH", 6, 3) + b"abc", "expected one NUL, at its end", id="no NUL"
        ),
        pytest.param(
            struct.pack("<IH", 6, 3) + b"\xffb\0", "expected ASCII", id="a name that is no text"
        ),
        pytest.param(
            HEAD + struct.pack("<I", 1) + string("one") + struct.pack("<B", 200),
            "rank 200, expected at most 8",
            id="a hostile rank",
        ),
        pytest.param(
            HEAD + struct.pack("<I", 1) + string("one") + struct.pack("<BIBI", 1, 1, 5, 1),
            "dtype 5, expected 0 to 4",
            id="an unknown dtype",
        ),
        pytest.param(
            HEAD
            + struct.pack("<I", 1)
            + string("one")
            + struct.pack("<B4IBI", 4, *[2**32 - 1] * 4, 0, 2**32 - 1),
            "has 4294967295 bytes, expected",
            id="dimensions beyond any memory",
        ),
        pytest.param(
            HEAD + struct.pack("<I", 1) + string("one") + struct.pack("<BIBI", 1, 2**30, 1, 2**30),
            "ends 0 bytes into tensor one",
            id="a size beyond the file",
        ),
        pytest.param(
            HEAD + struct.pack("<I", 2**32 - 1) + tensor("one", np.zeros(1, np.int8)),
            "ends 0 bytes into a u16",
            id="more tensors than the file",
        ),
        pytest.param(
            HEAD + struct.pack("<I", 1) + string("one") + struct.pack("<BIBI", 1, 0, 0, 0),
            "has 0 bytes",
            id="an empty tensor",
        ),
    ],
)
def test_the_problem_is_named(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidModelFile) as caught:
        read_ctranslate2(data)
    assert problem in str(caught.value)


def test_an_alias_is_the_tensor_it_stands_for() -> None:
    found = read_ctranslate2(memoryview(SMALL))
    assert found["again"] is found["one"]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return whisper_tensors()


def test_the_dimensions_come_from_the_shapes(tensors: Tensors) -> None:
    assert to_openai_checkpoint(tensors)["dims"] == {
        "n_mels": 80,
        "n_audio_ctx": 20,
        "n_audio_state": 64,
        "n_audio_head": 1,
        "n_audio_layer": 1,
        "n_vocab": 51864,
        "n_text_ctx": 12,
        "n_text_state": 64,
        "n_text_head": 1,
        "n_text_layer": 2,
    }


def test_stacked_projections_come_apart(tensors: Tensors) -> None:
    weights = to_openai_checkpoint(tensors)["model_state_dict"]

    def same(name: str, expected: NDArray[Any]) -> bool:
        return np.array_equal(weights[name].numpy(), expected)

    stacked = tensors["decoder/layer_1/self_attention/linear_0/weight"]
    bias = tensors["decoder/layer_1/self_attention/linear_0/bias"]
    assert same("decoder.blocks.1.attn.query.weight", stacked[:64])
    assert same("decoder.blocks.1.attn.key.weight", stacked[64:128])
    assert same("decoder.blocks.1.attn.value.weight", stacked[128:])
    assert same("decoder.blocks.1.attn.query.bias", bias[:64])
    assert same("decoder.blocks.1.attn.value.bias", bias[128:])
    crossed = tensors["decoder/layer_1/attention/linear_1/weight"]
    assert same("decoder.blocks.1.cross_attn.key.weight", crossed[:64])
    assert same("decoder.blocks.1.cross_attn.value.weight", crossed[64:])
    linear = tensors["decoder/layer_1/attention/linear_2/weight"]
    assert same("decoder.blocks.1.cross_attn.out.weight", linear)


def test_single_precision_becomes_half(tensors: Tensors) -> None:
    doubled = {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in tensors.items()
    }
    weights = to_openai_checkpoint(doubled)["model_state_dict"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_whisper_loads_what_is_saved(tensors: Tensors, tmp_path: Path) -> None:
    checkpoint = to_openai_checkpoint(read_ctranslate2(ctranslate2_file(tensors)))
    save_checkpoint(checkpoint, tmp_path / "small.pt")
    model = whisper.load_model(str(tmp_path / "small.pt"), device="cpu")
    assert vars(model.dims) == checkpoint["dims"]
    found = model.state_dict()
    assert found.keys() == checkpoint["model_state_dict"].keys()
    for name, weight in checkpoint["model_state_dict"].items():
        assert torch.equal(found[name], weight.float()), name


def test_the_same_tensors_give_the_same_bytes(tensors: Tensors, tmp_path: Path) -> None:
    for name in ("one.pt", "another.pt"):
        save_checkpoint(to_openai_checkpoint(tensors), tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


def test_each_weight_is_saved_once(tensors: Tensors, tmp_path: Path) -> None:
    save_checkpoint(to_openai_checkpoint(tensors), tmp_path / "small.pt")
    weights = sum(array.nbytes for array in tensors.values())
    assert (tmp_path / "small.pt").stat().st_size < weights + 100_000


def _without(tensors: Tensors) -> None:
    del tensors["encoder/layer_0/ffn/linear_1/bias"]


def _without_layers(tensors: Tensors) -> None:
    del tensors["decoder/layer_norm/gamma"]


def _reshaped(tensors: Tensors) -> None:
    tensors["decoder/layer_0/ffn/linear_0/weight"] = np.zeros((64, 256), np.float16)


def _flat(tensors: Tensors) -> None:
    tensors["encoder/conv1/weight"] = np.zeros(64, np.float16)


def _quantised(tensors: Tensors) -> None:
    tensors["decoder/embeddings/weight"] = np.zeros((51864, 64), np.int8)


def _key_bias(tensors: Tensors) -> None:
    name = "encoder/layer_0/self_attention/linear_0/bias"
    tensors[name] = np.ones(192, np.float16)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        pytest.param(_without, "expected encoder/layer_0/ffn/linear_1/bias among", id="missing"),
        pytest.param(_without_layers, "expected decoder/layer_norm/gamma among", id="no norm"),
        pytest.param(_reshaped, "shape [64, 256], expected [256, 64]", id="another shape"),
        pytest.param(_flat, "shape [64], expected rank 3", id="another rank"),
        pytest.param(_quantised, "holds int8, expected floats", id="quantised"),
        pytest.param(_key_bias, "adds to the keys, expected zeros", id="a bias of the keys"),
    ],
)
def test_tensors_that_are_no_whisper_are_refused(
    tensors: Tensors, spoil: Callable[[Tensors], None], problem: str
) -> None:
    spoilt = dict(tensors)
    spoil(spoilt)
    with pytest.raises(InvalidModelFile) as caught:
        to_openai_checkpoint(spoilt)
    assert problem in str(caught.value)


def test_a_width_that_gives_no_whole_heads_is_refused() -> None:
    with pytest.raises(InvalidModelFile, match="96 wide, expected a multiple of 64"):
        to_openai_checkpoint(whisper_tensors(width=96))
