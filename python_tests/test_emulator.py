"""The CUDA kernels of activations, losses and the optimizer step, on the CPU emulator, against the twins."""

import itertools
import re

import pytest
import torch
from emulator.build import CSRC
from emulator.ops import EmulatedOps
from test_ops_activation import CASES, KINKS
from torch import Tensor

from chaos_ext import reference

# Blocks and threads of a launch: idle blocks and threads, several rounds of the grid stride, a number of warps that is
# not a power of 2.
LAUNCHES = [(1, 32), (2, 96), (5, 64), (2, 256)]


@pytest.fixture(params=LAUNCHES, ids=lambda p: f"{p[0]}x{p[1]}")
def ops(request: pytest.FixtureRequest, emulated: EmulatedOps) -> EmulatedOps:
    grid, threads = request.param
    return emulated._replace(grid=grid, threads=threads)


def _close(actual: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """To rounding; entries that cancel, relative to the largest one."""
    for a, w in zip(actual, wanted, strict=True):
        eps = torch.finfo(a.dtype).eps
        size = float(w.abs().max()) if w.numel() else 1.0
        torch.testing.assert_close(a.double(), w.double(), rtol=256 * eps, atol=64 * eps * max(size, 1.0))


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [x.double() for x in tensors]


def test_every_kernel_is_emulated(emulated_kernels: object) -> None:
    source = "".join(path.read_text() for path in sorted(CSRC.rglob("*.cu*")))
    kernels = set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(", source))
    assert len(kernels) >= 7
    assert {name for name in kernels if not hasattr(emulated_kernels, name)} == set()


@pytest.mark.parametrize("name", CASES)
def test_activation(name: str, emulated: EmulatedOps, dtype: torch.dtype) -> None:
    z = torch.cat([torch.tensor(KINKS), torch.linspace(-30, 30, 61), 3 * torch.randn(101)]).to(dtype)
    wanted = reference.activation(z, *CASES[name])  # in the same dtype: which side of a kink z is on depends on it
    for actual, value in zip(emulated.activation(z, *CASES[name]), wanted, strict=True):
        tol = {"rtol": 1e-10, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(actual, value, **tol)


@pytest.mark.parametrize(("N", "C"), [(1, 1), (5, 7), (3, 200), (4, 97), (0, 3)])
def test_cross_entropy(N: int, C: int, ops: EmulatedOps, dtype: torch.dtype) -> None:
    z, t = (2 * torch.randn(N, C)).to(dtype), torch.rand(N, C).to(dtype)
    if N == 0:  # the launcher skips the kernel of the rows, and sums nothing
        assert ops._sum(z.new_empty(0, dtype=torch.float64), 1.0, dtype) == 0
        return
    _close(ops.cross_entropy(z, t), reference.cross_entropy(*_wide(z, t)))


def test_cross_entropy_of_ties_and_hard_labels(ops: EmulatedOps, dtype: torch.dtype) -> None:
    """The first of equal maxima is the one that every thread must agree on."""
    z = torch.randint(0, 2, (4, 131)).to(dtype)
    t = torch.nn.functional.one_hot(torch.randint(131, (4,)), 131).to(dtype)
    _close(ops.cross_entropy(z, t), reference.cross_entropy(*_wide(z, t)))


@pytest.mark.parametrize(("N", "C"), [(1, 1), (5, 7), (3, 200)])
def test_cross_entropy_of_labels(N: int, C: int, ops: EmulatedOps, dtype: torch.dtype) -> None:
    z, y = (2 * torch.randn(N, C)).to(dtype), torch.randint(C, (N,))
    t = torch.full((N, C), 0.0625, dtype=dtype).scatter_(1, y.unsqueeze(1), 0.5)
    _close(ops.cross_entropy_labels(z, y, 0.5, 0.0625), reference.cross_entropy(*_wide(z, t)))


@pytest.mark.parametrize(("k", "N", "C"), [(1, 1, 1), (3, 5, 10), (2, 2, 300), (0, 3, 4)])
def test_cross_entropy_tangent(k: int, N: int, C: int, ops: EmulatedOps, dtype: torch.dtype) -> None:
    p = torch.randn(N, C).to(dtype).softmax(1)  # sums to 1 to rounding: the kernel relies on it, the twin does not
    s, dz = torch.rand(N).to(dtype), torch.randn(N, C, k).to(dtype)
    _close((ops.cross_entropy_tangent(p, s, dz),), (reference.cross_entropy_tangent(*_wide(p, s, dz)),))


@pytest.mark.parametrize(("N", "O"), [(1, 1), (30, 7), (3, 333), (0, 4)])
@pytest.mark.parametrize("weighted", [(False, False), (True, False), (False, True), (True, True)])
def test_bce(weighted: tuple[bool, bool], N: int, O: int, emulated: EmulatedOps, dtype: torch.dtype) -> None:
    z, y = (3 * torch.randn(N, O)).to(dtype), torch.rand(N, O).to(dtype)
    w, pw = ((torch.rand(N, O) if on else torch.empty(0)).to(dtype) for on in weighted)
    _close(emulated.bce_with_logits(z, y, w, pw, 0.3), reference.bce_with_logits(*_wide(z, y, w, pw), 0.3))


@pytest.mark.parametrize("n", [0, 1, 31, 1000])
def test_mse(n: int, ops: EmulatedOps, dtype: torch.dtype) -> None:
    z, y = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    _close(ops.mse(z, y, 0.125), reference.mse(*_wide(z, y), 0.125))


@pytest.mark.parametrize("blocks", [0, 1, 33, 1000])
def test_sum_over_blocks(blocks: int, ops: EmulatedOps, dtype: torch.dtype) -> None:
    partial = torch.randn(blocks, dtype=torch.float64)
    _close((ops._sum(partial, 0.5, dtype),), (0.5 * partial.sum(),))


@pytest.mark.parametrize(("O", "I", "q"), [(5, 6, 3), (1, 7, 2), (7, 1, 0), (3, 129, 4), (0, 3, 2)])
def test_projected_sgd(O: int, I: int, q: int, emulated: EmulatedOps, dtype: torch.dtype) -> None:
    param, grad, buf = (torch.randn(O, I).to(dtype) for _ in range(3))
    L, R = torch.randn(O, q).to(dtype), torch.randn(q, I).to(dtype)
    for first, nesterov, maximize, with_buf in itertools.product([False, True], repeat=4):
        options = (first, 0.1, 0.8, 0.2, 0.05, nesterov, maximize)
        state = [param.clone(), buf.clone() if with_buf else None]
        wanted = [x if x is None else x.double() for x in state]
        emulated.projected_sgd_(state[0], grad, L, R, state[1], *options)
        reference.projected_sgd_(wanted[0], *_wide(grad, L, R), wanted[1], *options)
        kept = [i for i in range(2) if state[i] is not None]
        _close(tuple(state[i] for i in kept), tuple(wanted[i] for i in kept))


def test_first_step_does_not_read_the_buffer(emulated: EmulatedOps) -> None:
    param, grad, buf = torch.randn(3, 4), torch.randn(3, 4), torch.full((3, 4), torch.nan)
    emulated.projected_sgd_(
        param, grad, torch.randn(3, 2), torch.randn(2, 4), buf, True, 0.1, 0.9, 0.0, 0.0, True, False
    )
    assert buf.isfinite().all()
    assert param.isfinite().all()


def test_non_contiguous_operands_are_refused(emulated: EmulatedOps) -> None:
    """The kernels see no strides but that of H: whoever calls them must pass rows without gaps."""
    z = torch.randn(6, 4)
    with pytest.raises(TypeError):
        emulated.mse(z.T, torch.randn(4, 6), 1.0)
