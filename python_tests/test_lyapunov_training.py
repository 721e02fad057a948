"""Lyapunov exponents: published values, exact sums, real training runs, resuming, bad input."""

import copy
import itertools
import math
import sys
import types

import cases
import pytest
import torch
from oracles import double_backward
from torch import nn
from torch.optim import SGD, Adam, AdamW

import chaos_ext as ce
from chaos_ext import _ops, systems
from chaos_ext.dynamics.orthonormal import orthonormalise

CE = nn.CrossEntropyLoss()


def _setting(dtype=torch.float64, width=3):
    model = cases.mlp(2, "tanh", seed=3, width=width).to(dtype)
    batches = [cases.batch(5, cases.LOSSES["ce"][1], seed=i) for i in range(4)]
    return model, [(x.to(dtype), y) for x, y in batches]


def _step(model, opt, op, x, y):
    if isinstance(opt, ce.CGD):
        opt.step(op)
    else:
        opt.zero_grad()
        CE(model(x), y).backward()
        opt.step()


def _train(model, opt, batches, steps, analyzer, first=0, watch=None):
    for t in range(first, first + steps):
        x, y = batches[t % len(batches)]
        op = ce.HessianOperator(model, CE, x, y)
        if watch is not None:
            watch(op, x, y)
        analyzer.update(op)
        _step(model, opt, op, x, y)


# --- any map -------------------------------------------------------------------------------------------------------

# Error bars are one standard error; published numbers carry their own rounding; 4 of them on the safe side, as the
# rounding of another machine sends chaotic orbits elsewhere.
MAPS = {
    "logistic": (systems.logistic(), 6000, 0),
    "henon": (systems.henon(), 8000, 0),
    "lozi": (systems.lozi(), 8000, 0),
    "ikeda": (systems.ikeda(), 8000, 0),
    "cat": (systems.cat_map(), 500, 0),
    "standard": (systems.standard_map(10.0), 8000, 0.02),  # ln(K / 2) holds to a per cent or two
    "lorenz63": (systems.lorenz63(), 6000, 0),
    "lorenz96": (systems.lorenz96(), 1000, 0.02),  # published to two digits
}


@pytest.mark.parametrize("name", MAPS)
def test_published_exponents_within_their_error_bars(name):
    s, steps, slack = MAPS[name]
    r = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=steps, transient=300, full_output=True)
    exponents, errors = r.exponents / s.time, r.errors / s.time
    for value, error, published in zip(exponents.tolist(), errors.tolist(), s.exponents):
        assert abs(value - published) < 4 * error + slack + 1e-4
    assert (errors < 0.2).all()
    if not math.isnan(s.sum):
        # Exact for maps; a Runge-Kutta step contracts volumes like the flow up to its own error.
        assert float(exponents.sum()) == pytest.approx(s.sum, abs=1e-9 if s.time == 1 and name != "logistic" else 2e-2)
    assert exponents.dtype == torch.float64
    assert torch.equal(exponents.sort(descending=True).values, exponents)
    assert (r.steps, r.transient, int(r.history.steps[-1])) == (steps, 300, steps + 300) or r.history.steps[-1] > 290
    assert torch.allclose(r.directions.T @ r.directions, torch.eye(len(s.x0), dtype=torch.float64), atol=1e-12)


def test_dimensions_and_sums():
    s = systems.henon()
    r = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=6000, transient=100, full_output=True)
    assert r.kaplan_yorke_dimension == pytest.approx(1 + 0.4192 / 1.6232, abs=0.01)
    assert r.sum_of_positive_exponents == float(r.exponents[0])
    s = systems.lorenz96()
    r = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=1000, transient=300, full_output=True)
    assert r.kaplan_yorke_dimension == pytest.approx(27.1, abs=0.5)
    # Published: 13 positive ones, of which the smallest, and the zero one, are within the error of this short run.
    assert abs(ce.count_signs(r.exponents, 1, 0.02 * s.time).chaotic - 13) <= 1
    few = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=200, k=3, full_output=True)
    with pytest.raises(ValueError, match="at least 3"):
        _ = few.kaplan_yorke_dimension


