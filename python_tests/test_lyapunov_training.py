"""Lyapunov exponents of training runs: exact sums, dense Jacobians, and optimizers with known exponents."""

import math

import pytest
import torch
from oracles import double_backward
from torch import nn
from torch.optim import SGD
from training import CE, RUNS, analyse, setting, take_step

import chaos_ext as ce
from chaos_ext import _ops


@pytest.mark.parametrize("name", RUNS)
def test_sum_rules(name):
    """The sum of all exponents is the mean of ln|det J|, which is known in closed form for every optimizer."""
    cls, options = RUNS[name]
    model, batches = setting()
    opt = cls(model.parameters(), **options)
    an = ce.LyapunovAnalyzer(model, opt)
    P, steps = sum(p.numel() for p in model.parameters()), 30
    logs = []

    def record(x, y):
        H = double_backward(model, CE, x, y)
        if cls is ce.CGD:
            values, V = torch.linalg.eigh(H)
            V = V[:, values < -1e-12]
            H = H - options["mix"] * V @ (V.T @ H)
        K = (-1 if options.get("maximize") else 1) * H + options.get("weight_decay", 0) * torch.eye(P).double()
        logs.append(float(torch.linalg.slogdet(torch.eye(P) - options["lr"] * K)[1]))

    for t in range(steps):
        record(*batches[t % len(batches)])
        analyse(model, opt, batches, 1, an, first=t)
    curvature = sum(logs) / steps
    mu, (b1, b2) = options.get("momentum", 0.0), options.get("betas", (1.0, 1.0))
    expected = {
        "sgd": curvature,
        "sgd_maximize": curvature,
        "cgd": curvature,
        "heavy_ball": P * math.log(mu or 1),
        "nesterov": P * math.log(mu or 1) + curvature,
        "adam": P * math.log(b1 * b2),
        "adamw": P * (math.log(b1 * b2) + math.log(1 - 0.1 * 0.5)),
    }[name]
    assert float(an.exponents().sum()) == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert an.exponents().dtype == torch.float64
    assert len(an.exponents()) == an.tangent.size


@pytest.mark.parametrize("k", [1, 4, None])
@pytest.mark.parametrize("name", ["sgd", "heavy_ball", "adam"])
def test_equal_to_dense_jacobians_and_qr_at_every_step(name, k):
    cls, options = RUNS[name]
    model, batches = setting()
    opt = cls(model.parameters(), **options)
    analyzers = [ce.LyapunovAnalyzer(model, opt, k=k, qr_every=q, transient=3) for q in ("auto", 1, 4)]
    Y, units, sums = analyzers[0].directions(), None, 0.0
    for t in range(17):
        x, y = batches[t % 4]
        op = ce.HessianOperator(model, CE, x, y)
        units = units or analyzers[0].tangent.units(op)
        J = analyzers[0].tangent.apply_(op, torch.eye(len(Y), dtype=torch.float64), units)
        Y, R = torch.linalg.qr(J @ Y)
        sums = sums + (R.diagonal().abs().log() if t >= 3 else 0.0)
        for an in analyzers:
            an.update(op)
        take_step(model, opt, x, y, op)
    expected = (sums / 14).sort(descending=True).values
    for an in analyzers:
        assert torch.allclose(an.exponents(), expected, rtol=0, atol=1e-8)
        assert torch.allclose((an.directions() * Y).sum(0).abs(), torch.ones(Y.shape[1]).double(), atol=1e-6)


class _Quadratic(nn.Module):
    """L = sum_i lambda_i z_i^2 / 2 in rotated coordinates z."""

    def __init__(self, curvatures):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(curvatures), dtype=torch.float64))
        self.curvatures = torch.tensor(curvatures, dtype=torch.float64)
        self.rotation = torch.linalg.qr(torch.randn(len(curvatures), len(curvatures), dtype=torch.float64))[0]

    def forward(self, x):
        return (self.curvatures * (self.rotation @ self.theta) ** 2).sum() / 2 + 0 * x.sum()


