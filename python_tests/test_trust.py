"""Torch's second derivatives are not believed: wrong ones are refused or replaced, in every engine.

The oracle is differences of gradients in float64, without any second derivative of torch's.
"""

import logging
import threading
import time

import pytest
import torch
from oracles import double_backward, relative
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


def differences(model, loss_fn, x, y, h=1e-4):
    """H [P, P] from gradients alone."""
    params = list(model.parameters())
    theta = nn.utils.parameters_to_vector(params).detach().clone()

    def at(shifted):
        nn.utils.vector_to_parameters(shifted, params)
        parts = torch.autograd.grad(loss_fn(model(x), y), params, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(parts, params)])

    def central(step):
        return torch.stack([(at(theta + step * e) - at(theta - step * e)) / (2 * step) for e in torch.eye(len(theta))])

    try:
        return (4 * central(h / 2) - central(h)) / 3
    finally:
        nn.utils.vector_to_parameters(theta, params)


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def _batch():
    torch.manual_seed(1)
    return torch.randn(6, 4), torch.randint(3, (6,))


GROUPS = torch.tensor([0, 0, 1, 1, 2, 2])
PAIRS = GROUPS.unsqueeze(1).expand(6, 3)
# Losses on which one of torch's two ways is wrong, or fails, at a point like any other; the other has to be found.
RIGHT = {
    "scatter_reduce prod": lambda o, t: torch.scatter_reduce(torch.ones(3, 3), 0, PAIRS, o, "prod").pow(2).sum(),
    "scatter_reduce prod alone": lambda o, t: (
        torch.zeros(3, 3).scatter_reduce(0, PAIRS, o, "prod", include_self=False).exp().sum()
    ),
    "index_reduce prod": lambda o, t: torch.ones(3, 3).index_reduce(0, GROUPS, o, "prod").pow(2).sum(),
    "index_reduce mean": lambda o, t: torch.ones(3, 3).index_reduce(0, GROUPS, o, "mean").pow(3).sum(),
    "cdist": lambda o, t: torch.cdist(o, torch.ones(2, 3)).pow(2).sum(),
    "pdist": lambda o, t: torch.pdist(o).pow(3).sum(),
    "huber": lambda o, t: F.huber_loss(o, torch.ones_like(o)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_way_that_is_right_is_found(name):
    model, (x, y) = _mlp(), _batch()
    H = differences(model, RIGHT[name], x, y)
    for _ in range(2):  # the second operator knows the program
        op = ce.HessianOperator(model, RIGHT[name], x, y)
        assert relative(op @ torch.eye(len(H)), H) < 1e-7
        assert relative(op.dense(), H) < 1e-7


# Losses that are smooth at y = model(x), where both of torch's ways are wrong or NaN.
WRONG = {
    "exp(-norm^2)": lambda o, t: torch.exp(-((o - t).norm() ** 2)),
    "norms of rows": lambda o, t: torch.linalg.vector_norm(o - t, dim=1).pow(2).sum(),
    "cdist": lambda o, t: torch.cdist(o, t).diagonal().pow(2).sum(),
    "dist": lambda o, t: torch.dist(o, t) ** 2,
    "std": lambda o, t: (o - t).std() ** 2,
    "abs": lambda o, t: (o - t).abs().pow(2).mean(),
    "abs of complex": lambda o, t: torch.fft.rfft(o - t).abs().pow(2).sum(),
    "sqrt": lambda o, t: ((o - t) ** 2).sqrt().pow(2).sum(),
    "hypot": lambda o, t: torch.hypot(o - t, torch.zeros(())).pow(2).sum(),
    "sinc": lambda o, t: torch.sinc(o - t).sum(),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_point_where_torch_is_wrong_is_refused_although_the_program_is_known(name):
    model, (x, _) = _mlp(), _batch()
    y = model(x).detach()
    ce.hessian(model, WRONG[name], x, y + 0.3 * torch.randn(y.shape))
    for use in (ce.HessianOperator.dense, lambda op: op @ torch.ones(op.shape[0])):
        with pytest.raises(ce.ChaosExtError, match=r"hessian|gradient is NaN"):
            use(ce.HessianOperator(model, WRONG[name], x, y))


def test_a_fitted_batch_is_not_taken_for_a_fault():
    model, (x, _) = _mlp(), _batch()
    y = model(x).detach()
    assert ce.hessian(model, lambda o, t: ((o - t) ** 4).mean(), x, y).abs().max() < 1e-12
    H = ce.hessian(model, lambda o, t: ((o - t) ** 2).mean(), x, y)
    assert relative(H, double_backward(model, nn.MSELoss(), x, y)) < 1e-10


class Kept(torch.autograd.Function):
    """Right gradients; its backward keeps a tensor on ctx that carries no graph."""

    @staticmethod
    def forward(ctx, a):
        ctx.a = a.detach().clone()
        return a**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.a**2 * g


class Detached(Kept):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * g


class Once(Detached):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Right(Detached):
    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Linear(4, 5), nn.Linear(5, 3), function

    def forward(self, x):
        return self.b(self.function.apply(self.a(x)))


LOSSES = {"layers": CE, "whole": lambda o, t: F.cross_entropy(o, t), "linear": lambda o, t: o.sum()}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("function", [Kept, Detached, Once])
def test_a_function_without_second_derivative_is_named(function, loss):
    model, (x, y) = Custom(function), _batch()
    for _ in range(2):
        op = ce.HessianOperator(model, LOSSES[loss], x, y)
        with pytest.raises(ce.ChaosExtError, match=function.__name__):
            op.dense()
        with pytest.raises(ce.ChaosExtError, match=function.__name__):
            op @ op.gradient
    with pytest.raises(ce.ChaosExtError, match=function.__name__):
        ce.HessianOperator(model, LOSSES[loss], x, y, verify=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_function_with_its_derivatives_is_used(loss):
    model, (x, y) = Custom(Right), _batch()
    H = ce.HessianOperator(model, LOSSES[loss], x, y, verify=True).dense()
    assert relative(H, double_backward(model, LOSSES[loss], x, y)) < 1e-10


@pytest.mark.parametrize("function", [Kept, Detached, Once])
def test_verify_does_not_compare_torch_with_torch(function, monkeypatch):
    """Even if nothing else looks."""
    model, (x, y) = Custom(function), _batch()
    monkeypatch.setattr("chaos_ext.curvature.functional.choose_path", lambda engine, program: engine.path)
    with pytest.raises(ce.ChaosExtError):
        ce.HessianOperator(model, LOSSES["whole"], x, y, verify=True)


class Checkpointed(nn.Module):
    def __init__(self, where, reentrant):
        super().__init__()
        self.layers, self.where, self.reentrant = _mlp(), where, reentrant

    def forward(self, x):
        if self.where == "all":
            return checkpoint(self.layers, x, use_reentrant=self.reentrant)
        for i, layer in enumerate(self.layers):
            x = checkpoint(layer, x, use_reentrant=self.reentrant) if i == self.where else layer(x)
        return x


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("loss", ["layers", "whole"])
@pytest.mark.parametrize("where", [0, 1, 2, "all"])
def test_checkpoints_are_exact_or_refused_with_what_works(where, loss):
    x, y = _batch()
    model = Checkpointed(where, False)
    op = ce.HessianOperator(model, LOSSES[loss], x, y, verify=True)
    assert relative(op.dense(), differences(_mlp(), CE, x, y)) < 1e-7
    with pytest.raises(ce.UnsupportedError, match="use_reentrant=False"):
        ce.HessianOperator(Checkpointed(where, True), LOSSES[loss], x, y)


class Stopped(nn.Module):
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.how = nn.Linear(4, 5), nn.Linear(5, 3), how

    def forward(self, x):
        h = self.a(x).tanh()
        return self.b(h) * (1 + self.how(h).mean())


def _in_no_grad(h):
    with torch.no_grad():
        return h.exp() * 2


STOPS = {"detach": lambda h: h.detach().exp(), "no_grad": _in_no_grad, "data": lambda h: h.data**2}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("loss", ["layers", "whole"])
def test_gradients_that_are_stopped_on_purpose_stay_stopped(stop, loss):
    model, (x, y) = Stopped(STOPS[stop]), _batch()
    try:
        H = ce.HessianOperator(model, LOSSES[loss], x, y, verify=True).dense()
    except ce.ChaosExtError as e:
        assert "symmetric" in str(e)  # noqa: PT017 - a stopped gradient is no gradient of anything, and may have no H
    else:
        H_ref = double_backward(model, LOSSES[loss], x, y)
        assert relative(H, (H_ref + H_ref.T) / 2) < 1e-10
        assert relative(H_ref, H_ref.T) < 1e-8


def test_the_choice_is_logged(caplog):
    model, (x, y) = _mlp(), _batch()
    with caplog.at_level(logging.WARNING, "chaos_ext"):
        ce.hessian(model, RIGHT["scatter_reduce prod"], x, y)
    assert "jvp of grad is wrong here" in caplog.text
    assert "double backward" in caplog.text


def test_single_precision_is_checked_in_double(caplog):
    model, (x, y) = _mlp().float(), _batch()
    loss = lambda o, t: torch.scatter_reduce(torch.ones(3, 3).to(o), 0, PAIRS, o, "prod").pow(2).sum()  # noqa: E731
    H = ce.hessian(model, loss, x.float(), y)
    assert relative(H.double(), differences(model.double(), loss, x, y)) < 1e-5
    with pytest.raises(ce.ChaosExtError, match="Kept"):
        ce.hessian(Custom(Kept).float(), LOSSES["whole"], x.float(), y)


def test_four_threads_on_four_models():
    """torch.func.jvp nests in one variable for all threads: without turns, one in ten of these H is zero."""
    x, y = _batch()
    models = [nn.Sequential(nn.Linear(4, 4 + i), nn.Tanh(), nn.Linear(4 + i, 3)) for i in range(4)]
    expected = [double_backward(m, LOSSES["whole"], x, y) for m in models]
    wrong, done, end = [], [0] * 4, time.monotonic() + 3

    def work(i):
        while time.monotonic() < end:
            H = ce.hessian(models[i], LOSSES["whole"], x, y)
            done[i] += 1
            if not relative(H, expected[i]) < 1e-10:
                wrong.append((i, float(H.abs().max())))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert min(done) > 5
