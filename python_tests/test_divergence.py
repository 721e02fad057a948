"""fit_divergence against closed forms, the conditions of a minimum, other solvers, and its promised coverage."""

import logging
import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

import chaos_ext as ce
from chaos_ext.metrics.intervals import block_counts, block_length, percentile_interval, student_quantile
from chaos_ext.metrics.root_law import fit_root

T = torch.arange(1.0, 101.0, dtype=torch.float64) * 5
LAWS = {
    "ballistic + diffusive": lambda t: (1e-4 * t**2 + 0.03 * t).sqrt(),
    "ballistic + diffusive + offset": lambda t: (1e-4 * t**2 + 0.03 * t + 1.0).sqrt(),
    "linear": lambda t: 0.01 * t,
    "random walk": lambda t: (0.03 * t).sqrt(),
    "power law": lambda t: 0.05 * t**0.8,
    "saturation": lambda t: 3 * (1 - torch.exp(-t / 150)),
}
# Laws that contain others: they can predict as well on the others' data.
CONTAINED = {
    "linear": {"power law", "ballistic + diffusive", "ballistic + diffusive + offset", "saturation"},
    "random walk": {"power law", "ballistic + diffusive", "ballistic + diffusive + offset"},
    "ballistic + diffusive": {"ballistic + diffusive + offset"},
}


def _noise(seed, m=100, memory=0.0):
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(m, generator=generator, dtype=torch.float64)
    for i in range(1, m):
        e[i] = memory * e[i - 1] + math.sqrt(1 - memory**2) * e[i]
    return e


@pytest.mark.parametrize("errors", ["absolute", "relative"])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize(("alpha", "beta"), [(1e-4, 0.03), (0.0, 0.03), (1e-4, 0.0), (1e-12, 1e-6)])
def test_exact_data_give_exact_coefficients(alpha, beta, eps, errors):
    t = T if eps == 0 else torch.cat([torch.zeros(1, dtype=torch.float64), T])
    fit = ce.fit_divergence(t, (alpha * t**2 + beta * t + eps**2).sqrt(), errors=errors, resamples=20)
    found = fit.offset if eps else fit.plain
    size = alpha * 500**2 + beta * 500
    assert found.alpha.value * 500**2 == pytest.approx(alpha * 500**2, abs=1e-9 * size)
    assert found.beta.value * 500 == pytest.approx(beta * 500, abs=1e-9 * size)
    if eps:
        assert found.eps.value == pytest.approx(eps, rel=1e-3 if eps < 1e-3 else 1e-9)
    assert torch.allclose(found.distance(t), (alpha * t**2 + beta * t + eps**2).sqrt(), rtol=1e-6)
    if alpha and beta and not eps:
        assert fit.plain.crossover.value == pytest.approx(beta / alpha, rel=1e-6)


def _gap(x, w, d, A):
    return w.sqrt().numpy() * (d.numpy() - np.sqrt(A.numpy() @ (x * [1e-4, 1e-2, 1])))


def test_the_fit_is_the_minimum():
    """Karush, Kuhn and Tucker's conditions of the convex problem, and scipy's bounded least squares beside it."""
    A = torch.stack([T**2, T, torch.ones_like(T)], 1)
    for seed in range(20):
        c0 = torch.tensor([1e-4, 0.03, 0.2], dtype=torch.float64) * (torch.rand(3) > 0.4)
        d = ((A @ c0).sqrt() + 0.2 * _noise(seed)).abs()
        w = torch.rand(1, len(T), dtype=torch.float64)
        c = fit_root(A, d, w, False)[0]
        gradient = (w[0] * (1 - d / (A @ c).sqrt())) @ A / ((w[0] * (1 + d / (A @ c).sqrt())) @ A)
        assert bool((gradient[c > 0].abs() < 1e-7).all())
        assert bool((gradient[c == 0] > -1e-7).all())
        rival = optimize.least_squares(
            _gap, [1.0, 1.0, 1.0], bounds=(0, np.inf), args=(w[0], d, A), xtol=1e-14, ftol=1e-14, gtol=1e-14
        )
        ours = (w[0] * (d - (A @ c).sqrt()).square()).sum()
        assert float(ours) <= 2 * rival.cost * (1 + 1e-9)


