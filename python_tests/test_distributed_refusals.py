"""What goes wrong on one rank of several is named on all of them, in time, and nothing is left behind."""

import functools
import os
import signal
import time

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
BAD = 1  # the rank that is different


def _net(seed=0, dtype=torch.float64, act=nn.Tanh, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), act(), nn.Linear(width, 3)).to(dtype)


def _batch(rank, n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64).to(dtype), torch.arange(n) % 3


def _made(rank, net=_net, loss=CE, **options):
    return ce.DatasetHessian(net(), loss, [_batch(rank)], group=dist.group.WORLD, **options)


def _own_loss(z, y):
    return F.cross_entropy(z, y)


def _other_loss(z, y):
    return F.cross_entropy(z, 2 - y)


def _weighted(*weight):
    return nn.CrossEntropyLoss(torch.tensor(weight, dtype=torch.float64))


# What the ranks hold, the good ones and the bad one, and what all of them say.
DIFFERENT = {
    "values": (
        _net,
        functools.partial(_net, 1),
        r"values of the parameters \(checksum\): \w+ on ranks 0, 2; \w+ on rank 1",
    ),
    "shapes": (_net, functools.partial(_net, width=7), "parameters: .*7, 4.* on rank 1"),
    "dtypes": (_net, functools.partial(_net, dtype=torch.float32), "torch.float32 on cpu on rank 1"),
    "activations": (
        _net,
        functools.partial(_net, act=nn.Sigmoid),
        r"modules: Tanh {.*} on ranks 0, 2; Sigmoid {.*} on",
    ),
    "modes": (_net, lambda: _net().eval(), "modules: .*'training': False} on rank 1"),
    "frozen": (_net, lambda: _freeze(_net()), "parameters: "),
}
LOSSES = {
    "smoothing": (CE, nn.CrossEntropyLoss(label_smoothing=0.1), {}, "loss: .*0.1"),
    "weights": (_weighted(1.0, 1.0, 1.0), _weighted(0.0, 1.0, 2.0), {}, "loss:"),
    "reduction": (CE, nn.CrossEntropyLoss(reduction="sum"), {}, "loss: .*sum"),
    "partial": (functools.partial(F.cross_entropy), functools.partial(F.cross_entropy, label_smoothing=0.2), {}, "0.2"),
    "functions": (_own_loss, _other_loss, {"weight": "mean"}, "_other_loss.* on rank 1"),
}


def _freeze(model):
    model[0].bias.requires_grad_(False)
    return model


def _disagreements(rank):
    for good, bad, match in DIFFERENT.values():
        with pytest.raises(ce.errors.RanksDisagreeError, match=f"model and loss: expected the same.*{match}"):
            _made(rank, bad if rank == BAD else good)
    for good, bad, options, match in LOSSES.values():
        with pytest.raises(ce.errors.RanksDisagreeError, match=match):
            _made(rank, loss=bad if rank == BAD else good, **options)
    with pytest.MonkeyPatch.context() as patch:
        if rank == BAD:
            patch.setattr(torch, "__version__", "2.9.0")
        with pytest.raises(ce.errors.RanksDisagreeError, match=r"versions: chaos_ext .*, torch 2.9.0 on rank 1"):
            _made(rank)
    op = _made(rank)
    v = torch.ones(op.shape[0], dtype=torch.float64)
    other = v.clone()
    other[3] = torch.nextafter(other[3], torch.tensor(2.0, dtype=torch.float64))
    with pytest.raises(ce.errors.RanksDisagreeError, match=r"H v.* a vector with checksum .* on rank 1"):
        op @ (other if rank == BAD else v)
    with pytest.raises(ce.errors.RanksDisagreeError, match=r"H v.*\[.*, 2\].* on rank 1"):
        op @ (v.unsqueeze(1).repeat(1, 2) if rank == BAD else v)
    with pytest.raises(ce.errors.RanksDisagreeError, match=r"diagonal.*dense"):
        op.dense() if rank == BAD else op.diagonal()
    for kind in (ce.HessianOperator, ce.DatasetHessian):
        model = _net(rank == BAD)
        args = _batch(rank) if kind is ce.HessianOperator else ([_batch(rank)],)
        with pytest.raises(ce.errors.RanksDisagreeError, match="values of the parameters"):
            kind(model, CE, *args, group=dist.group.WORLD)
    return (op @ v).sum().item()  # everything is as it was


def test_ranks_that_differ_are_named_on_all():
    assert len(set(ranks.run(3, _disagreements))) == 1


class Batches:
    """Batches that do something on the bad rank in a walk after those of construction."""

    def __init__(self, rank, does=None, count=3):
        self.rank, self.does, self.count, self.walks = rank, does, count, 0

    def __iter__(self):
        self.walks += 1
        for i in range(self.count):
            if i == 1 and self.walks > 2 and self.rank == BAD and self.does is not None:
                self.does()
            yield _batch(10 * self.rank + i)


def _raises():
    raise OSError("the disk is gone")


