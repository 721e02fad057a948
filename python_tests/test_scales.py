"""Readings of operators and right-hand sides whose squared entries vanish or overflow.

A and s A have the same readings but for s.
"""

import pytest
import torch

import chaos_ext as ce

SCALES = {torch.float32: (1e-30, 1e-22, 1e25), torch.float64: (1e-300, 1e-170, 1e200)}
CASES = [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales]
LIMIT = {torch.float32: 1e-4, torch.float64: 1e-9}
by_scale = pytest.mark.parametrize(("dtype", "scale"), CASES)


class Operator:
    """Nothing but products."""

    def __init__(self, A):
        self.A, self.shape, self.dtype = A, A.shape, A.dtype

    def __matmul__(self, v):
        return self.A @ v


def _definite(dtype):
    A = torch.randn(20, 20, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return A @ A.T + torch.eye(20, dtype=dtype)


@by_scale
def test_solve_scales_with_its_right_hand_side(dtype, scale):
    A, b = _definite(dtype), torch.linspace(-1, 2, 20, dtype=dtype)
    found = ce.solve(Operator(A), torch.stack([b * scale, b, 0 * b], 1))
    x = torch.linalg.solve(A, b)
    assert float((found.x[:, 0] / scale - x).norm() / x.norm()) < LIMIT[dtype]
    assert float((found.x[:, 1] - x).norm() / x.norm()) < LIMIT[dtype]
    assert not found.x[:, 2].any()
    assert bool((found.residual[:2] > 0).all())


@by_scale
def test_solve_scales_with_its_operator(dtype, scale):
    A, b = _definite(dtype), torch.linspace(-1, 2, 20, dtype=dtype)
    x, found = torch.linalg.solve(A, b), ce.solve(Operator(A * scale), b)
    assert float((found.x * scale - x).norm() / x.norm()) < LIMIT[dtype]


def test_a_solution_that_is_no_number_is_refused():
    A = Operator(torch.eye(3, dtype=torch.float64) * 1e-200)
    with pytest.raises(ce.NonFiniteError, match="larger than"):
        ce.solve(A, torch.full((3,), 1e200, dtype=torch.float64))


@by_scale
def test_density_scales_with_its_operator(dtype, scale):
    A = _definite(dtype)
    values = torch.linalg.eigvalsh(A.double())
    found = ce.spectral_density(Operator(A * scale), probes=3, steps=20)
    nodes = found.nodes / scale
    assert float((nodes - values).abs().max()) < LIMIT[dtype] * float(values[-1])
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-6)


@by_scale
@pytest.mark.parametrize("exact", [None, False])
def test_trace_and_norm_scale_with_their_operator(dtype, scale, exact):
    A = _definite(dtype)
    for op in (Operator, torch.clone):
        for read in (ce.trace, ce.frobenius_norm):
            plain, scaled = (read(op(A * s), exact=exact, products=30) for s in (1.0, scale))
            assert scaled.value / scale == pytest.approx(plain.value, rel=LIMIT[dtype])
            assert scaled.standard_error / scale == pytest.approx(plain.standard_error, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-90, 1e90])
def test_norm_of_a_gauss_newton_matrix_scales_with_the_outputs(scale):
    """G of the sum of (s z - y)^2 is s^2 that of s = 1."""

    def norm(s):
        torch.manual_seed(0)
        model, x = torch.nn.Linear(4, 2).double(), torch.randn(3, 4, dtype=torch.float64) * s
        found = ce.frobenius_norm(
            ce.GGNOperator(model, torch.nn.MSELoss(), x, torch.zeros(3, 2).double(), params="weight")
        )
        assert found.path == "Gram matrix of the outputs"
        return found.value

    assert norm(scale) / scale / scale == pytest.approx(norm(1.0), rel=1e-9)


@pytest.mark.parametrize("loss", [torch.nn.MSELoss(), lambda z, y: (z - y).square().mean()])
@pytest.mark.parametrize(
    "read", [lambda g: g.diagonal(), lambda g: (g - g).diagonal(), ce.spectrum, lambda g: g.dense()]
)
def test_a_gauss_newton_matrix_that_float32_cannot_hold_is_refused(loss, read):
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1e-25)
    ggn = ce.GGNOperator(model, loss, torch.full((1, 2), 1e25), torch.zeros(1, 1))
    with pytest.raises(ce.NonFiniteError):
        read(ggn)


@pytest.mark.parametrize("read", [ce.trace, ce.frobenius_norm])
def test_a_matrix_that_is_not_finite_has_no_reading(read):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ce.NonFiniteError):
            read(torch.full((3, 3), value))
