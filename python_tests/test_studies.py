"""What all studies do alike: rows, figures, verdicts, and the same bytes after an interruption at any step."""

import csv
import json
import statistics
from dataclasses import replace

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from chaos_ext import cli
from chaos_ext.data import load
from chaos_ext.experiments import epsilon, fig1, fig2, findings, global_prune, series, spectrum, study, training
from chaos_ext.experiments.rows import SPECTRAL, TRAINING

pytestmark = pytest.mark.usefixtures("digits_cache")

STEPS = 12
# Of each study: its class, and options with which all of its kinds of runs are made.
STUDIES = {
    "fig1": (fig1.Fig1, ("--prune", "negative", "--controls", "rank,energy", "--noise", "0.1", "--momentum", "0.9")),
    "fig2": (fig2.Fig2, ("--start", "4,7", "--prune", "negative,positive")),
    "spectrum": (spectrum.SpectrumStudy, ("--more-lr", "0.3")),
    "epsilon": (epsilon.Epsilon, ("--every", "3", "--momentum", "0.9")),
    "global-prune": (global_prune.GlobalPrune, ("--first", "15", "--hidden", "1", "--momentum", "0.9")),
}


def few_digits(name="digits", root=None):
    """77 training samples: 10 steps an epoch, the last on 5 samples."""
    d = load(name, root)
    return replace(d, x_train=d.x_train[:77], y_train=d.y_train[:77])


def reproduce(name, out, *options):
    made, own = STUDIES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "quick_steps", STEPS)
        patch.setattr(study, "load", few_digits)
        return cli.main(["reproduce", name, "--quick", "--lr", "0.05", "--out", str(out), *own, *options])


@pytest.fixture(scope="module")
def finished_of(tmp_path_factory, digits_cache):
    """The folder of a finished study of two seeds; not to be changed."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "out"
            assert reproduce(name, folders[name], "--seeds", "3,4") == 0
        return folders[name]

    return folder


@pytest.fixture(params=STUDIES)
def finished(request, finished_of):
    """A study's name and folder."""
    return request.param, finished_of(request.param)


def read(out):
    with (out / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def test_rows_figures_and_verdicts_are_written(finished):
    name, out = finished
    m, table = manifest(out), read(out)
    assert m["status"] == "complete"
    assert len(table) == 2 * STEPS * len(m["settings"]["runs"])
    assert list(table[0]) == list(m["columns"]) == [*TRAINING, *STUDIES[name][0].columns]
    for figure in STUDIES[name][0]().figures(settings_of(out, name)):
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    assert m["findings"]
    for f in m["findings"]:
        assert f["verdict"] in findings.VERDICTS
        assert f["claim"]
        assert f["criterion"]


def settings_of(out, name):
    kinds = {"fig1": fig1.Fig1Settings, "fig2": fig2.Fig2Settings, "spectrum": spectrum.SpectrumSettings}
    more = {"epsilon": epsilon.EpsilonSettings, "global-prune": global_prune.GlobalPruneSettings}
    kind = {**kinds, **more}[name]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in manifest(out)["settings"].items()})


@pytest.mark.parametrize("after", [1, 9, 17, 30])
def test_an_interrupted_study_goes_on_to_the_same_bytes(finished, after, tmp_path, monkeypatch, fake_figures):
    name, whole = finished
    monkeypatch.setattr(STUDIES[name][0], "draw", lambda *_: None)
    taken, advance = [0], training.Training.advance

    def stop(t):
        taken[0] += 1
        if taken[0] == after:
            raise KeyboardInterrupt
        return advance(t)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "advance", stop)
        assert reproduce(name, tmp_path / "out", "--seeds", "3,4", "--checkpoint-every", "1e-9") == 130
    assert reproduce(name, tmp_path / "out", "--seeds", "3,4", "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert manifest(tmp_path / "out")["findings"] == manifest(whole)["findings"]


def test_a_run_that_prunes_later_is_that_of_sgd_until_then(finished_of):
    out = finished_of("fig2")
    losses = {(r["run"], r["seed"], int(r["step"])): r["loss"] for r in read(out)}
    for chosen in ("negative", "positive"):
        for start in (4, 7):
            run = f"{chosen}@{start}"
            own = [losses[run, "3", t] == losses["sgd", "3", t] for t in range(STEPS)]
            assert own[: start + 1] == [True] * (start + 1)  # the loss at theta(start) is before the first pruned step
            assert not any(own[start + 1 :])
            assert all(float(r["share_removed"]) > 0 for r in read(out) if r["run"] == run and int(r["step"]) >= start)


def test_histograms_and_counts_agree(finished_of):
    out = finished_of("spectrum")
    for r in read(out):
        first = int(r["step"]) % 10 == 0
        for sign in ("negative", "positive"):
            bins = [r[c] for c in r if c.startswith(f"{sign}_")]
            assert [bool(b) for b in bins] == [first] * len(bins)
            if first:
                assert sum(map(int, bins)) == int(r[f"n_{sign}"])
        lr = float(r["run"].partition("=")[2])
        assert (int(r["n_above"]) > 0) == (float(r["lambda_max"]) > 2 / lr)
        assert int(r["n_chaotic"]) == int(r["n_negative"]) + int(r["n_above"])
    assert {c for c in read(out)[0] if c in SPECTRAL} == set(SPECTRAL)


def test_where_a_run_breaks_off_nothing_is_claimed(tmp_path, monkeypatch, fake_figures, capsys):
    step = fig1.PrunedTraining.measure_and_step

    def diverge(t, x, y):
        if t.unit.run == "negative" and t.step == 5:
            raise study.ce.NonFiniteError("loss: got NaN")
        return step(t, x, y)

    monkeypatch.setattr(fig1.PrunedTraining, "measure_and_step", diverge)
    assert reproduce("fig1", tmp_path, "--seeds", "3") == 1
    assert "broke off at step 5" in capsys.readouterr().err
    assert manifest(tmp_path)["findings"] == []


@pytest.mark.parametrize(
    ("held", "least", "expected"),
    [
        ([True] * 5, 4, "reproduced"),
        ([True] * 4 + [False], 4, "reproduced"),
        ([True] * 3 + [False] * 2, 4, "partly"),
        ([True] + [False] * 4, 4, "not reproduced"),
        ([True], 4, "undecided"),
        ([False], 4, "not reproduced"),
    ],
)
def test_verdicts(held, least, expected):
    assert findings.verdict(held, least) == expected


def test_a_verdict_is_one_of_few():
    with pytest.raises(ValueError, match="verdict: expected one of"):
        findings.Finding("a", "b", "c", "d", "perhaps")


def test_rank_correlation_and_slope_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 5, (2, 60), generator=g).double()
    assert series.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert series.rank_correlation(a, -a) == pytest.approx(-1)
    assert series.slope(a) == pytest.approx(stats.linregress(range(60), a).slope, abs=1e-12)


def test_spread_and_last_epoch(tmp_path):
    assert series.spread([1.0, 3.0]) == (2.0, statistics.stdev([1, 3]))
    assert str(series.spread([2.0])) == "2"
    rows = [("a", 1, t, t * t, 0.5 if t in (3, 7, 8) else "") for t in range(9)]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["run,seed,step,loss,val_loss", *(",".join(map(str, r)) for r in rows)]) + "\n")
    assert series.last_epoch(path, "loss") == {"a": [statistics.fmean(t * t for t in range(5, 9))]}
