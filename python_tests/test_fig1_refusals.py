"""What ``chaos-ext reproduce fig1`` refuses before it trains: folders, options, data and packages, each by name."""

import os
import subprocess
import sys

import pytest
import torch
from fig1_command import refused, reproduce

pytestmark = pytest.mark.usefixtures("digits_cache")


def test_non_empty_out_without_resume_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    refused(capsys, reproduce(tmp_path), str(tmp_path), "not empty", "--resume")
    refused(capsys, reproduce(tmp_path, "--resume"), str(tmp_path), "no run to resume")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


OTHER = {
    "--lr": ("lr", "0.002"),
    "--seeds": ("seeds", "1"),
    "--dtype": ("dtype", "float32"),
    "--prune": ("runs", "positive"),
    "--k": ("k", "3"),
    "--momentum": ("momentum", "0.5"),
    "--threads": ("threads", "2"),
    "--model": ("model", "cnn"),
}


def test_dominant_directions_need_their_number(tmp_path, capsys, fake_figures):
    for options, needed in (
        (["dominant"], "argument --k: expected the number of dominant directions"),
        (["bulk", "--k", "3", "--order", "random"], "argument --order: dominant and bulk"),
    ):
        assert reproduce(tmp_path, "--prune", *options) == 2
        assert needed in capsys.readouterr().err
    assert reproduce(tmp_path, "--prune", "dominant,bulk", "--k", "3") == 0


def test_other_settings_are_refused_by_name(tmp_path, capsys, fake_figures):
    assert reproduce(tmp_path, "--prune", "none") == 0
    capsys.readouterr()
    for option, (name, value) in OTHER.items():
        options = ["--prune", "none", option, value, "--resume"]
        refused(capsys, reproduce(tmp_path, *options), str(tmp_path), f"{name}: ")
    # Where and how it runs are no settings.
    assert reproduce(tmp_path, "--prune", "none", "--jobs", "2", "--checkpoint-every", "3", "--resume") == 0


def test_unwritable_out_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    refused(capsys, reproduce(tmp_path / "file"), "cannot be written")
    refused(capsys, reproduce(tmp_path / "file" / "below"), "cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_out_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    refused(capsys, reproduce(tmp_path), "cannot be written")


def test_out_in_use_by_another_process_is_refused(tmp_path, capsys):
    holder = (
        "import fcntl,os,sys; fcntl.flock(os.open(sys.argv[1],os.O_RDONLY),fcntl.LOCK_EX); print(1,flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        refused(capsys, reproduce(tmp_path), "in use")
        process.communicate("\n")


def test_dataset_not_found_is_one_line(tmp_path, capsys, monkeypatch):
    def offline(folder):
        raise OSError("no network in tests")

    monkeypatch.setattr("chaos_ext.data.sources.download_usps", offline)
    (tmp_path / "root").mkdir()
    status = reproduce(tmp_path / "out", "--data", "usps", "--root", str(tmp_path / "root"))
    refused(capsys, status, "usps/usps.bz2", str(tmp_path / "root"), "--root")


def test_missing_matplotlib_is_said_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(capsys, reproduce(tmp_path / "out"), "pip install matplotlib")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--lr", "0"], "--lr"),
        (["--lr", "-1"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "inf"], "--lr"),
        (["--lr", "fast"], "--lr"),
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "1.5"], "--epochs"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "1438"], "1437"),
        (["--momentum", "1"], "--momentum"),
        (["--momentum", "-0.1"], "--momentum"),
        (["--seeds", ""], "--seeds"),
        (["--seeds", "1,1"], "--seeds"),
        (["--seeds", "1,-2"], "--seeds"),
        (["--prune", "sgd"], "--prune"),
        (["--prune", "chaotic,everything"], "--prune"),
        (["--k", "0"], "--k"),
        (["--k", "5351"], "5350"),
        (["--order", "largest"], "--order"),
        (["--dtype", "float16"], "--dtype"),
        (["--data", "mnist"], "--data"),
        (["--model", "vgg"], "--model"),
        (["--activation", "swish"], "hardtanh"),
        (["--device", "nonsense"], "--device"),
        (["--device", "meta"], "--device"),
        (["--jobs", "0"], "--jobs"),
        (["--threads", "0"], "--threads"),
        (["--root", "/nowhere/at/all"], "--root"),
    ],
)
def test_bad_options_are_refused_by_name(options, word, tmp_path, capsys):
    assert reproduce(tmp_path / "out", *options) == 2
    assert word in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there_is_refused(tmp_path, capsys):
    assert reproduce(tmp_path / "out", "--device", "cuda") == 2
    assert "--device" in capsys.readouterr().err.splitlines()[-1]