def _faults(rank):
    """One rank raises its own error, the others that it did."""

    def refused(kind, match, run):
        expected = kind if rank == BAD else ce.errors.RankFailedError
        with pytest.raises(expected, match=match if rank == BAD else rf"rank 1 raised {kind.__name__}: .*{match}") as e:
            run()
        assert rank == BAD or e.value.ranks in ((BAD,), ())

    world = dist.group.WORLD
    op = ce.DatasetHessian(_net(), CE, Batches(rank, _raises), keep=0, group=world)
    v = torch.ones(op.shape[0], dtype=torch.float64)
    for run in (lambda: op @ v, op.diagonal, op.dense, lambda: op.curvature_along(v[:, None]), op.explain):
        refused(OSError, "the disk is gone", run)
    batches = [list(b) for b in Batches(rank)]
    op = ce.DatasetHessian(_net(), CE, batches, keep=0, group=world)
    if rank == BAD:
        batches[2][0] += 1e-3
    refused(ce.StaleOperatorError, "batch 2 was another one", lambda: op @ v)
    refused(TypeError, "v: expected", lambda: op @ (v.tolist() if rank == BAD else v))
    model = _net()
    one = ce.HessianOperator(model, CE, *_batch(rank), group=world)
    if rank == BAD:
        model[0].bias.data += 1
    refused(ce.StaleOperatorError, "changed after it was made", lambda: one @ v)
    x, y = _batch(rank)
    nan = x * float("nan") if rank == BAD else x
    refused(ce.NonFiniteError, "NaN or inf", lambda: ce.DatasetHessian(_net(), CE, [(x, y), (nan, y)], group=world))
    refused(ce.NonFiniteError, "NaN or inf", lambda: ce.HessianOperator(_net(), CE, nan, y, group=world))
    few = _batch(rank, 0 if rank == BAD else 5)
    refused(ValueError, "at least one sample", lambda: ce.HessianOperator(_net(), CE, *few, group=world))
    once = iter([(x, y)]) if rank == BAD else [(x, y)]
    refused(TypeError, "walked again", lambda: ce.DatasetHessian(_net(), CE, once, group=world))
    budget = 8 if rank == BAD else None
    small = ce.DatasetHessian(_net(), CE, [(x, y)], memory_budget=budget, group=world)
    refused(ce.MemoryBudgetError, "dense Hessian", small.dense)
    refused(ce.MemoryBudgetError, "eigendecomposition", lambda: ce.spectrum(small))
    with pytest.raises(ValueError, match="one of the ranks, got none on any"):
        ce.DatasetHessian(_net(), CE, [], group=world)
    with pytest.raises(ce.NonFiniteError, match="every sample is ignored"):
        ce.DatasetHessian(_net(), CE, [(x, torch.full_like(y, -100))], group=world)
    with pytest.raises(TypeError, match=r"group: expected a torch.distributed process group.*bool"):
        ce.DatasetHessian(_net(), CE, [(x, y)], group=True)
    return (small @ v).sum().item()


def test_what_one_rank_raises_is_named_on_all():
    assert len(set(ranks.run(3, _faults))) == 1


def _dies():
    os.kill(os.getpid(), signal.SIGKILL)


def _hangs():
    time.sleep(6)


def _lost(rank, does, timeout):
    group = ce.Ranks(timeout=timeout)
    model = _net()
    op = ce.DatasetHessian(model, CE, Batches(rank, does), keep=0, group=group)
    theta = op.snapshot.theta.clone()
    v = torch.ones(op.shape[0], dtype=torch.float64)
    begun = time.monotonic()
    with pytest.raises(ce.errors.RankFailedError) as e:
        op @ v
    took = time.monotonic() - begun
    with pytest.raises(ce.errors.RankFailedError, match="broken"):
        op.diagonal()
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), theta)
    return str(e.value), took


@pytest.mark.parametrize(("does", "timeout"), [(_dies, 60.0), (_hangs, 1.0)])
def test_a_rank_that_is_lost_in_a_product(does, timeout):
    for rank, outcome in enumerate(ranks.run(3, _lost, does, timeout, check=False, limit=60)):
        if rank != BAD:
            message, took = outcome.value
            assert "rank 1 did not arrive at H v" in message
            assert took < 30
            assert does is _dies or "within 1 s" in message
        elif does is _dies:
            assert outcome.code == -signal.SIGKILL


def _destroyed(rank):
    op = _made(rank)
    before = op.gradient
    dist.destroy_process_group()
    v = torch.ones(op.shape[0], dtype=torch.float64)
    for run in (lambda: op @ v, op.dense):
        with pytest.raises(ce.errors.RankFailedError, match=r"H v|dense.*destroyed"):
            run()
    with pytest.raises(ValueError, match="init_process_group"):
        ce.DatasetHessian(_net(), CE, [_batch(rank)], group=ce.Ranks())
    assert torch.equal(op.gradient, before)  # what was computed before stays valid
    ce.DatasetHessian(_net(), CE, [_batch(rank)])


def test_a_group_that_was_destroyed():
    ranks.run(2, _destroyed)


def test_without_torch_distributed(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(ce.UnsupportedError, match="without torch"):
        ce.HessianOperator(_net(), CE, *_batch(0), group=object())
    ce.HessianOperator(_net(), CE, *_batch(0))
