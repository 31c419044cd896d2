"""The C on its own: what it claims of its numbers, threads and structs, and where it writes."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scripts.build_native import commands, find_compiler, libraries
from tests.conftest import MODELS, REPOSITORY, Speak
from whisper_byoc.errors import ConfigurationError
from whisper_byoc.inference.batched import BatchedModel, log_mel
from whisper_byoc.inference.checkpoint import Checkpoint
from whisper_byoc.inference.engine import load_models
from whisper_byoc.inference.native import Library, NativeNetwork
from whisper_byoc.inference.network import Ask, Choice, Feed
from whisper_byoc.inference.precision import Branch, runs_here
from whisper_byoc.inference.torch_network import TorchNetwork
from whisper_byoc.settings import Device, ModelSettings, num_cores

pytestmark = pytest.mark.model
PREFIX = [50257, 50362]
NATIVE = [Branch.AVX512, Branch.AVX2]
WEIGHTS = MODELS / "tiny.en.pt"


@pytest.fixture(scope="module", params=NATIVE)
def branch(request: pytest.FixtureRequest) -> Branch:
    if not runs_here(request.param):
        pytest.skip(f"no {request.param} on this machine")
    return Branch(request.param)


@pytest.fixture(scope="session")
def compiler() -> str:
    found = find_compiler()
    if found is None:
        pytest.skip("no C compiler for x86-64 was found")
    return found


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.load(WEIGHTS, "tiny.en")


@pytest.fixture(scope="module")
def mel(speak: Speak) -> torch.Tensor:
    return log_mel(speak("The train to the harbour leaves at nine."), 200, 80)


# ---- numbers

Rows = NDArray[np.float32]


@pytest.fixture(scope="module")
def kernels(branch: Branch, compiler: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("kernels")
    for name, options, sources in libraries():
        if name == branch:
            include = f"-I{Path(sources[0]).parent}"
            source = Path(__file__).with_name("kernels.c")
            output = folder / f"{name}.so"
            command = [compiler, *options, include, str(source), "-lm", "-o", str(output)]
            subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / f"{branch}.so"))


def mapped(function: Any, x: Rows) -> NDArray[np.float64]:
    out = np.empty_like(x)
    function(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), len(x))
    return out.astype(np.float64)


def test_the_error_of_exponentials(kernels: ctypes.CDLL) -> None:
    x = np.linspace(-87, 88, 1 << 20, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(mapped(kernels.map_exponential, x) / exact - 1).max()
    assert error <= 2e-7
    below = np.array([-87.5, -1e4, -1e30, -np.inf] * 4, dtype=np.float32)
    assert (mapped(kernels.map_exponential, below) <= 2e-38).all()


def test_the_error_of_gelu(kernels: ctypes.CDLL) -> None:
    x = np.linspace(-30, 30, 1 << 20, dtype=np.float32)
    wide = torch.from_numpy(x).double()
    exact = torch.nn.functional.gelu(wide).numpy()
    error = np.abs(mapped(kernels.map_gelu, x) - exact) / np.maximum(1, np.abs(wide.numpy()))
    assert error.max() <= 2e-7


def test_the_error_of_softmax_and_norm(kernels: ctypes.CDLL) -> None:
    generator = np.random.default_rng(1)
    scores = generator.normal(size=1504).astype(np.float32) * 8
    exact = torch.from_numpy(scores).double().softmax(-1).numpy()
    kernels.map_softmax(ctypes.c_void_p(scores.ctypes.data), len(scores))
    assert np.abs(scores / exact - 1).max() <= 4e-6
    gain, shift, x = generator.normal(size=(3, 384)).astype(np.float32)
    out = np.empty_like(x)
    kernels.map_norm(*(ctypes.c_void_p(row.ctypes.data) for row in (gain, shift, x, out)), len(x))
    x64, gain64, shift64 = (torch.from_numpy(row).double() for row in (x, gain, shift))
    norm = torch.nn.functional.layer_norm(x64, (384,), gain64, shift64)
    assert np.abs(out - norm.numpy()).max() <= 2e-6


MAX_DIFFERENCE = {Branch.AVX512: 0.06, Branch.AVX2: 0.005}
"""Mean of the encoder's values against fp32, of their mean size (docs/engine.md)."""


def test_how_far_integers_are_from_fp32(
    branch: Branch, checkpoint: Checkpoint, mel: torch.Tensor
) -> None:
    ours = open_native(branch, checkpoint, 2).encode(mel).values[:, :, :200].astype(np.float32)
    exact = TorchNetwork(checkpoint, "cpu", torch.float32).encode(mel).kv[:, 1].numpy()
    assert np.abs(ours - exact).mean() / np.abs(exact).mean() <= MAX_DIFFERENCE[branch]


# ---- threads


def open_native(branch: Branch, checkpoint: Checkpoint, threads: int) -> NativeNetwork:
    return NativeNetwork(checkpoint, Library(Library.path(branch)), threads)


