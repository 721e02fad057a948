"""Losses that write to something: a counter, an EMA, a closure. H is that of the loss as it is, and nothing moves.

A CGD step leaves behind what one call of the loss leaves, as a step of torch.optim.SGD does.
"""

import copy
import functools
import itertools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from small import batch, mlp
from torch import nn

import chaos_ext as ce
from chaos_ext.base.guards import commit_forward

LR = 0.1


class WarmUp(nn.Module):
    """Weight 2 from the ninth call on; keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, []

    def forward(self, o, y):
        self.calls += 1
        self.seen.append(float(o.detach().sum()))
        return F.cross_entropy(o, y) * (1.0 if self.calls <= 8 else 2.0)

    def state(self):
        return self.calls, list(self.seen)


class Centred(nn.Module):
    """Less a moving average of the outputs, as in self-distillation."""

    def __init__(self, momentum=0.9):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3, dtype=torch.float64))
        self.momentum = momentum

    def forward(self, o, y):
        loss = F.cross_entropy(o - self.centre, y)
        self.centre.mul_(self.momentum).add_(o.detach().mean(0), alpha=1 - self.momentum)
        return loss

    def state(self):
        return self.centre.tolist()


class Plain:
    """No module: an object that is called."""

    def __init__(self):
        self.calls, self.log = 0, {"last": None}

    def __call__(self, o, y):
        self.calls += 1
        self.log["last"] = float(o.detach().sum())
        return F.cross_entropy(o, y) * (1 + 0.1 * self.calls)

    def loss(self, o, y):
        return self(o, y)

    def state(self):
        return self.calls, dict(self.log)


def _closure():
    calls, total = [0], 0

    def loss(o, y):
        nonlocal total
        calls[0] += 1
        total += calls[0]
        return F.cross_entropy(o, y) * (1 + 0.1 * total)

    loss.state = lambda: (list(calls), total)
    return loss


def _partial():
    held = WarmUp()
    loss = functools.partial(lambda o, y, by: by(o, y), by=held)
    return loss, held


def _drawing():
    g = torch.Generator().manual_seed(3)

    def loss(o, y):
        return F.cross_entropy(o + 0.1 * torch.randn(3, generator=g, dtype=torch.float64), y)

    loss.state = lambda: g.get_state().tolist()
    return loss


def _pair(made):
    """A loss, and what it holds."""
    return made if isinstance(made, tuple) else (made, made)


def _method():
    held = Plain()
    return held.loss, held


MAKE = {
    "counter": WarmUp,
    "moving average": Centred,
    "object": Plain,
    "method": _method,
    "closure": _closure,
    "partial": _partial,
    "generator": _drawing,
}


@pytest.mark.parametrize("name", MAKE)
def test_gradient_and_hessian_are_of_one_function_and_nothing_moves(name):
    (x, y), (loss, held) = batch(), _pair(MAKE[name]())
    _, twin = _pair(MAKE[name]())
    fresh = _pair(MAKE[name]())[0]
    model = mlp()
    op = ce.HessianOperator(model, loss, x, y, verify=True)
    H = op.dense()
    v = torch.eye(len(H), dtype=torch.float64)
    torch.testing.assert_close(op @ v, H, rtol=1e-9, atol=1e-9)
    assert held.state() == twin.state()
    value = fresh(model(x), y)  # the first call of one that was never called
    torch.testing.assert_close(op.loss, value.detach(), rtol=1e-12, atol=0)
    grads = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
    torch.testing.assert_close(op.gradient, torch.cat([g.flatten() for g in grads]).detach(), rtol=1e-10, atol=1e-14)
    w = torch.randn(len(H), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = torch.autograd.grad(torch.cat([g.flatten() for g in grads]) @ w, list(model.parameters()))
    torch.testing.assert_close(H @ w, torch.cat([g.flatten() for g in product]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", MAKE)
def test_cgd_without_pruning_is_sgd(name):
    (x, y), (loss, held), (theirs, twin) = batch(), _pair(MAKE[name]()), _pair(MAKE[name]())
    model, other = mlp(), mlp()
    ours, sgd = ce.CGD(model.parameters(), lr=LR, prune=None), torch.optim.SGD(other.parameters(), lr=LR)
    for _ in range(12):
        ours.step(ce.HessianOperator(model, loss, x, y))
        sgd.zero_grad()
        theirs(other(x), y).backward()
        sgd.step()
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.equal(a, b)
    assert held.state() == twin.state()


@pytest.mark.parametrize("name", ["counter", "moving average", "closure"])
def test_a_step_that_fails_leaves_the_loss_as_it_was(name, monkeypatch):
    (x, y), (loss, held) = batch(), _pair(MAKE[name]())
    model = mlp()
    opt = ce.CGD(model.parameters(), lr=LR, prune="negative")
    opt.step(ce.HessianOperator(model, loss, x, y))
    before, theta = copy.deepcopy(held.state()), [p.clone() for p in model.parameters()]

    def fail(*given):
        commit_forward(*given)
        assert held.state() != before
        raise KeyboardInterrupt

    op = ce.HessianOperator(model, loss, x, y)
    with monkeypatch.context() as m:
        m.setattr("chaos_ext.optim.cgd.commit_forward", fail)
        with pytest.raises(KeyboardInterrupt):
            opt.step(op)
    assert held.state() == before
    assert all(map(torch.equal, model.parameters(), theta))


def test_a_loss_that_edits_its_targets_edits_copies():
    def loss(o, t):
        return F.mse_loss(o, t.clamp_(max=0.1))

    x, _ = batch()
    t = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept, model = t.clone(), mlp()
    op = ce.HessianOperator(model, loss, x, t)
    op.dense()
    assert torch.equal(t, kept)


@pytest.mark.parametrize("name", ["counter", "moving average", "object", "closure"])
def test_members_of_an_ensemble_cannot_share_a_loss_with_state(name):
    (x, y), (loss, _) = batch(), _pair(MAKE[name]())
    model = mlp()
    ens = ce.Ensemble.around(model, loss, torch.optim.SGD(model.parameters(), lr=LR), torch.zeros(43, 1).double())
    with pytest.raises(ce.UnsupportedError, match="loss_fn: it writes to what it holds"):
        ens.step(x, y)


class Weighted(nn.Module):
    """Holds what it does not write to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
        self.options = {"scale": 2.0}

    def forward(self, o, y):
        return self.options["scale"] * F.cross_entropy(o, y, weight=self.weight)