def test_kaplan_yorke_by_hand():
    def dimension(*values, size=None):
        return ce.kaplan_yorke_dimension(torch.tensor(values, dtype=torch.float64), size)

    assert dimension(-1.0, -2.0) == 0.0
    assert dimension(1.0, -4.0) == 1.25
    assert dimension(-3.0, 1.0, 1.0) == pytest.approx(2 + 2 / 3)
    assert dimension(1.0, 0.5) == 2.0
    assert dimension(1.0, -3.0, size=9) == pytest.approx(1 + 1 / 3)
    assert ce.sum_of_positive_exponents(torch.tensor([1.0, 0.5, -2.0])) == 1.5
    signs = ce.count_signs(torch.tensor([1e-3, 1e-12, -1e-12, -0.1, 0.0]), steps=100, tol=1e-8)
    assert (signs.chaotic, signs.neutral, signs.stable) == (1, 3, 1)
    for bad in ({"steps": 0}, {"tol": -1.0}, {"exponents": torch.tensor([math.nan])}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ce.count_signs(**{"exponents": torch.zeros(2), **bad})


def test_tangents_of_the_systems_are_their_derivatives():
    for s in (*(m[0] for m in MAPS.values()), systems.standard_map(1.0)):
        x, h = s.x0 * 1.1 + 0.05, 1e-6
        J = s.tangent(x, torch.eye(len(x), dtype=torch.float64))
        for j in range(len(x)):
            e = torch.zeros_like(x)
            e[j] = h
            assert torch.allclose((s.step(x + e) - s.step(x - e)) / (2 * h), J[:, j], atol=1e-7)


def test_stable_neutral_and_chaotic():
    """The standard map at K = 1 is chaotic from one point and quasiperiodic from another.

    In the chaotic sea orbits stick to islands for long: 0.105 is reached after millions of steps only.
    """
    s = systems.standard_map(1.0)
    chaotic = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=4000, gali=True, full_output=True)
    assert 0.05 < float(chaotic.exponents[0]) < 0.25
    torus = torch.tensor([3.0, 3.0], dtype=torch.float64)
    neutral = ce.lyapunov_spectrum(s.step, s.tangent, torus, steps=4000, gali=True, full_output=True)
    assert abs(float(neutral.exponents[0])) < 3e-3  # ln(t) / t
    # GALI_2: exponential in chaos, a power of t on a torus of dimension 1.
    assert float(chaotic.log_gali[1]) < -200
    assert -25 < float(neutral.log_gali[1]) < 0
    stable = systems.logistic(2.5)  # fixed point 1 - 1 / r with slope 2 - r
    exponents = ce.lyapunov_spectrum(stable.step, stable.tangent, stable.x0, steps=200, transient=200)
    assert float(exponents[0]) == pytest.approx(math.log(0.5), abs=1e-9)
    still = ce.lyapunov_spectrum(lambda x: x, lambda x, V: V, torus, steps=50)
    assert still.tolist() == [0.0, 0.0]
    singular = ce.lyapunov_spectrum(lambda x: 0 * x, lambda x, V: 0 * V, torus, steps=5)
    assert singular.tolist() == [-math.inf, -math.inf]


def test_gali_is_the_volume_of_the_free_deviations():
    s, t = systems.henon(), 9
    r = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=t, gali=True, full_output=True)
    x, Y = s.x0, torch.eye(2, dtype=torch.float64)
    for _ in range(t):
        Y, x = s.tangent(x, Y), s.step(x)
    volume = torch.linalg.det(Y / Y.norm(dim=0)).abs().log()
    assert r.log_gali.tolist() == pytest.approx([0.0, float(volume)], abs=1e-9)