def _descend(model, opt, steps, **kwargs):
    an = ce.LyapunovAnalyzer(model, opt, **kwargs)
    for _ in range(steps):
        op = ce.HessianOperator(model, lambda out, y: out, torch.zeros(1, 1, dtype=torch.float64), None)
        an.update(op)
        opt.zero_grad()
        model(torch.zeros(1, 1, dtype=torch.float64)).backward()
        opt.step()
    return an


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9}, {"momentum": 0.5, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True}, {}],
    ids=["heavy_ball", "dampened", "nesterov", "plain"],
)
def test_companion_roots_on_a_quadratic(options):
    """Stable, neutral (a flat direction) and chaotic ones (negative curvature, beyond the threshold) at once."""
    curvatures, lr, steps = [-0.5, 0.0, 0.5, 3.0, 40.0], 0.1, 500
    torch.manual_seed(1)
    model = _Quadratic(curvatures)
    an = _descend(model, SGD(model.parameters(), lr=lr, **options), steps, transient=400)
    mu, damp, roots = options.get("momentum", 0.0), options.get("dampening", 0.0), []
    for c in curvatures:
        if not mu:
            roots.append(abs(1 - lr * c))
        elif options.get("nesterov"):
            roots += (
                torch.linalg.eigvals(torch.tensor([[1 - lr * c * (1 + mu), -lr * mu * mu], [c, mu]])).abs().tolist()
            )
        else:
            top = [1 - lr * (1 - damp) * c, -lr * mu]
            roots += torch.linalg.eigvals(torch.tensor([top, [(1 - damp) * c, mu]])).abs().tolist()
    expected = sorted((math.log(r) for r in roots), reverse=True)
    # Complex pairs rotate the frame, and a finite run averages a bounded wobble: O(1 / t).
    assert an.exponents().tolist() == pytest.approx(expected, abs=1.0 / (steps - 400))
    if not mu:
        assert an.exponents().tolist() == pytest.approx(expected, abs=1e-6)
    signs = ce.count_signs(an.exponents(), 100, 1.0)
    assert signs.chaotic == 2 if not options.get("dampening") else signs.chaotic >= 1
    few = _descend(model, SGD(model.parameters(), lr=lr * 1e-9, **options), 1, k=3)
    assert len(few.exponents()) == 3


class _Polynomial(nn.Module):
    """Chaotic gradient descent with lr = 1: 2 x^2 - x^4 makes Chebyshev's T_3, x^2 / 2 - 2 x^3 / 3 + x makes T_2."""

    def __init__(self, cubic, rotated):
        super().__init__()
        self.cubic, c, s = cubic, math.cos(0.7), math.sin(0.7)
        self.rotation = torch.tensor([[c, s], [-s, c]] if rotated else [[1.0]], dtype=torch.float64)
        self.theta = nn.Parameter(self.rotation.T @ torch.tensor([0.3, 0.21][: 2 if rotated else 1]).double())

    def forward(self, x):
        z = self.rotation @ self.theta
        first = 2 * z[0] ** 2 - z[0] ** 4 if self.cubic else z[0] ** 2 / 2 - 2 * z[0] ** 3 / 3 + z[0]
        second = z[-1] ** 2 / 2 - 2 * z[-1] ** 3 / 3 + z[-1] if len(z) == 2 else 0.0
        return first + second + 0 * x.sum()


@pytest.mark.parametrize(
    ("cubic", "rotated", "expected"),
    [(True, False, [math.log(3)]), (False, False, [math.log(2)]), (True, True, [math.log(3), math.log(2)])],
    ids=["T3", "T2", "both_rotated"],
)
def test_chaotic_gradient_descent_through_autograd(cubic, rotated, expected):
    model = _Polynomial(cubic, rotated)
    an = _descend(model, SGD(model.parameters(), lr=1.0), 600)
    # The maps are conjugate to piecewise linear ones: sums of ln|slope| differ from t ln 3 by a bounded amount.
    assert an.exponents().tolist() == pytest.approx(expected, abs=0.03)
    assert (an.exponents() - torch.tensor(expected)).abs().le(4 * an.errors() + 1e-3).all()


def test_float32_against_float64():
    found = {}
    for dtype in (torch.float32, torch.float64):
        model, batches = setting(dtype)
        opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
        an = ce.LyapunovAnalyzer(model, opt, k=6)
        analyse(model, opt, batches, 100, an)
        found[dtype] = an.exponents()
    assert (found[torch.float32] - found[torch.float64]).abs().max() < 1e-5


def test_the_maximal_exponent_takes_one_product_a_step(monkeypatch):
    widths = []
    update = _ops.tangent_update_
    monkeypatch.setattr(_ops, "tangent_update_", lambda Y, *args: widths.append(Y.shape[1]) or update(Y, *args))
    for cls, options in (RUNS["sgd"], RUNS["heavy_ball"], RUNS["adam"]):
        model, batches = setting()
        opt = cls(model.parameters(), **options)
        analyse(model, opt, batches, 5, ce.LyapunovAnalyzer(model, opt, k=1))
    assert widths == [1] * 15
