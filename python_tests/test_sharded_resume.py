"""Checkpoints of spread columns: the same bits after a rank was killed, whole sets of files, and refusals by name."""

import os
import signal

import pytest
import ranks
import torch
import torch.distributed as dist
from training import RUNS, analyse, setting

import chaos_ext as ce

STEPS = 30


def _begin(name, k, folder):
    cls, options = RUNS[name]
    model, batches = setting()
    opt = cls(model.parameters(), **options)
    csv = folder / f"{name}{k}.csv"
    an = ce.LyapunovAnalyzer(model, opt, k=k, transient=4, qr_every=5, csv=csv, group=dist.group.WORLD)
    return model, batches, opt, an


def _save(rank, model, opt, an, folder):
    an.save(folder / "an.pt")
    torch.save([model.state_dict(), opt.state_dict()], folder / f"{rank}-{an.steps}.pt")


def _load(rank, model, opt, an, folder):
    an.load(folder / "an.pt")
    saved = torch.load(folder / f"{rank}-{an.steps}.pt", weights_only=True)
    model.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])


def _said(an):
    history = an.history
    found = an.exponents(), an.errors(), an.local_exponents, history.exponents, an.directions()
    return [t.nan_to_num() for t in found]


def _killed(rank, name, k, folder):
    model, batches, opt, an = _begin(name, k, folder)
    analyse(model, opt, batches, 9, an)
    _save(rank, model, opt, an, folder)
    analyse(model, opt, batches, 7, an, first=9)
    _save(rank, model, opt, an, folder)
    analyse(model, opt, batches, 7, an, first=16)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(ce.RankFailedError):
        analyse(model, opt, batches, 7, an, first=23)


def _resumed(rank, name, k, folder, step):
    model, batches, opt, an = _begin(name, k, folder)
    _load(rank, model, opt, an, folder)
    assert an.steps == step
    analyse(model, opt, batches, STEPS - step, an, first=step)
    kept = {p.name for p in folder.glob(f"an.pt.rank{rank}-of-{dist.get_world_size()}.step*")}
    an.save(folder / "an.pt")
    now = {p.name for p in folder.glob(f"an.pt.rank{rank}-of-{dist.get_world_size()}.step*")}
    assert {n.partition(".step")[2] for n in now} == {str(step), str(STEPS)}
    assert f"an.pt.rank{rank}-of-{dist.get_world_size()}.step{step}" in kept & now
    return _said(an)


def _whole(rank, name, k, folder):
    model, batches, opt, an = _begin(name, k, folder)
    analyse(model, opt, batches, STEPS, an)
    state, other = an.state_dict(), _begin(name, k, folder / "other")[3]
    other.load_state_dict(state)
    assert all(map(torch.equal, _said(other), _said(an)))
    return _said(an)


@pytest.mark.parametrize(("name", "k", "size"), [("heavy_ball", None, 2), ("adam", 5, 3)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(name, k, size, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole, whole / "other"):
        folder.mkdir()
    outcomes = ranks.run(size, _killed, name, k, killed, check=False)
    assert [o.code for o in outcomes].count(-signal.SIGKILL) == 1
    assert all(o.error is None for o in outcomes)
    results = ranks.run(size, _resumed, name, k, killed, 16)
    expected = ranks.run(size, _whole, name, k, whole)
    for result in results:
        assert all(map(torch.equal, result, expected[0]))
    assert (killed / f"{name}{k}.csv").read_bytes() == (whole / f"{name}{k}.csv").read_bytes()


def _sets(rank, folder):
    """Two steps of which every rank has a file."""
    model, batches, opt, an = _begin("sgd", 5, folder)
    with pytest.raises(FileNotFoundError, match="no such file"):
        an.load(folder / "an.pt")
    analyse(model, opt, batches, 9, an)
    _save(rank, model, opt, an, folder)
    analyse(model, opt, batches, 7, an, first=9)
    _save(rank, model, opt, an, folder)


def _refused(rank, folder, match):
    an = _begin("sgd", 5, folder)[3]
    with pytest.raises(ce.CheckpointError, match=match):
        an.load(folder / "an.pt")
    assert an.steps == 0


def _foreign(rank, folder, size):
    """States of other ranks, of another number of ranks, of one process, of different moments."""
    model, batches, opt, an = _begin("sgd", 5, folder)
    analyse(model, opt, batches, 6, an)
    state = an.state_dict()
    alone = ce.LyapunovAnalyzer(model, opt, k=5, transient=4, qr_every=5)
    with pytest.raises(ce.CheckpointError, match=f"columns of rank {rank} of {size}"):
        alone.load_state_dict(state)
    with pytest.raises(ce.CheckpointError, match=f"expected .*columns of rank {rank} of {size}"):
        an.load_state_dict(alone.state_dict())
    theirs = ce.Ranks().gather_objects(state)
    with pytest.raises(ce.CheckpointError, match=f"columns of rank {(rank + 1) % size} of {size}"):
        an.load_state_dict(theirs[(rank + 1) % size])
    analyse(model, opt, batches, 1, an, first=6)
    with pytest.raises(ce.RanksDisagreeError, match="state"):
        an.load_state_dict(state if rank else an.state_dict())
    damaged = {**state, "run": {**state["run"], "Y": state["run"]["Y"][:, 1:]}}
    with pytest.raises(ce.CheckpointError if rank else ce.RankFailedError, match="Y: expected" if rank else "rank 1"):
        an.load_state_dict(damaged if rank else state)
    assert an.steps == 7


def test_sets_of_files(tmp_path):
    ranks.run(2, _sets, tmp_path)
    files = sorted(p.name for p in tmp_path.glob("an.pt*"))
    assert files == [f"an.pt.rank{r}-of-2.step{t}" for r in (0, 1) for t in (16, 9)]
    newest = tmp_path / "an.pt.rank1-of-2.step16"
    content = newest.read_bytes()
    ranks.run(3, _refused, tmp_path, "expected the files of 3 ranks, got those of 2")
    # A rank that was killed before it wrote, one that was killed between two removals, and a damaged file.
    newest.unlink()
    ranks.run(2, _resumed, "sgd", 5, tmp_path, 9)
    for p in tmp_path.glob("an.pt*.step30"):
        p.unlink()
    newest.write_bytes(content[:-100])
    (tmp_path / "an.pt.rank0-of-2.step16").write_bytes((tmp_path / "an.pt.rank0-of-2.step9").read_bytes())
    ranks.run(2, _resumed, "sgd", 5, tmp_path, 9)
    for p in tmp_path.glob("an.pt.rank0*"):
        p.write_bytes(p.read_bytes()[:-9])
    ranks.run(2, _refused, tmp_path, "of which every rank has a whole file")
    ranks.run(2, _foreign, tmp_path, 2)
