"""Figures hold the data they are given: checked by reading lines, labels and colours back from the axes."""

import math

import pytest
import torch

np = pytest.importorskip("numpy", reason="figures need numpy")
pytest.importorskip("matplotlib", reason='figures need matplotlib: pip install ".[figures]"')

from matplotlib.colors import to_hex  # noqa: E402

import chaos_ext as ce  # noqa: E402
from chaos_ext.figures import (  # noqa: E402
    COLORS,
    LABELS,
    RUNS,
    figure_training,
    new_axes,
    plot_lle,
    plot_spectral_density,
    plot_training,
    read_metric,
    smooth,
)

HEADER = "run,seed,step,loss,accuracy,val_loss\n"


def write_csv(path, losses):
    """losses: run -> seed -> values."""
    rows = [
        f"{run},{seed},{t},{v!r},{v / 10!r},{v * 2 if t % 5 == 4 else ''}\n"
        for run, seeds in losses.items()
        for seed, values in seeds.items()
        for t, v in enumerate(values)
    ]
    path.write_text(HEADER + "".join(rows))
    return path


@pytest.fixture
def losses():
    rng = np.random.default_rng(0)
    return {run: {42: (rng.random(120) + i).tolist()} for i, run in enumerate(RUNS)}


@pytest.fixture
def metrics(tmp_path, losses):
    return write_csv(tmp_path / "metrics.csv", losses)


