"""What figures refuse, and that whatever cannot be drawn is counted once in the legend: oracles are counts by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

np = pytest.importorskip("numpy", reason="figures need numpy")
pytest.importorskip("matplotlib", reason='figures need matplotlib: pip install ".[figures]"')

import chaos_ext as ce  # noqa: E402
from chaos_ext.figures import (  # noqa: E402
    plot_divergence,
    plot_exponents,
    plot_lle,
    plot_spectral_density,
    plot_spectrum,
    plot_training,
    smooth,
)

INF, NAN = math.inf, math.nan


def labelled(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def spectrum_of(values, size=6):
    values = torch.tensor(values, dtype=torch.float64)
    eye = torch.eye(len(values), dtype=torch.float64)
    return ce.Spectrum(values, eye, None, size, complete=True, zero_tol=1e-9, scale=1.0)


def ranked(values, neutral):
    t = torch.tensor(values, dtype=torch.float64)
    nothing = torch.zeros_like(t)
    return ce.FiniteTimeSpectrum(t, nothing, torch.tensor(neutral), nothing, 9, 0, False, 1.0, None, {})


def running(last, errors):
    """Two points of running exponents, the last one as given."""
    steps, values = torch.tensor([1, 2]), torch.tensor([[0.5] * len(last), last], dtype=torch.float64)
    return SimpleNamespace(history=(steps, values), exponents=values[-1], errors=torch.tensor(errors))


SPECTRUM = spectrum_of([-1.0, 0.5, 30.0])
DENSITY = ce.spectral_density(torch.diag(torch.linspace(-1, 3, 40, dtype=torch.float64)), steps=10)
FIGURES = {
    "divergence": lambda ax: plot_divergence([1, 2], [1.0, 2.0], ax=ax),
    "exponents": lambda ax: plot_exponents(running([0.1], [0.0]), ax),
    "lle": lambda ax: plot_lle([1.0], 0.1, ax),
    "density": lambda ax: plot_spectral_density(DENSITY, ax),
    "spectrum": lambda ax: plot_spectrum(SPECTRUM, ax),
    "training": lambda ax: plot_training({"sgd": [1.0, 2.0]}, ax),
}


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_looked_at(name):
    with pytest.raises(TypeError, match="ax: expected matplotlib axes or None, got tuple"):
        FIGURES[name]((None, None))


# --- arrays ---

DRAWN = {
    "t": lambda v: plot_divergence(v, [1.0, 2.0]),
    "distance": lambda v: plot_divergence([1, 2], v),
    "eigenvalues": lambda v: plot_lle(v, 0.1),
    "known": lambda v: plot_exponents(running([0.1], [0.0]), known=v),
    "source['sgd']": lambda v: plot_training({"sgd": v}),
    "values": lambda v: smooth(v, 1),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize(
    "values", ["ab", ["1", "2"], [1j, 2j], [True, False], [None, 1.0], [[1.0], [1.0, 2.0]], {1, 2}]
)
def test_what_is_no_array_of_real_numbers_is_refused_by_name(name, values):
    with pytest.raises((TypeError, ValueError)) as caught:
        DRAWN[name](values)
    assert str(caught.value).startswith(f"{name}: expected")


@pytest.mark.parametrize("name", DRAWN)
def test_tensors_and_lists_of_them_are_arrays(name):
    for values in (torch.tensor([1.0, 2.0], requires_grad=True), [torch.tensor(1.0), torch.tensor(2.0)], range(1, 3)):
        DRAWN[name](values)


# --- plot_divergence ---


@pytest.mark.parametrize(
    ("t", "distance", "message"),
    [
        ([], [], r"t: expected steps \[m\], at least one, got shape \(0,\)"),
        (1, 2, r"t: expected steps \[m\], at least one, got shape \(\)"),
        ([[1, 2]], [[1, 2]], r"t: expected steps .* got shape \(1, 2\)"),
        ([1], 2, r"distance: expected 1 rows.* got shape \(\)"),
        ([1, 2], [[], []], r"distance: expected 2 rows.* got shape \(2, 0\)"),
        ([1], [[[1.0]]], r"distance: expected 1 rows.* got shape \(1, 1, 1\)"),
        ([1, NAN], [1, 2], "t: expected finite steps"),
        ([1, 2], [1, -2], "distance: expected numbers >= 0, got -2"),
        ([1, 2], [[1, 2], [3, -INF]], "distance: expected numbers >= 0, got -inf"),
    ],
)
def test_divergence_names_what_it_refuses(t, distance, message):
    with pytest.raises(ValueError, match=message):
        plot_divergence(t, distance)


def test_divergence_takes_no_axes_for_a_fit():
    with pytest.raises(TypeError, match="fit: expected a DivergenceFit or None, got Axes"):
        plot_divergence([1], [1], ce.figures.new_axes())


def test_laws_are_not_drawn_where_they_do_not_hold():
    pytest.importorskip("scipy")
    t = torch.arange(1, 41, dtype=torch.float64)
    fit = ce.fit_divergence(t, (0.04 * t**2 + 0.5 * t).sqrt(), resamples=20)
    with pytest.raises(ValueError, match=r"t: expected steps >= 0.*got -1"):
        plot_divergence([-1, 2], [1.0, 2.0], fit)


@pytest.mark.parametrize("size", [1.0, 1e200, 1e-200, 1.5e308, 0.0])
def test_root_mean_square_of_any_size(size):
    line = labelled(plot_divergence([1, 2], [[0.6 * size, 0.8 * size]] * 2))["root mean square of 2 twins"]
    assert line.get_ydata() == pytest.approx([math.sqrt(0.5) * size] * 2, rel=1e-15, abs=0)


def test_one_twin_is_drawn_bit_for_bit():
    values = np.abs(np.random.default_rng(0).normal(size=50))
    assert labelled(plot_divergence(range(50), values))["distance"].get_ydata().tolist() == values.tolist()


def test_steps_with_a_distance_that_is_not_finite_are_counted():
    name = "root mean square of 2 twins"
    lines = labelled(plot_divergence([1, 2, 3, 4], [[3.0, 4.0], [NAN, 1.0], [1.0, INF], [NAN, INF]]))
    assert list(lines) == [name, f"{name} NaN, not drawn (2)", f"{name} inf, not drawn (1)"]
    assert np.isfinite(lines[name].get_ydata()).tolist() == [True, False, False, False]
    assert list(labelled(plot_divergence([1, 2], [1.0, 2.0]))) == ["distance"]


# --- plot_lle and plot_spectrum ---


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([NAN, 1.0], ["stable (1)", "chaotic (0)", "exponent NaN, not drawn (1)"]),
        ([INF, 1.0], ["stable (1)", "chaotic (0)", "exponent inf, not drawn (1)"]),
        ([-INF, INF, NAN, 10.0, -1.0], [0, 1, 1, 2, 1]),
    ],
)
def test_lle_counts_each_eigenvalue_once(values, expected):
    lines = labelled(plot_lle(values, 0.1))
    if isinstance(expected[0], int):
        names = ["stable ({})", "chaotic ({})", *(f"exponent {k}, not drawn ({{}})" for k in ("NaN", "inf", "-inf"))]
        expected = [name.format(n) for name, n in zip(names, expected, strict=True)]
    assert list(lines) == expected
    assert all(np.isfinite(line.get_ydata()).all() for line in lines.values())


RATES = {"lle": lambda lr: plot_lle([1.0, 30.0], lr), "spectrum": lambda lr: plot_spectrum(SPECTRUM, lr=lr)}


@pytest.mark.parametrize("name", RATES)
def test_a_tensor_of_one_element_is_a_learning_rate(name):
    expected = {k: list(line.get_ydata()) for k, line in labelled(RATES[name](0.125)).items()}
    one = torch.tensor([0.125], requires_grad=True)
    for lr in (torch.tensor(0.125), one, np.float32(0.125), np.array([0.125])):
        assert {k: list(line.get_ydata()) for k, line in labelled(RATES[name](lr)).items()} == expected


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("lr", ["a", True, 1j, [0.1], torch.tensor([0.1, 0.2]), torch.tensor(1j), np.array(["a"])])
def test_a_learning_rate_that_is_no_number_is_refused(name, lr):
    with pytest.raises(TypeError, match="lr: expected a number or a tensor of one element, got"):
        RATES[name](lr)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("lr", [-0.1, NAN, INF, torch.tensor(-0.1), torch.tensor(NAN)])
def test_a_learning_rate_out_of_range_is_refused(name, lr):
    with pytest.raises(ValueError, match="lr: expected a number"):
        RATES[name](lr)


def test_spectrum_counts_each_eigenvalue_once():
    lines = labelled(plot_spectrum(spectrum_of([-INF, -1.0, 0.0, 2.0, INF]), lr=0.1))
    missing = ["eigenvalue inf, not drawn (1)", "eigenvalue -inf, not drawn (1)"]
    assert list(lines)[:5] == ["positive (1)", "negative (1)", "zero, not drawn (2)", *missing]
    assert "eigenvalue NaN, not drawn (2)" in labelled(plot_spectrum(spectrum_of([NAN, NAN])))


# --- plot_exponents ---


def test_ranked_exponents_are_counted_once():
    result = ranked([INF, 2.0, 0.0, 0.0, -1.0, -INF, NAN], [False, False, True, False, False, False, False])
    lines = labelled(plot_exponents(result))
    missing = [f"exponent {kind}, not drawn (1)" for kind in ("NaN", "inf", "-inf")]
    assert list(lines) == ["positive (1)", "zero (2)", "negative (1)", *missing]


def test_running_exponents_that_are_not_finite_are_counted_beyond_the_last_label():
    ax = plot_exponents(running([0.1] * 7 + [-INF, NAN], [0.1] * 9))
    assert {"exponent NaN, not drawn (1)", "exponent -inf, not drawn (1)"} <= set(labelled(ax))


def test_an_infinite_error_does_not_stretch_the_axis():
    ax = plot_exponents(running([0.1], [INF]))
    assert max(map(abs, ax.get_ylim())) < 10
    assert "+0.1 ± inf" in labelled(ax)


@pytest.mark.parametrize("known", [0.4, [NAN], [[0.1]]])
def test_known_exponents_are_finite_and_a_list(known):
    with pytest.raises(ValueError, match="known: expected a list of finite numbers"):
        plot_exponents(running([0.1], [0.0]), known=known)


# --- plot_training ---


def test_steps_that_are_not_finite_are_counted_in_the_legend():
    lines = labelled(plot_training({"sgd": [1.0, NAN, INF, 2.0], "negative": [1.0, 2.0]}, window=1))
    assert list(lines) == ["SGD (not finite, not drawn: 2 of 4 steps)", "negative directions pruned"]
    (name,) = labelled(plot_training({"a": [[1.0, 2.0], [NAN, 2.0]]}, window=1))
    assert name == "a (not finite, not drawn: 1 of 2 steps)"


@pytest.mark.parametrize("window", [0, 2.5, "a", True])
def test_a_window_is_an_int_of_at_least_one(window):
    for drawn in (lambda: plot_training({"sgd": [1.0]}, window=window), lambda: smooth([1.0], window)):
        with pytest.raises(ValueError, match="window: expected an int >= 1"):
            drawn()


def test_training_names_sources_that_it_cannot_draw():
    with pytest.raises(TypeError, match="source: expected a CSV, or a mapping of run -> values, got list"):
        plot_training([1.0, 2.0])
    with pytest.raises(
        ValueError, match=r"source\['sgd'\]: expected \[steps\] or \[seeds, steps\], got shape \(1, 1, 1\)"
    ):
        plot_training({"sgd": [[[1.0]]]})
    with pytest.raises(ValueError, match=r"values: expected \[steps\], got shape \(1, 1\)"):
        smooth([[1.0]], 1)
