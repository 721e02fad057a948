"""``chaos-ext reproduce fig1``: its numbers, its files, and that no kill, damage or restart changes a byte of them."""

import csv
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib", reason='fig1 needs matplotlib: pip install "chaos-ext[figures]"')
pytest.importorskip("sklearn", reason='fig1 needs scikit-learn for digits: pip install "chaos-ext[figures]"')

from chaos_ext import CheckpointError, NonFiniteError, cli
from chaos_ext.data import BatchOrder, load
from chaos_ext.experiments import fig1, pool, report, rows, unit
from chaos_ext.experiments.output import OutputFolder, WorkerError
from chaos_ext.experiments.settings import RUNS, Settings, Unit

COLUMNS = (
    "run,seed,step,loss,accuracy,val_loss,val_accuracy,n_negative,n_zero,n_positive,n_chaotic,lambda_min,lambda_max,"
    "share_negative,share_zero,share_positive,share_chaotic"
)
OUTPUTS = ["figure.pdf", "figure.png", "manifest.json", "metrics.csv", "summary.csv"]


@pytest.fixture(autouse=True, scope="module")
def shared_cache(tmp_path_factory):
    """Parsed data are cached once for this module, and not where the user's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        load("digits")
        yield


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """--quick means 7 steps here."""
    monkeypatch.setattr(fig1, "_QUICK_STEPS", 7)


@pytest.fixture
def fake_figures(monkeypatch):
    """For tests of everything but the figures, which take most of the time of so short a run."""
    monkeypatch.setattr(fig1, "_draw", lambda settings, out: [(out.path / f).touch() for f in fig1.FIGURES])


def reproduce(out, *options):
    """Runs the command in this process and returns its exit status."""
    try:
        return cli.main(["reproduce", "fig1", "--quick", "--out", str(out), *options])
    except SystemExit as end:
        return end.code


def read(out):
    with (out / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


# --- the numbers ---


def few_digits(name="digits", root=None):
    """77 training samples: 10 steps an epoch, the last on 5 samples."""
    d = load(name, root)
    return replace(d, x_train=d.x_train[:77], y_train=d.y_train[:77])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared_cache):
    """A finished run of all four curves for two seeds, 12 steps each over the end of an epoch; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig1, "_QUICK_STEPS", 12)
        patch.setattr(fig1, "load", few_digits)
        assert reproduce(out, "--seeds", "42,7", "--lr", "0.05") == 0
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
    model = unit.build_model(settings, 42)
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
    return Settings(**tuples)


def test_runs_of_a_seed_start_at_the_same_point_and_seeds_do_not(finished):
    first = {(r["seed"], r["run"]): r for r in read(finished) if r["step"] == "0"}
    for seed in ("42", "7"):
        values = [{**first[seed, run], "run": ""} for run in RUNS]
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
    assert not any("second" in c or "time" in c for c in rows.COLUMNS)


# --- the same bytes, whatever happens ---

STRESS = ("--seeds", "3", "--prune", "chaotic", "--k", "5", "--order", "random", "--momentum", "0.9")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, shared_cache):
    """metrics.csv of a run in which optimizer state and random pruning matter, over the end of an epoch (180 steps)."""
    out = tmp_path_factory.mktemp("reference") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig1, "_QUICK_STEPS", 200)
        assert reproduce(out, *STRESS) == 0
    return (out / "metrics.csv").read_bytes()


COMMAND = """
import sys
from chaos_ext import cli
from chaos_ext.experiments import fig1
fig1._QUICK_STEPS = int(sys.argv[1])
if __name__ == "__main__":
    sys.exit(cli.main(["reproduce", "fig1", "--quick", *sys.argv[2:]]))
"""


def spawn(tmp_path, steps, out, *options):
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    command = [sys.executable, str(script), str(steps), "--out", str(out), "--resume", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_progress(process, out, deadline=60):
    """Until training writes, or the process has ended."""
    end, before = time.monotonic() + deadline, written(out)
    while process.poll() is None and written(out) == before and time.monotonic() < end:
        time.sleep(0.005)


def written(out):
    return [(p.name, p.stat().st_mtime_ns) for p in sorted(out.glob("parts/*")) if not p.name.startswith(".")]


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, reference):
    out, chance = tmp_path / "out", random.Random(0)
    options = (*STRESS, "--checkpoint-every", "0.02")
    kills = 0
    for _ in range(3):
        process = spawn(tmp_path, 200, out, *options)
        wait_for_progress(process, out)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stderr.close()
    assert kills >= 2
    assert not (out / "metrics.csv").exists()
    assert any(out.glob("parts/*.ckpt"))  # so the next start continues instead of starting anew
    with spawn(tmp_path, 200, out, *options) as process:
        assert process.wait() == 0, process.stderr.read()
    assert (out / "metrics.csv").read_bytes() == reference
    assert sorted(p.name for p in out.iterdir()) == OUTPUTS


