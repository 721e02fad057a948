"""Fixtures shared by all tests: the devices and dtypes that every operator is tested on."""

import pytest
import torch

from chaos_ext import _ops


def _cuda_missing() -> str | None:
    if _ops.CUDA_ERROR is not None:
        return f"CUDA kernels not loaded: {_ops.CUDA_ERROR}"
    if not torch.cuda.is_available():
        return "no GPU"
    return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """cpu always; cuda (``pytest -m cuda``) where there is a GPU, else skipped with the reason."""
    if request.param == "cuda" and (reason := _cuda_missing()) is not None:
        pytest.skip(reason)
    return torch.device(request.param)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
