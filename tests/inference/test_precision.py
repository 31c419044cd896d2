"""Number formats, and what int8 keeps of a product."""

import pytest
import torch

from whisper_byoc.inference.precision import Branch, FloatLayer, Int8Layer, choose_branch, cpu_flags

torch.manual_seed(1)
WEIGHT = torch.randn(96, 64)
BIAS = torch.randn(96)


def test_the_branch_fits_the_processor() -> None:
    branch = choose_branch("cpu")
    assert branch in (Branch.BF16, Branch.INT8)
    if branch is Branch.BF16:
        assert cpu_flags() & {"avx512_bf16", "amx_bf16"}
    assert choose_branch("cuda") is Branch.FP16


@pytest.mark.parametrize("bias", [BIAS, None], ids=["with bias", "without bias"])
def test_int8_is_near_the_exact_product(bias: torch.Tensor | None) -> None:
    x = torch.randn(2, 5, 64) * 10
    exact = FloatLayer(WEIGHT, bias, torch.float32, "cpu")(x)
    found = Int8Layer(WEIGHT, bias, torch.float32)(x)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 0.03 * exact.abs().max()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    layer = Int8Layer(WEIGHT, BIAS, torch.float32)
    row, loud = torch.randn(1, 64), torch.randn(7, 64) * 1000
    assert torch.equal(layer(torch.cat([row, loud]))[:1], layer(row))


def test_a_row_of_zeros_gives_the_bias() -> None:
    layer = Int8Layer(WEIGHT, BIAS, torch.float32)
    assert torch.allclose(layer(torch.zeros(1, 64))[0], BIAS)