def test_fewer_exponents_are_the_leading_ones_and_progress_is_reported():
    s, seen = systems.lorenz96(8, 8.0), []
    whole = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=3000, transient=300)
    part = ce.lyapunov_spectrum(
        s.step, s.tangent, s.x0, steps=3000, transient=300, k=3, progress=lambda n, of: seen.append((n, of))
    )
    assert part.tolist() == pytest.approx(whole[:3].tolist(), abs=2e-3)
    assert (len(seen), seen[-1]) == (3300, (3300, 3300))


def test_the_interval_changes_nothing():
    s = systems.ikeda()
    runs = [
        ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=300, transient=t, qr_every=q)
        for t, q in itertools.product((0, 7), ("auto", 1, 5, 1000))
    ]
    for a, b in itertools.pairwise(runs[:4]):
        assert a.tolist() == pytest.approx(b.tolist(), abs=1e-9)
    for a, b in itertools.pairwise(runs[4:]):
        assert a.tolist() == pytest.approx(b.tolist(), abs=1e-9)


def test_divergence_keeps_the_results_until_then():
    def square(x):
        return x * x

    with pytest.raises(ce.NonFiniteError, match="step 9") as error:
        ce.lyapunov_spectrum(square, lambda x, V: 2 * x * V, torch.tensor([2.0], dtype=torch.float64), steps=100)
    result = error.value.result
    assert result.steps >= 9
    grown = 2 ** (result.steps) - 1  # ln prod 2 x_t = t ln 2 + (2^t - 1) ln 2
    assert float(result.exponents[0]) == pytest.approx(math.log(2) * (1 + grown / result.steps), rel=1e-12)
    with pytest.raises(ce.NonFiniteError, match="step 0") as error:
        ce.lyapunov_spectrum(square, lambda x, V: V / 0, torch.tensor([2.0], dtype=torch.float64), steps=100)
    assert error.value.result is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"k": 0}, ValueError),
        ({"k": 3}, ValueError),
        ({"k": True}, ValueError),
        ({"steps": 0}, ValueError),
        ({"transient": -1}, ValueError),
        ({"qr_every": 0}, ValueError),
        ({"qr_every": "often"}, ValueError),
        ({"x0": [0.1, 0.1]}, TypeError),
        ({"x0": torch.zeros(2, 2)}, ValueError),
        ({"x0": torch.tensor([math.nan, 0.0])}, ce.NonFiniteError),
    ],
)
def test_bad_arguments(change, error):
    s = systems.henon()
    arguments = {"x0": s.x0, "steps": 5, **change}
    with pytest.raises(error, match=next(iter(change))):
        ce.lyapunov_spectrum(s.step, s.tangent, **arguments)


@pytest.mark.parametrize("condition", [1e0, 1e2, 1e5, 1e12])
@pytest.mark.parametrize("shape", [(40, 1), (30, 5), (900, 30)])
def test_orthonormalise(shape, condition, dtype):
    S, k = shape
    U, V = torch.linalg.qr(torch.randn(S, k, dtype=torch.float64))[0], torch.linalg.qr(torch.randn(k, k).double())[0]
    Y = ((U * torch.logspace(0, -math.log10(condition), k, dtype=torch.float64)) @ V).to(dtype)
    before = Y.clone()
    Q, R = orthonormalise(Y)
    eps = torch.finfo(dtype).eps
    assert torch.equal(Y, before)
    assert R.dtype == torch.float64
    assert (R.diagonal() >= 0).all()
    assert torch.equal(R, R.triu())
    assert (Q.T.double() @ Q.double() - torch.eye(k)).abs().max() < 30 * eps
    assert (Q.double() @ R - Y.double()).abs().max() < 30 * eps
    if condition * eps < 1e-2:
        exact = torch.linalg.qr(Y.double())[1].diagonal().abs()
        assert ((R.diagonal() / exact).log().abs().max()) < 30 * eps * condition


# --- training runs -------------------------------------------------------------------------------------------------