def test_relative_errors_are_least_squares_of_logarithms():
    A = torch.stack([T**2, T], 1)
    d = (A @ torch.tensor([1e-4, 0.03], dtype=torch.float64)).sqrt() * (0.1 * _noise(3)).exp()
    c = fit_root(A, d, torch.ones(1, len(T), dtype=torch.float64), True)[0]
    rival = optimize.least_squares(
        lambda x: np.log(d.numpy()) - 0.5 * np.log(A.numpy() @ x), [1e-4, 0.03], x_scale=[1e-4, 1e-2], xtol=1e-14
    )
    assert c.tolist() == pytest.approx(rival.x.tolist(), rel=1e-5)


@pytest.mark.parametrize("errors", ["absolute", "relative"])
@pytest.mark.parametrize("name", LAWS)
def test_each_law_wins_on_its_own_data(name, errors):
    fit = ce.fit_divergence(T, LAWS[name](T), errors=errors, resamples=20)
    assert fit.best.name == name
    assert fit.best.prediction_error < 1e-7
    rivals = [law for law in fit.laws if law.name not in CONTAINED.get(name, set()) | {name}]
    assert rivals
    assert all(law.prediction_error > 1e-4 for law in rivals)
    # With scatter, laws that contain the true one may come before it by chance, others not.
    size = LAWS[name](T) if errors == "relative" else LAWS[name](T).mean()
    for seed in range(5):
        noisy = (LAWS[name](T) + 0.01 * size * _noise(seed)).abs()
        laws = ce.fit_divergence(T, noisy, errors=errors, resamples=20).laws
        ranks = [law.name for law in laws]
        assert set(ranks[: ranks.index(name)]) <= CONTAINED.get(name, set())


def test_parameters_of_the_other_laws():
    found = {n: ce.fit_divergence(T, law(T), resamples=20).best.parameters for n, law in LAWS.items()}
    assert found["linear"] == pytest.approx({"v": 0.01})
    assert found["random walk"] == pytest.approx({"beta": 0.03})
    assert found["power law"] == pytest.approx({"c": 0.05, "p": 0.8})
    assert found["saturation"] == pytest.approx({"d": 3.0, "tau": 150.0})
    assert found["ballistic + diffusive + offset"] == pytest.approx({"alpha": 1e-4, "beta": 0.03, "eps": 1.0})


def test_prediction_is_of_the_last_third_by_the_first_two_thirds():
    d = LAWS["linear"](T) + 0.02 * _noise(1)
    law = next(x for x in ce.fit_divergence(T, d, resamples=20).laws if x.name == "linear")
    v = float(T[:67] @ d[:67] / (T[:67] @ T[:67]))
    assert law.prediction_error == pytest.approx(float((d[67:] - v * T[67:]).square().mean().sqrt()), rel=1e-9)
    whole = float(T @ d / (T @ T))
    assert law.residual == pytest.approx(float((d - whole * T).square().mean().sqrt()), rel=1e-9)


def _covered(fits, alpha, beta):
    """How often both intervals hold the truth, and the number of fits that gave intervals."""
    told = [f for f in fits if not math.isnan(f.alpha.low)]
    inside = [(f.alpha.low <= alpha <= f.alpha.high, f.beta.low <= beta <= f.beta.high) for f in told]
    return sum(a for a, _ in inside), sum(b for _, b in inside), len(told)


def _bounds(n, level=0.9):
    """Of the number of hits among n: outside of these with probability 1e-3 at the nominal level."""
    return stats.binom.ppf(5e-4, n, level), stats.binom.ppf(1 - 5e-4, n, level)


