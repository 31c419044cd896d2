"""Which branch a machine takes."""

import os
import subprocess
import sys

import pytest
import torch

from tests.scripted import ScriptedModel
from whisper_byoc.inference.engine import Engine
from whisper_byoc.inference.precision import Branch, choose_branch, runs_here

CHOOSE = "from whisper_byoc.inference.precision import choose_branch; print(choose_branch('cpu'))"


def test_the_branch_fits_the_processor() -> None:
    assert runs_here(choose_branch("cpu"))
    assert choose_branch("cuda") is Branch.FP16


@pytest.mark.parametrize(("capability", "branches"), [("avx2", "avx2 fp32"), ("default", "fp32")])
def test_a_limited_torch_limits_the_branch(capability: str, branches: str) -> None:
    limited = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    found = subprocess.run(
        [sys.executable, "-c", CHOOSE], env=limited, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() in branches.split()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        pytest.param({}, "3000", id="by default"),
        pytest.param({"GOMP_SPINCOUNT": "7"}, "7", id="a count of one's own"),
        pytest.param({"OMP_WAIT_POLICY": "passive"}, "None", id="a policy of one's own"),
    ],
)
def test_threads_that_wait_spin_for_a_short_time(given: dict[str, str], used: str) -> None:
    """It has to be said before torch is there."""
    code = "import os, sys, whisper_byoc.inference as it; assert it and 'torch' not in sys.modules;"
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    named = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    others = {name: value for name, value in os.environ.items() if name not in named}
    printed = subprocess.check_output([sys.executable, "-c", code], env=others | given, text=True)
    assert printed.strip() == used


def test_a_cpu_is_no_gpu_to_an_orchestrator() -> None:
    assert Engine([ScriptedModel()]).gpu is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_told_by_its_name_and_its_memory() -> None:
    model = ScriptedModel()
    model.device = "cuda"
    gpu = Engine([model]).gpu
    assert gpu is not None
    assert gpu["id"] == str(torch.cuda.current_device())
    assert gpu["name"]
    assert int(str(gpu["vram_mb"])) > 1000
