"""Runs of ``chaos-ext reproduce fig1`` that diverge or die."""

from argparse import ArgumentParser

import pytest
from fig1_command import manifest, read, reproduce

from chaos_ext import NonFiniteError
from chaos_ext.data import load
from chaos_ext.experiments import fig1, fig1_options, pool, pruned, report, study
from chaos_ext.experiments.output import OutputFolder, WorkerError
from chaos_ext.experiments.settings import Unit
from chaos_ext.figures import RUNS

pytestmark = pytest.mark.usefixtures("digits_cache")


def test_diverged_run_is_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys, fake_figures):
    measure = pruned.PrunedTraining.measure_and_step

    def diverge(trainer, x, y):
        if trainer.unit.run == "chaotic" and trainer.step == 4:
            raise NonFiniteError("loss: got NaN")
        return measure(trainer, x, y)

    monkeypatch.setattr(pruned.PrunedTraining, "measure_and_step", diverge)
    assert reproduce(tmp_path) == 1
    assert "chaotic" in capsys.readouterr().err
    steps = {run: sum(r["run"] == run for r in read(tmp_path)) for run in RUNS}
    assert steps == {"sgd": 7, "chaotic": 4, "negative": 7, "positive": 7}
    m = manifest(tmp_path)
    assert m["status"] == "failed"
    failures = {r["run"]: r["failure"] for r in m["runs"]}
    assert failures["chaotic"] == {"step": 4, "error": "NonFiniteError: loss: got NaN"}
    assert failures["sgd"] is failures["negative"] is failures["positive"] is None
    assert reproduce(tmp_path, "--resume") == 1  # still failed, and not trained again


def test_divergence_at_a_huge_learning_rate_is_a_failed_run(tmp_path, fake_figures):
    assert reproduce(tmp_path, "--lr", "1e200", "--prune", "none") == 1
    assert manifest(tmp_path)["runs"][0]["failure"]["error"].startswith("NonFiniteError")


def test_runs_that_saw_other_batches_are_not_compared():
    units = [Unit(1, "sgd"), Unit(1, "chaotic"), Unit(2, "sgd")]

    def records(*hashes, failures=(None, None, None)):
        return {u: {"epoch_hashes": h, "failure": f} for u, h, f in zip(units, hashes, failures, strict=True)}

    assert report.require_twins(units, records(["a", "b"], ["a", "b"], ["c"])) == {"1": ["a", "b"], "2": ["c"]}
    with pytest.raises(RuntimeError, match="seed1-chaotic"):
        report.require_twins(units, records(["a", "b"], ["a", "x"], ["c"]))
    # A run that broke off has hashed a part of its last epoch only.
    broken = records(["a", "b"], ["a", "x"], ["c"], failures=(None, {"step": 3}, None))
    assert report.require_twins(units, broken)["1"] == ["a", "b"]


def test_error_in_a_worker_process_is_reported(tmp_path):
    out = OutputFolder(tmp_path)
    out.parts.mkdir()
    parser = ArgumentParser()
    fig1_options.add_arguments(parser)
    args, own = parser.parse_args(["--prune", "negative"]), fig1.Fig1()
    settings = own.settings(args, study.common_settings(args, "a fingerprint that the data do not have", 5))
    with pytest.raises(WorkerError, match="data set changed"):
        pool.run_units(own.work, settings, load("digits"), None, out, jobs=2, every=1, report=lambda *a: None)
