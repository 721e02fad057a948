"""A CGD step from model and batch to new parameters, against the same step by a dense eigendecomposition."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import rivals
import torch
from problems import CASES
from torch import Tensor, nn

import chaos_ext as ce

LR, PROBLEM = 1e-3, CASES["a"]
ZERO_TOL = {torch.float32: 1e-5, torch.float64: 1e-12}  # the documented defaults of ce.spectrum
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@dataclass
class DenseStep:
    """CGD by the book: H, all of its eigenpairs, the projection of the gradient, torch's SGD."""

    dtype: torch.dtype
    seconds: float = 0.0
    eigh_seconds: float = 0.0
    values: Tensor | None = None
    vectors: Tensor | None = None
    gradient: Tensor | None = None

    def __call__(self) -> None:
        model, loss_fn, x, y = PROBLEM.build(self.dtype)
        params = list(model.parameters())
        H = rivals.double_backward(model, loss_fn, x, y)()
        loss_fn(model(x), y).backward()
        self.gradient = torch.cat([p.grad.reshape(-1) for p in params])
        start = time.process_time()
        self.values, self.vectors = torch.linalg.eigh(H)
        self.eigh_seconds = time.process_time() - start
        torch.nn.utils.vector_to_parameters(self.pruned(ZERO_TOL[self.dtype]), [p.grad for p in params])
        torch.optim.SGD(params, LR).step()

    def chosen(self, zero_tol: float) -> Tensor:
        zero = zero_tol * self.values.abs().max()
        return (self.values < -zero) | (self.values > 2 / LR)

    def pruned(self, zero_tol: float) -> Tensor:
        V = self.vectors[:, self.chosen(zero_tol)]
        return self.gradient - V @ (V.T @ self.gradient)


@pytest.fixture(scope="module")
def exact() -> DenseStep:
    """The float64 step that every result of this file is checked against; takes most of a minute."""
    step = DenseStep(torch.float64)
    start = time.process_time()
    step()
    step.seconds = time.process_time() - start
    return step


def _theta(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).double() for p in model.parameters()])


def _check_step(dtype: torch.dtype, exact: DenseStep) -> None:
    """theta moves by lr times the gradient pruned by the float64 eigendecomposition."""
    model, loss_fn, x, y = PROBLEM.build(dtype)
    before, opt = _theta(model), ce.CGD(model.parameters(), lr=LR)
    opt.step(ce.HessianOperator(model, loss_fn, x, y))
    expected = exact.pruned(ZERO_TOL[dtype])
    # float32: theta itself is rounded to 6e-8 of its size, which is 1e-3 of the largest entries of lr * d.
    tolerance = 5e-3 if dtype == torch.float32 else 1e-8
    error = float(((before - _theta(model)) / LR - expected).abs().max() / expected.abs().max())
    assert error < tolerance
    assert opt.last_step.pruned == int(exact.chosen(ZERO_TOL[dtype]).sum())


@pytest.mark.slow
@DTYPES
def test_step(dtype: torch.dtype, exact: DenseStep, benchmark, measure) -> None:
    benchmark.group = f"CGD step, ({PROBLEM.title}), CPU seconds"
    _check_step(dtype, exact)
    model, loss_fn, x, y = PROBLEM.build(dtype)
    opt = ce.CGD(model.parameters(), lr=LR)
    row = {"problem": PROBLEM.title, "method": "chaos_ext: operator, spectrum, projection, update"}
    measure(lambda: opt.step(ce.HessianOperator(model, loss_fn, x, y)), dtype=str(dtype)[6:], **row)


@pytest.mark.slow
@DTYPES
def test_metrics_row(dtype: torch.dtype, exact: DenseStep, benchmark, measure) -> None:
    """Counts, extremes and gradient shares of a spectrum that is already there."""
    benchmark.group = f"metrics row, ({PROBLEM.title}), CPU seconds"
    args = PROBLEM.build(dtype)

    def fresh() -> ce.Spectrum:
        return ce.spectrum(ce.HessianOperator(*args))

    _check_summary(ce.spectral_summary(fresh(), LR), exact, dtype)
    row = {"problem": PROBLEM.title, "method": "chaos_ext: spectral_summary"}
    measure(lambda spec: ce.spectral_summary(spec, LR), fresh=fresh, dtype=str(dtype)[6:], **row)


def _check_summary(s: ce.SpectralSummary, exact: DenseStep, dtype: torch.dtype) -> None:
    zero = ZERO_TOL[dtype] * exact.values.abs().max()
    assert s.n_chaotic == s.n_negative == int((exact.values < -zero).sum())
    assert s.n_positive == int((exact.values > zero).sum())
    c = exact.vectors[:, exact.values < -zero].T @ exact.gradient
    share = float(c.square().sum() / exact.gradient.square().sum())
    rel = 1e-3 if dtype == torch.float32 else 1e-8
    assert s.share_negative == pytest.approx(share, rel=rel)
    assert s.lambda_min == pytest.approx(float(exact.values[0]), rel=rel)
    assert s.lambda_max == pytest.approx(float(exact.values[-1]), rel=rel)


DENSE = {"problem": PROBLEM.title, "method": "double backward, torch.linalg.eigh of H, projection, torch.optim.SGD"}
EIGH = {"problem": PROBLEM.title, "method": "of which torch.linalg.eigh", "threads": 1, "clock": "CPU", "rounds": 1}


@pytest.mark.slow
def test_dense_step_float32(benchmark, record, measure) -> None:
    """One round: it takes that long."""
    benchmark.group = f"CGD step, ({PROBLEM.title}), CPU seconds"
    step = DenseStep(torch.float32)
    measure(step, rounds=1, dtype="float32", **DENSE)
    record(**EIGH, dtype="float32", seconds=round(step.eigh_seconds, 3))


@pytest.mark.slow
def test_dense_step_float64(exact: DenseStep, record) -> None:
    """Timed where it was made, as the reference of the others."""
    times = {"seconds": round(exact.seconds, 3), "median": round(exact.seconds, 3), "rounds": 1}
    record(**DENSE, threads=1, clock="CPU", dtype="float64", **times)
    record(**EIGH, dtype="float64", seconds=round(exact.eigh_seconds, 3))