RUNS = {
    "sgd": (SGD, {"lr": 0.3, "weight_decay": 0.05}),
    "sgd_maximize": (SGD, {"lr": 0.1, "maximize": True}),
    "heavy_ball": (SGD, {"lr": 0.2, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    "nesterov": (SGD, {"lr": 0.2, "momentum": 0.8, "nesterov": True}),
    "adam": (Adam, {"lr": 0.01, "eps": 1e-3, "betas": (0.7, 0.9), "weight_decay": 0.1}),
    "adamw": (AdamW, {"lr": 0.1, "eps": 1e-3, "betas": (0.7, 0.9), "weight_decay": 0.5}),
    "cgd": (ce.CGD, {"lr": 0.3, "prune": "negative", "mix": 0.5}),
}


@pytest.mark.parametrize("name", RUNS)
def test_sum_rules(name):
    """The sum of all exponents is the mean of ln|det J|, which is known in closed form for every optimizer."""
    cls, options = RUNS[name]
    model, batches = _setting()
    opt = cls(model.parameters(), **options)
    an = ce.LyapunovAnalyzer(model, opt)
    P, steps = sum(p.numel() for p in model.parameters()), 30
    logs = []

    def watch(op, x, y):
        H = double_backward(model, CE, x, y)
        if cls is ce.CGD:
            values, V = torch.linalg.eigh(H)
            V = V[:, values < -1e-12]
            H = H - options["mix"] * V @ (V.T @ H)
        K = (-1 if options.get("maximize") else 1) * H + options.get("weight_decay", 0) * torch.eye(P).double()
        logs.append(float(torch.linalg.slogdet(torch.eye(P) - options["lr"] * K)[1]))

    _train(model, opt, batches, steps, an, watch=watch)
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
    model, batches = _setting()
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
        _step(model, opt, op, x, y)
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
        model, batches = _setting(dtype)
        opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
        an = ce.LyapunovAnalyzer(model, opt, k=6)
        _train(model, opt, batches, 100, an)
        found[dtype] = an.exponents()
    assert (found[torch.float32] - found[torch.float64]).abs().max() < 1e-5


def test_reading_changes_nothing():
    runs = []
    for looks in (False, True):
        model, batches = _setting()
        opt = SGD(model.parameters(), lr=0.1)
        an = ce.LyapunovAnalyzer(model, opt, k=5, gali=True)
        for t in range(25):
            _train(model, opt, batches, 1, an, first=t)
            if looks:
                an.exponents(), an.directions(), an.errors(), an.history, an.log_gali(), an.state_dict()
        runs.append(an)
    assert torch.equal(runs[0].exponents(), runs[1].exponents())
    assert torch.equal(runs[0].directions(), runs[1].directions())


def test_readings_agree_with_one_another():
    model, batches = _setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=4, transient=5, qr_every=3)
    with pytest.raises(ValueError, match="transient"):
        an.exponents()
    _train(model, opt, batches, 5, an)
    with pytest.raises(ValueError, match="transient"):
        an.exponents()
    with pytest.raises(ValueError, match="block"):
        _ = an.local_exponents
    _train(model, opt, batches, 60, an, first=5)
    steps, running = an.history
    assert int(steps[-1]) == 65 == an.steps
    assert torch.allclose(running[-1], an.exponents(), atol=1e-14)
    before = running[-2] * (int(steps[-2]) - 5)
    assert torch.allclose((running[-1] * 60 - before) / int(steps[-1] - steps[-2]), an.local_exponents, atol=1e-12)
    assert (an.errors() > 0).all()
    assert an.sum_of_positive_exponents() == float(an.exponents().clamp_min(0).sum())
    assert ce.LyapunovAnalyzer(model, opt).kaplan_yorke_dimension.__doc__
    with pytest.raises(ValueError, match="gali"):
        an.log_gali()
    Q = an.directions()
    assert torch.allclose(Q.T @ Q, torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_long_histories_are_thinned_but_stay_exact(monkeypatch):
    from chaos_ext.dynamics import benettin

    s = systems.henon()
    whole = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=999, qr_every=1, full_output=True)
    monkeypatch.setattr(benettin, "KEEP", 64)
    thin = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=999, qr_every=1, full_output=True)
    assert torch.equal(thin.exponents, whole.exponents)
    assert 32 <= len(thin.history.steps) <= 64
    last = {int(t): e for t, e in zip(*whole.history)}
    for t, e in zip(*thin.history):
        assert torch.allclose(e, last[int(t)], atol=1e-12)
    assert torch.allclose(thin.errors, whole.errors, rtol=0.4)


