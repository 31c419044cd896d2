"""Which forward passes, in which number format, a machine computes fastest."""

import logging
from enum import StrEnum
from pathlib import Path

import torch

from whisper_byoc.inference.checkpoint import Checkpoint
from whisper_byoc.inference.native import Library, NativeNetwork
from whisper_byoc.inference.network import Network
from whisper_byoc.inference.torch_network import TorchNetwork

logger = logging.getLogger(__name__)


class Branch(StrEnum):
    """How the forward passes compute. `docs/engine.md` says which machine takes which and why."""

    AVX512 = "avx512"
    """CPU with AVX512-VNNI: our C, weights in int8, activations of the encoder in int8, too."""
    AVX2 = "avx2"
    """Other x86-64 CPUs: our C, weights in int8, activations in int16."""
    FP16 = "fp16"
    """CUDA: torch, fp16 throughout."""
    FP32 = "fp32"
    """torch, as the weights are meant: for comparison, and where there is nothing else."""


_NEEDED = {
    Branch.AVX512: {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma", "f16c"},
    Branch.AVX2: {"avx2", "fma", "f16c"},
}


def choose_branch(device: str) -> Branch:
    """The fastest branch for a device of this machine. ATEN_CPU_CAPABILITY, which limits torch,
    limits this, too."""
    if device != "cpu":
        return Branch.FP16
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and runs_here(Branch.AVX512):
        return Branch.AVX512
    if capability in ("AVX512", "AVX2") and runs_here(Branch.AVX2):
        return Branch.AVX2
    if _NEEDED[Branch.AVX2] <= cpu_flags() and not Library.path(Branch.AVX2).exists():
        logger.warning(
            "torch computes in fp32, about eight times slower than need be: the C library for this"
            " processor was not built, expected a C compiler when the package was installed"
        )
    return Branch.FP32


def runs_here(branch: Branch) -> bool:
    """Whether this machine can compute a branch, and the library that it needs was built."""
    match branch:
        case Branch.FP32:
            return True
        case Branch.FP16:
            return torch.cuda.is_available()
    return _NEEDED[branch] <= cpu_flags() and Library.path(branch).exists()


def open_network(
    branch: Branch, checkpoint: Checkpoint, device: str, threads: int, max_caches: int
) -> Network:
    """The forward passes of a branch. Raises OSError when its library cannot be loaded, and
    ConfigurationError when it is not of this version.

    device: torch's name. threads: that our C computes with. max_caches: that may be open at once
    where they take memory of their own, which is in torch.
    """
    if branch in _NEEDED:
        return NativeNetwork(checkpoint, Library(Library.path(branch)), threads)
    dtype = torch.float16 if branch is Branch.FP16 else torch.float32
    return TorchNetwork(checkpoint, device, dtype, max_caches)


def cpu_flags() -> set[str]:
    """What the processor says that it can do; empty where /proc does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()[2:]}
