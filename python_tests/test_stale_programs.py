"""A program that was captured before is not used where the model's forward has become another function."""

from types import SimpleNamespace

import pytest
import torch
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce
from chaos_ext.curvature import engine

LOSS = nn.CrossEntropyLoss()
FLAG = {"trains": True}


class Frozen(nn.Module):
    """A body that is trained where some flag says so; the output does not depend on it."""

    shared = True

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self._own, self.config = True, SimpleNamespace(trains=True)

    def trains(self):
        return self._own and self.config.trains and type(self).shared and FLAG["trains"]

    def forward(self, x):
        h = self.body(x).tanh()
        return self.head(h if self.trains() else h.detach())


def _batch(n=6):
    return torch.randn(n, 4), torch.randint(3, (n,))


def _freeze(model, where, monkeypatch):
    if where == "attribute":
        model._own = False
    elif where == "object":
        model.config.trains = False
    elif where == "class":
        monkeypatch.setattr(Frozen, "shared", False)
    else:
        monkeypatch.setitem(FLAG, "trains", False)


@pytest.mark.parametrize("n", [6, 5])
@pytest.mark.parametrize("where", ["attribute", "object", "class", "global"])
def test_a_flag_that_detaches_is_noticed(where, n, monkeypatch):
    torch.manual_seed(0)
    model = Frozen()
    ce.HessianOperator(model, LOSS, *_batch())
    _freeze(model, where, monkeypatch)
    x, y = _batch(n)
    op = ce.HessianOperator(model, LOSS, x, y)
    expected = torch.autograd.grad(LOSS(model(x), y), list(model.parameters()), allow_unused=True)
    pairs = zip(expected, model.parameters(), strict=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
    torch.testing.assert_close(op.gradient, flat)
    assert op.unused == {0, 1}
    before = model.body.weight.clone()
    ce.CGD(model.parameters(), lr=0.1, prune="negative").step(op)
    assert torch.equal(model.body.weight, before)


def test_a_forward_is_validated_once_for_each_way_it_takes(monkeypatch):
    torch.manual_seed(0)
    model, calls = Frozen(), []
    validate = engine.validate
    monkeypatch.setattr(engine, "validate", lambda *args: calls.append(args) or validate(*args))

    def look(trains):
        model.config.trains = trains
        ce.HessianOperator(model, LOSS, *_batch())

    look(True)
    look(False)
    settled = len(calls)
    assert settled == 2
    for trains in (True, False, False, True):
        look(trains)
    assert len(calls) == settled


class Constant(nn.Module):
    """A forward that names a dtype."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(4, 6), nn.Linear(6, 3), kind

    def forward(self, x):
        z = self.a(x)
        if self.kind == "constant":
            z = z @ torch.ones(6, 6).tril()
        elif self.kind == "cast":
            z = z.float().tanh()
        else:
            z = torch.softmax(z, -1, dtype=torch.float32)
        return self.b(z)


@pytest.mark.parametrize("kind", ["constant", "cast", "softmax"])
def test_a_forward_that_names_float32(kind):
    torch.manual_seed(0)
    model, (x, y) = Constant(kind), _batch()
    op = ce.HessianOperator(model, LOSS, x, y)
    assert relative(op.dense(), double_backward(model, LOSS, x, y)) < 1e-4
    ce.CGD(model.parameters(), lr=0.1).step(op)


class AcrossSamples(nn.Module):
    """Splits along the samples, whose number decides what that means."""

    def __init__(self, mix):
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(4, 4), nn.Linear(4, 3), mix

    def forward(self, x):
        return self.b(self.mix(self.a(x)))


MIXES = {
    "glu": lambda z: nn.functional.glu(z, 0),
    "glu of transposed": lambda z: nn.functional.glu(z.T, -1).T,
    "chunk": lambda z: (z.T.chunk(2, 1)[0] * z.T.chunk(2, 1)[1]).T,
    "narrow": lambda z: z.T.narrow(1, -2, 2).T,
    "unbind": lambda z: z * z.T.unbind(1)[-1],
}


@pytest.mark.parametrize("name", MIXES)
def test_samples_that_are_mixed_in_batches_of_any_size(name):
    torch.manual_seed(0)
    model = AcrossSamples(MIXES[name]).double()
    for n in (6, 4, 8):
        x = torch.randn(n, 4, dtype=torch.float64)
        y = torch.randint(3, (len(model(x)),))
        op = ce.HessianOperator(model, LOSS, x, y)
        assert relative(op.dense(), double_backward(model, LOSS, x, y)) < 1e-9


def test_targets_that_do_not_fit_are_still_said_to_be_wrong():
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(6, 4)
    ce.HessianOperator(model, LOSS, x, torch.randint(3, (6,)))
    with pytest.raises(ValueError, match="y: expected class indices"):
        ce.HessianOperator(model, LOSS, x, torch.randint(3, (5,)))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)
        self.register_buffer("mask", torch.triu(torch.ones(4, 4, dtype=torch.bool), 1))

    def forward(self, x):
        return self.out(self.mix(x, x, x, attn_mask=self.mask)[0].mean(1))


def test_a_mask_may_become_one_of_numbers():
    torch.manual_seed(0)
    model = Masked().double()
    x, y = torch.randn(3, 4, 4, dtype=torch.float64), torch.randint(3, (3,))
    for mask in (model.mask, torch.randn(4, 4, dtype=torch.float64), model.mask):
        model.mask = mask
        op = ce.HessianOperator(model, LOSS, x, y)
        assert relative(op.dense(), double_backward(model, LOSS, x, y)) < 1e-9
