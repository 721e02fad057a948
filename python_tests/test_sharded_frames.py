"""Frames whose columns are spread over processes: who has which, and their factors against those of one process."""

import math

import pytest
import ranks
import torch

from chaos_ext.base.tensors import room
from chaos_ext.distributed.ranks import Ranks
from chaos_ext.dynamics.orthonormal import orthonormalise
from chaos_ext.dynamics.sharded import panels, rows
from chaos_ext.dynamics.sharded.columns import Columns
from chaos_ext.dynamics.sharded.frame import Spread
from chaos_ext.dynamics.sharded.start import drawn


@pytest.mark.parametrize("width", [1, 3, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("k", [1, 2, 5, 64, 129, 1000])
def test_columns_are_spread_evenly_and_in_turns(k, size, width):
    columns = Columns(k, size, width)
    own = [columns.of(r).tolist() for r in range(size)]
    assert sorted(c for o in own for c in o) == list(range(k))
    assert all(o == sorted(o) for o in own)
    assert columns.counts == tuple(map(len, own))
    assert max(columns.counts) - min(columns.counts) <= 1
    at = 0
    for p in columns.panels:
        assert p.start == at
        assert own[p.owner][p.here : p.here + p.stop - p.start] == list(range(p.start, p.stop))
        assert p.stop - p.start <= width
        at = p.stop
    assert at == k
    for r in range(size):
        assert [columns.before(j, r) for j in range(k + 1)] == [sum(c < j for c in own[r]) for j in range(k + 1)]


@pytest.mark.parametrize(("size", "k"), [(1, 1), (3, 5), (5, 3), (7, 11), (300, 37), (4096, 3), (4097, 3)])
def test_draws_are_those_of_the_whole_matrix(size, k, monkeypatch):
    monkeypatch.setattr("chaos_ext.dynamics.sharded.start._DRAWN", 64)
    whole = torch.randn(size, k, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for own in (torch.arange(k), torch.arange(0, k, 2), torch.arange(0)):
        assert torch.equal(drawn(size, k, own, 4), whole[:, own])


def _matrix(S, k, kind):
    g = torch.Generator().manual_seed(S + k)
    Y = torch.randn(S, k, generator=g, dtype=torch.float64)
    if kind == "steep":  # columns whose lengths alone make the condition
        Y *= torch.logspace(0, -12, k, dtype=torch.float64)
    if kind == "leaning":  # condition 1e12 in no particular basis
        turn = torch.linalg.qr(torch.randn(k, k, generator=g, dtype=torch.float64)).Q
        Y = (torch.linalg.qr(Y).Q * torch.logspace(0, -12, k, dtype=torch.float64)) @ turn
    if kind == "dependent" and k > 1:
        Y[:, k // 2], Y[:, -1] = Y[:, 0] + Y[:, 1], Y[:, 0]
    if kind == "zero" and k > 1:
        Y[:, 1] = 0
    if kind == "identity":
        Y = torch.eye(S, k, dtype=torch.float64)
    return Y


KINDS = ("plain", "steep", "leaning", "dependent", "zero", "identity")
# S, k, width of panels: uneven, fewer columns than ranks, k = S, one column.
SHAPES = ((61, 10, 2), (90, 3, 64), (21, 21, 4), (20, 17, 3), (9, 1, 64))


def _factors(rank, shapes, kinds):
    """Errors of every factorisation of every matrix, and the bits of all factors."""
    found, bits = {}, []
    r = Ranks()
    for S, k, width in shapes:
        columns = Columns(k, r.size, width)
        own, frame = columns.of(rank), Spread(r, columns, S)
        for kind in kinds:
            for dtype in (torch.float64, torch.float32)[: 2 if kind in ("plain", "leaning") else 1]:
                Y = _matrix(S, k, kind).to(dtype)
                mine = Y[:, own].contiguous()
                before = mine.clone()
                for name, way in (("panels", panels), ("rows", rows)):
                    if name == "rows" and k * r.size > S:
                        continue
                    pair = way.factored(r, columns, mine)
                    if pair is None:
                        assert kind not in ("plain", "steep", "identity")
                        continue
                    Q, R = pair
                    Q, R = (
                        frame.whole(Q),
                        R if name == "rows" else frame.whole(torch.cat([R, R.new_zeros(S - k, len(own))]))[:k],
                    )
                    below = float(R.tril(-1).abs().max()) if k > 1 else 0.0
                    scale = Y.double().norm(dim=0).clamp_min(1e-300)
                    residual = float(((Q.double() @ R.double() - Y.double()).norm(dim=0) / scale).max())
                    orthogonal = float((Q.double().T @ Q.double() - torch.eye(k, dtype=torch.float64)).norm())
                    found[S, k, kind, dtype, name] = residual, orthogonal, below
                    bits += [Q, R]
                Q, diagonal, _ = frame.factored(mine)
                assert torch.equal(mine, before)
                assert Q.shape == mine.shape
                assert Q.stride(1) == 1
                assert Q.stride() == room(*Q.shape, dtype, Q.device).stride()
                assert bool((diagonal >= 0).all())
                exact = orthonormalise(_matrix(S, k, kind))[1].diagonal()
                # Where a column of rounding errors points to is anybody's, and what it leaves of later ones.
                known = {"dependent": k // 2, "zero": 1}.get(kind, k)
                gap = (diagonal - exact)[: known + 1].abs().max() if known else diagonal.new_zeros(())
                found[S, k, kind, dtype, "diagonal"] = float(gap / exact.max())
                bits += [frame.whole(Q), diagonal]
    return found, bits


@pytest.mark.parametrize("size", [1, 2, 4])
def test_factors_are_as_exact_as_those_of_one_process(size):
    results = ranks.run(size, _factors, SHAPES, KINDS)
    found, bits = results[0]
    assert len(found) > len(SHAPES) * len(KINDS) * 2
    assert any(name == "rows" for *_, kind, _, name in found if kind == "leaning")
    for (S, k, kind, dtype, name), errors in found.items():
        # Backward errors of Householder's factorisation, column by column, some eps each.
        eps = torch.finfo(dtype).eps * 10 * k**0.5
        if name == "diagonal":
            assert errors <= 4 * eps, (S, k, kind, dtype)
        else:
            residual, orthogonal, below = errors
            assert residual <= eps, (S, k, kind, dtype, name)
            assert orthogonal <= eps * k**0.5, (S, k, kind, dtype, name)
            assert below == 0
    for _, others in results[1:]:
        assert all(map(torch.equal, bits, others))


def _extremes(rank):
    r = Ranks()
    frame = Spread(r, Columns(3, r.size), 5)
    count = frame.columns.counts[rank]
    Y = torch.full((5, count), float(rank + 1), dtype=torch.float64)
    said = [frame.extremes(Y, None), frame.extremes(Y, Y.square().sum(0))]
    for bad in (math.nan, math.inf):
        Z = Y.clone()
        if rank == 1:
            Z[0] = bad
        said.append(frame.extremes(Z, None))
    return said


def test_extreme_lengths_of_all_columns():
    for size in (2, 4):  # of 3 columns: the last rank has none
        for said in ranks.run(size, _extremes):
            low, high = 5**0.5, min(size, 3) * 5**0.5
            assert said[0] == said[1] == pytest.approx((low, high), rel=1e-14)
            assert not any(map(math.isfinite, said[2] + said[3]))
