"""Spectra: exact, checked, and never a wrong value."""

import cases
import pytest
import torch
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce
from chaos_ext import _ops
from chaos_ext.spectra.decompose import directions, spectrum_of_matrix
from chaos_ext.spectra.eigh import eigh
from chaos_ext.spectra.lanczos import lanczos

CE = nn.CrossEntropyLoss()


def _op(n=8, depth=3, activation="tanh", width=12, dtype=torch.float64):
    model = cases.mlp(depth, activation, width=width)
    x, y = cases.batch(n, cases.LOSSES["ce"][1])
    return ce.HessianOperator(model.to(dtype), CE, x.to(dtype), y), model, x, y


@pytest.mark.parametrize("n", [1, 3, 8, 64])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_complete_spectrum_equals_dense(n, activation):
    op, model, x, y = _op(n, activation=activation)
    H = double_backward(model, CE, x, y)
    values = torch.linalg.eigvalsh(H)
    spec = ce.spectrum(op)
    nonzero = values.abs() > 1e-12 * values.abs().max()
    assert spec.nullity == int((~nonzero).sum())
    assert relative(spec.eigenvalues, values[nonzero]) < 1e-11
    V = spec.eigenvectors()
    assert relative(V.T @ V, torch.eye(V.shape[1], dtype=V.dtype)) < 1e-12
    assert relative(H @ V, V * spec.eigenvalues) < 1e-11
    assert torch.equal(spec.eigenvalues, spec.eigenvalues.sort().values)


def test_basis_is_orthonormal_and_holds_the_gradient():
    op, *_ = _op()
    basis = op.compressed().basis
    Q = basis.lift(torch.eye(basis.columns, dtype=torch.float64))
    assert basis.columns < op.shape[0]
    assert relative(Q.T @ Q, torch.eye(basis.columns, dtype=torch.float64)) < 1e-13
    g = op.gradient
    assert relative(Q @ (Q.T @ g), g) < 1e-13
    v = torch.randn(op.shape[0], 2, dtype=torch.float64)
    assert relative(basis.coordinates(v), Q.T @ v) < 1e-13
    assert relative(op.compressed() @ v, op @ v) < 1e-12


def test_paper_mlp_is_compressed_to_344():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 20), nn.ReLU(), nn.Linear(20, 10)).double()
    x, y = torch.randn(8, 1, 16, 16, dtype=torch.float64), torch.arange(8)
    op = ce.HessianOperator(model, CE, x, y)
    assert op.shape == (5350, 5350)
    assert op.compressed().S.shape == (344, 344)
    assert op.compressed_bound(torch.float64) == 344


@pytest.mark.parametrize("n", [2, 64], ids=["compressed", "dense"])
def test_no_direction_is_a_block_without_columns(n):
    spec = ce.spectrum(_op(n)[0])
    none = torch.zeros(len(spec.eigenvalues), dtype=torch.bool)
    assert spec.eigenvectors(none).shape == (spec.size, 0)
    assert spec.basis.coordinates(torch.zeros(spec.size, 0, dtype=torch.float64)).shape[1] == 0


def test_projection():
    op, model, x, y = _op()
    spec = ce.spectrum(op)
    mask = spec.eigenvalues < 0
    V = spec.eigenvectors(mask)
    v = torch.randn(op.shape[0], 3, dtype=torch.float64)
    once = spec.project(v, mask)
    assert relative(once, V @ (V.T @ v)) < 1e-12
    assert relative(spec.project(once, mask), once) < 1e-12
    assert relative(spec.project(v[:, 0], mask), once[:, 0]) < 1e-12
    assert relative(spec.combine(spec.coefficients(v)), spec.project(v, torch.ones_like(mask))) < 1e-12
    for index in ([0, 2], torch.tensor([0, 2]), slice(0, 3, 2)):
        assert relative(spec.eigenvectors(index), spec.eigenvectors()[:, [0, 2]]) < 1e-13