class WithLoss(nn.Sequential):
    """A model that has its own loss, as with Lightning."""

    def loss(self, o, y):
        return F.cross_entropy(o, y) + 0.01 * sum(p.square().sum() for p in self.parameters())


def test_losses_that_only_hold_something_are_not_run_once_more():
    x, y = batch()
    model = WithLoss(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    weights, scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), [2.0]
    for loss in (Weighted(), model.loss, lambda o, t: scale[0] * F.cross_entropy(o, t, weight=weights)):
        assert ce.HessianOperator(model, loss, x, y).origin.loss is None


def test_members_may_share_a_loss_that_only_holds_something():
    (x, y), model = batch(), mlp()
    opt = torch.optim.SGD(model.parameters(), lr=LR)
    ens = ce.Ensemble.around(model, Weighted(), opt, torch.zeros(43, 1).double())
    torch.testing.assert_close(ens.step(x, y), Weighted()(model(x), y).detach().expand(2), rtol=1e-12, atol=0)


class Counting(nn.Module):
    """Counts in a Counter, whose update adds."""

    def __init__(self):
        super().__init__()
        self.l, self.c = nn.Linear(4, 3).double(), Counter()
        self.c["n"] = 5

    def forward(self, x):
        self.c["n"] += 1
        return torch.tanh(self.l(x))


class Odd(dict):
    """Overrides what writes to it."""

    def update(self, *_, **__):
        raise AssertionError("not ours to call")

    def __setitem__(self, key, value):
        super().__setitem__(key, value + 100)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda o, y: F.cross_entropy(o, y) + 0.0])
def test_containers_that_override_their_methods(loss):
    (x, y), model = batch(), Counting()
    model.odd = Odd()
    dict.__setitem__(model.odd, "a", 1)
    op = ce.HessianOperator(model, loss, x, y)
    op.dense()
    assert (model.c["n"], dict(model.odd)) == (5, {"a": 1})