def test_processes_share_the_work_without_changing_it_even_when_killed(tmp_path, reference):
    """The parent is killed: its workers must end by themselves and leave the files to the next start."""
    out = tmp_path / "out"
    options = (*STRESS, "--jobs", "2", "--checkpoint-every", "0.02")
    process = spawn(tmp_path, 200, out, *options)
    wait_for_progress(process, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    with spawn(tmp_path, 200, out, *options) as process:
        assert process.wait() == 0, process.stderr.read()
    assert (out / "metrics.csv").read_bytes() == reference


EVERY_FILE_OPERATION = """
import os, sys, torch, torch._dynamo  # what every child would import anew
torch.set_num_threads(1)  # before any thread pool exists, so that forking is safe
from pathlib import Path
from chaos_ext import cli
from chaos_ext.experiments import fig1
fig1._QUICK_STEPS = 3
fig1._draw = lambda settings, out: [(out.path / f).touch() for f in fig1.FIGURES]
base, stride = Path(sys.argv[1]), int(sys.argv[2])
options = ["--prune", "positive", "--momentum", "0.9", "--checkpoint-every", "1e-9", "--resume"]

def child(out, die_at):
    pid = os.fork()
    if pid == 0:
        seen = [0]
        def hook(event, arguments):
            mine = arguments and isinstance(arguments[0], (str, os.PathLike)) and str(arguments[0]).startswith(str(out))
            if mine and event.partition(".")[0] in ("open", "os", "shutil", "pathlib", "tempfile"):
                seen[0] += 1
                if seen[0] == die_at:
                    os._exit(9)
        sys.addaudithook(hook)
        with open(os.devnull, "w") as sys.stdout:
            status = cli.main(["reproduce", "fig1", "--quick", "--out", str(out), *options])
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert child(base / "whole", None) == 0
expected = (base / "whole" / "metrics.csv").read_bytes()
names = sorted(p.name for p in (base / "whole").iterdir())
for die_at in range(1, 10_000, stride):
    out = base / str(die_at)
    first = child(out, die_at)
    if first == 0:
        break
    assert first == 9, (die_at, first)
    assert child(out, None) == 0, die_at
    assert (out / "metrics.csv").read_bytes() == expected, die_at
    assert sorted(p.name for p in out.iterdir()) == names, die_at
print(die_at)
"""


def test_killed_before_any_file_operation_it_resumes_to_the_same_bytes(tmp_path):
    """Every operation on a file under --out is a moment to die at; we die at every third of them."""
    script = tmp_path / "every.py"
    script.write_text(EVERY_FILE_OPERATION)
    command = [sys.executable, str(script), str(tmp_path), "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50  # the hook did see the operations


def interrupted(out, monkeypatch, after, *options):
    """A run that stops after some steps, as by Ctrl-C, with a checkpoint after each of them."""
    count, advance = iter(range(10_000)), unit.Trainer.advance

    def stop(trainer):
        if next(count) == after:
            raise KeyboardInterrupt
        return advance(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(unit.Trainer, "advance", stop)
        assert reproduce(out, "--checkpoint-every", "1e-9", *options) == 130


@pytest.fixture(scope="module")
def small_bytes(tmp_path_factory, shared_cache):
    out = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig1, "_QUICK_STEPS", 7)
        assert reproduce(out, *STRESS) == 0
    return (out / "metrics.csv").read_bytes()


@pytest.fixture
def small(small_bytes, fake_figures):
    """metrics.csv of a complete short run with two runs of 7 steps, the second with state in every part of it."""
    return small_bytes


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["seed3-chaotic.ckpt", "seed3-chaotic.csv", "seed3-sgd.ckpt", "seed3-sgd.csv"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda p: p.write_bytes(b"")])
def test_damaged_parts_are_made_anew(tmp_path, monkeypatch, small, name, damage):
    out = tmp_path / "out"
    interrupted(out, monkeypatch, 10, *STRESS)
    damage(out / "parts" / name)
    assert reproduce(out, *STRESS, "--resume") == 0
    assert (out / "metrics.csv").read_bytes() == small


def test_checkpoint_of_another_unit_is_not_believed(tmp_path, monkeypatch, small):
    out = tmp_path / "out"
    interrupted(out, monkeypatch, 10, *STRESS)
    for kind in ("csv", "ckpt"):
        (out / "parts" / f"seed3-chaotic.{kind}").write_bytes((out / "parts" / f"seed3-sgd.{kind}").read_bytes())
    assert reproduce(out, *STRESS, "--resume") == 0
    assert (out / "metrics.csv").read_bytes() == small


def test_resume_continues_instead_of_starting_anew(tmp_path, monkeypatch, small):
    out = tmp_path / "out"
    interrupted(out, monkeypatch, 10, *STRESS)
    taken = []
    advance = unit.Trainer.advance
    monkeypatch.setattr(unit.Trainer, "advance", lambda t: (taken.append(t.step), advance(t))[1])
    assert reproduce(out, *STRESS, "--resume") == 0
    assert taken == [3, 4, 5, 6]  # of the second run: 7 + 3 steps were done
    assert (out / "metrics.csv").read_bytes() == small


def test_a_checkpoint_speaks_only_of_rows_that_are_on_disk(tmp_path, monkeypatch, fake_figures):
    seen, write = [], unit.write_sealed

    def check(path, content):
        seen.append(content["rows"]["length"])
        assert path.with_suffix(".csv").stat().st_size == seen[-1]
        write(path, content)

    monkeypatch.setattr(unit, "write_sealed", check)
    assert reproduce(tmp_path, "--prune", "none", "--checkpoint-every", "1e-9") == 0
    assert len(seen) == 7
    assert seen == sorted(set(seen))


def test_rows_are_cut_back_to_the_mark(tmp_path):
    with rows.RowFile(tmp_path / "r.csv") as file:
        file.append(b"1,2\n")
        mark = file.mark()
        file.append(b"3,4\n5,")
    with rows.RowFile(tmp_path / "r.csv") as file:
        file.cut_back(mark)
        file.append(b"6\n")
        assert file.mark()["length"] == 6
    assert (tmp_path / "r.csv").read_bytes() == b"1,2\n6\n"
    with rows.RowFile(tmp_path / "r.csv") as file, pytest.raises(CheckpointError, match=r"r\.csv"):
        file.cut_back({"length": 5, "sha256": mark["sha256"]})


# --- who may write where ---


def refused(capsys, status, *needed):
    """Exit status 2 and one line that holds the needed words."""
    assert status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in needed), line


