"""``chaos-ext reproduce fig3``: twins of a training, their bounds and verdicts, and resuming in both halves of it."""

import csv
import functools
import json
import math

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from chaos_ext import cli, models
from chaos_ext.dynamics.perturbation import STRATEGIES
from chaos_ext.experiments import fig3, fig3_findings, fig3_run, findings, finite_time_run, twin_study

pytestmark = pytest.mark.usefixtures("digits_cache")

STEPS, EVERY, EPS = 30, 2, (1e-4, 0.1)
OPTIONS = ("--seeds", "3,4", "--eps", "1e-4,0.1", "--every", str(EVERY), "--lr", "0.02", "--threads", "1", "--quick")
OPTIONS += ("--hidden", "1", "--activation", "tanh")  # P = 277


def reproduce(out, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig3.Fig3, "quick_steps", STEPS)
        return cli.main(["reproduce", "fig3", *OPTIONS, "--out", str(out), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_cache):
    out = tmp_path_factory.mktemp("fig3") / "out"
    assert reproduce(out) == 0
    return out


def rows(out):
    with (out / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def test_there_is_a_row_for_every_twin_at_every_reading(finished):
    assert sorted(p.name for p in finished.iterdir()) == ["figure.pdf", "figure.png", "manifest.json", "metrics.csv"]
    keys = [(r["seed"], int(r["step"]), r["strategy"], float(r["eps"])) for r in rows(finished)]
    assert keys == [
        (seed, t, s, eps) for seed in "34" for t in range(0, STEPS + 1, EVERY) for s in STRATEGIES for eps in EPS
    ]
    for r in rows(finished):
        if r["step"] == "0":
            assert float(r["distance"]) == pytest.approx(float(r["eps"]), rel=1e-9)
            assert float(r["along"]) == pytest.approx(float(r["eps"]), rel=1e-9)
        assert abs(float(r["along"])) <= float(r["distance"]) * (1 + 1e-9)


def test_small_displacements_grow_as_the_spectrum_says(finished, tmp_path):
    """The twin along the first direction is at the upper bound at the end, that along the last one has all but gone."""
    last = {(r["seed"], r["strategy"]): r for r in rows(finished) if int(r["step"]) == STEPS and r["eps"] == "0.0001"}
    for seed in "34":
        upper, lower = last[seed, "max_chaotic"], last[seed, "max_nonchaotic"]
        assert float(upper["distance"]) == pytest.approx(float(upper["upper"]), rel=1e-3)
        assert float(lower["lower"]) <= float(lower["distance"]) < 1e-3 * float(lower["eps"])  # to order eps^2
        assert float(upper["upper"]) > float(upper["eps"]) > float(lower["lower"])


def test_bounds_are_those_of_the_finite_time_study(finished, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "mlp", functools.partial(models.paper_mlp, hidden=1))
        options = ["--seed", "4", "--every", str(EVERY), "--lr", "0.02", "--threads", "1", "--steps", str(STEPS)]
        options += ["--activation", "tanh"]
        assert cli.main(["reproduce", "finite-time", *options, "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "extremes.csv").open(newline="") as f:
        ends = {int(r["step"]): r for r in csv.DictReader(f)}
    for r in rows(finished):
        if r["seed"] == "4" and (t := int(r["step"])):
            for name, end in (("upper", "largest"), ("lower", "smallest")):
                assert float(r[name]) == pytest.approx(float(r["eps"]) * math.exp(t * float(ends[t][end])), rel=1e-12)


def test_verdicts_and_settings_are_in_the_manifest(finished):
    m = json.loads((finished / "manifest.json").read_text())
    assert m["status"] == "complete"
    assert [r["steps"] for r in m["runs"]] == [STEPS, STEPS]
    assert len(m["findings"]) == 3
    assert all(f["verdict"] in findings.VERDICTS for f in m["findings"])
    assert "fig3" in m["command"]


CUTS = [("baseline", 5), ("baseline", 30), ("twins", 1), ("twins", 17), ("twins", 44)]


@pytest.mark.parametrize(("half", "after"), CUTS)
def test_an_interrupted_study_goes_on_to_the_same_bytes(finished, half, after, tmp_path, monkeypatch):
    owner = finite_time_run.Training if half == "baseline" else fig3_run.Twins
    advance, taken = owner.advance, [0]

    def stop(work):
        taken[0] += 1
        if taken[0] == after:
            raise KeyboardInterrupt
        return advance(work)

    with monkeypatch.context() as patch:
        patch.setattr(owner, "advance", stop)
        assert reproduce(tmp_path / "out", "--checkpoint-every", "1e-9") == 130
    assert reproduce(tmp_path / "out", "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_damaged_parts_are_made_anew(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(twin_study, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert reproduce(tmp_path / "out") == 130
    for name in ("directions", "twins.ckpt"):
        path = tmp_path / "out" / "parts" / "seed3" / name
        path.write_bytes(path.read_bytes()[:-100])
    assert reproduce(tmp_path / "out", "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_bounds_that_do_not_hold_are_said(tmp_path):
    def series(distance):
        t = torch.arange(20.0, dtype=torch.float64)
        bounds = torch.ones(2, 20, dtype=torch.float64) * torch.tensor([[0.2], [0.1]])
        return fig3_findings.Series(t, torch.full_like(t, distance), t, *bounds)

    for distance, said in ((0.15, "reproduced"), (0.3, "not reproduced"), (0.05, "not reproduced")):
        own = {("3", "random"): series(distance)}
        assert fig3_findings._bounds(own, ["3"], ["random"], 0.1).verdict == said
