"""``chaos-ext reproduce random-walk``: walks against numbers drawn otherwise, resuming, verdicts."""

import csv
import json
import math

import pytest

pytest.importorskip("numpy")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

import numpy as np

from chaos_ext import cli
from chaos_ext.experiments import random_walk, random_walk_findings, random_walk_law

OPTIONS = ("--walks", "400", "--draws", "3", "--steps", "40", "--lr", "0.1", "--eps", "0.3")


def reproduce(out, *options):
    return cli.main(["reproduce", "random-walk", *OPTIONS, "--out", str(out), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("walk") / "out"
    assert reproduce(out) == 0
    return out


def read(path):
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_files_and_verdicts_are_written(finished):
    names = ["figure.pdf", "figure.png", "fits.csv", "manifest.json", "metrics.csv"]
    assert sorted(p.name for p in finished.iterdir()) == names
    m = json.loads((finished / "manifest.json").read_text())
    assert m["status"] == "complete"
    assert len(m["findings"]) == 4
    assert len(read(finished / "metrics.csv")) == 3 * 3 * 41
    assert len(read(finished / "fits.csv")) == 2 * 2 * 3


@pytest.mark.parametrize("drift", random_walk_law.DRIFTS)
@pytest.mark.parametrize("size", random_walk.DIMENSIONS[:2])
def test_walks_are_those_that_numpy_draws(finished, drift, size):
    g, n, sigma = np.random.default_rng(size), 4000, math.sqrt(40 / size)
    x = g.normal(size=(n, size))
    x *= 0.3 / np.linalg.norm(x, axis=1, keepdims=True)
    for _ in range(40):
        v = np.zeros((n, size))
        if drift == "constant":
            v[:, 0] = 1
        elif drift == "turning":
            v = g.normal(size=(n, size))
            v /= np.linalg.norm(v, axis=1, keepdims=True)
        x -= 0.1 * (v + sigma * g.normal(size=(n, size)))
    distances = np.linalg.norm(x, axis=1)
    found = read(finished / "metrics.csv")
    (row,) = (r for r in found if (r["drift"], r["dimensions"], r["step"]) == (drift, str(size), "40"))
    for name, own in (("square", distances**2), ("mean", distances)):
        error = math.hypot(own.std() / math.sqrt(n), float(row[f"{name}_error"]))
        assert abs(own.mean() - float(row[name])) < 4 * error


def test_the_law_is_the_closed_form(finished):
    for r in read(finished / "metrics.csv"):
        t = int(r["step"])
        ballistic = 0 if r["drift"] == "none" else 0.1**2 * t**2
        assert float(r["law"]) == pytest.approx(0.3**2 + ballistic + 0.1**2 * 40 * t, rel=1e-12)


def test_a_study_that_was_cut_short_is_made_anew_with_the_same_bytes(finished, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(random_walk, "write_figure", stop)
        assert reproduce(tmp_path / "out") == 130
    assert reproduce(tmp_path / "out", "--resume") == 0
    for name in ("metrics.csv", "fits.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()
    monkeypatch.setattr(random_walk, "_make", lambda *_: pytest.fail("made again"))
    assert reproduce(tmp_path / "out", "--resume") == 0


@pytest.mark.parametrize(("option", "value"), [("--steps", "39"), ("--eps", "0"), ("--walks", "-3"), ("--lr", "nan")])
def test_bad_options_are_refused_by_name(option, value, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", "random-walk", "--out", str(tmp_path), option, value])
    assert end.value.code == 2
    assert option in capsys.readouterr().err


SETTINGS = random_walk_law.RandomWalkSettings(
    walks=1, steps=40, lr=0.1, eps=0.3, draws=10, seeds=(1,), threads=1, device="cpu", chaos_ext="", torch=""
)


def walks(factor=1.0, mean=0.9, turning=0.9):
    """Rows with squares of so many times the law, each with an error of 1 %."""
    found = []
    for drift in random_walk_law.DRIFTS:
        for t in (0, 1, 40):
            law = random_walk_law.law(SETTINGS, drift, t)
            square = law * (turning if drift == "turning" and t else factor if t else 1)
            row = {"drift": drift, "dimensions": 2, "step": t, "square": square, "law": law, "mean": mean * law**0.5}
            found.append({**row, "square_error": 0.01 * law if t else 0.0, "mean_error": 0.01 * law**0.5})
    return [{k: str(v) for k, v in r.items()} for r in found]


def fits(hits, members=("1", "16"), known=20):
    """Of 20 draws of each kind so many intervals that hold alpha, among those that there are."""
    rows = []
    for drift, alpha in (("none", 0.0), ("constant", 0.01)):
        for m in members:
            for i in range(20):
                ends = (alpha * 0.5, alpha + 1) if i < hits else (alpha + 1, alpha + 2)
                low, high = ends if i < known else (math.nan, math.nan)
                rows.append({"drift": drift, "members": m, "alpha_low": str(low), "alpha_high": str(high)})
    return rows


def verdicts(rows, fitted):
    return [f.verdict for f in random_walk_findings.findings_of(rows, fitted, SETTINGS)]


def test_verdicts_on_rows_that_are_made_up():
    good = fits(19)
    assert verdicts(walks(), good) == ["reproduced"] * 4
    assert verdicts(walks(factor=1.03), good)[0] == "reproduced"
    assert verdicts(walks(factor=1.05), good)[0] == "not reproduced"
    assert verdicts(walks(mean=1.0), good)[1] == "not reproduced"
    assert verdicts(walks(turning=1.0), good)[1] == "not reproduced"
    assert verdicts(walks(), fits(20))[2:] == ["reproduced", "not reproduced"]  # intervals that are too wide
    assert verdicts(walks(), fits(12))[2:] == ["not reproduced"] * 2
    assert verdicts(walks(), fits(19, ("1",)) + fits(3, ("16",)))[2:] == ["partly"] * 2
    assert verdicts(walks(), fits(20, known=0))[2:] == ["not reproduced"] * 2
