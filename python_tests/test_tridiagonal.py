"""Tridiagonal: eigenvalues and the eigenvectors as an operator, against float64 torch.linalg.eigh."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import chaos_ext as ce
from chaos_ext import _ops
from chaos_ext.spectra.tridiagonal import Tridiagonal

SIZES = [0, 1, 2, 3, 5, 15, 16, 17, 33, 100, 257, 600]


def _rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _symmetric(n: int) -> Tensor:
    A = _rand(n, n)
    return (A + A.T) / 2


def _orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(_rand(n, n)).Q


def _with_values(values: Tensor) -> Tensor:
    Q = _orthogonal(len(values))
    S = Q @ (values[:, None] * Q.T)
    return (S + S.T) / 2


def _tridiagonal(n: int) -> Tensor:
    """Wilkinson's W+: pairs of eigenvalues that agree to all digits."""
    d, e = (torch.arange(n) - n // 2).abs().double(), torch.ones(n - 1, dtype=torch.float64)
    return torch.diag(d) + torch.diag(e, 1) + torch.diag(e, -1)


def _graded(n: int) -> Tensor:
    s = torch.logspace(0, -20, n, dtype=torch.float64)
    return _symmetric(n) * s[:, None] * s


def _low_rank(n: int) -> Tensor:
    B = _rand(n, 7)
    return B @ torch.diag(torch.linspace(-3, 3, 7, dtype=torch.float64)) @ B.T


def _blocks(n: int) -> Tensor:
    return torch.block_diag(*(_symmetric(n // 4) for _ in range(4)), torch.zeros(n % 4, n % 4, dtype=torch.float64))


MATRICES: dict[str, Callable[[int], Tensor]] = {
    "random": _symmetric,
    "low rank": _low_rank,
    "repeated": lambda n: _with_values(torch.arange(n).remainder(3).double() - 1),
    "clustered": lambda n: _with_values(1 + 1e-9 * torch.arange(n).double()),
    "zero": lambda n: torch.zeros(n, n, dtype=torch.float64),
    "identity": lambda n: torch.eye(n, dtype=torch.float64),
    "ones": lambda n: torch.ones(n, n, dtype=torch.float64),
    "diagonal": lambda n: torch.diag(_rand(n)),
    "tridiagonal": _tridiagonal,
    "anti-diagonal": lambda n: torch.eye(n, dtype=torch.float64).flip(0),
    "graded": _graded,
    "graded upwards": lambda n: _graded(n).flip(0, 1),
    "tiny": lambda n: 1e-20 * _symmetric(n),
    "huge": lambda n: 1e20 * _symmetric(n),
    "blocks": _blocks,
}


def _check(S: Tensor) -> None:
    """Backward error, orthogonality, eigenvalues: of the order of n eps ||S||, in S's own dtype."""
    n, eps = len(S), torch.finfo(S.dtype).eps
    exact = torch.linalg.eigvalsh(S.double())
    scale = float(exact.abs().max()) if n else 1.0
    t = Tridiagonal(S)
    values = t.eigenvalues.double()
    assert t.eigenvalues.dtype == S.dtype
    assert torch.equal(values, values.sort().values)
    U = t.combine(torch.eye(n, dtype=torch.float64))
    assert torch.allclose(U.T @ U, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-13)
    assert torch.allclose(t.coefficients(torch.eye(n, dtype=torch.float64)), U.T, rtol=0, atol=1e-13)
    limit = eps * max(n, 4) ** 0.5 * 8 * scale
    assert torch.allclose(values, exact, rtol=0, atol=limit)
    residual = S.double() @ U - U * values
    assert n == 0 or float(torch.linalg.matrix_norm(residual, 2)) <= limit


@pytest.mark.parametrize("n", SIZES)
def test_sizes(n: int, dtype: torch.dtype) -> None:
    _check(_symmetric(n).to(dtype))


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("n", [2, 19, 130])
def test_matrices(name: str, n: int, dtype: torch.dtype) -> None:
    _check(MATRICES[name](n).to(dtype))


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_extreme_scales(scale: float) -> None:
    _check(scale * _symmetric(40))


def test_denormal_numbers(dtype: torch.dtype) -> None:
    small = 2.0 ** (-145 if dtype == torch.float32 else -1070)
    t = Tridiagonal((small * torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)).to(dtype))
    assert t.eigenvalues.tolist() == [-small, small]


@pytest.mark.parametrize("n", [7, 120, 500])
def test_projection_like_eigh(n: int, dtype: torch.dtype) -> None:
    """V V^T g where the threshold lies in a gap: the error of eigh in the same dtype, or less."""
    values = torch.cat([torch.linspace(-2, -0.1, n // 2), torch.linspace(0.1, 3, n - n // 2)]).double()
    S, g = _with_values(values).to(dtype), _rand(n)
    _, U = torch.linalg.eigh(S.double())
    V = U[:, : n // 2]
    t = Tridiagonal(S)
    mine = t.combine(t.coefficients(g) * (t.eigenvalues < 0))
    V32 = torch.linalg.eigh(S).eigenvectors[:, : n // 2].double()
    error = float((mine - V @ (V.T @ g)).norm() / g.norm())
    assert error <= (1e-12 if dtype == torch.float64 else 2 * float((V32 @ (V32.T @ g) - V @ (V.T @ g)).norm()))


def test_several_vectors_and_dtypes(dtype: torch.dtype) -> None:
    t, X = Tridiagonal(_symmetric(50).to(dtype)), _rand(50, 9)
    both = t.combine(t.coefficients(X))
    assert torch.allclose(both, X, rtol=0, atol=1e-13)
    for j in range(9):
        assert torch.allclose(t.coefficients(X[:, j]), t.coefficients(X)[:, j], rtol=0, atol=1e-14)
    assert t.combine(X.float()).dtype == torch.float32
    assert t.combine(torch.zeros(50, 0)).shape == (50, 0)
    with pytest.raises(ValueError, match=r"expected shape \[50\] or \[50, k\], got \[49\]"):
        t.combine(torch.zeros(49))


def test_in_a_thread_of_its_own() -> None:
    """Called from threads at once, as a data loader or a server would."""
    from concurrent.futures import ThreadPoolExecutor

    S = [_symmetric(400) for _ in range(6)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda A: Tridiagonal(A).eigenvalues, S))
    assert all(torch.equal(a, Tridiagonal(A).eigenvalues) for a, A in zip(found, S))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (5, 2), (29, 29)])
def test_not_finite(bad: float, place: tuple[int, int], dtype: torch.dtype) -> None:
    S = _symmetric(30).to(dtype)
    S[place] = bad
    with pytest.raises(ce.NonFiniteError, match="NaN or inf"):
        Tridiagonal(S)


def test_no_convergence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _ops.tridiagonal_ql

    def failing(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, ...]:
        values, *rest = right(d, e, tol)
        return values * float("nan"), *rest

    monkeypatch.setattr(_ops, "tridiagonal_ql", failing)
    with pytest.raises(ce.NotConvergedError, match="QL did not converge"):
        Tridiagonal(_symmetric(5))


@pytest.mark.parametrize("fault", ["values", "rotations"])
def test_a_wrong_result_is_never_returned(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right = _ops.tridiagonal_ql

    def wrong(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, ...]:
        values, order, sweeps, rotations = right(d, e, tol)
        if fault == "values":
            return values * (1 + 1e-4), order, sweeps, rotations
        return values, order, sweeps, rotations * (1 + 1e-6)

    monkeypatch.setattr(_ops, "tridiagonal_ql", wrong)
    with pytest.raises(ce.NotConvergedError, match="fail their check") as e:
        Tridiagonal(_symmetric(30))
    assert e.value.residuals.max() > 1e-6
