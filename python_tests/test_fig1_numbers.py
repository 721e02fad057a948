"""The numbers of ``chaos-ext reproduce fig1``: rows, summary and manifest of a run, against a plain torch loop."""

import csv
import socket
import statistics
import sys
from dataclasses import replace

import pytest
import torch
from fig1_command import OUTPUTS, manifest, read, reproduce
from torch import nn

from chaos_ext.data import BatchOrder, load
from chaos_ext.experiments import fig1, pruned, rows, study, training
from chaos_ext.figures import RUNS

pytestmark = pytest.mark.usefixtures("digits_cache")

COLUMNS = (
    "run,seed,step,loss,accuracy,val_loss,val_accuracy,n_negative,n_zero,n_positive,n_chaotic,lambda_min,lambda_max,"
    "share_negative,share_zero,share_positive,share_chaotic,share_removed"
)


def few_digits(name="digits", root=None):
    """77 training samples: 10 steps an epoch, the last on 5 samples."""
    d = load(name, root)
    return replace(d, x_train=d.x_train[:77], y_train=d.y_train[:77])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_cache):
    """A finished run of all four curves for two seeds, 12 steps each over the end of an epoch; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "load", few_digits)
        assert reproduce(out, "--seeds", "42,7", "--lr", "0.05", steps=12) == 0
    return out


def test_writes_exactly_the_promised_files(finished):
    assert sorted(p.name for p in finished.iterdir()) == OUTPUTS
    assert (finished / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_rows_come_seed_by_seed_run_by_run_step_by_step(finished):
    assert (finished / "metrics.csv").read_text().partition("\n")[0] == COLUMNS
    keys = [(int(r["seed"]), r["run"], int(r["step"])) for r in read(finished)]
    assert keys == [
        (s, run, t) for s in (42, 7) for run in ("sgd", "chaotic", "negative", "positive") for t in range(12)
    ]


def test_validation_is_evaluated_at_the_end_of_epochs_and_of_the_run(finished):
    for r in read(finished):
        evaluated = int(r["step"]) in (9, 11)
        assert bool(r["val_loss"]) == bool(r["val_accuracy"]) == evaluated


def batch(data, order, step):
    index = order.epoch(step // order.steps_per_epoch)[step % order.steps_per_epoch]
    return data.x_train[index], data.y_train[index]


def test_sgd_rows_are_those_of_torch_sgd(finished):
    """Loss and accuracy at theta(t) before the step, validation after it, from a plain torch loop."""
    data = few_digits().to(torch.float64)
    settings = settings_of(finished)
    model = training.build_model(settings, 42)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    order = BatchOrder(77, 8, 42)
    for r in (r for r in read(finished) if r["run"] == "sgd" and r["seed"] == "42"):
        x, y = batch(data, order, int(r["step"]))
        output = model(x)
        loss = nn.functional.cross_entropy(output, y)
        assert float(r["loss"]) == pytest.approx(loss.item(), rel=1e-10)
        assert float(r["accuracy"]) == pytest.approx((output.argmax(1) == y).double().mean().item(), abs=1e-15)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if r["val_loss"]:
            with torch.no_grad():
                output = model(data.x_test)
            expected = nn.functional.cross_entropy(output, data.y_test).item()
            assert float(r["val_loss"]) == pytest.approx(expected, rel=1e-10)
            assert float(r["val_accuracy"]) == (output.argmax(1) == data.y_test).double().mean().item()


def settings_of(out):
    stored = manifest(out)["settings"]
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return fig1.Fig1Settings(**tuples)


def test_runs_of_a_seed_start_at_the_same_point_and_seeds_do_not(finished):
    first = {(r["seed"], r["run"]): r for r in read(finished) if r["step"] == "0"}
    for seed in ("42", "7"):
        values = [{**first[seed, run], "run": "", "share_removed": ""} for run in RUNS]
        assert all(v == values[0] for v in values)
    assert first["42", "sgd"]["loss"] != first["7", "sgd"]["loss"]


def test_pruned_runs_leave_the_trajectory_of_sgd(finished):
    last = {r["run"]: r["loss"] for r in read(finished) if r["step"] == "11" and r["seed"] == "42"}
    assert len({last["sgd"], last["negative"], last["positive"]}) == 3


def test_counts_and_shares_add_up(finished):
    for r in read(finished):
        assert sum(int(r[f"n_{s}"]) for s in ("negative", "zero", "positive")) == 5350
        assert sum(float(r[f"share_{s}"]) for s in ("negative", "zero", "positive")) == pytest.approx(1)
        assert int(r["n_chaotic"]) >= int(r["n_negative"])
        assert float(r["lambda_min"]) < 0 < float(r["lambda_max"])


def test_floats_are_written_with_every_digit(finished):
    for r in read(finished):
        assert r["loss"] == repr(float(r["loss"]))
    assert any(len(r["loss"]) >= 17 for r in read(finished))


def test_summary_holds_means_over_the_last_epoch_and_seeds(finished):
    with (finished / "summary.csv").open(newline="") as f:
        summary = {r["run"]: r for r in csv.DictReader(f)}
    assert list(summary) == list(RUNS)
    table = read(finished)
    for run, r in summary.items():
        seeds = [[float(q["loss"]) for q in table if (q["run"], q["seed"]) == (run, s)][-10:] for s in ("42", "7")]
        means = [statistics.fmean(s) for s in seeds]
        assert float(r["train_loss"]) == pytest.approx(statistics.fmean(means), rel=1e-5)
        assert float(r["train_loss_sd"]) == pytest.approx(statistics.stdev(means), rel=1e-5)
        final = [float(q["val_accuracy"]) for q in table if q["run"] == run and q["step"] == "11"]
        assert float(r["val_accuracy"]) == pytest.approx(statistics.fmean(final), rel=1e-5)
        chaotic = [int(q["n_chaotic"]) for q in table if q["run"] == run]
        assert float(r["mean_n_chaotic"]) == pytest.approx(statistics.fmean(chaotic), rel=1e-5)
        assert (int(r["seeds"]), int(r["steps"])) == (2, 24)


def test_manifest_says_how_to_repeat_the_run(finished):
    m = manifest(finished)
    assert m["status"] == "complete"
    s = m["settings"]
    assert (s["data"], s["lr"], s["batch_size"], s["seeds"], s["dtype"]) == ("digits", 0.05, 8, [42, 7], "float64")
    assert s["data_fingerprint"] == few_digits().fingerprint()
    assert m["versions"]["torch"] == torch.__version__
    assert m["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert m["zero_tolerance"] == 1e-12
    assert m["machine"]["threads"] == 1
    assert [len(h) for h in m["batch_hashes_per_epoch"].values()] == [2, 2]
    assert all(0 < r["seconds_per_step_min"] <= r["seconds_per_step_mean"] for r in m["runs"])
    assert m["metrics"]["rows"] == len(read(finished))
    # Published manifests must not tell whose machine it was.
    assert socket.gethostname() not in (finished / "manifest.json").read_text()


def test_metrics_have_no_timing_columns():
    assert not any("second" in c or "time" in c for c in {**rows.TRAINING, **pruned.COLUMNS})
