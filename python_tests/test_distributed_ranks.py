"""The collectives of a process group: same bits everywhere, and an end with a name whatever happens to a rank."""

import os
import signal
import time

import pytest
import ranks
import torch
import torch.distributed as dist

import chaos_ext as ce
from chaos_ext.distributed.ranks import Ranks

DTYPES = [torch.float64, torch.float32, torch.int64]


def _of(rank, shape, dtype=torch.float64):
    t = torch.randn(shape, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    return (1000 * t).to(dtype)


def _values(rank):
    """Every collective, with the results that are expected of it."""
    r = Ranks()
    n = r.size
    for dtype in DTYPES:
        for shape in [(), (0,), (5,), (7, 3), (501, 67), (64, 64, 9)]:  # small, large, and no multiple of n
            parts = [_of(q, shape, dtype) for q in range(n)]
            expected = parts[0].clone()
            for p in parts[1:]:
                expected += p
            assert torch.equal(r.sum(parts[rank]), expected)
            assert all(map(torch.equal, r.gather(parts[rank]), parts))
            for source in range(n):
                given = parts[rank] if rank == source else None
                assert torch.equal(r.broadcast(given, source), parts[source])
    transposed = _of(rank, (6, 4)).T
    assert torch.equal(r.gather(transposed)[0], _of(0, (6, 4)).T)
    pieces = [_of(10 * rank + q, (q, rank + 1)) for q in range(n)]
    got = r.exchange(pieces)
    assert all(torch.equal(got[q], _of(10 * q + rank, (rank, q + 1))) for q in range(n))
    assert r.gather_objects({"rank": rank, "text": "x" * 100 * rank}) == [
        {"rank": q, "text": "x" * 100 * q} for q in range(n)
    ]
    r.agree("nothing", float("nan"))
    half = dist.new_group([0, n - 1])
    if rank in (0, n - 1):
        sub = Ranks(half)
        assert sub.sum(torch.tensor([2**sub.rank])).item() == 3
    else:
        with pytest.raises(ValueError, match="not in it"):
            Ranks(half)
    return r.sum(_of(rank, (501, 67))).sum().item()


@pytest.mark.parametrize("size", [2, 4])
def test_every_collective_gives_what_it_should(size):
    assert len(set(ranks.run(size, _values))) == 1


def _refusals(rank):
    """Whatever the ranks do wrongly: all raise, with names, and the group stays of use."""
    r = Ranks(timeout=30)
    said = []

    def refused(kind, match, run):
        with pytest.raises(kind, match=match):
            run()
        assert r.sum(torch.ones(())).item() == r.size
        said.append(match)

    last = r.size - 1
    refused(
        ce.errors.RanksDisagreeError,
        rf"learning rate: expected the same on all ranks, got 0.1 on rank.*; 0.2 on rank {last}",
        lambda: r.agree("learning rate", 0.2 if rank == last else 0.1),
    )
    refused(
        ce.errors.RanksDisagreeError,
        rf"sum \(a sum\) float64 \[3\] on cpu on ranks 0, 1; sum \(a sum\) float64 \[4\] on cpu on rank {last}",
        lambda: r.sum(torch.ones(4 if rank == last else 3, dtype=torch.float64)),
    )
    refused(
        ce.errors.RanksDisagreeError,
        "sum .*gather",
        lambda: (r.gather if rank == last else r.sum)(torch.ones(3)),
    )

    def raises(where):
        with r.together("the first batch"), r.together("its first layer"):
            if rank == last and where == "before":
                raise ZeroDivisionError("of its own")
            r.sum(torch.ones(3))
            if rank == last and where == "after":
                raise ZeroDivisionError("of its own")

    for where in ("before", "after"):
        kind = ZeroDivisionError if rank == last else ce.errors.RankFailedError
        match = "of its own" if rank == last else f"rank {last} raised ZeroDivisionError: of its own"
        refused(kind, match, lambda where=where: raises(where))

    def both():
        with r.together("a batch"):
            raise KeyError(rank) if rank != last else ValueError("x")

    refused(ValueError if rank == last else KeyError, "x" if rank == last else str(rank), both)

    def unsendable():
        r.gather_objects((lambda: 0) if rank == last else 0)

    with pytest.raises(Exception) as e:  # noqa: PT011 - pickle's own error differs between versions
        unsendable()
    assert rank == last or (isinstance(e.value, ce.errors.RankFailedError) and e.value.ranks == (last,))
    bad = ValueError if rank == last else ce.errors.RankFailedError
    refused(bad, "pieces", lambda: r.exchange([torch.ones(1)] * (1 if rank == last else r.size), "the pieces"))
    for group, kind in [("x", TypeError), (dist.GroupMember.NON_GROUP_MEMBER, ValueError)]:
        with pytest.raises(kind, match="group"):
            Ranks(group)
    for timeout in (0, -1.0, True, float("nan"), "1"):
        with pytest.raises(ValueError, match="timeout"):
            Ranks(timeout=timeout)
    half = dist.new_group([0, 1])
    if rank < 2:
        sub = Ranks(half)
        dist.destroy_process_group(half)
        with pytest.raises(ce.errors.RankFailedError, match="destroyed"):
            sub.sum(torch.ones(1))
        with pytest.raises(ValueError, match="destroyed"):
            Ranks(half)
    return said


def test_what_differs_is_refused_on_all_ranks_and_nothing_is_left_behind():
    said = ranks.run(3, _refusals)
    assert all(len(s) == len(said[0]) == 7 for s in said)


def _lost(rank, how, victim):
    r = Ranks(timeout=1.0 if how == "sleep" else 60.0)
    r.sum(torch.ones(3))
    if rank == victim and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == victim and how == "sleep":
        time.sleep(4)
        return None
    if rank == victim and how == "interrupt":
        with pytest.raises(KeyboardInterrupt), r.together("a batch"):
            raise KeyboardInterrupt
        return None
    begun = time.monotonic()
    with pytest.raises(ce.errors.RankFailedError) as e:
        r.sum(torch.ones(3), "the sum of H v")
    took = time.monotonic() - begun
    with pytest.raises(ce.errors.RankFailedError, match="broken"):
        r.sum(torch.ones(3))
    return str(e.value), e.value.ranks, took


@pytest.mark.parametrize(("how", "victim"), [("kill", 3), ("kill", 0), ("sleep", 2), ("interrupt", 1)])
def test_a_rank_that_is_lost_is_named_in_time(how, victim):
    outcomes = ranks.run(4, _lost, how, victim, check=False, limit=60)
    assert outcomes[victim].code == (-9 if how == "kill" else None)
    for rank, outcome in enumerate(outcomes):
        if rank != victim:
            assert outcome.error is None, outcome.error
            message, who, took = outcome.value
            assert who == (victim,), message
            assert f"rank {victim} " in message
            assert "the sum of H v" in message or how == "interrupt"
            assert took < (30 if how == "kill" else 10)


def test_without_a_group_it_says_what_to_do():
    with pytest.raises(ValueError, match="init_process_group"):
        Ranks()


def _hangs(rank):
    time.sleep(30)


def test_the_harness_ends_what_hangs():
    begun = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"\[0, 1\] had not ended after 1 s"):
        ranks.run(2, _hangs, limit=1)
    assert time.monotonic() - begun < 20
