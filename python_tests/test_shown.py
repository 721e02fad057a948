"""What notebooks show of results, and the figures of spectra, exponents and twins: read back from HTML and axes."""

from html.parser import HTMLParser

import pytest
import torch

import chaos_ext as ce
from chaos_ext.base import html


class Cells(HTMLParser):
    """The text of a table, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    return model, torch.nn.CrossEntropyLoss(), torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3


def _after(cells, name):
    return cells[cells.index(name) + 1]


def test_a_spectrum_shows_its_counts(problem):
    spec = ce.spectrum(ce.HessianOperator(*problem))
    text = spec._repr_html_()
    cells = Cells(text).cells
    assert _after(cells, "parameters") == str(spec.size)
    assert _after(cells, "negative") == str(int((spec.eigenvalues < 0).sum()))
    assert _after(cells, "positive") == str(int((spec.eigenvalues > 0).sum()))
    assert _after(cells, "zero").startswith(str(spec.nullity))
    assert _after(cells, "largest") == f"{float(spec.eigenvalues[-1]):.4g}"
    assert text.count('y1="6"') == len(spec.eigenvalues)


def test_a_partial_spectrum_does_not_count_zeros(problem):
    cells = Cells(ce.spectrum(ce.HessianOperator(*problem), k=2)._repr_html_()).cells
    assert "partial" in _after(cells, "zero")


def test_explain_is_a_list_that_shows_every_layer(problem):
    op = ce.HessianOperator(*problem)
    for source in (op, ce.GGNOperator(*problem), ce.DatasetHessian(*problem[:2], [problem[2:]])):
        rows = source.explain()
        assert isinstance(rows, list)
        cells = Cells(rows._repr_html_()).cells
        assert all(row.name in cells and row.path in cells for row in rows)


def test_reports_show_their_numbers(problem):
    spec = ce.spectrum(ce.HessianOperator(*problem))
    assert _after(Cells(ce.spectral_summary(spec, 0.1)._repr_html_()).cells, "n_zero") == str(spec.nullity)
    s = ce.systems.henon()
    result = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=400, transient=10, full_output=True)
    assert f"{float(result.exponents[0]):.4g}" in Cells(result._repr_html_()).cells
    finite = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=50, method="svd", full_output=True)
    assert _after(Cells(finite._repr_html_()).cells, "exponents") == "2"


def test_what_is_shown_is_escaped():
    assert "<script>" not in html.table("a<script>", [("<script>", 1.0)], ("<script>",))


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [float("inf")], [float("nan"), 1.0]])
def test_no_strip_where_there_is_none(values):
    Cells(html.strip(values))


def test_a_long_strip_keeps_both_ends():
    chosen = html._spread(10_000)
    assert (chosen[0], chosen[-1]) == (0, 9_999)
    assert len(chosen) <= 400


def _drawn(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


class TestFigures:
    @pytest.fixture(autouse=True)
    def _needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_a_spectrum_is_drawn_whole(self, problem):
        spec = ce.spectrum(ce.HessianOperator(*problem))
        edge = float(spec.eigenvalues[-2:].mean())
        lines = _drawn(ce.figures.plot_spectrum(spec, lr=2 / edge))
        above = lines["above 2/lr (1)"]
        assert above.get_ydata() == pytest.approx([float(spec.eigenvalues[-1])])
        assert above.get_xdata() == pytest.approx([1])
        groups = [line for name, line in lines.items() if name.split()[0] in ("above", "positive", "negative")]
        drawn = sorted(v for line in groups for v in line.get_ydata())
        assert drawn == pytest.approx(spec.eigenvalues.tolist())
        assert f"zero, not drawn ({spec.nullity})" in lines
        assert f"2/lr = {edge:.4g}" in lines

    def test_a_threshold_out_of_reach_is_left_out(self, problem):
        lines = _drawn(ce.figures.plot_spectrum(ce.spectrum(ce.HessianOperator(*problem)), lr=1e-6))
        assert not any("2/lr" in name for name in lines)

    def test_running_exponents_end_where_the_result_does(self):
        s = ce.systems.henon()
        result = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=800, transient=50, full_output=True)
        ax = ce.figures.plot_exponents(result, known=s.exponents)
        ends = [line.get_ydata()[-1] for line in _drawn(ax).values()]
        assert ends == pytest.approx(result.history.exponents[-1].tolist())
        assert all(any(line.get_ydata()[0] == v for line in ax.get_lines()) for v in s.exponents)

    def test_an_analyzer_is_drawn_like_a_result(self, problem):
        model, loss_fn, x, y = problem
        opt = ce.CGD(model.parameters(), lr=0.1, prune=None)
        analyzer = ce.LyapunovAnalyzer(model, opt, k=2, qr_every=5)
        for _ in range(20):
            op = ce.HessianOperator(model, loss_fn, x, y)
            analyzer.update(op)
            opt.step(op)
        assert len(_drawn(ce.figures.plot_exponents(analyzer))) == 2

    def test_finite_time_exponents_are_drawn_by_rank_and_sign(self, problem):
        model, loss_fn, x, y = problem
        opt = ce.CGD(model.parameters(), lr=0.1, prune=None)
        analyzer = ce.LyapunovAnalyzer(model, opt, method="svd")
        for _ in range(10):
            op = ce.HessianOperator(model, loss_fn, x, y)
            analyzer.update(op)
            opt.step(op)
        result = analyzer.finite_time()
        lines = _drawn(ce.figures.plot_exponents(result))
        assert f"zero ({int(result.neutral.sum())})" in lines
        assert sum(len(line.get_ydata()) for line in lines.values()) == len(result.exponents)

    def test_twins_are_drawn_with_their_fit(self):
        pytest.importorskip("scipy")
        t = torch.arange(1, 41, dtype=torch.float64)
        distance = (0.04 * t**2 + 0.5 * t).sqrt().unsqueeze(1) * torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64)
        fit = ce.fit_divergence(t, distance, resamples=50)
        ax = ce.figures.plot_divergence(t, distance, fit)
        lines = _drawn(ax)
        rms = distance.square().mean(1).sqrt().tolist()
        assert lines["root mean square of 3 twins"].get_ydata() == pytest.approx(rms)
        law = next(line for name, line in lines.items() if name.startswith("√(αt² + βt):"))
        assert law.get_ydata() == pytest.approx(rms, rel=1e-3)

    def test_wrong_arguments_are_named(self, problem):
        spec = ce.spectrum(ce.HessianOperator(*problem))
        with pytest.raises(TypeError, match="spec: expected a Spectrum"):
            ce.figures.plot_spectrum([1.0])
        with pytest.raises(ValueError, match="lr: expected a number above 0"):
            ce.figures.plot_spectrum(spec, lr=0.0)
        with pytest.raises(TypeError, match="source: expected exponents"):
            ce.figures.plot_exponents([1.0])
        with pytest.raises(ValueError, match="distance: expected 3 rows"):
            ce.figures.plot_divergence([1, 2, 3], [1.0, 2.0])