@pytest.mark.parametrize(("memory", "grows"), [(0.0, False), (0.5, False), (0.5, True)])
def test_block_intervals_hold_the_truth_as_often_as_they_say(memory, grows):
    """Scatter about the law that is independent, correlated, and correlated and growing with the distance."""
    t, truth = torch.arange(1.0, 201.0, dtype=torch.float64) * 5, (1e-5, 0.02)
    law = (truth[0] * t**2 + truth[1] * t).sqrt()
    errors = "relative" if grows else "absolute"
    distances = [
        law * (0.03 * e).exp() if grows else (law + 0.05 * e).abs()
        for e in (_noise(seed, 200, memory) for seed in range(100))
    ]
    fits = [ce.fit_divergence(t, d, errors=errors, level=0.9, resamples=100, seed=i) for i, d in enumerate(distances)]
    alpha, beta, told = _covered(fits, *truth)
    low, high = _bounds(told)
    assert told >= 93
    assert low <= alpha <= high
    assert low <= beta <= high


def test_member_intervals_hold_the_truth_of_drifting_random_walks():
    """Twins that drift and diffuse in 30 dimensions: each distance is as random as a walk, all along the run."""
    t, truth = torch.arange(1.0, 41.0, dtype=torch.float64) * 10, (1e-4, 0.04)
    fits = []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(40, 12, 30, generator=generator, dtype=torch.float64) * math.sqrt(truth[1] * 10 / 30)
        x = x.cumsum(0)
        x[:, :, 0] += math.sqrt(truth[0]) * t.unsqueeze(1)
        fits.append(ce.fit_divergence(t, x.norm(dim=2), level=0.9, resamples=100, seed=seed))
    alpha, beta, told = _covered(fits, *truth)
    low, high = _bounds(100)
    assert told == 100
    assert {f.resampled for f in fits} == {"members"}
    assert low <= alpha <= high
    assert low <= beta <= high


def test_a_single_random_walk_gets_no_interval_and_says_so(caplog):
    """Its scatter remembers the whole run: intervals from blocks of it would be far too narrow."""
    t, silent = torch.arange(1.0, 301.0, dtype=torch.float64), 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        d = torch.randn(300, 20, generator=generator, dtype=torch.float64).cumsum(0).norm(dim=1)
        with caplog.at_level(logging.WARNING, logger="chaos_ext"):
            fit = ce.fit_divergence(t, d, resamples=20)
        silent += math.isnan(fit.alpha.low) and math.isnan(fit.beta.high) and fit.alpha.value >= 0
    assert silent >= 17
    assert "give the distances of 8 or more members" in caplog.text
    given = ce.fit_divergence(t, d, resamples=20, block=10)
    assert given.plain.block == 10
    assert given.beta.low <= given.beta.high


def test_of_members_the_root_mean_square_is_fitted():
    d = torch.stack([(0.2 * i + 1) * LAWS["ballistic + diffusive"](T) for i in range(4)], 1)
    several = ce.fit_divergence(T, d, resamples=20)
    one = ce.fit_divergence(T, d.square().mean(1).sqrt(), resamples=20)
    assert several.alpha == one.alpha
    assert (several.members, several.resampled, one.members) == (4, "blocks", 1)


