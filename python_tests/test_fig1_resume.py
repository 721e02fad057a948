"""``chaos-ext reproduce fig1 --resume``: what it continues, what it makes anew, and what it leaves alone."""

from pathlib import Path

import pytest
from fig1_command import OUTPUTS, STRESS, read, reproduce

from chaos_ext import CheckpointError
from chaos_ext.experiments import rows, training, unit

pytestmark = pytest.mark.usefixtures("digits_cache")


def interrupted(out, monkeypatch, after, *options):
    """A run that stops after some steps, as by Ctrl-C, with a checkpoint after each of them."""
    count, advance = iter(range(10_000)), training.Training.advance

    def stop(trainer):
        if next(count) == after:
            raise KeyboardInterrupt
        return advance(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "advance", stop)
        assert reproduce(out, "--checkpoint-every", "1e-9", *options) == 130


@pytest.fixture(scope="module")
def small_bytes(tmp_path_factory, digits_cache):
    out = tmp_path_factory.mktemp("small")
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
    advance = training.Training.advance
    monkeypatch.setattr(training.Training, "advance", lambda t: (taken.append(t.step), advance(t))[1])
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
    monkeypatch.setattr(training.Training, "advance", lambda t: pytest.fail("trained although finished"))
    assert reproduce(tmp_path, "--prune", "none", "--resume") == 0


def test_what_is_lost_of_a_finished_run_is_made_again(tmp_path):
    assert reproduce(tmp_path, "--prune", "none") == 0
    before = {name: (tmp_path / name).read_bytes() for name in OUTPUTS}
    for name in ("figure.png", "figure.pdf", "summary.csv", "metrics.csv"):
        (tmp_path / name).unlink()
        assert reproduce(tmp_path, "--prune", "none", "--resume") == 0
        after = {name: (tmp_path / name).read_bytes() for name in OUTPUTS if name != "manifest.json"}
        assert after == {name: before[name] for name in after}
