"""tridiagonalise, tridiagonal_ql, tridiagonal_apply: their twins, and bits that depend on the matrix alone."""

import pytest
import torch
from torch import Tensor

from chaos_ext import _ops, reference


def _rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _symmetric(n: int) -> Tensor:
    A = _rand(n, n)
    return (A + A.T) / 2


@pytest.mark.parametrize("n", [0, 1, 2, 5, 16, 40])
def test_tridiagonalise_matches_twin(n: int, dtype: torch.dtype) -> None:
    """The reduction is backward but not forward stable: rounding grows along the rows, for both alike."""
    S = _symmetric(n).to(dtype)
    tol = {"rtol": 0, "atol": 1e-11 if dtype == torch.float64 else 1e-2}
    (A, d, e), (A_twin, d_twin, e_twin) = _ops.tridiagonalise(S), reference.tridiagonalise(S)
    torch.testing.assert_close(d, d_twin, **tol)
    torch.testing.assert_close(e, e_twin, **tol)
    unit, unit_twin = (torch.nn.functional.normalize(M, dim=1) for M in (A, A_twin))
    torch.testing.assert_close(unit, unit_twin, **tol)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 16, 40])
def test_ql_and_apply_match_twins(n: int) -> None:
    reflectors, d, e = _ops.tridiagonalise(_symmetric(n))
    found, twin = _ops.tridiagonal_ql(d, e, 1e-17), reference.tridiagonal_ql(d, e, 1e-17)
    torch.testing.assert_close(found[0], twin[0], rtol=0, atol=1e-12)
    x = _rand(5, n)
    for _, *rotations in (found, twin):
        for transpose in (True, False):
            args = (reflectors, *rotations, x, transpose)
            torch.testing.assert_close(
                _ops.tridiagonal_apply(*args), reference.tridiagonal_apply(*args), rtol=0, atol=1e-12
            )


def test_only_the_lower_triangle_is_read(dtype: torch.dtype) -> None:
    S = _symmetric(70).to(dtype)
    other = torch.where(torch.ones(70, 70).tril().bool(), S, S.new_tensor(float("nan")))
    whole, half = _ops.tridiagonalise(S), _ops.tridiagonalise(other)
    assert all(torch.equal(a, b) for a, b in zip(whole, half))


@pytest.mark.parametrize("n", [130, 700, 1158])
def test_bits_do_not_depend_on_the_thread_count(n: int, dtype: torch.dtype) -> None:
    S, x, threads, results = _symmetric(n).to(dtype), _rand(6, n), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            reflectors, d, e = _ops.tridiagonalise(S)
            values, *rotations = _ops.tridiagonal_ql(d, e, 1e-16)
            results.append((reflectors, values, _ops.tridiagonal_apply(reflectors, *rotations, x, True)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
