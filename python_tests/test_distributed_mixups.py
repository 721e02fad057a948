"""Ranks that are at the same call of different objects: what they send does not mix, they are told."""

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import nn

import chaos_ext as ce
from chaos_ext.errors import RankFailedError, RanksDisagreeError, UnsupportedError

CE = nn.CrossEntropyLoss()


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def _batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, generator=generator, dtype=torch.float64), torch.arange(5) % 3


def _swapped(rank, call):
    """The same call, of another operator on each rank."""
    model, group = _net(), dist.group.WORLD
    ops = [ce.HessianOperator(model, CE, *_batch(10 * i + rank), group=group) for i in (1, 2)]
    v = torch.ones(51, dtype=torch.float64)
    calls = {
        "product": lambda op: op @ v,
        "dense": lambda op: op.dense(),
        "diagonal": lambda op: op.diagonal(),
        "along": lambda op: op.curvature_along(v.unsqueeze(1)),
    }
    with pytest.raises(RanksDisagreeError, match="of the operator made at meeting"):
        calls[call](ops[rank])


@pytest.mark.parametrize("call", ["product", "dense", "diagonal", "along"])
def test_products_of_two_operators_do_not_mix(call):
    ranks.run(2, _swapped, call)


def _leaves_a_displacement(rank):
    op = ce.HessianOperator(_net(), CE, *_batch(rank), group=dist.group.WORLD)
    v = torch.ones(51, dtype=torch.float64)
    before = op @ v

    def there_or_here():
        try:
            with op.displaced(op.snapshot.theta + 0.1) as there:
                if rank == 1:
                    raise ArithmeticError("on this rank alone")
                there @ v
        except ArithmeticError:
            op @ v  # goes on at the old theta

    with pytest.raises((RanksDisagreeError, RankFailedError)):
        there_or_here()
    assert torch.equal(op @ v, before)


def test_a_rank_that_leaves_a_displacement_is_not_added_to_the_others():
    ranks.run(2, _leaves_a_displacement)


def _two_analyzers(rank):
    model = _net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    both = [ce.LyapunovAnalyzer(model, opt, k=4, group=dist.group.WORLD) for _ in range(2)]
    op = ce.HessianOperator(model, CE, *_batch(0))
    with pytest.raises(RanksDisagreeError, match="of the analyzer made at meeting"):
        both[rank].update(op)


def test_two_analyzers_do_not_mix():
    ranks.run(2, _two_analyzers)


def _two_ensembles(rank):
    model = _net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    deltas = 0.1 * torch.randn(51, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = [ce.Ensemble.around(model, CE, opt, s * deltas, group=dist.group.WORLD) for s in (1, 2)]
    with pytest.raises(RanksDisagreeError, match="of the ensemble made at meeting"):
        both[rank].step(*_batch(0))


def test_two_ensembles_do_not_mix():
    ranks.run(2, _two_ensembles)


def _difference(rank):
    model = _net()
    op = ce.HessianOperator(model, CE, *_batch(rank), group=dist.group.WORLD)
    alone = ce.HessianOperator(model, CE, *_batch(rank))
    ggn = ce.GGNOperator(model, CE, *_batch(rank))
    for a, b in ((op, ggn), (alone, op), (op - op, ggn)):
        with pytest.raises(UnsupportedError, match="of all ranks"):
            a - b
    v = torch.ones(51, dtype=torch.float64)
    assert float(((op - op) @ v).abs().max()) == 0
    assert (op - op).is_shared
    assert not (alone - ggn).is_shared


def test_what_is_of_all_ranks_is_not_mixed_with_what_is_of_one():
    ranks.run(2, _difference)
