"""Gradients that are not derivatives: H is the derivative of torch's gradient, and says so, or is refused by name.

The oracle is differences of torch's gradients in float64; the loss's own Hessian it is not.
"""

import copy
import logging

import differences
import fingerprints
import pytest
import torch
from oracles import relative
from torch import nn
from torch.utils.checkpoint import checkpoint

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
LOSSES = {"rules": CE, "torch": lambda o, t: nn.functional.cross_entropy(o, t) + (o**4).mean()}


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, a):
        return a.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class Reverse(torch.autograd.Function):
    """The gradient reversal of domain-adversarial training."""

    @staticmethod
    def forward(ctx, a):
        return a.clone()

    @staticmethod
    def backward(ctx, g):
        return -0.5 * g


class Clip(torch.autograd.Function):
    """Clips the gradient that comes back."""

    @staticmethod
    def forward(ctx, a):
        return a.clone()

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.05, 0.05)


class Cube(torch.autograd.Function):
    """Right in both derivatives."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Net(nn.Module):
    """Two layers, with something done between them."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Linear(4, 5), nn.Linear(5, 3), between

    def forward(self, x):
        return self.b(self.between(torch.tanh(self.a(x))))


def _hooked(hook):
    def between(h):
        if h.requires_grad:
            h.register_hook(hook)
        return h * 1.0

    return between


def _fake_quantize(h):
    return torch.fake_quantize_per_tensor_affine(h.float(), 0.1, 0, -128, 127).double()


def _beside_a_constant(h):
    return Sign.apply(h) * h.detach().exp()


SURROGATES = {
    "straight-through": (Sign.apply, "Sign"),
    "reversal": (Reverse.apply, "Reverse"),
    "clip": (Clip.apply, "Clip"),
    "hook that scales": (_hooked(lambda g: 0.5 * g), "register_hook"),
    "hook that clips": (_hooked(lambda g: g.clamp(-0.05, 0.05)), "register_hook"),
    "fake_quantize": (_fake_quantize, "fake_quantize"),
    "beside a constant": (_beside_a_constant, "Sign"),
}


def _batch(scale=1.0):
    torch.manual_seed(1)
    return scale * torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3


def _gradient(model, loss, x, y):
    parts = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    return torch.cat([g.reshape(-1) for g in parts])


def _assert_refused(model, loss, x, y, name):
    expected = _gradient(model, loss, x, y)
    before = fingerprints.of_model(model), fingerprints.of_process()
    for _ in range(2):  # the second one knows the program
        op = ce.HessianOperator(model, loss, x, y)
        assert relative(op.gradient, expected) < 1e-12
        for use in (lambda op: op @ op.gradient, ce.HessianOperator.dense, ce.spectrum):
            with pytest.raises(ce.UnsupportedError, match=f"not the derivative of the loss.*{name}"):
                use(op)
    with pytest.raises(ce.UnsupportedError, match=name):
        ce.HessianOperator(model, loss, x, y, verify=True)
    assert not fingerprints.changes(before[0], fingerprints.of_model(model))
    assert not fingerprints.changes(before[1], fingerprints.of_process())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SURROGATES)
def test_a_gradient_that_is_no_derivative_has_no_hessian(name, loss):
    between, named = SURROGATES[name]
    model, (x, y) = Net(between).double(), _batch()
    J = differences.of_gradients(model, LOSSES[loss], x, y)
    assert relative(J, J.T) > 1e-3  # and torch's second derivative is symmetric
    _assert_refused(model, LOSSES[loss], x, y, named)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_hook_of_a_module(loss):
    model, (x, y) = Net(nn.Identity()).double(), _batch()
    model.between.register_full_backward_hook(lambda m, given, came: tuple(0.5 * g for g in given))
    _assert_refused(model, LOSSES[loss], x, y, "BackwardHookFunction")


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(4, 3, scale_grad_by_freq=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.words(x)).mean(1))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_by_frequency(loss):
    x = torch.tensor([[0, 0, 1], [2, 2, 2], [3, 1, 0]])
    _assert_refused(Words().double(), LOSSES[loss], x, torch.arange(3), "scale_grad_by_freq")


@pytest.mark.parametrize("name", ["straight-through", "hook that clips"])
@pytest.mark.parametrize("loss", LOSSES)
def test_training_without_hessians_goes_on(name, loss):
    model, (x, y) = Net(SURROGATES[name][0]).double(), _batch()
    twin = copy.deepcopy(model)
    ours = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, prune=None)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, foreach=False, fused=False)
    for _ in range(3):
        ours.step(ce.HessianOperator(model, LOSSES[loss], x, y))
        theirs.zero_grad()
        LOSSES[loss](twin(x), y).backward()
        theirs.step()
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


