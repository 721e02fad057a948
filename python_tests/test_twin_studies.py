"""``chaos-ext reproduce magnitude`` and ``bounds``: ends against torch's own training, resuming, processes."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from chaos_ext import cli, models
from chaos_ext.base.files import read_sealed
from chaos_ext.data import BatchOrder, load
from chaos_ext.data.batches import derive_seed
from chaos_ext.dynamics.perturbation import STRATEGIES
from chaos_ext.experiments import bounds, fig3_findings, fig3_run, finite_time_run, magnitude
from chaos_ext.experiments.fig3_run import labels

pytestmark = pytest.mark.usefixtures("digits_cache")

STEPS = 30
EPS = (0.01, 0.5, 2.0, 6.0, 15.0)
STUDIES = {"magnitude": magnitude.Magnitude, "bounds": bounds.Bounds}
OPTIONS = ("--seeds", "3,4", "--eps", ",".join(map(str, EPS)), "--every", "5", "--lr", "0.02", "--threads", "1")
OPTIONS += ("--activation", "tanh", "--hidden", "1", "--quick")


def reproduce(name, out, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STUDIES[name], "quick_steps", STEPS)
        return cli.main(["reproduce", name, *OPTIONS, "--out", str(out), *options])


@pytest.fixture(scope="module")
def baselines(tmp_path_factory):
    return tmp_path_factory.mktemp("baselines")


@pytest.fixture(scope="module", params=STUDIES)
def finished(request, tmp_path_factory, baselines, digits_cache):
    """A study's name and folder; not to be changed."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    assert reproduce(request.param, out, "--baselines", str(baselines)) == 0
    return request.param, out


@pytest.fixture(scope="module")
def ends(tmp_path_factory, baselines, digits_cache):
    out = tmp_path_factory.mktemp("ends") / "out"
    assert reproduce("magnitude", out, "--baselines", str(baselines)) == 0
    return out


