"""Which number formats a machine computes fastest in, and linear layers in each of them."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = Callable[[Tensor], Tensor]


class Branch(StrEnum):
    """How the forward passes compute. `docs/engine.md` says which machine takes which and why."""

    BF16 = "bf16"
    """CPU with AMX or AVX512-BF16: bf16 throughout, int8 for the vocabulary."""
    INT8 = "int8"
    """Other CPUs: fp32, with int8 for every linear layer."""
    FP16 = "fp16"
    """CUDA: fp16 throughout."""
    FP32 = "fp32"
    """As the weights are meant, for comparison."""

    @property
    def dtype(self) -> torch.dtype:
        return {Branch.BF16: torch.bfloat16, Branch.FP16: torch.float16}.get(self, torch.float32)


def choose_branch(device: str) -> Branch:
    """The branch for a device of this machine."""
    if device != "cpu":
        return Branch.FP16
    flags = cpu_flags()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return Branch.BF16 if wide and flags & {"avx512_bf16", "amx_bf16"} else Branch.INT8


def cpu_flags() -> set[str]:
    """What the processor says that it can do; empty where /proc does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()[2:]}


class FloatLayer:
    """x (…, in) → (…, out) in the branch's own format."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: str
    ) -> None:
        self._weight = weight.to(device, dtype).contiguous()
        self._bias = None if bias is None else bias.to(device, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


class Int8Layer:
    """x (…, in) → (…, out): weights in int8 per output, activations in uint8 per row.

    Per row, not per tensor: otherwise a stream's words would depend on its neighbours in the batch.
    A row is scaled by its own maximum beforehand, so that the kernel's one scale can be 1.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        weight = weight.float()
        # Without VNNI the kernel adds two products in 16 bits; 7-bit weights cannot overflow them.
        limit = 127 if cpu_flags() & {"avx512_vnni", "avx_vnni", "amx_int8"} else 63
        scale = weight.abs().amax(1).clamp_min(1e-8) / limit
        quantised = (weight / scale[:, None]).round().to(torch.int8).contiguous()
        self._packed = torch.ops.onednn.qlinear_prepack(quantised, None)
        self._scale = scale
        self._zero = torch.zeros(len(scale), dtype=torch.int64)
        self._bias = None if bias is None else bias.float()
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = rows.abs().amax(1, keepdim=True).clamp_min_(1e-8).div_(127)
        quantised = (rows / scale).round_().add_(128).to(torch.uint8)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantised, 1.0, 128, self._packed, self._scale, self._zero, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        result *= scale
        if self._bias is not None:
            result += self._bias
        return result.reshape(*x.shape[:-1], -1).to(self._dtype)