SYMMETRIC = {
    "reversed loss": (nn.Identity(), lambda o, t: Reverse.apply(CE(o, t))),
    "hook of the loss": (nn.Identity(), lambda o, t: _hooked(lambda g: 3.0 * g)(CE(o, t) * 1.0)),
    "reversed output, linear loss": (nn.Identity(), lambda o, t: Reverse.apply(o).sum()),
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_a_symmetric_one_is_used_and_named(name, caplog):
    between, loss = SYMMETRIC[name]
    model, (x, y) = Net(between).double(), _batch()
    J = differences.of_gradients(model, loss, x, y)
    with caplog.at_level(logging.WARNING, "chaos_ext"):
        for _ in range(2):
            op = ce.HessianOperator(model, loss, x, y, verify=True)
            assert relative(op.dense(), J) < 1e-7
    assert caplog.text.count("not the loss's Hessian") == 1


def _watching(seen):
    return _hooked(lambda g: seen.append(1))


def _with_statistics(h):
    _with_statistics.mean = float(h.mean())
    return Cube.apply(h) + 0.0 * h.detach().sum()


HARMLESS = {
    "right Function": Cube.apply,
    "hook that looks": _hooked(lambda g: None),
    "clip out of reach": _hooked(lambda g: g.clamp(-1e3, 1e3)),
    "right Function beside statistics": _with_statistics,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_matter_is_used_without_a_word(name, loss, caplog):
    model, (x, y) = Net(HARMLESS[name]).double(), _batch()
    with caplog.at_level(logging.WARNING, "chaos_ext"):
        H = ce.HessianOperator(model, LOSSES[loss], x, y, verify=True).dense()
    assert relative(H, differences.of_gradients(model, LOSSES[loss], x, y)) < 1e-7
    assert "is not the derivative" not in caplog.text


@pytest.mark.parametrize("loss", LOSSES)
def test_a_clip_that_another_batch_reaches(loss):
    """The program is the same; whether its gradient is the derivative has to be asked every time."""
    model = Net(_hooked(lambda g: g.clamp(-0.2, 0.2))).double()
    x, y = _batch()
    near, far = (x, y), (x, (y + 1) % 3)
    with torch.no_grad():
        model.b.weight.mul_(20.0)
    good = Net(nn.Identity()).double()
    good.load_state_dict(model.state_dict())
    h = torch.tanh(model.a(x))
    reach = [
        torch.autograd.grad(LOSSES[loss](model.b(t), b[1]), t)[0].abs().max() for b in (near, far) for t in [h * 1]
    ]
    low, high = sorted(float(r) for r in reach)
    model.between = _hooked(lambda g: g.clamp(-(low + high) / 2, (low + high) / 2))
    batches = (near, far) if reach[0] < reach[1] else (far, near)
    for _ in range(2):
        H = ce.hessian(model, LOSSES[loss], *batches[0])
        assert relative(H, ce.hessian(good, LOSSES[loss], *batches[0])) < 1e-9
        with pytest.raises(ce.UnsupportedError, match="register_hook"):
            ce.hessian(model, LOSSES[loss], *batches[1])


def _detached_estimator(h):
    return h + (h.sign() - h).detach()


def _target(h):
    with torch.no_grad():
        target = torch.tanh(3 * h)
    return h * target


CONSTANTS = {"detached estimator": _detached_estimator, "target": _target, "data": lambda h: h * h.data.exp()}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_stay_constants_and_are_named_where_they_matter(name, loss, caplog):
    """H is that of the loss in which they do not move: differences of gradients with the constants of this theta."""
    model, (x, y) = Net(CONSTANTS[name]).double(), _batch()
    with caplog.at_level(logging.WARNING, "chaos_ext"):
        H = ce.HessianOperator(model, LOSSES[loss], x, y, verify=True).dense()
    h = torch.tanh(model.a(x)).detach()
    held = {
        "detached estimator": lambda t: t + (h.sign() - h),
        "target": lambda t: t * torch.tanh(3 * h),
        "data": lambda t: t * h.exp(),
    }
    still = copy.deepcopy(model)
    still.between = held[name]
    assert relative(H, differences.of_gradients(still, LOSSES[loss], x, y)) < 1e-7
    if loss == "torch":
        assert "is a constant" in caplog.text


class Counting(nn.Module):
    """Computes something else when the backward runs it again."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, h):
        return checkpoint(self._count, h, use_reentrant=False)

    def _count(self, h):
        self.calls += 1
        return torch.tanh(h * self.calls) * h.detach().exp()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_wrong_gradient_is_found_beside_constants(loss):
    model, (x, y) = Net(Counting()).double(), _batch()
    with pytest.raises(ce.ChaosExtError, match="not the derivative of the loss"):
        ce.hessian(model, LOSSES[loss], x, y)


@pytest.mark.parametrize("name", ["straight-through", "hook that scales"])
def test_single_precision(name):
    between, named = SURROGATES[name]
    model, (x, y) = Net(between), _batch()
    _assert_refused_single(model, x.float(), y, named)


def _assert_refused_single(model, x, y, named):
    with pytest.raises(ce.UnsupportedError, match=named):
        ce.hessian(model, LOSSES["torch"], x, y)


def _observing(m):
    m.between.register_full_backward_hook(lambda m, given, came: None)


def _observing_before(m):
    m.between.register_full_backward_pre_hook(lambda m, came: None)


class _Same(torch.autograd.Function):
    """Returns its very input, which torch replaces by a view."""

    @staticmethod
    def forward(ctx, a):
        return a

    @staticmethod
    def backward(ctx, g):
        return g


class _Applied(nn.Module):
    def forward(self, a):
        return _Same.apply(a)


OBSERVED = {"hook": _observing, "before": _observing_before, "function": lambda m: setattr(m, "between", _Applied())}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", OBSERVED)
def test_what_only_looks_at_gradients_is_no_surrogate(name, loss, caplog):
    model, (x, y) = Net(nn.Identity()).double(), _batch()
    J = differences.of_gradients(model, LOSSES[loss], x, y)
    OBSERVED[name](model)
    assert relative(ce.HessianOperator(model, LOSSES[loss], x, y, verify=True).dense(), J) < 1e-6
    assert "not the derivative" not in caplog.text
