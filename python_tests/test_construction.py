"""What the construction of an operator reads once, or leaves out, follows every change of the model and the batch."""

import copy
from itertools import pairwise

import cases
import pytest
import torch
from oracles import double_backward, gradient, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
TOL = 1e-10


def _setting(n=8):
    model = cases.mlp(3, "tanh", width=5)
    x, y = cases.batch(n, cases.LOSSES["ce"][1])
    return model, x, y


def _agrees(model, loss, x, y, own=True):
    """The operator made now is exact; ``own``: by layer rules."""
    op = ce.HessianOperator(model, loss, x, y)
    assert (op.explain()[0].name != "(model)") == own
    assert relative(op.loss, loss(model(x), y).detach()) < TOL
    assert relative(op.gradient, gradient(model, loss, x, y)) < TOL
    assert relative(op.dense(), double_backward(model, loss, x, y)) < TOL
    op.snapshot.require_fresh()


def _replace(model, name, value):
    setattr(model, name, value)


def _double(model):
    torch.manual_seed(7)
    return nn.Linear(5, 5).double()


CHANGES = {
    "module of another type": lambda m: _replace(m, "2", nn.Sigmoid()),
    "module of the same type": lambda m: _replace(m, "3", _double(m)),
    "parameter": lambda m: _replace(m[3], "weight", nn.Parameter(m[3].weight.detach() * 2)),
    "its data": lambda m: _replace(m[3].weight, "data", m[3].weight.detach() * 2),
    "parameter of another module": lambda m: _replace(m[5], "bias", nn.Parameter(m[5].bias.detach() + 1)),
    "tied": lambda m: _replace(m, "3", m[3]) or m.insert(4, m[3]),
    "frozen": lambda m: m[1].weight.requires_grad_(False),
    "no bias": lambda m: _replace(m[3], "bias", None),
    "one more module": lambda m: m.append(nn.Linear(3, 3).double()),
    "one module less": lambda m: m.__delitem__(4),
    "eval": lambda m: m.eval(),
    "a setting": lambda m: _replace(m, "2", nn.ELU(0.5)) or _replace(m[2], "alpha", 2.0),
    "the reshaping": lambda m: _replace(m[0], "start_dim", -3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_operator_follows(change):
    model, x, y = _setting()
    _agrees(model, CE, x, y)
    CHANGES[change](model)
    _agrees(model, CE, x, y)


@pytest.mark.parametrize("where", ["the model", "a layer"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_hooks_come_and_go(kind, where):
    model, x, y = _setting()
    _agrees(model, CE, x, y)
    handle = getattr(model if where == "the model" else model[3], kind)(lambda *_: None)
    if "backward" not in kind:
        _agrees(model, CE, x, y, own=False)
    else:
        assert ce.HessianOperator(model, CE, x, y).explain()[0].name == "(model)"
    handle.remove()
    _agrees(model, CE, x, y)


def test_a_patched_forward_is_seen():
    model, x, y = _setting()
    _agrees(model, CE, x, y)
    model[2].forward = torch.sin
    _agrees(model, CE, x, y, own=False)
    del model[2].forward
    _agrees(model, CE, x, y)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.factor = nn.Linear(6, 3), 2

    def forward(self, x):
        return torch.tanh(self.a(x.flatten(1))) * self.factor


@pytest.mark.parametrize("values", [(2, 2.0, 3.0, 3), (True, 1, 1.0), (0.0, 1.0, 0.0)])
def test_scalar_settings_follow_their_type_and_value(values):
    model, (_, x, y) = Scaled().double(), _setting()
    for value in values:
        model.factor = value
        _agrees(model, CE, x, y)


def test_buffers_that_come_and_go():
    """A model without buffers runs as it is; one that gets some runs on copies of them."""
    model, x, y = _setting()
    _agrees(model, CE, x, y)
    model.insert(2, nn.BatchNorm1d(5).double())
    before = copy.deepcopy(dict(model.named_buffers()))
    ce.HessianOperator(model, CE, x, y).dense()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    del model[2]
    _agrees(model, CE, x, y)


STALE = {
    "one number through .data": lambda m, x: m[1].weight.data[0, 0].add_(1e-6),
    "the last number through .data": lambda m, x: m[5].bias.data[-1].add_(1e-6),
    "another tensor as .data": lambda m, x: _replace(m[3].weight, "data", m[3].weight.detach().clone()),
    "mode of one module": lambda m, x: m[2].eval(),
    "a new buffer": lambda m, x: m[2].register_buffer("extra", torch.zeros(1)),
    "a new module": lambda m, x: m.append(nn.Identity()),
    "frozen": lambda m, x: m[1].bias.requires_grad_(False),
    "the batch": lambda m, x: x[0].zero_(),
}


@pytest.mark.parametrize("change", STALE)
def test_freshness_sees(change):
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    op.snapshot.require_fresh()
    STALE[change](model, x)
    with pytest.raises(ce.StaleOperatorError):
        op.snapshot.require_fresh()
    ce.HessianOperator(model, CE, x, y).snapshot.require_fresh()


def test_a_change_that_is_undone_is_none():
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    kept = model[1].weight.detach().clone()
    model[1].weight.data.mul_(2)
    assert not op.snapshot.is_fresh()
    model[1].weight.data.copy_(kept)
    op.dense()


def test_results_do_not_follow_the_live_parameters():
    """The tape holds its own copy of theta: what an operator has, an in-place edit does not reach."""
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    bound, theta, g = op.compressed_bound(torch.float64), op.snapshot.theta.clone(), op.gradient.clone()
    for p in model.parameters():
        p.data.zero_()
    assert op.compressed_bound(torch.float64) == bound
    assert torch.equal(op.snapshot.theta, theta)
    assert torch.equal(op.gradient, g)
    assert [t.data_ptr() for t in op.snapshot.parts] != [p.data_ptr() for p in model.parameters()]


class Reordered(nn.Sequential):
    """theta follows ``model.parameters()``, whatever a model makes of it."""

    def named_parameters(self, *args, **kwargs):
        return reversed(list(super().named_parameters(*args, **kwargs)))


def test_theta_is_in_the_order_of_the_models_own_parameters():
    model, x, y = _setting()
    model = Reordered(*model)
    op = ce.HessianOperator(model, CE, x, y)
    assert op.space.names[0] == "5.bias"
    assert torch.equal(op.snapshot.theta, nn.utils.parameters_to_vector(model.parameters()).detach())
    assert relative(op.gradient, gradient(model, CE, x, y)) < TOL


LABELS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "smooth": {"label_smoothing": 0.3},
    "ignored label in range": {"ignore_index": 1},
    "ignored label absent": {"ignore_index": 3},
    "weights": {"weight": torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)},
}


@pytest.mark.parametrize("options", LABELS)
@pytest.mark.parametrize("n", [1, 256, 257, 300])  # labels are looked at in Python up to 256, by torch beyond
def test_index_targets_of_every_length(n, options):
    model, x, _ = _setting(n)
    y = torch.arange(n).remainder(3).to(torch.uint8 if n == 257 else torch.int64)
    if n == 300:
        y = y.repeat_interleave(2)[::2]  # not contiguous
    loss = nn.CrossEntropyLoss(**LABELS[options])
    op = ce.HessianOperator(model, loss, x, y)
    assert op.explain()[0].name != "(model)"
    assert relative(op.loss, loss(model(x), y).detach()) < TOL
    assert relative(op.gradient, gradient(model, loss, x, y)) < TOL
    assert relative(op.compressed().to_dense(), double_backward(model, loss, x, y)) < TOL


@pytest.mark.parametrize("n", [8, 300])
@pytest.mark.parametrize("wrong", [-1, 3, -100, 2**40])
def test_a_label_that_is_no_class(wrong, n):
    model, x, y = _setting(n)
    y[n // 2] = wrong
    if wrong == CE.ignore_index:
        _agrees(model, CE, x, y)
        return
    with pytest.raises(ValueError, match=r"class indices in \[0, 3\)"):
        ce.HessianOperator(model, CE, x, y)


def test_large_finite_numbers_are_finite():
    """A sum that overflows is not taken for an infinity, nor one of opposite infinities for a number."""
    x = torch.full((4, 6), 3e38)
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.fill_(1e-38)
        model.bias.zero_()
    y = torch.zeros(4, dtype=torch.int64)
    assert ce.HessianOperator(model, CE, x, y).loss.isfinite()
    for bad in ((float("inf"), -float("inf")), (float("nan"), 0.0), (3e38, float("inf"))):
        broken = x.clone()
        broken[0, :2] = torch.tensor(bad)
        with pytest.raises(ce.NonFiniteError, match="x:"):
            ce.HessianOperator(model, CE, broken, y)
        with torch.no_grad():
            kept = model.weight[0, :2].clone()
            model.weight[0, :2] = torch.tensor(bad)
        with pytest.raises(ce.NonFiniteError, match="parameters"):
            ce.HessianOperator(model, CE, x, y)
        with torch.no_grad():
            model.weight[0, :2] = kept


class FrozenFirst(nn.Module):
    """The input of ``c`` and ``d`` is a constant until ``a`` trains."""

    def __init__(self, conv):
        super().__init__()
        self.a = nn.Conv2d(1, 2, 1) if conv else nn.Linear(3, 3)
        self.c = nn.Conv2d(2, 2, 2) if conv else nn.Linear(3, 4)
        self.d = nn.Linear(4 if conv else 8, 3)

    def forward(self, x):
        return self.d(torch.tanh(self.c(torch.tanh(self.a(x)))).flatten(1))


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_constant_inputs_need_no_cotangent(conv):
    torch.manual_seed(0)
    model, (_, x, y) = FrozenFirst(conv).double(), _setting()
    for trains in (True, False, True):
        model.a.requires_grad_(trains)
        _agrees(model, CE, x, y)


def test_operators_in_a_training_loop():
    model, x, y = _setting()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    ops = []
    for _ in range(3):
        _agrees(model, F.cross_entropy, x, y)
        ops.append(ce.HessianOperator(model, CE, x, y))
        opt.zero_grad()
        CE(model(x), y).backward()
        opt.step()
    assert not any(op.snapshot.is_fresh() for op in ops)
    assert all(a.loss > b.loss for a, b in pairwise(ops))
