"""``chaos-ext reproduce finite-time``: its files, its refusals, and that it ends between two steps."""

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import chaos_ext as ce
from chaos_ext import cli
from chaos_ext.experiments import finite_time_run

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def command(*options):
    return cli.main(["reproduce", "finite-time", "--threads", "1", *map(str, options)])


def rows(path):
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_the_quick_run_leaves_everything(tmp_path):
    out = tmp_path / "out"
    before = torch.get_num_threads()
    assert command("--quick", "--out", out) == 0
    assert torch.get_num_threads() == before
    names = {"exponents.csv", "extremes.csv", "figure.pdf", "figure.png", "manifest.json"}
    assert {p.name for p in out.iterdir()} == names
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["exponents"]["of_the_restricted_map"]
    assert set(manifest["seconds"]) >= {"operator", "tangent", "qr", "fold", "extremes", "read-out"}
    exponents = rows(out / "exponents.csv")
    assert len(exponents) == manifest["exponents"]["count"] == 48
    last = rows(out / "extremes.csv")[-1]
    assert int(last["step"]) == manifest["steps"] == 60
    for at, name in ((0, "largest"), (-1, "smallest")):
        gap = abs(float(exponents[at]["exponent"]) - float(last[name]))
        assert gap <= float(last[f"{name}_tolerance"]) + float(exponents[at]["tolerance"])
    assert command("--quick", "--out", out, "--resume") == 0  # nothing left to do


def test_a_folder_of_other_settings_is_refused(tmp_path, capsys):
    assert command("--steps", 3, "--k", 2, "--out", tmp_path) == 0
    assert command("--steps", 3, "--k", 2, "--out", tmp_path) == 2
    assert command("--steps", 3, "--k", 2, "--every", 5, "--out", tmp_path, "--resume") == 2
    assert "every: 20 there, 5 here" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), [(["--every", "0"], "--every"), (["--k", "99999"], "--k")])
def test_bad_options_end_with_status_2(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        command(*options, "--out", tmp_path / "out")
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_momentum_has_two_spectra(tmp_path):
    for state, k in (("theta", 4), ("full", 4)):
        assert command("--steps", 9, "--k", k, "--momentum", 0.9, "--state", state, "--out", tmp_path / state) == 0
        assert len(rows(tmp_path / state / "exponents.csv")) == k


def test_with_the_whole_state_there_are_twice_as_many_columns_as_parameters(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command("--k", 10701, "--momentum", 0.9, "--out", tmp_path)
    assert "at most 2 P = 10700" in capsys.readouterr().err


class Killed(BaseException):
    """What ends a process at once, as far as its files are concerned."""


def test_killed_twice_between_the_two_files_of_a_checkpoint(tmp_path, monkeypatch):
    options = ["--steps", 12, "--k", 4, "--every", 2, "--checkpoint-every", 1e-9]
    assert command(*options, "--out", tmp_path / "whole") == 0
    save, left = ce.LyapunovAnalyzer.save, []

    def save_until(self, path):
        if not left.pop():
            raise Killed
        save(self, path)

    monkeypatch.setattr(ce.LyapunovAnalyzer, "save", save_until)
    for written, more in ((3, []), (0, ["--resume"])):
        left[:] = [False, *[True] * written]
        with pytest.raises(Killed):
            command(*options, "--out", tmp_path / "cut", *more)
    monkeypatch.undo()
    assert command(*options, "--out", tmp_path / "cut", "--resume") == 0
    for name in ("exponents.csv", "extremes.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_terminated_and_resumed_it_writes_the_same_bytes(tmp_path):
    options = ["--steps", "300", "--k", "8", "--every", "10", "--threads", "1"]
    base = [sys.executable, "-m", "chaos_ext", "reproduce", "finite-time", *options]
    run = functools.partial(subprocess.run, check=True, cwd=tmp_path)
    run([*base, "--out", tmp_path / "whole"])
    process = subprocess.Popen([*base, "--out", tmp_path / "cut"], cwd=tmp_path)
    while process.poll() is None and not (tmp_path / "cut" / "extremes.csv").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) in (143, 0)
    run([*base, "--out", tmp_path / "cut", "--resume"])
    for name in ("exponents.csv", "extremes.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_training_that_diverges_leaves_what_was_measured_until_then(tmp_path, monkeypatch, capsys):
    advance = finite_time_run.Training.advance

    def diverge(training):
        if training.step == 7:
            raise ce.NonFiniteError("loss: the loss is NaN")
        advance(training)

    monkeypatch.setattr(finite_time_run.Training, "advance", diverge)
    options = ["--steps", 12, "--k", 4, "--every", 2]
    assert command(*options, "--out", tmp_path / "out") == 1
    assert "training diverged at step 7: NonFiniteError: loss: the loss is NaN" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["status"], manifest["steps"], manifest["failure"]["step"]) == ("failed", 7, 7)
    monkeypatch.undo()
    assert command("--steps", 7, "--k", 4, "--every", 2, "--out", tmp_path / "whole") == 0
    for name in ("exponents.csv", "extremes.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert command(*options, "--out", tmp_path / "out", "--resume") == 1  # it is known


def test_a_training_that_diverges_at_once_is_an_error(tmp_path, capsys):
    assert command("--steps", 12, "--k", 4, "--lr", 1e300, "--out", tmp_path / "out") == 1
    assert "chaos-ext: " in capsys.readouterr().err


def test_training_ends_when_accuracy_settles(tmp_path):
    assert command("--settle", 1.1, "--k", 2, "--every", 60, "--out", tmp_path / "out") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["status"], manifest["steps"]) == ("complete", 2 * 180)
    assert len(manifest["epoch_accuracies"]) == len(manifest["epoch_losses"]) == 2
    assert all(0 <= a <= 1 for a in manifest["epoch_accuracies"])
