"""benchmarks/gpu.py knows every registered operator, and one that is wrong does not hide the others."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from chaos_ext import reference

ROOT = Path(__file__).resolve().parent.parent
REGISTRATION, BENCHMARKS = ROOT / "csrc" / "registration.cpp", ROOT / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not (BENCHMARKS.is_dir() and REGISTRATION.exists()):
        pytest.skip("csrc/ and benchmarks/ are not beside the tests")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # report.py sets it
    return importlib.import_module("gpu")


def test_every_operator_is_checked_and_timed(gpu: ModuleType) -> None:
    registered = re.findall(r'm\.def\(\s*"(\w+)\(', REGISTRATION.read_text())
    assert len(registered) == 17
    assert sorted(op.name for op in gpu.OPERATORS) == sorted(registered)
    not_timed = {op.name for op in gpu.OPERATORS if not gpu.is_timed(op)}
    assert not_timed == {op.name for op in gpu.OPERATORS if op.cpu_only} | {"use_huge_pages_"}
    for op in gpu.OPERATORS:
        assert list(gpu.small_cases(op, torch.float32)), op.name
        if gpu.is_timed(op):
            assert list(gpu.large_cases(op, torch.float32)), op.name


def test_cpu_only_operators_have_no_cuda_kernel(gpu: ModuleType) -> None:
    kernels = re.findall(r'm\.impl\("(\w+)"', "".join(p.read_text() for p in (ROOT / "csrc").rglob("*.cu")))
    others = {"use_huge_pages_"}  # one kernel for every device
    assert {op.name for op in gpu.OPERATORS if not op.cpu_only} - others == set(kernels)


def test_one_wrong_operator_does_not_hide_the_others(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return z.sum(), z

    def failing(*args: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(reference, "mse", wrong)
    monkeypatch.setattr(reference, "tangent_product", failing)
    assert gpu.wrong_operators(torch.device("cpu")) == {"mse", "tangent_product"}