@pytest.mark.parametrize("name", ["sgd", "heavy_ball", "adam", "cgd"])
def test_resume_is_bit_identical(name, tmp_path):
    cls, options = RUNS[name]
    model, batches = _setting()
    opt = cls(model.parameters(), **options)
    kwargs = {"k": 5, "transient": 4, "gali": True, "qr_every": 5}
    an = ce.LyapunovAnalyzer(model, opt, csv=tmp_path / "run.csv", **kwargs)
    _train(model, opt, batches, 23, an)
    an.save(tmp_path / "an.pt")
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "run.pt")
    _train(model, opt, batches, 30, an, first=23)
    csv = (tmp_path / "run.csv").read_text()
    with (tmp_path / "run.csv").open("a") as f:
        f.write("60,0.1,")  # the process was killed in the middle of a row

    twin, _ = _setting()
    other = cls(twin.parameters(), **options)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    twin.load_state_dict(saved["model"])
    other.load_state_dict(saved["opt"])
    again = ce.LyapunovAnalyzer(twin, other, csv=tmp_path / "run.csv", **kwargs)
    again.load(tmp_path / "an.pt")
    assert again.steps == 23
    _train(twin, other, batches, 30, again, first=23)
    assert torch.equal(again.exponents(), an.exponents())
    assert torch.equal(again.directions(), an.directions())
    assert torch.equal(again.history.exponents, an.history.exponents)
    assert torch.equal(again.errors(), an.errors())
    assert torch.equal(again.log_gali(), an.log_gali())
    assert (tmp_path / "run.csv").read_text() == csv


def test_a_bar_shows_steps_and_the_largest_exponent(monkeypatch):
    pytest.importorskip("tqdm")
    text = []
    terminal = types.SimpleNamespace(isatty=lambda: True, write=text.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stderr", terminal)
    model, batches = _setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=2, qr_every=1, progress=8)
    _train(model, opt, batches, 8, an)
    an._bar.close()
    last = "".join(text).split("\r")[-1]
    assert "8/8" in last
    assert f"largest exponent {float(an.exponents()[0]):+.3g}" in last
    text.clear()
    s = systems.henon()
    ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=20, transient=5, progress=True)
    assert "25/25" in "".join(text)
    text.clear()
    ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=20)
    ce.LyapunovAnalyzer(model, opt, k=2)
    assert not text


def test_csv_streams_what_exponents_returned(tmp_path):
    model, batches = _setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=2, qr_every=5, csv=tmp_path / "e.csv")
    _train(model, opt, batches, 10, an)
    header, *rows = (tmp_path / "e.csv").read_text().splitlines()
    assert header == "step,exponent_1,exponent_2"
    assert [float(v) for v in rows[-1].split(",")] == [10.0, *an.exponents().tolist()]
    with pytest.raises(ValueError, match="csv"):
        ce.LyapunovAnalyzer(model, opt, csv=tmp_path / "nowhere" / "e.csv")