def test_the_same_seed_gives_the_same_intervals_and_leaves_torch_s_generator_alone():
    d = LAWS["ballistic + diffusive"](T) + 0.02 * _noise(5)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = ce.fit_divergence(T, d, resamples=50, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert ce.fit_divergence(T.tolist(), d.numpy(), resamples=50, seed=3) == first
    assert ce.fit_divergence(T, d, resamples=50, seed=4).alpha != first.alpha


def test_units():
    """Distances in other units and steps of another length change the coefficients as their units say."""
    d = LAWS["ballistic + diffusive + offset"](T) + 0.02 * _noise(5)
    a, b = (ce.fit_divergence(T * s, d * u, resamples=50, block=10) for s, u in ((1, 1), (8, 4)))
    assert b.offset.alpha.value == pytest.approx(a.offset.alpha.value * 16 / 64, rel=1e-6)
    assert b.offset.beta.high == pytest.approx(a.offset.beta.high * 16 / 8, rel=1e-6)
    assert b.offset.eps.value == pytest.approx(a.offset.eps.value * 4, rel=1e-6)
    assert b.plain.crossover.low == pytest.approx(a.plain.crossover.low * 8, rel=1e-6)


def test_the_table_names_every_law():
    text = ce.fit_divergence(T, LAWS["linear"](T), resamples=20).table()
    assert all(name in text for name in LAWS)
    assert "crossover" in text
    assert "95% intervals" in text


@pytest.mark.parametrize(
    ("t", "d", "options", "message"),
    [
        (T, T.clone().fill_(math.nan), {}, "distance: expected finite"),
        (torch.cat([T[:-1], torch.tensor([math.inf])]), T, {}, "t: expected finite"),
        (T, -T, {}, "distance: expected numbers >= 0"),
        (-T.flip(0), T, {}, "t: expected numbers >= 0"),
        (T, T[:-1], {}, "t, distance: expected shapes"),
        (T, T.view(-1, 1, 1), {}, "t, distance: expected shapes"),
        (T.view(-1, 1), T, {}, "t, distance: expected shapes"),
        (T[:11], T[:11], {}, "t: expected at least 12 points"),
        (T.flip(0), T, {}, "t: expected ascending"),
        (torch.cat([T[:1], T[:-1]]), T, {}, "t: expected ascending"),
        (T, 0 * T, {}, "distance: expected some numbers > 0"),
        (T, T - T[0], {"errors": "relative"}, "distance: expected positive"),
        (T, ["a"] * len(T), {}, "distance: expected real numbers"),
        (T, T + 1j, {}, "distance: expected real numbers"),
        (T, T, {"errors": "none"}, "errors: expected one of"),
        (T, T, {"level": 95}, "level: expected a number"),
        (T, T, {"resamples": 3}, "resamples: expected an int"),
        (T, T, {"block": 0}, "block: expected an int"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(t, d, options, message):
    with pytest.raises(ValueError, match=message):
        ce.fit_divergence(t, d, **options)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        ce.fit_divergence(T, T)


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 7, 30, 301])
@pytest.mark.parametrize("p", [0.01, 0.5, 0.6, 0.975, 0.9995])
def test_student_s_quantiles(p, dof):
    assert student_quantile(p, dof) == pytest.approx(stats.t.ppf(p, dof), rel=1e-9, abs=1e-9)


def test_blocks_are_consecutive_and_every_point_is_as_likely():
    generator = torch.Generator().manual_seed(0)
    counts = block_counts(23, 5, 4000, generator)
    assert bool((counts.sum(1) == 23).all())
    assert counts.mean(0).tolist() == pytest.approx([1.0] * 23, abs=0.1)
    one = block_counts(10, 10, 50, generator)  # a single block, round the end
    assert bool((one == 1).all())


def test_block_length_grows_with_memory():
    lengths = [sum(block_length(_noise(s, 2000, r)) or 0 for s in range(10)) / 10 for r in (0.0, 0.5, 0.8)]
    assert lengths[0] < 20 < lengths[1] < lengths[2]
    # Of an AR(1) process G / sum R = 2 r / (1 - r^2): the rule's own value is known.
    assert lengths[1] / 3 == pytest.approx((1.5 * (2 * 0.5 / 0.75) ** 2 * 2000) ** (1 / 3), rel=0.35)
    assert block_length(_noise(0, 500).cumsum(0)) is None
    assert block_length(torch.zeros(30, dtype=torch.float64)) == 1


def test_widened_percentiles_of_a_mean_have_the_width_of_student_s_interval():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(10, generator=generator, dtype=torch.float64)
    drawn = x[torch.randint(10, (200_000, 10), generator=generator)].mean(1)
    low, high = percentile_interval(drawn, 0.9, 10)
    half = stats.t.ppf(0.95, 9) * float(x.std()) / math.sqrt(10)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_the_default_device_is_left_alone():
    t, d = list(range(1, 31)), [0.1 * i + 0.01 * (i % 3) for i in range(1, 31)]
    expected = ce.fit_divergence(t, d, resamples=20)
    torch.set_default_device("meta")
    try:
        assert ce.fit_divergence(t, d, resamples=20, block=3).alpha.value == expected.alpha.value
    finally:
        torch.set_default_device(None)