def test_zero_tolerance_is_stored_and_used():
    op, *_ = _op()
    exact = ce.spectrum(op)
    coarse = ce.spectrum(op, zero_tol=0.1)
    top = exact.eigenvalues.abs().max()
    assert coarse.zero_tol == 0.1
    assert coarse.zero_threshold == pytest.approx(0.1 * top.item())
    assert torch.equal(coarse.eigenvalues, exact.eigenvalues[exact.eigenvalues.abs() > 0.1 * top])
    assert coarse.nullity == op.shape[0] - len(coarse.eigenvalues)


def test_eigenvalues_near_the_threshold_are_reported():
    values = torch.tensor([-1.0, 0.096, 0.104, 0.3], dtype=torch.float64)
    g = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    spec = spectrum_of_matrix(torch.diag(values), g, zero_tol=0.1)
    assert spec.eigenvalues.tolist() == [-1.0, 0.104, 0.3]
    assert spec.near_threshold == (2, 13.0)
    summary = ce.spectral_summary(spec, 0.1)
    assert (summary.n_near_threshold, summary.share_near_threshold) == (2, pytest.approx(13 / 30))


def test_float32_spectrum_and_spectrum_dtype():
    op64, *_ = _op()
    op32, *_ = _op(dtype=torch.float32)
    exact = ce.spectrum(op64)
    ours = ce.spectrum(op32)
    assert (ours.dtype, ours.zero_tol) == (torch.float32, 1e-5)
    visible = exact.eigenvalues[exact.eigenvalues.abs() > exact.eigenvalues.abs().max() * 1e-5]
    assert abs(len(visible) - len(ours.eigenvalues)) <= 2
    raised = ce.spectrum(op32, spectrum_dtype=torch.float64)
    assert (raised.dtype, raised.zero_tol) == (torch.float64, 1e-12)
    assert relative(raised.eigenvalues[:3], exact.eigenvalues[:3]) < 1e-5
    assert raised.gradient.dtype == torch.float32


