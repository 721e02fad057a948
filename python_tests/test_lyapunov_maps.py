"""Lyapunov exponents of any map: published values, derivatives, GALI, histories and bad arguments."""

import itertools
import math

import numpy as np
import pytest
import torch

import chaos_ext as ce
from chaos_ext import systems
from chaos_ext.dynamics import benettin, start

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
    "lorenz96": (systems.lorenz96(), 1000, 0.041),  # published as a doubling time of 2.1 days: 2.05 to 2.15
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


def test_the_largest_exponent_of_lorenz_96_is_that_of_two_orbits():
    """The distance of two orbits of numpy's, drawn together again and again: no tangent, and a fifth of the step."""
    x, rng = np.full(40, 8.0), np.random.default_rng(0)
    x[20] += 0.01
    x = np.stack([x, x + 1e-8 * rng.standard_normal(40)])
    growth = []
    for _ in range(1200):
        for _ in range(10):
            x = _lorenz96_step(x, 0.01)
        distance = np.linalg.norm(x[1] - x[0])
        growth.append(math.log(distance / 1e-8) / 0.1)
        x[1] = x[0] + (x[1] - x[0]) * 1e-8 / distance
    windows = np.reshape(growth[200:], (10, -1)).mean(1)
    s = systems.lorenz96()
    r = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=2000, transient=300, k=1, full_output=True)
    error = math.hypot(windows.std(ddof=1) / math.sqrt(10), float(r.errors[0]) / s.time)
    assert abs(windows.mean() - float(r.exponents[0]) / s.time) < 4 * error
    assert error < 0.12


def _lorenz96_step(x, h):
    def field(x):
        return (np.roll(x, -1, 1) - np.roll(x, 2, 1)) * np.roll(x, 1, 1) - x + 8

    a = field(x)
    b = field(x + h / 2 * a)
    c = field(x + h / 2 * b)
    return x + h / 6 * (a + 2 * b + 2 * c + field(x + h * c))


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
    x, Y = s.x0, start.start_block(2, 2, torch.float64, s.x0.device, 0, generic=True)
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


def test_long_histories_are_thinned_but_stay_exact(monkeypatch):
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
