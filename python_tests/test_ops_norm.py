"""norm_tangent_ and norm_tangent_backward_ against torch's forward-mode derivatives of a normalisation and its vjp."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from emulator.ops import EmulatedOps
from torch import Tensor
from torch.func import jvp, vjp, vmap

from chaos_ext import _ops, reference

# B, G, M, k: vectors, tails, single entries, one column.
SHAPES = [(3, 4, 5, 16), (2, 3, 7, 1), (1, 5, 6, 70), (4, 2, 1, 19), (2, 1, 33, 131)]
Call = Callable[..., None]


class Problem:
    """A normalisation at a random point with random tangents of everything."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, affine: bool = True) -> None:
        b, g, m, k = shape
        self.shape = shape
        self.x, self.delta = 2 * torch.randn(b, g, m, dtype=dtype) + 1, torch.randn(b, g, m, dtype=dtype)
        self.gamma = torch.randn(g, dtype=dtype) if affine else None
        self.beta = torch.randn(g, dtype=dtype) if affine else None
        self.d, self.ddelta = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
        self.dgamma = torch.randn(g, k, dtype=dtype) if affine else None
        self.dbeta = torch.randn(g, k, dtype=dtype) if affine else None
        centred = self.x.double() - self.x.double().mean((0, 2), keepdim=True)
        r = centred.square().mean((0, 2), keepdim=True).rsqrt()
        self.xh, self.r = (centred * r).to(dtype), r.reshape(-1).to(dtype)

    def without(self, *names: str) -> "Problem":
        for name in names:
            setattr(self, name, None)
        return self

    def forward(self, call: Call, device: torch.device | str = "cpu") -> Tensor:
        out = self.x.new_full(self.shape, float("nan")).to(device)
        given = [_on(device, t) for t in (self.xh, self.r, self.d, self.gamma, self.dgamma, self.dbeta)]
        call(out, *given)
        return out.cpu()

    def backward(self, call: Call, device: torch.device | str = "cpu") -> list[Tensor]:
        _, g, _, k = self.shape
        outs = [self.x.new_full(s, float("nan")).to(device) for s in (self.shape, (g, k), (g, k))]
        names = (self.xh, self.r, self.delta, self.d, self.ddelta, self.gamma, self.dgamma)
        call(*outs, *(_on(device, t) for t in names))
        return [t.cpu() for t in outs]

    def _wide(self) -> tuple[list[Tensor], list[Tensor]]:
        """x, gamma and beta in float64, and their tangents."""
        g, k = self.shape[1], self.shape[3]
        ones, zeros = torch.ones(g, dtype=torch.float64), torch.zeros(g, dtype=torch.float64)
        point = [self.x, ones if self.gamma is None else self.gamma, zeros if self.beta is None else self.beta]
        none = torch.zeros(g, k, dtype=torch.float64)
        tangents = [torch.zeros(self.shape) if self.d is None else self.d]
        tangents += [none if t is None else t for t in (self.dgamma, self.dbeta)]
        return [t.double() for t in point], [t.double() for t in tangents]

    def expected_forward(self) -> Tensor:
        point, tangents = self._wide()
        push = lambda *t: jvp(reference.normalise, tuple(point), t)[1]  # noqa: E731
        return vmap(push, -1, -1)(*tangents)

    def expected_backward(self) -> tuple[Tensor, ...]:
        point, tangents = self._wide()
        ddelta = torch.zeros(self.shape).double() if self.ddelta is None else self.ddelta.double()

        def pull(delta: Tensor, *at: Tensor) -> tuple[Tensor, ...]:
            return vjp(reference.normalise, *at)[1](delta)

        push = lambda e, *t: jvp(pull, (self.delta.double(), *point), (e, *t))[1]  # noqa: E731
        return vmap(push, -1, -1)(ddelta, *tangents)


