"""Checkpoints that are not re-entrant run again in the backward: H is right there, and nothing of the user's moves."""

import differences
import fingerprints
import pytest
import torch
from oracles import relative
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import chaos_ext as ce


def _loss(o, y):
    return nn.functional.cross_entropy(o, y) + (o**4).mean()


class Checkpointed(nn.Module):
    """Parts of a network of which some run under a checkpoint."""

    def __init__(self, make, run):
        super().__init__()
        torch.manual_seed(0)
        self.part, self.run = make(), run
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.run(self.part, x).flatten(1))


def _again(part, x):
    return checkpoint(part, x, use_reentrant=False)


def _nested(part, x):
    return checkpoint(lambda t: part[1:](checkpoint(part[0], t, use_reentrant=False)), x, use_reentrant=False)


def _twice(part, x):
    return _again(part, x) + 0.5 * _again(part, 2.0 * x)


def _in_segments(part, x):
    return checkpoint_sequential(part, 2, x, use_reentrant=False)


def _late_stop(part, x):
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        return _again(part, x)


class Averaging(nn.Module):
    """Keeps a running mean of what passes, for evaluation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x * x


PARTS = {
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh()),
    "instance norm": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.Unflatten(1, (1, 5)), nn.InstanceNorm1d(1, affine=True, track_running_stats=True), nn.Tanh()
    ),
    "running mean": lambda: nn.Sequential(nn.Linear(4, 5), Averaging(), nn.Tanh()),
    "layers": lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh()),
}
RUNS = {"whole": _again, "nested": _nested, "twice": _twice, "segments": _in_segments, "late stop": _late_stop}


def _assert_right(model, x, y, loss=_loss):
    model.double()
    model(x)  # running statistics that are not at their start
    expected = differences.of_gradients(model, loss, x, y)
    before = fingerprints.of_model(model), fingerprints.of_process()
    op = ce.HessianOperator(model, loss, x, y, verify=True)
    assert relative(op.dense(), expected) < 1e-7
    assert relative(op @ torch.eye(len(expected), dtype=torch.float64), expected) < 1e-7
    assert not fingerprints.changes(before[0], fingerprints.of_model(model))
    assert not fingerprints.changes(before[1], fingerprints.of_process())


def _batch():
    torch.manual_seed(1)
    return torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("part", PARTS)
def test_checkpoint_in_training_mode(part, run):
    _assert_right(Checkpointed(PARTS[part], RUNS[run]), *_batch())


def test_checkpoint_in_the_loss():
    model, (x, y) = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)), _batch()
    _assert_right(model, x, y, lambda o, t: checkpoint(_loss, o, t, use_reentrant=False))


def test_densenet_that_saves_memory():
    densenet = pytest.importorskip("torchvision.models").DenseNet
    torch.manual_seed(0)
    sizes = {"growth_rate": 2, "block_config": (2, 1), "num_init_features": 2, "bn_size": 1, "num_classes": 3}
    model = densenet(**sizes, memory_efficient=True).double()
    x, y = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.arange(3)
    H = ce.HessianOperator(model, _loss, x, y)
    plain = densenet(**sizes).double()
    plain.load_state_dict(model.state_dict())
    v = torch.randn(H.shape[0], 2, dtype=torch.float64)
    before = fingerprints.of_model(model)
    assert relative(H @ v, ce.HessianOperator(plain, _loss, x, y) @ v) < 1e-9
    assert not fingerprints.changes(before, fingerprints.of_model(model))


def test_steps_of_cgd_are_those_without_checkpoints():
    x, y = _batch()
    models = [Checkpointed(PARTS["batch norm"], run).double() for run in (_again, lambda part, x: part(x))]
    for m in models:
        opt = ce.CGD(m.parameters(), lr=0.05, prune="negative")
        for _ in range(3):
            opt.step(ce.HessianOperator(m, _loss, x, y))
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


class Counting(nn.Module):
    """Computes something else each time that it runs: its backward is of another function than its forward."""

    def __init__(self, how):
        super().__init__()
        self.a, self.how, self.calls = nn.Linear(4, 5), how, 0

    def forward(self, x):
        self.calls += 1
        return self.how(self.a(x), self.calls)


CHANGES = {
    "values": lambda h, calls: torch.tanh(h * calls),
    "shapes": lambda h, calls: torch.tanh(h.repeat(calls, 1)).view(calls, -1, 5).sum(0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_part_that_is_no_function_is_refused(name):
    x, y = _batch()
    model = Checkpointed(lambda: Counting(CHANGES[name]), _again).double()
    before = fingerprints.of_model(model)
    with pytest.raises(ce.ChaosExtError, match=r"gradient|differentiate"):
        ce.HessianOperator(model, _loss, x, y)
    assert not fingerprints.changes(before, fingerprints.of_model(model))
