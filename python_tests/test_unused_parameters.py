"""Parameters whose gradient is not the loss's, unused in this forward or with hooks: as in torch, or refused."""

import copy

import architectures as arch
import cases
import pytest
import torch
from oracles import relative
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW
from training import batches

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
TABLE = {**arch.LAYERS, **arch.GRAPHS, **arch.AUTOMATIC}


def functional(z, t):
    return F.cross_entropy(z, t)


class Branches(nn.Module):
    """One of two middle layers, as the flag says; a head that is computed and dropped; a parameter for nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.left, self.right = nn.Linear(6, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.head, self.out, self.idle = nn.Linear(3, 2), nn.Linear(3, 3), nn.Parameter(torch.ones(2))
        self.use_left = True

    def forward(self, x):
        h = torch.tanh(self.a(x.flatten(1)))
        self.head(h)
        return self.out(torch.tanh((self.left if self.use_left else self.right)(h)))


def _model():
    torch.manual_seed(0)
    return Branches().double()


def _backward(model, x, y):
    model.zero_grad()
    CE(model(x), y).backward()


@pytest.mark.parametrize("loss", [CE, functional], ids=["layers", "functional"])
@pytest.mark.parametrize("left", [True, False])
def test_the_operator_says_what_its_loss_does_not_depend_on(loss, left):
    model, (x, y) = _model(), batches(1)[0]
    model.use_left = left
    op = ce.HessianOperator(model, loss, x, y)
    _backward(model, x, y)
    assert op.unused == {i for i, p in enumerate(op.space.params) if p.grad is None}
    names = {op.space.names[i].partition(".")[0] for i in op.unused}
    assert names == {"idle", "head", "right" if left else "left"}


@pytest.mark.parametrize("name", TABLE)
def test_it_is_what_autograd_gives_no_gradient_for(name):
    make, shape = TABLE[name]
    torch.manual_seed(0)
    model = make().double().eval()
    x, y = torch.randn(3, *shape, dtype=torch.float64), torch.arange(3) % arch.CLASSES
    op = ce.HessianOperator(model, CE, x, y)
    _backward(model, x, y)
    assert op.unused == {i for i, p in enumerate(op.space.params) if p.grad is None}


OPTIONS = [
    {"lr": 0.1, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "dampening": 0.2},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("source", ["operator", "functional", "spectrum", "closure"])
def test_without_pruning_an_unused_layer_is_left_alone_like_by_torch_sgd(source, options):
    model = _model()
    twin = copy.deepcopy(model)
    ours = ce.CGD(model.parameters(), **options, prune=None)
    theirs = SGD(twin.parameters(), **options, foreach=False)
    for t, (x, y) in enumerate(batches(5)):
        model.use_left = twin.use_left = t not in (1, 2)
        op = ce.HessianOperator(model, functional if source == "functional" else CE, x, y)
        for i, p in enumerate(twin.parameters()):
            p.grad = None if i in op.unused else op.gradient[op.space.slice(i)].view(p.shape).clone()
        ours.step(_as(source, op))
        theirs.step()
        for p, q in zip(model.parameters(), twin.parameters()):
            assert torch.equal(p, q)
            a, b = (o.state.get(w, {}).get("momentum_buffer") for o, w in ((ours, p), (theirs, q)))
            assert (a is None and b is None) or torch.equal(a, b)


def _as(source, op):
    return {"spectrum": ce.spectrum, "closure": lambda op: lambda: op}.get(source, lambda op: op)(op)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("loss", [CE, functional], ids=["layers", "functional"])
def test_pruned_steps_leave_an_unused_layer_alone(loss, fixed, options):
    model, (x, y) = _model(), batches(1)[0]
    spectrum = None
    if fixed:  # directions that move the other branch too
        model.use_left = False
        spectrum = ce.spectrum(ce.HessianOperator(model, loss, x, y))
    opt = ce.CGD(model.parameters(), **options, prune="negative", spectrum=spectrum, noise=0.1)
    for left in (True, False, True):
        model.use_left = left
        op = ce.HessianOperator(model, loss, x, y)
        before = [(p.detach().clone(), copy.deepcopy(opt.state.get(p))) for p in model.parameters()]
        opt.step(op)
        assert opt.last_step.pruned > 0
        for i, (p, (value, state)) in enumerate(zip(model.parameters(), before)):
            assert torch.equal(p, value) == (i in op.unused)
            if i in op.unused and state is not None and "momentum_buffer" in state:
                assert torch.equal(opt.state[p]["momentum_buffer"], state["momentum_buffer"])


RUNS = [
    (SGD, {"lr": 0.2, "weight_decay": 0.1}, ()),
    (SGD, {"lr": 0.2, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}, ("momentum_buffer",)),
    (SGD, {"lr": 0.2, "momentum": 0.9, "nesterov": True}, ("momentum_buffer",)),
    (ce.CGD, {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.1, "prune": None}, ("momentum_buffer",)),
    (Adam, {"lr": 0.05, "eps": 1e-3, "betas": (0.7, 0.9), "weight_decay": 0.1}, ("exp_avg", "exp_avg_sq")),
    (AdamW, {"lr": 0.05, "eps": 1e-3, "betas": (0.7, 0.9), "weight_decay": 0.1}, ("exp_avg", "exp_avg_sq")),
]


def _state(model, opt, names):
    parts = list(model.parameters())
    for name in names:
        for p in model.parameters():
            b = opt.state.get(p, {}).get(name)
            parts.append(torch.zeros_like(p) if b is None else b)
    return torch.cat([t.detach().reshape(-1) for t in parts])


def _displaced(model, make, opt, delta, names):
    twin = copy.deepcopy(model)
    other = make(twin)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    parts = list(twin.parameters()) + [other.state.get(p, {}).get(n) for n in names for p in twin.parameters()]
    sizes = [p.numel() for p in twin.parameters()] * (1 + len(names))
    with torch.no_grad():
        for t, d in zip(parts, delta.split(sizes)):
            if t is not None:
                t += d.view(t.shape)
    return twin, other


def _train(model, opt, data, watch=None):
    for left, (x, y) in data:
        model.use_left = left
        op = ce.HessianOperator(model, CE, x, y) if watch or isinstance(opt, ce.CGD) else None
        if watch:
            watch(op)
        if isinstance(opt, ce.CGD):
            opt.step(op)
        else:
            _backward(model, x, y)
            opt.step()


@pytest.mark.parametrize(("cls", "options", "names"), RUNS, ids=str)
def test_the_tangent_of_an_unused_layer_is_the_identity_as_in_real_runs(cls, options, names):
    """Both branches have been used before: their buffers exist, and are carried over the steps without them."""
    model = _model()

    def make(m):
        return cls(m.parameters(), **options)

    opt = make(model)
    data = list(zip([True, False, True, True, False], batches(5)))
    _train(model, opt, data[:2])
    tangent = ce.TangentMap(opt)
    start = _state(model, opt, names)
    P = tangent.parameters
    expected = torch.zeros(tangent.size, tangent.size, dtype=torch.float64)
    for j in range(tangent.size):
        h = 1e-6 if j < 2 * P else 1e-4 * float(start[j])
        ends = []
        for sign in (1, -1):
            delta = torch.zeros(tangent.size, dtype=torch.float64)
            delta[j] = sign * h
            twin, other = _displaced(model, make, opt, delta, names)
            _train(twin, other, data[2:])
            ends.append(_state(twin, other, names))
        expected[:, j] = (ends[0] - ends[1]) / (2 * h) if h else 0.0
    Y = torch.eye(tangent.size, dtype=torch.float64)
    _train(model, opt, data[2:], lambda op: tangent.apply_(op, Y))
    # A parameter that was never used has no buffer to displace.
    known = expected.norm(dim=0) > 0
    Y, expected = Y[:, known], expected[:, known]
    columns = expected.norm(dim=0)
    Y, expected = Y / columns, expected / columns
    rows = expected.norm(dim=1, keepdim=True).clamp_min(1e-3 / len(expected) ** 0.5)
    assert relative(Y / rows, expected / rows) < 1e-6


def test_an_analyzer_sees_neutral_directions_where_nothing_is_trained():
    model, (x, y) = _model(), batches(1)[0]
    opt = SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    analyzer = ce.LyapunovAnalyzer(model, opt)
    for _ in range(20):
        analyzer.update(ce.HessianOperator(model, CE, x, y))
        _backward(model, x, y)
        opt.step()
    idle = sum(p.numel() for p in (model.idle, *model.head.parameters(), *model.right.parameters()))
    assert int((analyzer.exponents().abs() < 1e-12).sum()) >= idle


HOOKS = {
    "mask": lambda p: p.register_hook(lambda g: g * 0),
    "log": lambda p: p.register_hook(lambda g: None),
    "post": lambda p: p.register_post_accumulate_grad_hook(lambda p: p.grad.zero_()),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("prune", [None, "negative"])
def test_gradient_hooks_are_refused_by_name_until_they_are_removed(hook, prune):
    model, (x, y) = cases.mlp(2, "tanh"), batches(1)[0]
    handle = HOOKS[hook](model[3].weight)
    opt = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, prune=prune)
    op = ce.HessianOperator(model, CE, x, y)
    before = [p.detach().clone() for p in model.parameters()]
    tangent = ce.TangentMap(SGD(model.parameters(), lr=0.1))
    Y = tangent.start(op, k=2)
    for use in (lambda: opt.step(op), lambda: opt.step(ce.spectrum(op)), lambda: tangent.apply_(op, Y)):
        with pytest.raises(ce.UnsupportedError, match=r"3\.weight.*hooks"):
            use()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    assert torch.equal(Y, tangent.start(op, k=2))
    handle.remove()
    opt.step(op)
    assert opt.steps == 1


def test_gradient_hooks_are_in_grad_where_the_step_uses_that():
    model, (x, y) = cases.mlp(2, "tanh"), batches(1)[0]
    twin = copy.deepcopy(model)
    for m in (model, twin):
        m[3].weight.register_hook(lambda g: g * 0)
    spectrum = ce.spectrum(ce.HessianOperator(model, CE, x, y))
    ours = ce.CGD(model.parameters(), lr=0.1, prune="negative", stop=0, spectrum=spectrum)
    theirs = SGD(twin.parameters(), lr=0.1, foreach=False)
    for m, o in ((model, ours), (twin, theirs)):
        CE(m(x), y).backward()
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))