def test_checkpoints_of_other_runs_are_refused():
    model, batches = _setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=3)
    _train(model, opt, batches, 6, an)
    state, theta = an.state_dict(), copy.deepcopy(model.state_dict())
    before = an.exponents()
    wide, _ = _setting(width=4)
    single, _ = _setting(torch.float32)
    others = {
        "k": ce.LyapunovAnalyzer(model, opt, k=2),
        "transient": ce.LyapunovAnalyzer(model, opt, k=3, transient=1),
        "qr_every": ce.LyapunovAnalyzer(model, opt, k=3, qr_every=2),
        "optimizer": ce.LyapunovAnalyzer(model, Adam(model.parameters()), k=3),
        "S": ce.LyapunovAnalyzer(model, SGD(model.parameters(), lr=0.1, momentum=0.9), k=3),
        "parameters": ce.LyapunovAnalyzer(wide, SGD(wide.parameters(), lr=0.1), k=3),
        "dtype": ce.LyapunovAnalyzer(single, SGD(single.parameters(), lr=0.1), k=3),
        "gali": ce.LyapunovAnalyzer(model, opt, k=3, gali=True),
    }
    for name, other in others.items():
        with pytest.raises(ce.CheckpointError, match=name):
            other.load_state_dict(state)
        assert other.steps == 0
    for damaged in ({}, [], {**state, "run": {}}, {**state, "run": {**state["run"], "Y": state["run"]["Y"][:-1]}}):
        with pytest.raises(ce.CheckpointError):
            an.load_state_dict(damaged)
    assert torch.equal(an.exponents(), before)
    # Same kind of run, but other parameters: noticed at the first update.
    _train(model, opt, batches, 1, an, first=6)
    an.load_state_dict(state)
    x, y = batches[0]
    with pytest.raises(ce.CheckpointError, match="parameters"):
        an.update(ce.HessianOperator(model, CE, x, y))
    model.load_state_dict(theta)
    an.update(ce.HessianOperator(model, CE, x, y))
    assert an.steps == 7