def rows(out):
    with (out / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def test_figures_columns_and_verdicts_are_written(finished):
    name, out = finished
    m, study = manifest(out), STUDIES[name]()
    assert sorted(p.name for p in out.iterdir()) == ["figure.pdf", "figure.png", "manifest.json", "metrics.csv"]
    assert m["status"] == "complete"
    assert list(rows(out)[0]) == list(m["columns"]) == list(study.columns)
    assert m["findings"]
    assert "baselines" not in m["command"]


def trained(theta, seed):
    """What torch's own training makes of theta, and its loss and accuracy on the test split."""
    d = load("digits").to(torch.float64, "cpu")
    model = models.paper_mlp(activation="tanh", hidden=1, seed=derive_seed("init", seed), dtype=torch.float64)
    if theta is not None:
        start = nn.utils.parameters_to_vector(model.parameters()).detach()
        nn.utils.vector_to_parameters(start + theta, model.parameters())
    opt, loss_fn = torch.optim.SGD(model.parameters(), lr=0.02), nn.CrossEntropyLoss()
    for index in BatchOrder(len(d.y_train), 8, seed).epoch(0)[:STEPS]:
        opt.zero_grad()
        loss_fn(model(d.x_train[index]), d.y_train[index]).backward()
        opt.step()
    with torch.no_grad():
        end = nn.utils.parameters_to_vector(model.parameters()).clone()
        out = model(d.x_test)
        return end, float(loss_fn(out, d.y_test)), float((out.argmax(1) == d.y_test).double().mean())


def test_ends_are_those_of_torchs_own_training(ends, baselines):
    (path,) = baselines.glob("seed4-*/directions")
    directions = read_sealed(path)["directions"]
    table = {(r["strategy"], float(r["eps"])): r for r in rows(ends) if r["seed"] == "4"}
    assert len(table) == 1 + len(STRATEGIES) * len(EPS)
    own, loss, accuracy = trained(None, 4)
    assert float(table["none", 0.0]["test_loss"]) == pytest.approx(loss, rel=1e-9)
    for strategy, eps in (("max_chaotic", 0.5), ("random", 15.0), ("nonchaotic", 0.01)):
        r = table[strategy, eps]
        end, loss, accuracy = trained(eps * directions[:, STRATEGIES.index(strategy)], 4)
        assert float(r["distance"]) == pytest.approx(float((end - own).norm()), rel=1e-9)
        assert float(r["growth"]) == pytest.approx(float((end - own).norm()) / eps, rel=1e-9)
        assert float(r["test_loss"]) == pytest.approx(loss, rel=1e-9)
        assert float(r["test_accuracy"]) == accuracy


CUTS = [("baseline", 7), ("twins", 1), ("twins", 17), ("twins", 44)]


@pytest.mark.parametrize(("half", "after"), CUTS)
def test_an_interrupted_study_goes_on_to_the_same_bytes(finished, half, after, tmp_path, monkeypatch):
    name, whole = finished
    owner = finite_time_run.Training if half == "baseline" else fig3_run.Twins
    advance, taken = owner.advance, [0]

    def stop(work):
        taken[0] += 1
        if taken[0] == after:
            raise KeyboardInterrupt
        return advance(work)

    with monkeypatch.context() as patch:
        patch.setattr(owner, "advance", stop)
        assert reproduce(name, tmp_path / "out", "--checkpoint-every", "1e-9") == 130
    assert reproduce(name, tmp_path / "out", "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert manifest(tmp_path / "out")["findings"] == manifest(whole)["findings"]


def test_killed_processes_go_on_to_the_same_bytes(ends, tmp_path):
    """kill -9 while two processes share the seeds."""
    code = "from chaos_ext import cli; from chaos_ext.experiments import magnitude as m; "
    code += (
        f"m.Magnitude.quick_steps = {STEPS}\nif __name__ == '__main__': import sys; sys.exit(cli.main(sys.argv[1:]))"
    )
    (tmp_path / "command.py").write_text(code)
    command = [sys.executable, str(tmp_path / "command.py"), "reproduce", "magnitude", *OPTIONS, "--jobs", "2"]
    command += ["--out", str(tmp_path / "out"), "--checkpoint-every", "1e-9", "--resume"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(tmp_path.glob("out/parts/*/training.ckpt")) and process.poll() is None:
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (ends / "metrics.csv").read_bytes()


def test_a_shared_training_is_not_repeated(ends, baselines, tmp_path, monkeypatch):
    monkeypatch.setattr(finite_time_run.Training, "advance", lambda _: pytest.fail("trained again"))
    assert reproduce("magnitude", tmp_path / "out", "--baselines", str(baselines)) == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (ends / "metrics.csv").read_bytes()


def test_a_width_is_of_the_mlp_only(tmp_path, capsys):
    command = ["reproduce", "magnitude", "--model", "cnn", "--hidden", "3", "--quick", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "--hidden: expected --model mlp" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--eps", "0.1,-1"), ("--eps", "0.1,0.1"), ("--hidden", "0")])
def test_bad_options_are_refused_by_name(option, value, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", "magnitude", option, value])
    assert end.value.code == 2
    assert option in capsys.readouterr().err


def made_up(path, distance):
    """Rows of one seed with distance(strategy, eps)."""
    lines = ["seed,strategy,eps,distance", "3,none,0.0,0.0"]
    eps = (0.01, 0.1, 0.2, 0.5, 2.0, 6.0, 15.0)
    lines += [f"3,{s},{e!r},{distance(s, e)!r}" for s in STRATEGIES for e in eps]
    path.write_text("\n".join(lines) + "\n")
    return [f.verdict for f in magnitude.Magnitude().findings(path, None)]


def test_verdicts_on_rows_that_are_made_up(tmp_path):
    stretch = dict(zip(STRATEGIES, (9.0, 0.5, 3.0, 0.7, 1.0), strict=True))
    path = tmp_path / "m.csv"
    falls = made_up(path, lambda s, e: e**0.5 * (stretch[s] if e <= 0.1 else 1.0))
    assert falls == ["reproduced"] * 3
    assert made_up(path, lambda s, e: e * stretch[s] * (1 + e)) == ["not reproduced", "not reproduced", "reproduced"]
    assert made_up(path, lambda s, e: e**0.9) == ["reproduced", "not reproduced", "not reproduced"]
    assert made_up(path, lambda s, e: float("nan") if e > 10 else e**0.9)[0] == "not reproduced"


def test_columns_of_twins_are_told_apart_by_every_digit():
    settings = fig3_run.Fig3Settings.__new__(fig3_run.Fig3Settings)
    object.__setattr__(settings, "eps", (0.1, 0.1 + 1e-12))
    names = [fig3_run.column("distance", *label) for label in labels(settings)]
    assert len(set(names)) == len(names)


def test_failures_of_bounds_are_counted_in_e_folds(tmp_path, baselines, digits_cache):
    assert reproduce("bounds", tmp_path / "out", "--baselines", str(baselines)) == 0
    table = rows(tmp_path / "out")
    assert len(table) == 2 * len(STRATEGIES) * len(EPS) * (STEPS // 5 + 1)
    for r in table:
        d, upper, lower = (float(r[n]) for n in ("distance", "upper", "lower"))
        assert float(r["above"]) == pytest.approx(max(math.log(d / upper), 0), abs=1e-12)
        assert float(r["below"]) == pytest.approx(max(math.log(lower / d), 0), abs=1e-12)
    found = bounds.excesses(tmp_path / "out" / "metrics.csv")
    own = [max(float(r["above"]), float(r["below"])) for r in table if r["seed"] == "3" and r["eps"] == "6.0"]
    assert bounds.worst(found, "3", 6.0) == max(own)


def bounded(path, outside):
    """Rows of one seed whose distances are so many e-folds above or (negative) below bounds."""
    lines = ["seed,step,strategy,eps,distance,along,upper,lower"]
    for eps in (1e-4, 0.1, 1.0, 10.0):
        for s in STRATEGIES:
            for t in (0, 20, 30):
                f, bound = outside(s, eps), (f"{eps * 2},{eps / 2}" if t != 30 else ",")
                d = eps if not f else 2 * eps * math.exp(f) if f > 0 else eps / 2 * math.exp(f)
                lines.append(f"3,{t},{s},{eps},{d if t else eps},0,{bound}")
    path.write_text("\n".join(lines) + "\n")
    return [f.verdict for f in bounds.Bounds().findings(path, None)]


def test_verdicts_on_bounds_that_are_made_up(tmp_path):
    path, slack = tmp_path / "m.csv", math.log(fig3_findings.SLACK)
    assert bounded(path, lambda s, e: 0.0) == ["reproduced", "not reproduced", "reproduced"]
    assert bounded(path, lambda s, e: 0.5 if e >= 1 and s == "chaotic" else 0.0) == ["reproduced"] * 3
    assert bounds.first_failure(bounds.excesses(path), "3") == 1.0
    assert bounds.worst(bounds.excesses(path), "3", 10.0) == pytest.approx(0.5)
    bent = bounded(path, lambda s, e: -0.5 if e == 0.1 else 0.9 * slack)
    assert bent == ["not reproduced", "not reproduced", "reproduced"]
    assert bounded(path, lambda s, e: 2 * slack) == ["not reproduced"] * 3
    assert bounded(path, lambda s, e: math.nan if e == 10 else 0.0)[1] == "reproduced"  # a twin that diverged