def labelled(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


# --- smoothing ---


@pytest.mark.parametrize(("n", "window"), [(30, 1), (30, 2), (30, 5), (30, 50), (30, 30), (1, 50), (0, 3), (200, 50)])
def test_smooth_is_the_mean_over_the_part_of_the_window_that_exists(n, window):
    v = np.random.default_rng(1).random(n)
    w = min(window, max(n, 1))  # the window starts w // 2 before its point
    expected = [np.mean(v[max(0, i - w // 2) : i - w // 2 + w]) for i in range(n)]
    np.testing.assert_allclose(smooth(v, window), expected, rtol=1e-12)


def test_smooth_keeps_a_constant_to_the_very_ends():
    np.testing.assert_allclose(smooth(np.full(70, 3.0), 50), 3.0, rtol=1e-14)


def test_smooth_refuses_an_empty_window():
    with pytest.raises(ValueError, match="window"):
        smooth([1.0, 2.0], 0)


# --- reading ---


def test_read_metric_gives_the_numbers_of_the_file(metrics, losses):
    table = read_metric(metrics, "loss")
    assert list(table) == list(RUNS)
    for run in RUNS:
        ((steps, values),) = table[run]
        assert steps.tolist() == list(range(120))
        assert values.tolist() == losses[run][42]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("sgd,0,2,much", r"line 4, column loss: expected a number, got 'much'"),
        ("sgd,0,2.5,1.0", r"line 4, column step: expected an integer, got '2.5'"),
        ("sgd,0,,1.0", r"line 4, column step: expected an integer, got ''"),
        ("sgd,0", r"line 4: expected 4 cells like the columns, got 2"),
        ("sgd,0,2,1.0,7", r"line 4: expected 4 cells like the columns, got 5"),
    ],
)
def test_read_metric_says_where_a_cell_is_wrong(tmp_path, line, match):
    file = tmp_path / "own.csv"
    file.write_text(f"run,seed,step,loss\nsgd,0,0,2.0\nsgd,0,1,1.5\n{line}\n")
    with pytest.raises(ValueError, match=rf"own\.csv, {match}"):
        read_metric(file, "loss")
    with pytest.raises(ValueError, match=rf"own\.csv, {match}"):
        plot_training(file)


def test_read_metric_leaves_blank_lines_out(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("run,seed,step,loss\nsgd,0,0,2.0\n\nsgd,0,1,nan\n")
    ((steps, values),) = read_metric(file, "loss")["sgd"]
    assert steps.tolist() == [0, 1]
    assert values[0] == 2.0
    assert values[1] != values[1]


def test_read_metric_leaves_empty_cells_out(metrics, losses):
    ((steps, values),) = read_metric(metrics, "val_loss")["sgd"]
    assert steps.tolist() == list(range(4, 120, 5))
    assert values.tolist() == [2 * v for v in losses["sgd"][42][4::5]]


def test_missing_column_is_named(metrics):
    with pytest.raises(ValueError, match="no entropy"):
        read_metric(metrics, "entropy")


# --- plot_training ---


def test_one_raw_and_one_smoothed_line_per_run(metrics, losses):
    ax = plot_training(metrics, window=50)
    assert len(ax.get_lines()) == 8
    smoothed = labelled(ax)
    assert list(smoothed) == [LABELS[r] for r in RUNS]
    for run in RUNS:
        line = smoothed[LABELS[run]]
        assert line.get_xdata().tolist() == list(range(120))
        np.testing.assert_allclose(line.get_ydata(), smooth(losses[run][42], 50))
        assert to_hex(line.get_color()).upper() == COLORS[run]
    raw = [line for line in ax.get_lines() if line not in smoothed.values()]
    assert [line.get_ydata().tolist() for line in raw] == [losses[run][42] for run in RUNS]
    assert all(line.get_rasterized() and line.get_alpha() < 0.5 for line in raw)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("optimizer step", "training loss")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(smoothed)


def test_colors_differ_and_coinciding_runs_stay_visible():
    assert len(set(COLORS.values())) == 4
    same = {run: np.zeros(10) for run in ("chaotic", "negative")}
    chaotic, negative = labelled(plot_training(same)).values()
    assert chaotic.get_linestyle() == "-"
    assert negative.get_linestyle() == "--"
    assert chaotic.get_zorder() <= negative.get_zorder()


def test_several_seeds_give_their_mean_in_a_band(tmp_path):
    rng = np.random.default_rng(2)
    a, b = rng.random(40).tolist(), rng.random(40).tolist()
    ax = plot_training(write_csv(tmp_path / "m.csv", {"sgd": {1: a, 2: b}}), window=5)
    both = np.stack([smooth(a, 5), smooth(b, 5)])
    np.testing.assert_allclose(labelled(ax)["SGD"].get_ydata(), both.mean(0))
    (band,) = ax.collections
    vertices = band.get_paths()[0].vertices
    for i in (0, 17, 39):
        heights = vertices[vertices[:, 0] == i, 1]
        assert heights.min() == pytest.approx(both[:, i].min())
        assert heights.max() == pytest.approx(both[:, i].max())


def test_seeds_of_different_length_are_compared_where_all_have_data(tmp_path):
    ax = plot_training(write_csv(tmp_path / "m.csv", {"sgd": {1: [1.0] * 30, 2: [3.0] * 12}}), window=1)
    assert labelled(ax)["SGD"].get_ydata().tolist() == [2.0] * 12


def test_arrays_do_as_well_as_a_file(metrics, losses):
    arrays = {run: torch.tensor(losses[run][42], dtype=torch.float64) for run in RUNS}
    for a, b in zip(plot_training(arrays).get_lines(), plot_training(metrics).get_lines(), strict=True):
        np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())


def test_long_curves_are_thinned_but_keep_their_ends():
    values = np.linspace(0, 1, 36480)
    line = labelled(plot_training({"sgd": values}, window=1))["SGD"]
    assert len(line.get_xdata()) <= 2000
    assert line.get_xydata()[[0, -1]].tolist() == [[0, 0], [36479, 1]]


def test_long_raw_curves_are_the_band_of_their_middle_half():
    """A line through thousands of values of 0, 1/8 .. 1 is a wall that hides the smoothed curves."""
    values = np.random.default_rng(3).integers(0, 9, (2, 4000)) / 8
    ax = plot_training({"sgd": values}, window=50, metric="accuracy")
    assert len(ax.get_lines()) == 1  # the smoothed one
    raw = min(ax.collections, key=lambda c: c.get_zorder())
    vertices = raw.get_paths()[0].vertices
    centre = np.arange(100).mean()  # 4000 / 40 steps, of both seeds
    heights = vertices[vertices[:, 0] == centre, 1]
    assert [heights.min(), heights.max()] == np.quantile(values[:, :100], (0.25, 0.75)).tolist()
    assert raw.get_alpha() < 0.2
    assert raw.get_zorder() < ax.get_lines()[0].get_zorder()
    assert len(plot_training({"sgd": values[:, :900]}, window=50).get_lines()) == 3
    assert not plot_training({"sgd": values[:1]}, window=50, raw=False).collections


def test_runs_differ_without_colour(tmp_path):
    """In grey, the three runs that are not black differ by their dashes: drawn alike, they would be the same pixels."""
    pixels = set()
    for run in RUNS[1:]:
        ax = new_axes()
        plot_training({run: np.zeros(10)}, ax, raw=False, legend=False)
        (line,) = ax.get_lines()
        line.set_color("grey")
        ax.figure.savefig(tmp_path / "f.png")
        pixels.add((tmp_path / "f.png").read_bytes())
    assert len(pixels) == 3


def test_runs_chooses_and_orders(metrics):
    ax = plot_training(metrics, runs=["positive", "sgd"], raw=False)
    assert list(labelled(ax)) == [LABELS["positive"], LABELS["sgd"]]
    assert len(ax.get_lines()) == 2
    with pytest.raises(ValueError, match=r"chaotic.*got nonsense"):
        plot_training(metrics, runs=["nonsense"])


def test_run_without_rows_is_named_as_such(tmp_path):
    path = write_csv(tmp_path / "m.csv", {"sgd": {1: [1.0]}})
    assert list(labelled(plot_training(path, metric="val_loss"))) == ["SGD (no data)"]


def test_given_axes_are_drawn_on_and_returned(metrics):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert plot_training(metrics, ax) is ax


def test_pyplot_is_left_alone(metrics):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_training(metrics)
    figure_training(metrics)
    assert plt.get_fignums() == before


def test_figure_training_has_both_panels_and_one_legend(metrics, tmp_path):
    figure = figure_training(metrics, title="digits")
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("training accuracy", "training loss")
    assert len(left.get_lines()) == len(right.get_lines()) == 8
    assert right.get_ylim()[0] == 0
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [LABELS[r] for r in RUNS]
    figure.savefig(tmp_path / "f.pdf")
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")


# --- plot_lle ---


def test_lle_separates_stable_from_chaotic():
    lr = 0.1
    eigenvalues = torch.tensor([-2.0, -1.0, 0.0, 5.0, 10.0, 20.0, 30.0])  # 2 / lr = 20 is neutral, 10 gives -inf
    ax = plot_lle(eigenvalues, lr)
    stable, chaotic, missing = labelled(ax).values()
    assert stable.get_xdata().tolist() == [0.0, 5.0, 20.0]
    np.testing.assert_allclose(stable.get_ydata(), [0.0, math.log(0.5), 0.0], atol=1e-15)
    assert chaotic.get_xdata().tolist() == [-2.0, -1.0, 30.0]
    np.testing.assert_allclose(chaotic.get_ydata(), [math.log(1.2), math.log(1.1), math.log(2)])
    assert "-inf" in missing.get_label()
    assert "(1)" in missing.get_label()
    assert stable.get_marker() != chaotic.get_marker()


def test_lle_takes_arrays_and_lists():
    for values in ([1.0, -1.0], np.array([1.0, -1.0])):
        assert len(labelled(plot_lle(values, 1e-3))["chaotic (1)"].get_xdata()) == 1


@pytest.mark.parametrize("log", [True, False])
def test_plot_spectral_density_draws_the_density_and_its_error(log):
    density = ce.spectral_density(torch.diag(torch.linspace(-1, 3, 40, dtype=torch.float64)), steps=10)
    ax = plot_spectral_density(density, label="H", log=log)
    (line,) = ax.get_lines()
    assert np.array_equal(line.get_xdata(), density.grid.numpy())
    assert np.array_equal(line.get_ydata(), density.density.numpy())
    top = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(float((density.density + 2 * density.standard_error).max()))
    assert ax.get_yscale() == ("log" if log else "linear")
    assert ax.get_legend().get_texts()[0].get_text() == "H"
    assert plot_spectral_density(density, ax) is ax
    with pytest.raises(TypeError, match="SpectralDensity"):
        plot_spectral_density([1.0])