def test_one_two_and_three_threads_give_the_same_bits(
    branch: Branch, checkpoint: Checkpoint, mel: torch.Tensor
) -> None:
    found: list[tuple[list[list[Choice]], list[bytes]]] = []
    for threads in (1, 2, 3):
        network = open_native(branch, checkpoint, threads)
        encoded = network.encode(mel)
        mask = network.mask(np.zeros(network.dims.n_vocab, dtype=np.float32))
        cache = network.open(encoded, 128)
        tokens = [*PREFIX, *range(300, 400)]
        asks = [Ask(place, mask if place else None) for place in range(0, len(tokens), 10)]
        choices, logits = network.forward([Feed(cache, tokens, asks)])
        numbers = (encoded.keys, encoded.values, logits.numpy(), cache.attention(0, len(tokens)))
        found.append((choices, [array.tobytes() for array in numbers]))
    assert found[0] == found[1] == found[2]


COUNT_THREADS = """
import os, sys, torch
from pathlib import Path
from whisper_byoc.inference.native import Library, NativeNetwork
from whisper_byoc.inference.checkpoint import Checkpoint
torch.set_num_threads(1)
checkpoint = Checkpoint.load(Path(sys.argv[1]), "tiny.en")
for threads in (1, 2, 5):
    network = NativeNetwork(checkpoint, Library(Path(sys.argv[2])), threads)
    before = len(os.listdir("/proc/self/task")) if threads == 1 else before
    network.encode(torch.zeros(80, 100))
    print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc to count threads in")
def test_as_many_threads_compute_as_were_told_to(branch: Branch) -> None:
    """Those of a team stay between its calls, and the calling thread is one of them."""
    command = [sys.executable, "-c", COUNT_THREADS, str(WEIGHTS)]
    counted = subprocess.run(
        [*command, str(Library.path(branch))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert counted.stdout.split() == ["0", "1", "4"]


@pytest.mark.parametrize(("setting", "expected"), [(0, num_cores()), (3, 3)])
def test_the_threads_of_the_settings_reach_the_library(setting: int, expected: int) -> None:
    """Whatever torch has been told: importing silero_vad leaves it with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = ModelSettings(directory=MODELS, device=Device.CPU, threads=setting)
        [model] = load_models(settings)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
    assert isinstance(model, BatchedModel)
    assert isinstance(model._network, NativeNetwork)
    assert model._network._model.threads == expected


# ---- structs


@pytest.mark.parametrize(
    ("written", "instead", "problem"),
    [
        pytest.param(
            "int32_t cache, token, position;",
            "int64_t cache, token, position;",
            r"Row has the size and offsets \[24, 0, 8, 16\], expected \[12, 0, 4, 8\]",
            id="a field is wider",
        ),
        pytest.param("whisper_layouts_length", "whisper_sizes", "without layouts", id="older C"),
        pytest.param(
            "AT(Choice, log_sum),", "AT(Choice, log_sum), 7", "1 more numbers", id="newer C"
        ),
    ],
)
def test_a_library_with_other_structs_is_refused(
    compiler: str, tmp_path: Path, written: str, instead: str, problem: str
) -> None:
    name, options, [source] = next(it for it in libraries() if it[0] == Branch.AVX2)
    text = Path(source).read_text(encoding="utf-8")
    assert written in text
    (tmp_path / "other.c").write_text(text.replace(written, instead), encoding="utf-8")
    library = tmp_path / f"{name}.so"
    fast = [option for option in options if option != "-O3"]
    command = [compiler, *fast, f"-I{Path(source).parent}", str(tmp_path / "other.c")]
    subprocess.run([*command, "-lm", "-o", str(library)], check=True)
    with pytest.raises(ConfigurationError, match=problem):
        Library(library)


# ---- sanitizers

SANITIZE = [
    *("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "-fno-omit-frame-pointer",
]


def runtime(compiler: str, name: str) -> str | None:
    """The path of a runtime library of the compiler, where it has one."""
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    path = Path(found.stdout.strip())
    return str(path) if path.is_absolute() and path.is_file() else None


@pytest.fixture(scope="module")
def sanitizers(compiler: str) -> str:
    paths = [runtime(compiler, name) for name in ("libasan.so", "libubsan.so")]
    if None in paths:
        pytest.skip(f"{compiler} has no sanitizers of addresses and undefined behaviour")
    return " ".join(path for path in paths if path)


def test_nothing_is_read_or_written_outside(
    branch: Branch, compiler: str, sanitizers: str, tmp_path: Path
) -> None:
    """One frame to 1500, 448 tokens, passes of more rows than one call takes, 1 to 3 threads."""
    for command in commands(compiler, SANITIZE, tmp_path):
        if command[-1].endswith(f"{branch}.so"):
            subprocess.run(command, check=True)
    driven = subprocess.run(
        [sys.executable, "-m", "tests.inference.sanitized", str(tmp_path / f"{branch}.so")],
        env={
            **os.environ,
            "LD_PRELOAD": sanitizers,
            # Python, torch and numpy leave memory to the end of the process.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert (driven.returncode, driven.stdout.strip()) == (0, "clean"), driven.stderr[-4000:]