class Slotted:
    __slots__ = ("calls",)

    def __init__(self):
        self.calls = 0

    def __call__(self, o, y):
        self.calls += 1
        return F.cross_entropy(o, y) * (1 + 1e-4 * self.calls)


class Holder:
    """A plain object that holds a module with a buffer."""

    def __init__(self):
        self.inner = Centred(0.999)

    def __call__(self, o, y):
        return self.inner(o, y)


def _of_modules():
    held = [Centred(0.9), Centred(0.99)]
    return lambda o, y: held[0](o, y) + held[1](o, y)


def _by_default():
    def loss(o, y, state={"n": 0}):  # noqa: B006 - the very thing
        state["n"] += 1
        return F.cross_entropy(o, y) * (1 + 1e-4 * state["n"])

    return loss


def _numpys():
    numpy = pytest.importorskip("numpy")
    r = numpy.random.RandomState(3)
    return lambda o, y: F.cross_entropy(o, y) * (1 + 1e-3 * r.rand())


class OfTheClass:
    calls = 0

    def __call__(self, o, y):
        type(self).calls += 1
        return F.cross_entropy(o, y) * (1 + 1e-4 * self.calls)


def _global_counter():
    CALLS[0] = 0
    return _global


def _iterator():
    calls = itertools.count()
    return lambda o, y: F.cross_entropy(o, y) * (1 + 1e-6 * next(calls))


def _bytes():
    held = bytearray(1)

    def loss(o, y):
        held[0] += 1
        return F.cross_entropy(o, y) * (1 + 1e-4 * held[0])

    return loss


HIDDEN = {"slots": Slotted, "object": Holder, "list": _of_modules, "default": _by_default, "bytes": _bytes}
HIDDEN["numpy"] = _numpys


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", HIDDEN)
def test_states_wherever_they_hide(name, dtype):
    (x, y), model, other = batch(), mlp().to(dtype), mlp().to(dtype)
    loss, theirs = HIDDEN[name](), HIDDEN[name]()
    for made in (loss, theirs):
        for m in [getattr(made, "inner", None), *(_held_modules(made))]:
            if m is not None:
                m.to(dtype)
    ours, sgd = ce.CGD(model.parameters(), lr=LR, prune=None), torch.optim.SGD(other.parameters(), lr=LR)
    for _ in range(4):
        ours.step(ce.HessianOperator(model, loss, x.to(dtype), y))
        sgd.zero_grad()
        theirs(other(x.to(dtype)), y).backward()
        sgd.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def _held_modules(function):
    cells = getattr(function, "__closure__", None) or ()
    return [m for c in cells if isinstance(c.cell_contents, list) for m in c.cell_contents if isinstance(m, nn.Module)]


CALLS = [0]


def _global(o, y):
    CALLS[0] += 1
    return F.cross_entropy(o, y) * (1 + 1e-6 * CALLS[0])


@pytest.mark.parametrize("make", [_global_counter, OfTheClass], ids=["global", "class"])
def test_states_that_all_losses_share(make):
    """Twins would share it, too: the factors are those of a first training, then of another one."""
    (x, y), losses = batch(), []
    for ours in (True, False):
        OfTheClass.calls, loss, model = 0, make(), mlp()
        opt = (ce.CGD if ours else torch.optim.SGD)(model.parameters(), lr=LR, **({"prune": None} if ours else {}))
        for _ in range(4):
            opt.zero_grad()
            if ours:
                opt.step(ce.HessianOperator(model, loss, x, y))
            else:
                loss(model(x), y).backward()
                opt.step()
        losses.append(loss(model(x), y))
        assert (CALLS[0] if make is _global_counter else OfTheClass.calls) == 5
    assert torch.equal(*losses)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_states_that_cannot_be_put_back_are_refused_by_name(dtype):
    (x, y), model, loss = batch(), mlp().to(dtype), _iterator()
    with pytest.raises(ce.UnsupportedError, match="something that cannot be put back"):
        ce.HessianOperator(model, loss, x.to(dtype), y)
