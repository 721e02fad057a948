"""``chaos-ext reproduce fig1 --together``: seeds of a run as one ensemble, to the same numbers, and to the same bytes
after a kill."""

import random
import signal

import pytest
from fig1_command import OUTPUTS, manifest, read, refused, reproduce, spawn

from chaos_ext import Ensemble, NonFiniteError
from chaos_ext.base.files import read_sealed, write_sealed
from chaos_ext.experiments import together
from chaos_ext.experiments.settings import Unit

pytestmark = pytest.mark.usefixtures("digits_cache")

SEEDS = ("--seeds", "3,4,5", "--prune", "negative,bulk", "--k", "4", "--momentum", "0.9", "--lr", "0.01")
DRAWN = ("--seeds", "3,4,5", "--prune", "chaotic", "--k", "5", "--order", "random", "--momentum", "0.9")


def test_a_seed_is_what_it_is_alone(tmp_path, fake_figures):
    assert reproduce(tmp_path / "alone", *SEEDS, "--together", "1", "--controls", "rank", steps=185) == 0
    assert reproduce(tmp_path / "two", *SEEDS, "--together", "2", "--controls", "rank", steps=185) == 0
    alone, two = read(tmp_path / "alone"), read(tmp_path / "two")
    for a, b in zip(alone, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if name in ("run", "seed", "step") or not value or name.startswith("n_"):
                assert value == b[name], (name, a, b)
            else:
                assert abs(float(value) - float(b[name])) <= 1e-7 * max(1.0, abs(float(value))), (name, a, b)
    controls = [r for r in alone if r["run"].endswith("-rank")]
    assert controls == [r for r in two if r["run"].endswith("-rank")]  # which go alone
    first, second = manifest(tmp_path / "alone"), manifest(tmp_path / "two")
    assert first["batch_hashes_per_epoch"] == second["batch_hashes_per_epoch"]
    assert "together" not in first["settings"]
    assert second["settings"]["together"] == 2
    for a, b in zip(first["runs"], second["runs"], strict=True):
        assert (a["run"], a["seed"], a["steps"]) == (b["run"], b["seed"], b["steps"])
        assert b["seconds_per_step_min"] > 0


def test_which_units_go_together():
    units = [Unit(seed, run) for seed in (1, 2, 3) for run in ("sgd", "negative-rank")]
    fits = lambda unit: unit.run == "sgd"  # noqa: E731
    assert together.grouped(units, 1, fits) == units
    controls = [u for u in units if u.run != "sgd"]
    one, last, *rest = together.grouped(units, 2, fits)
    assert (one.units, last, rest) == ((Unit(1, "sgd"), Unit(2, "sgd")), Unit(3, "sgd"), controls)
    (whole, *_) = together.grouped(units, 8, fits)
    assert whole.name == "seed1+2-sgd"


def test_a_member_that_fails_ends_its_run_and_no_other(tmp_path, monkeypatch, fake_figures):
    real = Ensemble.directions

    def failing(self, x, y, **options):
        if self.steps == 4 and int(self.diverged[1]) < 0:
            error = NonFiniteError("member 1")
            error.members = {1: NonFiniteError("loss: got NaN")}
            raise error
        return real(self, x, y, **options)

    assert reproduce(tmp_path / "whole", *SEEDS) == 0
    monkeypatch.setattr(Ensemble, "directions", failing)
    assert reproduce(tmp_path / "out", *SEEDS) == 1
    rows, expected = read(tmp_path / "out"), read(tmp_path / "whole")
    assert rows == [r for r in expected if r["seed"] != "4" or int(r["step"]) < 4]
    m = manifest(tmp_path / "out")
    failures = {(r["run"], r["seed"]): r["failure"] for r in m["runs"]}
    lost = {"step": 4, "error": "NonFiniteError: loss: got NaN"}
    assert failures == {(run, s): lost if s == 4 else None for run in ("sgd", "negative", "bulk") for s in (3, 4, 5)}


def test_all_members_may_fail(tmp_path, fake_figures):
    assert reproduce(tmp_path, "--seeds", "3,4", "--prune", "none", "--lr", "1e200") == 1
    failures = [r["failure"]["error"] for r in manifest(tmp_path)["runs"]]
    assert [e.startswith("NonFiniteError") for e in failures] == [True, True]


def test_too_few_dominant_directions_end_the_runs_of_their_seeds(tmp_path, fake_figures):
    options = ("--seeds", "3,4", "--prune", "dominant", "--k", "300")
    assert reproduce(tmp_path, *options) == 1
    errors = {r["run"]: (r["failure"] or {}).get("error", "") for r in manifest(tmp_path)["runs"]}
    assert errors["dominant"].startswith("NotConvergedError: k: 300 dominant directions of a batch with")
    assert errors["sgd"] == ""


@pytest.fixture(scope="module")
def reference(tmp_path_factory, digits_cache):
    """metrics.csv of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("reference") / "out"
    assert reproduce(out, *DRAWN, steps=190) == 0
    return (out / "metrics.csv").read_bytes()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, reference, jobs):
    out, chance = tmp_path / "out", random.Random(0)
    options = (*DRAWN, "--jobs", jobs, "--checkpoint-every", "0.1")
    for _ in range(3 - int(jobs)):
        with spawn(tmp_path, 190, out, *options, signum=signal.SIGKILL, delay=chance.uniform(0, 0.3)) as process:
            assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert not (out / "metrics.csv").exists()
    assert any(out.glob("parts/seed3+2-*.ckpt"))
    with spawn(tmp_path, 190, out, *options) as process:
        assert process.wait() == 0, process.stderr.read()
    assert (out / "metrics.csv").read_bytes() == reference
    assert sorted(p.name for p in out.iterdir()) == OUTPUTS


def test_asked_to_end_it_writes_one_checkpoint_of_all(tmp_path, reference):
    out, options = tmp_path / "out", (*DRAWN, "--checkpoint-every", "0.1")
    with spawn(tmp_path, 190, out, *options, signum=signal.SIGTERM) as process:
        assert process.wait() == 128 + signal.SIGTERM
        *_, line = process.stderr.read().split("\n")[:-1]
    assert "a checkpoint was written (seed3+2-" in line
    with spawn(tmp_path, 190, out, *options) as process:
        assert process.wait() == 0
        assert "starts anew" not in process.stderr.read()
    assert (out / "metrics.csv").read_bytes() == reference


def test_damaged_checkpoints_mean_starting_anew(tmp_path, monkeypatch, caplog, fake_figures):
    assert reproduce(tmp_path / "whole", *DRAWN) == 0
    advance = together.Together.advance

    def stop(work):
        if work.unit.run == "chaotic" and work.step == 3:
            raise KeyboardInterrupt
        return advance(work)

    expected = (tmp_path / "whole" / "metrics.csv").read_bytes()
    for i, (name, value) in enumerate(
        (("works", None), ("works", []), ("ensemble", None), ("ensemble", {}), ("rows", [1]))
    ):
        out = tmp_path / str(i)
        with monkeypatch.context() as patch:
            patch.setattr(together.Together, "advance", stop)
            assert reproduce(out, *DRAWN, "--checkpoint-every", "1e-9") == 130
        path = out / "parts" / "seed3+2-chaotic.ckpt"
        content = read_sealed(path)
        (content if name == "rows" else content["state"])[name] = value
        write_sealed(path, content)
        caplog.clear()
        assert reproduce(out, *DRAWN, "--resume") == 0
        assert "this unit starts anew" in caplog.text
        assert (out / "metrics.csv").read_bytes() == expected


def test_folders_of_another_number_are_refused(tmp_path, capsys, fake_figures):
    assert reproduce(tmp_path, *DRAWN, "--together", "1") == 0
    refused(capsys, reproduce(tmp_path, *DRAWN, "--resume"), "together: None there, 3 here")
