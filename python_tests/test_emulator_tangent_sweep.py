"""tangent_sweep_kernel and tangent_update_kernel on the CPU emulator, against the twins."""

import pytest
import torch
from emulator.ops import EmulatedOps
from sweeps import KINDS, PROGRAMS, parameters, program, slots
from torch import Tensor

from chaos_ext import reference

# Where tangents and theta lie, the columns and the threads of a block: fewer threads than rows, and more.
PLANS = [
    {"w": 4, "in_shared": True, "keeps_theta": True, "threads": 32},
    {"w": 8, "in_shared": True, "keeps_theta": False, "threads": 96},
    {"w": 2, "in_shared": False, "keeps_theta": True, "threads": 64},
    {"w": 16, "in_shared": False, "keeps_theta": False, "threads": 512},
]


@pytest.fixture(params=PLANS, ids=str)
def plan(request: pytest.FixtureRequest) -> dict:
    return dict(request.param)


def _wide(args: tuple) -> tuple:
    return tuple([x.double() if isinstance(x, Tensor) else x for x in a] for a in args)


def _close(result: Tensor, expected: Tensor) -> None:
    limit = 1e-12 if result.dtype == torch.float64 else 1e-5
    assert (result.double() - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("k", [1, 5, 16])
@pytest.mark.parametrize("name", PROGRAMS)
def test_product(name: str, k: int, plan: dict, emulated: EmulatedOps, dtype: torch.dtype) -> None:
    P, lists = program(name, dtype)
    Y = torch.randn(P, k).to(dtype)
    kept, ops = Y.clone(), emulated._replace(threads=plan.pop("threads"))
    result = ops.tangent_product(Y, *lists, **plan)
    assert torch.equal(Y, kept)
    _close(result, reference.tangent_product(Y.double(), *_wide(lists)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [False, True])
def test_update(kind: str, given: bool, plan: dict, emulated: EmulatedOps, dtype: torch.dtype) -> None:
    P, lists = program("residual", dtype)
    S, last = slots(kind, P, parameters(lists[2], lists[0]), dtype)
    whole = torch.randn(S, 17).to(dtype)
    Y, HY, kept = whole[:, 2:13], torch.randn(P, 11).to(dtype) if given else None, whole.clone()
    expected = Y.double().clone()
    given_lists = ([], [], [], []) if given else lists
    wanted = reference.tangent_update_(expected, None if HY is None else HY.double(), *_wide(lists), *_wide(last))
    ops = emulated._replace(threads=plan.pop("threads"))
    squares = ops.tangent_update_(Y, HY, *given_lists, *last, P=P, **plan)
    _close(Y, expected)
    _close(squares.sum(0, keepdim=True), wanted)
    assert torch.equal(whole[:, :2], kept[:, :2])
    assert torch.equal(whole[:, 13:], kept[:, 13:])
