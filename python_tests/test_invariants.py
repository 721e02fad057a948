"""Trace, Frobenius norm, spectral density and damped solves, against dense float64 linear algebra and closed forms."""

import math

import pytest
import torch
from oracles import double_backward, gauss_newton, relative
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


def _symmetric(n, seed=0, decay=1.0):
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    values = torch.randn(n, generator=g, dtype=torch.float64) * torch.arange(1, n + 1) ** -decay
    return (Q * values) @ Q.T, values


class Bare:
    """Nothing but shape and @."""

    def __init__(self, A):
        self.A, self.shape, self.columns = A, A.shape, 0

    def __matmul__(self, v):
        self.columns += v.shape[1]
        return self.A @ v.to(self.A)


class Typed(Bare):
    """Another library's operator."""

    dtype, device = torch.float64, torch.device("cpu")


def _problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return model, torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])


def _operators():
    model, x, y = _problem()
    H, G = double_backward(model, CE, x, y), gauss_newton(model, CE, x, y)
    op, ggn = ce.HessianOperator(model, CE, x, y), ce.GGNOperator(model, CE, x, y)

    def nll(z, y):
        return nn.functional.nll_loss(z.log_softmax(1), y)

    by_torch = ce.HessianOperator(model, nll, x, y), ce.GGNOperator(model, nll, x, y)
    return {
        "hessian": (op, H),
        "ggn": (ggn, G),
        "functional part": (op - ggn, H - G),
        "hessian by torch": (by_torch[0], H),
        "ggn by torch": (by_torch[1], G),
        "compressed": (op.compressed(), H),
        "tensor": (H, H),
        "bare": (Typed(H), H),
    }


KINDS = ("hessian", "ggn", "functional part", "hessian by torch", "ggn by torch", "compressed", "tensor", "bare")


@pytest.mark.parametrize("kind", KINDS)
def test_exact_trace_and_norm(kind):
    op, A = _operators()[kind]
    for found, expected in ((ce.trace(op, exact=True), A.trace()), (ce.frobenius_norm(op, exact=True), A.norm())):
        assert found.standard_error == 0.0
        assert float(found) == pytest.approx(float(expected), rel=1e-12)
    assert ce.trace(op).standard_error == 0.0  # P is 73: never more than the budget
    assert ce.frobenius_norm(op).standard_error == 0.0


def test_the_trace_of_a_piecewise_linear_network_is_its_diagonals():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 30, 3), nn.ReLU(), nn.Conv2d(30, 60, 3), nn.ReLU(), nn.Flatten(), nn.Linear(960, 3)
    )
    x, y = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.arange(3)
    op = ce.HessianOperator(model.double(), CE, x, y)
    found, rough = ce.trace(op), ce.trace(op, exact=False)
    assert (found.path, found.standard_error, op.diagonal_columns()) == ("diagonal", 0.0, 3)
    assert abs(found.value - rough.value) < 5 * rough.standard_error + 1e-9 * found.value
    smooth = ce.HessianOperator(nn.Sequential(*[nn.SiLU() if type(m) is nn.ReLU else m for m in model]), CE, x, y)
    assert ce.trace(smooth).path == "Hutch++"


@pytest.mark.parametrize("read", [ce.trace, ce.frobenius_norm])
def test_random_readings_are_unbiased_within_their_error(read):
    A, _ = _symmetric(400, decay=0.3)
    expected = float(A.trace() if read is ce.trace else A.norm())
    found = [read(Typed(A), generator=torch.Generator().manual_seed(i)) for i in range(40)]
    scores = torch.tensor([(f.value - expected) / f.standard_error for f in found], dtype=torch.float64)
    assert all(f.path == "Hutch++" and f.products == 99 for f in found)
    assert abs(float(scores.mean())) < 3.5 / 40**0.5
    assert 0.6 < float(scores.std()) < 1.6  # Student's t of 32 degrees of freedom: 1.03


def test_products_are_counted_and_kept_to_the_budget():
    op = Typed(_symmetric(300)[0])
    found = ce.trace(op, products=31)
    assert op.columns == found.products == 31


def test_a_matrix_of_low_rank_leaves_nothing_to_chance():
    A, values = _symmetric(200)
    A = A * 0 + _symmetric(200, seed=1)[0][:, :5] @ _symmetric(200, seed=1)[0][:, :5].T
    found = ce.trace(Typed(A))
    assert float(found) == pytest.approx(float(A.trace()), rel=1e-12)
    assert found.standard_error < 1e-12 * float(A.trace())