@pytest.mark.parametrize("which", ["both_ends", "largest", "smallest", "magnitude"])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_lanczos_equals_dense(which, k):
    op, model, x, y = _op()
    values = torch.linalg.eigvalsh(double_backward(model, CE, x, y))
    n = len(values)
    wanted = {
        "both_ends": torch.cat([values[: k // 2], values[n - (k - k // 2) :]]),
        "largest": values[n - k :],
        "smallest": values[:k],
        "magnitude": values[values.abs().argsort(descending=True)[:k]].sort().values,
    }[which]
    spec = ce.spectrum(op, k=k, which=which)
    assert spec.nullity is None
    assert relative(spec.eigenvalues, wanted) < 1e-9
    V = spec.eigenvectors()
    assert relative(V.T @ V, torch.eye(k, dtype=V.dtype)) < 1e-10


def test_lanczos_finds_multiple_eigenvalues():
    d = torch.cat([torch.tensor([-3.0, -3.0, 5.0, 5.0, 5.0]), torch.linspace(0, 1, 200)]).double()
    values, _ = lanczos(lambda v: d.unsqueeze(1) * v, 205, 5, "magnitude", dtype=d.dtype, device=d.device)
    assert relative(values, d[:5]) < 1e-9


def test_lanczos_that_does_not_converge_is_an_error_with_residuals():
    op, *_ = _op()
    with pytest.raises(ce.NotConvergedError) as e:
        ce.spectrum(op, k=5, max_products=5)
    assert e.value.residuals.shape == (5,)
    assert (e.value.residuals > 0).any()


def test_lanczos_of_the_whole_space():
    op, model, x, y = _op(depth=1)
    P = op.shape[0]
    spec = ce.spectrum(op, k=P)
    assert relative(spec.eigenvalues, torch.linalg.eigvalsh(double_backward(model, CE, x, y))) < 1e-10


def test_eigh_retries_in_float64(monkeypatch):
    right = torch.linalg.eigh
    seen = []

    def failing(S):
        seen.append(S.dtype)
        if S.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return right(S)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    S = torch.diag(torch.tensor([3.0, -1.0]))
    values, vectors = eigh(S)
    assert seen == [torch.float32, torch.float64]
    assert values.tolist() == [-1.0, 3.0]
    assert vectors.dtype == torch.float32


@pytest.mark.parametrize("fault", ["values", "orthogonality"])
def test_wrong_eigenpairs_are_never_returned(monkeypatch, fault):
    right = torch.linalg.eigh

    def wrong(S):
        values, vectors = right(S)
        if fault == "values":
            return values * (1 + 1e-4), vectors
        return values, vectors * (1 + 1e-4)

    monkeypatch.setattr(torch.linalg, "eigh", wrong)
    A = torch.randn(30, 30, dtype=torch.float64)
    with pytest.raises(ce.NotConvergedError) as e:
        eigh(A + A.T)
    assert e.value.residuals.max() > 1e-6


def test_eigh_of_nothing_and_of_nan():
    values, vectors = eigh(torch.zeros(0, 0))
    assert (values.shape, vectors.shape) == ((0,), (0, 0))
    with pytest.raises(ce.NonFiniteError):
        eigh(torch.full((3, 3), float("nan")))


def test_spectrum_is_decomposed_once_per_operator(monkeypatch):
    op, *_ = _op()
    spec = ce.spectrum(op)
    monkeypatch.setattr(torch.linalg, "eigh", lambda S: pytest.fail("decomposed again"))
    assert ce.spectrum(op) is spec


@pytest.mark.parametrize(("n", "depth"), [(8, 3), (64, 2)], ids=["compressed", "dense"])
@pytest.mark.parametrize("spectrum_dtype", [None, torch.float64])
def test_directions_are_those_of_the_spectrum(n, depth, spectrum_dtype, dtype):
    """Without an eigenvector: eigenvalues, projections, coefficients up to signs, and all the rest."""
    op, *_ = _op(n=n, depth=depth, dtype=dtype)
    lazy = directions(op, spectrum_dtype=spectrum_dtype)
    spec = ce.spectrum(op, spectrum_dtype=spectrum_dtype)
    tol = 1e-10 if spec.dtype == torch.float64 else 2e-3
    assert (lazy.dtype, lazy.zero_tol) == (spec.dtype, spec.zero_tol)
    assert not isinstance(lazy.Z, torch.Tensor)
    gap = spec.eigenvalues.abs() > 1e-3 * spec.eigenvalues.abs().max()
    wide = lazy.eigenvalues.abs() > 1e-3 * spec.eigenvalues.abs().max()
    assert relative(lazy.eigenvalues[wide], spec.eigenvalues[gap]) < tol
    v = torch.randn(op.shape[0], 3, dtype=spec.dtype)
    assert relative(lazy.project(v, wide), spec.project(v, gap)) < tol
    assert relative(lazy.project(v[:, 0], wide), spec.project(v[:, 0], gap)) < tol
    shares = [s.gradient_coefficients()[m].square().sum() for s, m in ((lazy, wide), (spec, gap))]
    assert relative(*shares) < tol
    V = lazy.eigenvectors()
    assert V.shape == (op.shape[0], len(lazy.eigenvalues))
    assert relative(V @ (V.T @ v), lazy.combine(lazy.coefficients(v))) < tol
    assert relative(lazy.eigenvectors([0, 2]), V[:, [0, 2]]) < tol


def test_directions_form_no_eigenvector_and_are_made_once(monkeypatch):
    op, *_ = _op()
    monkeypatch.setattr(torch.linalg, "eigh", lambda S: pytest.fail("eigenvectors formed"))
    lazy = directions(op)
    assert directions(op) is lazy
    assert torch.equal(lazy.loss, op.loss)
    assert lazy.origin is op.origin


def test_small_matrices_are_decomposed_by_eigh():
    op, *_ = _op(n=64, depth=1)
    assert isinstance(directions(op).Z, torch.Tensor)


def test_directions_take_a_spectrum_that_is_there():
    op, *_ = _op()
    spec = ce.spectrum(op)
    assert directions(op) is spec


def test_directions_fall_back_to_eigh(monkeypatch, caplog):
    right = _ops.tridiagonal_ql
    monkeypatch.setattr(_ops, "tridiagonal_ql", lambda *args: (right(*args)[0] * float("nan"), *right(*args)[1:]))
    op, *_ = _op()
    assert isinstance(directions(op).Z, torch.Tensor)
    assert "QL did not converge; using eigh" in caplog.text
