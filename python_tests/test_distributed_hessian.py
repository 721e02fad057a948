"""Operators whose batches lie on several ranks: the Hessian of the union, the same bits on all."""

import functools
import itertools
import os
import signal
import time

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from oracles import double_backward, gradient, relative
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import chaos_ext as ce

TIGHT = 1e-12
ENDS = (0, 7, 12, 15, 20, 23)  # of batches
WORLD = object()  # torch.distributed.group.WORLD, which exists in the processes only


def _mlp(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).to(dtype)


def _data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ENDS[-1], 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (ENDS[-1],), generator=generator)


def _ignored(y):
    """Labels of which some are ignored, and in one batch all."""
    y = y.clone()
    y[::5] = -100
    y[ENDS[2] : ENDS[3]] = -100
    return y


WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
_plain, _same = (lambda y: y), (lambda model: model)
CASES = {  # loss, targets
    "mean": (nn.CrossEntropyLoss(), _plain),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), _plain),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHT), _plain),
    "ignored": (functools.partial(F.cross_entropy, label_smoothing=0.1), _ignored),
    "squares": (nn.MSELoss(), lambda y: F.one_hot(y, 3).double() * 2),
}


def _batches(y, x):
    return [(x[a:b], y[a:b]) for a, b in itertools.pairwise(ENDS)]


def _shard(batches, rank, size):
    """Uneven: the last rank has none, the first most."""
    if size == 1:
        return batches
    return batches[rank :: size - 1] if rank < size - 1 else []


def _results(op):
    v = torch.linspace(-1, 1, op.shape[0], dtype=op.dtype)
    V = torch.stack([v, v.flip(0), v.square()], 1)
    spec = ce.spectrum(op)
    found = {
        "loss": op.loss,
        "gradient": op.gradient,
        "product": op @ v,
        "block": op @ V,
        "no columns": op @ V[:, :0],
        "dense": op.dense(),
        "dense into": op.dense(torch.full(op.shape, float("nan"), dtype=op.dtype)),
        "diagonal": op.diagonal(),
        "spectrum": spec.eigenvalues,
        "some": ce.spectrum(op, k=3, which="largest").eigenvalues,
        "of an eigenvalue": op.eigenvalue_gradient(spec, -1).gradient,
        "trace": torch.as_tensor(ce.trace(op).value, dtype=torch.float64),
    }
    return found, sorted(op.unused)


def _of_the_union(rank):
    """What each case gives on this rank, twice."""
    found = {}
    x, y = _data()
    for name, (loss, targets) in CASES.items():
        shard = _shard(_batches(targets(y), x), rank, dist.get_world_size())
        for keep in (1 << 28, 0):
            op = ce.DatasetHessian(_mlp(), loss, shard, keep=keep, group=dist.group.WORLD)
            found[name, keep] = _results(op)
        again = _results(ce.DatasetHessian(_mlp(), loss, shard, group=dist.group.WORLD))
        _require_same(again, found[name, 1 << 28])
        assert len(op.explain()) == 3
    return found


def _require_same(a, b):
    assert a[0].keys() == b[0].keys()
    assert a[1] == b[1]
    for key in a[0]:
        assert torch.equal(a[0][key], b[0][key]), key


@pytest.mark.parametrize("size", [2, 4])
def test_a_data_set_on_several_ranks_is_the_union_bit_for_bit_on_all(size):
    first, *others = ranks.run(size, _of_the_union)
    x, y = _data()
    for key, found in first.items():
        for other in others:
            _require_same(found, other[key])
        loss, targets = CASES[key[0]]
        alone = _results(ce.DatasetHessian(_mlp(), loss, _batches(targets(y), x)))
        assert found[1] == alone[1]
        for name, value in alone[0].items():
            limit = 1e-9 if name == "of an eigenvalue" else TIGHT  # of a pair with a neighbour
            assert relative(found[0][name], value) < limit, (key, name)
        assert relative(found[0]["dense"], double_backward(_mlp(), loss, x, targets(y))) < 1e-10
        assert torch.equal(found[0]["dense"], found[0]["dense"].T)
