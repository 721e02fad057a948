"""What ``chaos-ext reproduce fig1`` reads back: checkpoints and manifest, damaged or of something else."""

import json

import pytest
from damage import flips_and_cuts
from fig1_command import STRESS, read, refused, reproduce

from chaos_ext.base.files import read_sealed, write_sealed
from chaos_ext.data import load
from chaos_ext.errors import CheckpointError, NonFiniteError
from chaos_ext.experiments import fig1, pruned, training, unit
from chaos_ext.experiments.output import OutputFolder, UsageError
from chaos_ext.experiments.settings import Unit

pytestmark = pytest.mark.usefixtures("digits_cache", "fake_figures")


@pytest.fixture
def half(tmp_path, monkeypatch):
    """A folder whose second run has 3 of its 7 steps, and what metrics.csv has to be in the end."""
    advance = training.Training.advance

    def stop(trainer):
        if trainer.unit.run == "chaotic" and trainer.step == 3:
            raise KeyboardInterrupt
        return advance(trainer)

    assert reproduce(tmp_path / "whole", *STRESS) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "advance", stop)
        assert reproduce(tmp_path / "out", *STRESS, "--checkpoint-every", "1e-9") == 130
    return tmp_path / "out", (tmp_path / "whole" / "metrics.csv").read_bytes()


def parts(out):
    stored = json.loads((out / "manifest.json").read_text())["settings"]
    settings = fig1.Fig1Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
    return settings, Unit(3, "chaotic"), load("digits"), OutputFolder(out)


BAD = {
    "step": ["abc", -1, 99, 2, None],
    "epoch_hashes": [None, ["x"], [1]],
    "failure": ["x", {}],
    "seconds": ["x", float("nan")],
    "fastest": [None, -1.0],
    "near": [None, [0.0], [0.0, float("nan")]],
    "zero_tol": ["x"],
    "model": [{}, None],
    "optimizer": [{}, None],
    "generator": [None],
}


@pytest.mark.parametrize("name", BAD)
def test_a_whole_checkpoint_with_a_bad_part_means_starting_anew(half, name, caplog):
    out, expected = half
    path = out / "parts" / "seed3-chaotic.ckpt"
    content, rows = read_sealed(path), path.with_suffix(".csv").read_bytes()
    settings, which, data, folder = parts(out)
    for value in BAD[name]:
        write_sealed(path, {**content, "state": {**content["state"], name: value}})
        path.with_suffix(".csv").write_bytes(rows)
        with unit.RowFile(folder.rows(which)) as file:
            trainer = unit._restored(fig1.Fig1().work, settings, which, data, folder, file)
            assert file.mark()["length"] == trainer.step == 0
        fresh = training.build_model(settings, which.seed)
        assert all(bool((a == b).all()) for a, b in zip(trainer.model.parameters(), fresh.parameters()))
    assert caplog.text.count("starts anew") == len(BAD[name])
    assert reproduce(out, *STRESS, "--resume") == 0
    assert (out / "metrics.csv").read_bytes() == expected


@pytest.mark.parametrize(
    "content", [[], {}, {"rows": {"length": -1, "sha256": ""}}, {"rows": {"length": "x", "sha256": ""}}, {"rows": 3}]
)
def test_a_whole_file_of_something_else_means_starting_anew(half, content):
    out, expected = half
    path = out / "parts" / "seed3-chaotic.ckpt"
    own = read_sealed(path)
    write_sealed(path, {**own, **content} if content and isinstance(content, dict) else content)
    assert reproduce(out, *STRESS, "--resume") == 0
    assert (out / "metrics.csv").read_bytes() == expected


def test_no_flipped_bit_and_no_cut_of_a_checkpoint_is_believed(half):
    out, _ = half
    path = out / "parts" / "seed3-chaotic.ckpt"
    for damaged in flips_and_cuts(path.read_bytes(), 100):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_sealed(path)


def begin(out):
    settings, *_, folder = parts(out)
    return lambda: folder.begin("fig1", settings)


def test_no_flipped_bit_and_no_cut_of_a_manifest_gives_another_one(half):
    out, _ = half
    path = out / "manifest.json"
    start = begin(out)
    whole, accepted = start(), 0
    for damaged in flips_and_cuts(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            got = start()
        except UsageError:
            continue
        accepted += 1
        assert got == whole
    assert accepted < 60  # spaces and line ends


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "null",
        '"x"',
        "{}",
        '{"settings": [], "experiment": "fig1", "status": "complete"}',
        "\udcff",
        "[" * 9999,
    ],
)
def test_a_manifest_of_another_type_is_one_line(tmp_path, capsys, content):
    (tmp_path / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    refused(capsys, reproduce(tmp_path, "--resume"), str(tmp_path), "no run to resume", "manifest.json")


@pytest.mark.parametrize("name", ["status", "settings", "experiment", "runs", "summary", "metrics"])
def test_an_edited_manifest_is_one_line(tmp_path, capsys, name):
    assert reproduce(tmp_path, "--prune", "none") == 0
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    for value in (None, 3, [1], {}, "running"):
        path.write_text(json.dumps({**manifest, name: value}))
        capsys.readouterr()
        refused(capsys, reproduce(tmp_path, "--prune", "none", "--resume"), "damaged, edited")
    path.write_text(json.dumps(manifest))  # laid out otherwise, but with the same values
    assert reproduce(tmp_path, "--prune", "none", "--resume") == 0


def test_lost_metrics_are_computed_anew_with_a_warning(tmp_path, caplog):
    assert reproduce(tmp_path, "--prune", "none") == 0
    before = read(tmp_path)
    (tmp_path / "metrics.csv").write_text("run,seed\n")
    assert reproduce(tmp_path, "--prune", "none", "--resume") == 0
    assert read(tmp_path) == before
    assert "computed anew" in caplog.text


def test_a_link_in_the_folder_is_not_written_through(tmp_path):
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("mine")
    out.mkdir()
    (out / ".tmp-probe").symlink_to(victim)
    assert reproduce(out, "--prune", "none", "--resume") == 0
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("steps", [7, 185])
def test_a_checkpoint_of_a_run_that_broke_off_or_is_done_is_believed(tmp_path, monkeypatch, caplog, steps):
    """With 7 steps and with an epoch (180) behind it; the first run diverges, the third is interrupted."""
    advance, measure = training.Training.advance, pruned.PrunedTraining.measure_and_step

    def diverge(trainer, x, y):
        if trainer.unit.run == "sgd" and trainer.step == steps - 2:
            raise NonFiniteError("loss: got NaN")
        return measure(trainer, x, y)

    def stop(trainer):
        if trainer.unit.run == "negative":
            raise KeyboardInterrupt
        return advance(trainer)

    monkeypatch.setattr(pruned.PrunedTraining, "measure_and_step", diverge)
    options = ("--prune", "chaotic,negative")
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "advance", stop)
        assert reproduce(tmp_path, *options, steps=steps) == 130
    taken = []
    monkeypatch.setattr(training.Training, "advance", lambda t: (taken.append(t.unit.run), advance(t))[1])
    assert reproduce(tmp_path, *options, "--resume", steps=steps) == 1
    assert set(taken) == {"negative"}
    assert "starts anew" not in caplog.text