def test_the_hutchinson_part_of_a_diagonal_matrix_is_exact():
    A = torch.eye(500, dtype=torch.float64)  # every sign vector is an eigenvector, in every direction
    assert float(ce.trace(Typed(A))) == pytest.approx(500, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_density_of_small_operators_is_that_of_their_eigenvalues(kind):
    """All moments of the quadratures are those of the starts' spectral measures; their mean over starts is close."""
    op, A = _operators()[kind]
    d = ce.spectral_density(op, probes=200, steps=40, width=0.05)
    values = torch.linalg.eigvalsh(A)
    for power in (1, 2, 3):
        each = (d.weights * d.nodes**power).sum(1)
        expected = float((values**power).mean())
        assert abs(float(each.mean()) - expected) < 4 * float(each.std()) / 200**0.5 + 1e-12
    assert float(torch.trapezoid(d.density, d.grid)) == pytest.approx(1.0, rel=1e-5)
    low, high = float(values[0]), float(values[-1])
    assert float(d.nodes[d.weights > 1e-12].max()) == pytest.approx(high, rel=1e-6)
    assert float(d.nodes[d.weights > 1e-12].min()) == pytest.approx(low, rel=1e-6, abs=1e-12)


def test_each_quadrature_is_exact_for_polynomials():
    A, _ = _symmetric(60)
    d = ce.spectral_density(Typed(A), probes=3, steps=6, generator=torch.Generator().manual_seed(5))
    signs = 2 * torch.randint(0, 2, (60, 3), generator=torch.Generator().manual_seed(5)) - 1
    v = signs.double() / 60**0.5
    for power in range(12):
        expected = (v * (torch.linalg.matrix_power(A, power) @ v)).sum(0)
        assert relative((d.weights * d.nodes**power).sum(1), expected) < 1e-12


def test_density_against_the_smoothed_eigenvalues():
    A, values = _symmetric(300, decay=0.0)
    d = ce.spectral_density(Typed(A), probes=60, steps=150, width=0.2)
    bells = torch.exp(-0.5 * ((d.grid[:, None] - values) / 0.2) ** 2) / (0.2 * math.sqrt(2 * math.pi))
    gap = (d.density - bells.mean(1)).abs()
    assert bool((gap <= 4.5 * d.standard_error + 1e-6).all())
    assert float(gap.max()) < 0.03 * float(d.density.max())
    share, error = d.share(0.0, 1.0)
    expected = float(((values > 0) & (values <= 1)).double().mean())
    assert abs(share - expected) < 4 * error + 0.02
    assert d.share() == pytest.approx((1.0, 0.0), abs=1e-12)


def test_density_where_lanczos_ends_early():
    d = ce.spectral_density(Typed(3.0 * torch.eye(50, dtype=torch.float64)), steps=20)
    assert float(d.grid[d.density.argmax()]) == pytest.approx(3.0, abs=0.01)
    assert float((d.weights * d.nodes).sum(1).mean()) == pytest.approx(3.0)
    zero = ce.spectral_density(Typed(torch.zeros(5, 5, dtype=torch.float64)))
    assert zero.share(-1e-9, 1e-9)[0] == pytest.approx(1.0)
    A = torch.diag(torch.tensor([1.0] * 10 + [-2.0] * 30, dtype=torch.float64))
    two = ce.spectral_density(Typed(A), steps=30, probes=50)
    assert two.share(-3, 0)[0] == pytest.approx(0.75, abs=1e-12)  # sign vectors weigh all coordinates alike


def test_solves_as_a_dense_factorisation():
    model, x, y = _problem()
    ggn, G = ce.GGNOperator(model, CE, x, y), gauss_newton(model, CE, x, y)
    b = torch.randn(len(G), 3, dtype=torch.float64)
    for damping in (1e-2, 1.0):
        expected = torch.linalg.solve(G + damping * torch.eye(len(G), dtype=torch.float64), b)
        found = ce.solve(ggn, b, damping)
        assert relative(found.x, expected) < 1e-8
        assert relative(ce.solve(ggn, b[:, 0], damping).x, expected[:, 0]) < 1e-8
        rest = (b - (G @ found.x + damping * found.x)).norm(dim=0) / b.norm(dim=0)
        assert relative(found.residual, rest) < 1e-2 or float(rest.max()) < 1e-12
        assert bool((found.residual <= 1e-10).all())
    assert not ce.solve(ggn, torch.zeros_like(b), 1.0).x.any()
    newton = ce.solve(ggn, ggn.gradient)  # singular, but the gradient is in its range
    assert float((G @ newton.x - ggn.gradient).norm() / ggn.gradient.norm()) < 1e-9


def test_an_indefinite_matrix_is_found_out():
    model, x, y = _problem()
    op, H = ce.HessianOperator(model, CE, x, y), double_backward(model, CE, x, y)
    lowest = float(torch.linalg.eigvalsh(H)[0])
    b = torch.randn(len(H), dtype=torch.float64)
    with pytest.raises(ce.IndefiniteError, match="damping") as e:
        ce.solve(op, b, -0.5 * lowest)
    v = e.value.direction
    assert float(v @ H @ v - 0.5 * lowest) == pytest.approx(e.value.curvature, rel=1e-9)
    assert e.value.curvature < 0
    expected = torch.linalg.solve(H - 1.5 * lowest * torch.eye(len(H), dtype=torch.float64), b)
    assert relative(ce.solve(op, b, -1.5 * lowest).x, expected) < 1e-7
    with pytest.raises(ce.IndefiniteError):
        ce.solve(Typed(torch.zeros(4, 4, dtype=torch.float64)), torch.ones(4, dtype=torch.float64))
    with pytest.raises(ce.NotConvergedError, match="max_products") as stopped:
        ce.solve(op, b, -1.001 * lowest, max_products=3)
    assert stopped.value.residuals is not None


def test_the_global_generator_is_left_alone():
    A, before = Typed(_symmetric(200)[0]), torch.get_rng_state()
    first = ce.trace(A), ce.frobenius_norm(A), ce.spectral_density(A, steps=5).density
    torch.manual_seed(99)
    second = ce.trace(A), ce.frobenius_norm(A), ce.spectral_density(A, steps=5).density
    assert first[:2] == second[:2]
    assert torch.equal(first[2], second[2])
    torch.set_rng_state(before)
    generator = torch.Generator().manual_seed(3)
    assert ce.trace(A, generator=generator) != ce.trace(A, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_float32_operators():
    A = _symmetric(300, decay=0.5)[0]
    op = Bare(A.float())
    assert abs(float(ce.trace(op)) - float(A.trace())) < 5 * ce.trace(op).standard_error + 1e-4
    assert ce.spectral_density(op).density.dtype == torch.float64
    b = torch.ones(300)
    shifted = torch.eye(300, dtype=torch.float64) * 5 + A
    assert relative(ce.solve(op, b, 5.0).x.double(), torch.linalg.solve(shifted, b.double())) < 1e-4


class NoShape:
    def __matmul__(self, v):
        return v


class Longer(Typed):
    def __matmul__(self, v):
        return torch.cat([v, v])


class Listed(Typed):
    def __matmul__(self, v):
        return v.tolist()


class Broken(Typed):
    def __matmul__(self, v):
        return v * float("nan")


EYE = torch.eye(300, dtype=torch.float64)


@pytest.mark.parametrize("call", [ce.trace, ce.frobenius_norm, ce.spectral_density])
@pytest.mark.parametrize(
    ("op", "error", "match"),
    [
        (NoShape(), TypeError, "shape and @"),
        (object(), TypeError, "shape and @"),
        (Bare(torch.ones(3, 4)), ValueError, "square"),
        (Bare(torch.ones(3)), ValueError, "square"),
        (torch.eye(3, dtype=torch.float16), TypeError, "float32 or float64"),
        (Longer(EYE), ValueError, "of shape"),
        (Listed(EYE), TypeError, "to be a tensor"),
        (Broken(EYE), ce.NonFiniteError, "NaN"),
    ],
)
def test_refuses_what_is_no_operator(call, op, error, match):
    with pytest.raises(error, match=match):
        call(op)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ce.trace(EYE, products=5), "products"),
        (lambda: ce.frobenius_norm(EYE, products=True), "products"),
        (lambda: ce.spectral_density(EYE, probes=1), "probes"),
        (lambda: ce.spectral_density(EYE, steps=0), "steps"),
        (lambda: ce.spectral_density(EYE, width=-1.0), "width"),
        (lambda: ce.solve(EYE, torch.ones(3, dtype=torch.float64)), "b: expected"),
        (lambda: ce.solve(EYE, torch.full((300,), math.nan, dtype=torch.float64)), "finite"),
        (lambda: ce.solve(EYE, EYE[0], damping=-1.0), "damping"),
        (lambda: ce.solve(EYE, EYE[0], tol=2.0), "tol"),
    ],
)
def test_refuses_numbers_out_of_range(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_refuses_what_is_no_generator():
    with pytest.raises(TypeError, match="generator"):
        ce.trace(Typed(EYE), generator=3)
    with pytest.raises(TypeError, match="b: expected"):
        ce.solve(EYE, torch.ones(300))