def test_a_truncated_checkpoint_is_detected_and_the_previous_one_used(tmp_path, caplog):
    model, batches = _setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=3)
    path = tmp_path / "an.pt"
    with pytest.raises(FileNotFoundError):
        an.load(path)
    for t in (3, 4):
        _train(model, opt, batches, t, an)
        an.save(path)
    whole = path.read_bytes()
    fresh = ce.LyapunovAnalyzer(model, opt, k=3)
    fresh.load(path)
    assert fresh.steps == 7
    for cut in (whole[: len(whole) // 2], b""):
        path.write_bytes(cut)
        fresh.load(path)
        assert fresh.steps == 3
    assert "previous" in caplog.text
    path.unlink()
    fresh.load(path)
    assert fresh.steps == 3
    path.write_bytes(whole[:-1])
    (tmp_path / "an.pt.previous").write_bytes(b"x")
    with pytest.raises(ce.CheckpointError):
        fresh.load(path)


def test_overflow_mid_run_names_the_step_and_keeps_the_results(monkeypatch):
    model, batches = _setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=3, qr_every=2)
    _train(model, opt, batches, 7, an)
    closed = an.history.exponents[-1]

    def overflow(Y, *args):
        return Y.fill_(math.inf)[:1]

    monkeypatch.setattr(_ops, "tangent_update_", overflow)
    with pytest.raises(ce.NonFiniteError, match="step 7"):
        _train(model, opt, batches, 1, an)
    assert an.steps == 7
    assert torch.equal(an.exponents(), closed)  # the deviations are lost, the closed blocks remain
    with pytest.raises(ce.NonFiniteError, match="stopped at step 7"):
        _train(model, opt, batches, 1, an)


def test_diverging_training_keeps_the_results():
    model, batches = _setting()
    opt = SGD(model.parameters(), lr=1e20, maximize=True, weight_decay=1.0)
    an = ce.LyapunovAnalyzer(model, opt, k=2)
    with pytest.raises(ce.NonFiniteError):
        _train(model, opt, batches, 50, an)
    assert an.steps >= 1
    assert float(an.exponents()[0]) > 40


def test_mismatches_are_refused_and_change_nothing():
    model, batches = _setting()
    other, _ = _setting()
    x, y = batches[0]
    opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
    an = ce.LyapunovAnalyzer(model, opt, k=3)
    Q = an.directions()
    stale = ce.HessianOperator(model, CE, x, y)
    with pytest.raises(TypeError, match="op"):
        an.update(model)
    with pytest.raises(ValueError, match="op: its model"):
        an.update(ce.HessianOperator(other, CE, x, y))
    CE(model(x), y).backward()
    opt.step()
    with pytest.raises(ce.StaleOperatorError):
        an.update(stale)
    assert an.steps == 0
    assert torch.equal(an.directions(), Q)
    new = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    for error, match, call in (
        (ValueError, "1.weight", lambda: ce.LyapunovAnalyzer(other, opt)),
        (ValueError, r"\(2,\)", lambda: ce.LyapunovAnalyzer(model, SGD([*model.parameters(), new], lr=0.1))),
        (ce.UnsupportedError, "svd", lambda: ce.LyapunovAnalyzer(model, opt, method="svd")),
        (ValueError, "method", lambda: ce.LyapunovAnalyzer(model, opt, method="gram")),
        (ce.UnsupportedError, "cocycle", lambda: ce.LyapunovAnalyzer(model, opt, state="theta")),
        (ce.UnsupportedError, "RMSprop", lambda: ce.LyapunovAnalyzer(model, torch.optim.RMSprop(model.parameters()))),
        (ValueError, "k", lambda: ce.LyapunovAnalyzer(model, opt, k=10**6)),
        (ValueError, "k", lambda: ce.LyapunovAnalyzer(model, opt, k=0)),
        (ValueError, "transient", lambda: ce.LyapunovAnalyzer(model, opt, transient=-1)),
        (ValueError, "qr_every", lambda: ce.LyapunovAnalyzer(model, opt, qr_every=0)),
        (ce.MemoryBudgetError, "fewer exponents", lambda: ce.LyapunovAnalyzer(model, opt, memory_budget=1000)),
    ):
        with pytest.raises(error, match=match):
            call()
    model[3].weight = nn.Parameter(model[3].weight.detach().clone())
    with pytest.raises(ValueError, match=r"3\.weight"):
        an.update(ce.HessianOperator(model, CE, x, y))
    assert torch.equal(an.directions(), Q)


def test_the_maximal_exponent_takes_one_product_a_step(monkeypatch):
    widths = []
    update = _ops.tangent_update_
    monkeypatch.setattr(_ops, "tangent_update_", lambda Y, *args: widths.append(Y.shape[1]) or update(Y, *args))
    for cls, options in (RUNS["sgd"], RUNS["heavy_ball"], RUNS["adam"]):
        model, batches = _setting()
        opt = cls(model.parameters(), **options)
        _train(model, opt, batches, 5, ce.LyapunovAnalyzer(model, opt, k=1))
    assert widths == [1] * 15


def test_frames_are_renewed_before_the_stretch_spoils_them(monkeypatch):
    """Between two QRs no column ratio passes e^12 in float64, e^5 in float32; a calm run has few QRs."""
    from chaos_ext.dynamics import benettin

    for dtype, limit in ((torch.float64, 12.0), (torch.float32, 5.0)):
        stretches, calls = [], []
        original = benettin.orthonormalise

        def spy(Y, stretches=stretches, calls=calls, original=original):
            norms = Y.norm(dim=0).double().log()
            stretches.append(float(norms.max() - norms.min()))
            calls.append(1)
            return original(Y)

        monkeypatch.setattr(benettin, "orthonormalise", spy)
        s = systems.ikeda()
        ce.lyapunov_spectrum(s.step, s.tangent, s.x0.to(dtype), steps=500)
        monkeypatch.setattr(benettin, "orthonormalise", original)
        assert max(stretches) < limit
        assert len(calls) < 500
    calls = []
    monkeypatch.setattr(benettin, "orthonormalise", lambda Y: calls.append(1) or original(Y))
    model, batches = _setting()
    opt = SGD(model.parameters(), lr=1e-4)
    _train(model, opt, batches, 64, ce.LyapunovAnalyzer(model, opt, k=4))
    assert len(calls) <= 1 + 4 + 3