def _on(device: torch.device | str, t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(device)


def _close(actual: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    limit = 1e-11 if dtype == torch.float64 else 2e-5
    assert (actual.double() - wanted).abs().max() <= limit * wanted.abs().max().clamp_min(1.0)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_torch(shape: tuple[int, ...], affine: bool, device: torch.device, dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype, affine)
    if shape[0] * shape[2] == 1:
        pytest.skip("a group of one entry has no variance")
    _close(problem.forward(_ops.norm_tangent_, device), problem.expected_forward(), dtype)
    for actual, wanted in zip(
        problem.backward(_ops.norm_tangent_backward_, device), problem.expected_backward(), strict=True
    ):
        _close(actual, wanted, dtype)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cuda_kernels_on_the_emulator(
    shape: tuple[int, ...], affine: bool, emulated: EmulatedOps, dtype: torch.dtype
) -> None:
    problem = Problem(shape, dtype, affine)
    _close(problem.forward(emulated.norm_tangent_), problem.expected_forward(), dtype)
    results = problem.backward(emulated.norm_tangent_backward_)
    for actual, wanted in zip(results, problem.expected_backward(), strict=True):
        _close(actual, wanted, dtype)


OPTIONAL = [c for n in range(4) for c in itertools.combinations(("d", "ddelta", "dgamma"), n)]


@pytest.mark.parametrize("absent", OPTIONAL, ids=str)
@pytest.mark.parametrize("where", ["native", "emulated"])
def test_an_absent_tangent_is_a_zero(absent: tuple[str, ...], where: str, emulated: EmulatedOps) -> None:
    ops = _ops if where == "native" else emulated
    problem = Problem((3, 4, 5, 37), torch.float64).without(*absent)
    _close(problem.forward(ops.norm_tangent_), problem.expected_forward(), torch.float64)
    results = problem.backward(ops.norm_tangent_backward_)
    for actual, wanted in zip(results, problem.expected_backward(), strict=True):
        _close(actual, wanted, torch.float64)


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 2, 37), (1, 2, 300)], ids=str)
def test_every_number_of_columns(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What k columns give is what each gives, whatever part of a vector they fill."""
    wide = Problem((*shape, 70), dtype)
    forward, backward = wide.expected_forward(), wide.expected_backward()
    for k in (*range(1, 41), 47, 48, 49, 63, 65, 70):
        few = copy.copy(wide)
        few.shape = (*shape, k)
        for name in ("d", "ddelta", "dgamma", "dbeta"):
            setattr(few, name, getattr(wide, name)[..., :k].contiguous())
        _close(few.forward(_ops.norm_tangent_), forward[..., :k], dtype)
        for actual, wanted in zip(few.backward(_ops.norm_tangent_backward_), backward, strict=True):
            _close(actual, wanted[..., :k], dtype)


@pytest.mark.parametrize("absent", OPTIONAL, ids=str)
@pytest.mark.parametrize("k", [1, 2, 5, 9, 16, 17])
def test_an_absent_tangent_is_a_zero_in_few_columns(absent: tuple[str, ...], k: int) -> None:
    problem = Problem((3, 2, 37, k), torch.float64).without(*absent)
    _close(problem.forward(_ops.norm_tangent_), problem.expected_forward(), torch.float64)
    for actual, wanted in zip(problem.backward(_ops.norm_tangent_backward_), problem.expected_backward(), strict=True):
        _close(actual, wanted, torch.float64)


def test_gamma_of_zero(dtype: torch.dtype) -> None:
    """The gradient of gamma does not vanish with gamma, nor does anything divide by it."""
    problem = Problem((3, 4, 5, 18), dtype)
    problem.gamma[1] = 0
    for actual, wanted in zip(problem.backward(_ops.norm_tangent_backward_), problem.expected_backward(), strict=True):
        _close(actual, wanted, dtype)


@pytest.mark.parametrize("k", [1, 3, 16])
def test_float32_keeps_its_digits_in_a_large_group(k: int) -> None:
    """Sums of 2^16 entries with a mean far from zero, within the scaled 1e-4 of the Hessian's contract."""
    problem = Problem((16, 1, 4096, k), torch.float32)
    problem.d += 10
    for actual, wanted in zip(problem.backward(_ops.norm_tangent_backward_), problem.expected_backward(), strict=True):
        assert (actual.double() - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("k", [1, 7, 20, 70, 100])
def test_bits_do_not_depend_on_the_number_of_threads(k: int, dtype: torch.dtype) -> None:
    problem, before, results = Problem((3, 40, 50, k), dtype), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([problem.forward(_ops.norm_tangent_), *problem.backward(_ops.norm_tangent_backward_)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 4, 0)], ids=str)
def test_nothing_to_sum(shape: tuple[int, ...], device: torch.device) -> None:
    b, g, m, k = shape
    r, row = torch.ones(g, device=device), torch.ones(b, g, m, device=device)
    out, dweight, dbias = (torch.ones(s, device=device) for s in (shape, (g, k), (g, k)))
    _ops.norm_tangent_(out, row, r, out.clone(), None, None, None)
    _ops.norm_tangent_backward_(out, dweight, dbias, row, r, row, None, out.clone(), None, None)
    assert bool((dweight == 0).all())
    assert bool((dbias == 0).all())
