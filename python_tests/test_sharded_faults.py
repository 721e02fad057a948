"""Spread columns when ranks do not do the same, fail, or die: named errors on all of them, and nothing lost."""

import errno
import os
import signal
import time

import pytest
import ranks
import torch
import torch.distributed as dist
from torch.optim import SGD, Adam
from training import CE, analyse, setting, take_step

import chaos_ext as ce

# What the last rank has otherwise, and what all ranks are told of.
OTHERS = {
    "batch": "(loss|gradient)",
    "theta": "(loss|gradient)",
    "rate": "optimizer options",
    "buffer": "optimizer state",
    "draws": "projected gradient",
}


def _spread(rank, **options):
    """Model, batches, optimizer, analyzer, and whether this is the last rank."""
    model, batches = setting()
    opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
    an = ce.LyapunovAnalyzer(model, opt, group=dist.group.WORLD, **{"k": 3, **options})
    return model, batches, opt, an, rank == dist.get_world_size() - 1


def _different(rank, kind):
    model, batches = setting()
    draws = torch.Generator().manual_seed(1)
    opt = ce.CGD(model.parameters(), lr=0.2, momentum=0.5, prune="negative", k=1, order="random", generator=draws)
    an = ce.LyapunovAnalyzer(model, opt, k=3, group=dist.group.WORLD)
    analyse(model, opt, batches, 2, an)
    before, (x, y) = an.exponents(), batches[2]
    if rank == dist.get_world_size() - 1:
        with torch.no_grad():
            if kind == "batch":
                x = x * (1 + 1e-14)
            elif kind == "theta":
                next(model.parameters()).mul_(1 + 1e-14)
            elif kind == "rate":
                opt.param_groups[0]["lr"] = 0.2 * (1 + 1e-14)
            elif kind == "buffer":
                next(iter(opt.state.values()))["momentum_buffer"].mul_(1 + 1e-14)
            else:
                draws.manual_seed(5)
    last = dist.get_world_size() - 1
    with pytest.raises(ce.RanksDisagreeError, match=f"same {OTHERS[kind]} on all ranks.* rank {last};"):
        an.update(ce.HessianOperator(model, CE, x, y))
    assert an.steps == 2
    assert torch.equal(an.exponents(), before)
    if kind == "batch":
        an.update(ce.HessianOperator(model, CE, *batches[2]))
        assert an.steps == 3


def _all_different(rank):
    for kind in OTHERS:
        _different(rank, kind)
    _made_otherwise(rank)


def _made_otherwise(rank):
    """Analyzers that do not fit together."""
    last = rank == dist.get_world_size() - 1
    model, _ = setting()
    wide, _ = setting(width=4)
    single, _ = setting(torch.float32)

    def sgd(m, **options):
        return SGD(m.parameters(), lr=0.1, **options)

    for name, other in {
        "parameters": lambda: ce.LyapunovAnalyzer(wide, sgd(wide), k=3, group=dist.group.WORLD),
        "dtype": lambda: ce.LyapunovAnalyzer(single, sgd(single), k=3, group=dist.group.WORLD),
        "optimizer": lambda: ce.LyapunovAnalyzer(model, Adam(model.parameters()), k=3, group=dist.group.WORLD),
        "k": lambda: ce.LyapunovAnalyzer(model, sgd(model), k=4, group=dist.group.WORLD),
        "seed": lambda: ce.LyapunovAnalyzer(model, sgd(model), k=3, seed=1, group=dist.group.WORLD),
        "csv": lambda: ce.LyapunovAnalyzer(model, sgd(model), k=3, csv="x.csv", group=dist.group.WORLD),
    }.items():
        make = other if last else lambda: ce.LyapunovAnalyzer(model, sgd(model), k=3, group=dist.group.WORLD)
        with pytest.raises(ce.RanksDisagreeError, match=f"^{name}: "):
            make()


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_do_not_do_the_same_are_told_what_differs(size):
    ranks.run(size, _all_different)


def _failing(rank, folder):
    model, batches, opt, an, last = _spread(rank, csv=folder / "run.csv", qr_every=1)
    analyse(model, opt, batches, 3, an)
    said, (x, y) = an.exponents(), batches[3]
    # One has no fresh operator.
    op = ce.HessianOperator(model, CE, x, y)
    theta = next(model.parameters()).detach()
    kept = theta.clone()
    theta.add_(1.0) if last else None
    match = "parameters" if last else "raised StaleOperatorError"
    with pytest.raises(ce.StaleOperatorError if last else ce.RankFailedError, match=match):
        an.update(op)
    theta.copy_(kept)
    assert an.steps == 3
    # One reads while others go on, and the other way round.
    for reads in (last, not last):
        op = ce.HessianOperator(model, CE, x, y)
        with pytest.raises(ce.RanksDisagreeError, match="what an update depends on"):
            an.directions() if reads else an.update(op)
        assert an.steps == 3
        assert torch.equal(an.exponents(), said)
    # The row of rank 0 cannot be written; the step is counted, and a repetition writes the row.
    op = ce.HessianOperator(model, CE, x, y)
    with pytest.MonkeyPatch.context() as m:
        if rank == 0:

            def full(*_):
                raise OSError(errno.ENOSPC, "No space left on device")

            m.setattr("chaos_ext.base.row_stream.RowStream.append", full)
        with pytest.raises(OSError if rank == 0 else ce.RankFailedError, match="No space"):
            an.update(op)
    assert an.steps == 4
    an.update(op)
    assert an.steps == 4
    if rank == 0:
        assert [row.split(",")[0] for row in (folder / "run.csv").read_text().splitlines()] == ["step", *"1234"]
    # NaN in the columns of one rank alone stops all, at the same step.
    take_step(model, opt, x, y)
    vars(an)["_state"].Y.fill_(torch.nan) if last else None
    op = ce.HessianOperator(model, CE, x, y)
    with pytest.raises(ce.NonFiniteError, match="step 4") as e:
        an.update(op)
    with pytest.raises(ce.NonFiniteError, match="stopped at step 4"):
        an.update(op)
    return str(e.value), an.exponents()


def test_a_rank_that_fails_stops_all_and_the_group_stays_of_use(tmp_path):
    for size in (2, 3):
        (tmp_path / f"{size}").mkdir()
        (message, said), *others = ranks.run(size, _failing, tmp_path / f"{size}")
        assert all(other[0] == message and torch.equal(other[1], said) for other in others)


def _killed(rank, when):
    model, batches, opt, an, last = _spread(rank, k=66)
    analyse(model, opt, batches, 4, an)
    if last and when == "between":
        os.kill(os.getpid(), signal.SIGKILL)
    if last and when == "within":  # of a factorisation, in which the others wait for its panels
        torch.geqrf = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ce.RankFailedError) as e:
        analyse(model, opt, batches, 40, an, first=4)
    assert time.monotonic() - began < 60
    with pytest.raises(ce.RankFailedError):
        an.update(ce.HessianOperator(model, CE, *batches[0]))
    return e.value.ranks


@pytest.mark.parametrize("when", ["between", "within"])
def test_a_killed_rank_ends_the_others_in_time(when):
    *others, dead = ranks.run(3, _killed, when, check=False)
    assert dead.code == -signal.SIGKILL
    for outcome in others:
        assert outcome.error is None, outcome.error
        assert outcome.value in ((2,), ())  # the store may be gone, too