@pytest.mark.parametrize("before", ["missing", "empty", "finished"])
def test_resume_succeeds_on(before, tmp_path, fake_figures):
    out = tmp_path / "out"
    if before == "empty":
        out.mkdir()
    if before == "finished":
        assert reproduce(out, "--prune", "none") == 0
        content = (out / "metrics.csv").read_bytes()
    assert reproduce(out, "--prune", "none", "--resume") == 0
    assert len(read(out)) == 7
    if before == "finished":
        assert (out / "metrics.csv").read_bytes() == content


def test_finished_run_is_not_repeated(tmp_path, monkeypatch, fake_figures):
    assert reproduce(tmp_path, "--prune", "none") == 0
    monkeypatch.setattr(unit.Trainer, "advance", lambda t: pytest.fail("trained although finished"))
    assert reproduce(tmp_path, "--prune", "none", "--resume") == 0


def test_what_is_lost_of_a_finished_run_is_made_again(tmp_path):
    assert reproduce(tmp_path, "--prune", "none") == 0
    before = {name: (tmp_path / name).read_bytes() for name in OUTPUTS}
    for name in ("figure.png", "figure.pdf", "summary.csv", "metrics.csv"):
        (tmp_path / name).unlink()
        assert reproduce(tmp_path, "--prune", "none", "--resume") == 0
        after = {name: (tmp_path / name).read_bytes() for name in OUTPUTS if name != "manifest.json"}
        assert after == {name: before[name] for name in after}


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
    refused(capsys, reproduce(tmp_path / "out"), 'pip install "chaos-ext[figures]"')
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


# --- runs that fail ---


def test_diverged_run_is_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys, fake_figures):
    measure = unit.Trainer._measure_and_step

    def diverge(trainer, index):
        if trainer.unit.run == "chaotic" and trainer.step == 4:
            raise NonFiniteError("loss: got NaN")
        return measure(trainer, index)

    monkeypatch.setattr(unit.Trainer, "_measure_and_step", diverge)
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
    fig1.add_arguments(parser)
    settings = fig1._settings(parser.parse_args(["--prune", "negative"]), "a fingerprint that the data do not have")
    with pytest.raises(WorkerError, match="data set changed"):
        pool.run_units(settings, load("digits"), None, out, jobs=2, every=1, report=lambda *a: None)


# --- progress ---


class Terminal:
    """A stderr that claims to be a terminal."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_is_silent_without_a_terminal(tmp_path, capsys, fake_figures):
    assert reproduce(tmp_path, "--prune", "none") == 0
    assert capsys.readouterr().err == ""


def test_progress_shows_speed_and_time_left_of_the_work_that_is_left(monkeypatch):
    pytest.importorskip("tqdm")
    from chaos_ext.base.progress import Progress

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(1000) as progress:
        progress.report(900, True)
        time.sleep(0.6)
        progress.report(10, False)
    last = terminal.text.split("\r")[-1]
    assert "910/1000" in last
    speed = float(last.split("step/s")[0].split(",")[-1])
    assert 1 < speed < 20  # 10 steps in 0.6 s; with the restored ones it would be 1500
