"""Edges of stability against real runs of torch's optimizers on quadratics, just below and just above."""

import math

import pytest
import torch
from oracles import double_backward, gradient
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from training import CE, batches, small_model, take_step

import chaos_ext as ce
from chaos_ext.metrics import preconditioned
from chaos_ext.metrics.preconditioned import preconditioner

MSE = nn.MSELoss()


def _quadratic():
    """A linear model whose loss is an exact quadratic in three coupled parameters, and its batch."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.2, 0.1]]))
    return model, x, model(x).detach()


def _frozen(opt, p, amsgrad):
    """A state so late and so slow that the preconditioner stays as it is: the step is a linear map."""
    v = torch.tensor([[4.0, 1.0, 0.25]], dtype=torch.float64)
    zeros = torch.zeros_like(v)
    opt.state[p] = {"step": torch.tensor(1e15), "exp_avg": zeros.clone(), "exp_avg_sq": zeros if amsgrad else v}
    if amsgrad:
        opt.state[p]["max_exp_avg_sq"] = v.clone()


def _growth(make, steps):
    """ln of how much two runs of the optimizer part, from a small displacement: of their linear map."""
    thetas = []
    for displaced in (0.0, 1e-6):
        model, x, y = _quadratic()
        with torch.no_grad():
            model.weight.add_(displaced * torch.tensor([[1.0, 2.0, -1.0]]))
        opt = make(model)
        sign = -1.0 if opt.param_groups[0]["maximize"] else 1.0
        for _ in range(steps):
            opt.zero_grad()
            (sign * MSE(model(x), y)).backward()
            opt.step()
        thetas.append(model.weight.detach().clone())
    return math.log(max(float((thetas[1] - thetas[0]).norm()), 1e-300) / 1e-6)


SGD_OPTIONS = [
    {},
    {"weight_decay": 0.3},
    {"momentum": 0.8},
    {"momentum": 0.8, "dampening": 0.4, "weight_decay": 0.3},
    {"momentum": 0.8, "nesterov": True},
]
ADAM_OPTIONS = [
    (Adam, {}),
    (Adam, {"betas": (0.5, 1 - 1e-12)}),
    (Adam, {"weight_decay": 0.3}),
    (Adam, {"amsgrad": True}),
    (Adam, {"maximize": True}),
    (AdamW, {"weight_decay": 0.2}),
    (AdamW, {"weight_decay": 0.2, "betas": (0.3, 1 - 1e-12), "amsgrad": True}),
]


@pytest.mark.parametrize("options", SGD_OPTIONS)
def test_sgd_is_stable_just_below_and_diverges_just_above(options):
    model, x, y = _quadratic()
    op = ce.HessianOperator(model, MSE, x, y)
    # The threshold is a constant over lr: lr at the edge follows from any other lr.
    lr = 1e-3 / ce.distance_to_threshold(op, SGD(model.parameters(), lr=1e-3, **options)).ratio
    assert ce.distance_to_threshold(op, SGD(model.parameters(), lr=lr, **options)).ratio == pytest.approx(1)
    for factor, stable in ((0.99, True), (1.01, False)):
        growth = _growth(lambda m, lr=lr, f=factor: SGD(m.parameters(), lr=f * lr, **options), 1500)
        assert (growth < -3) if stable else (growth > 3)


@pytest.mark.parametrize(("cls", "options"), ADAM_OPTIONS)
def test_adam_is_stable_just_below_and_diverges_just_above(cls, options):
    options = {"betas": (0.9, 1 - 1e-12), **options}
    descending = -1.0 if options.get("maximize") else 1.0

    def make(model, lr):
        opt = cls(model.parameters(), lr=lr, **options)
        _frozen(opt, model.weight, options.get("amsgrad", False))
        return opt

    def ratio(lr):
        model, x, y = _quadratic()
        op = ce.HessianOperator(model, lambda out, target: descending * MSE(out, target), x, y)
        return ce.distance_to_threshold(op, make(model, lr)).ratio

    low, high = 1e-3, 1e2  # the edge of AdamW bends with lr
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if ratio(middle) < 1 else (low, middle)
    assert ratio(low) == pytest.approx(1, rel=1e-9)
    for factor, stable in ((0.995, True), (1.005, False)):
        growth = _growth(lambda m, f=factor: make(m, f * low), 300)
        assert (growth < -3) if stable else (growth > 3)


def test_edges_in_numbers():
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    assert ce.distance_to_threshold(1.0, Adam([p], lr=1e-3)).threshold == pytest.approx(38e3)
    assert ce.distance_to_threshold(1.0, AdamW([p], lr=0.1, weight_decay=0.5)).threshold == pytest.approx(19 * 19.5)
    assert ce.distance_to_threshold(1.0, Adam([p], lr=0.0)).ratio == 0.0
    heavy = SGD([p], lr=0.1, momentum=0.9)
    assert ce.distance_to_threshold(1.0, heavy).threshold == pytest.approx(38)
    assert ce.distance_to_threshold(1.0, heavy, "large_batch").threshold == pytest.approx(38)
    assert ce.distance_to_threshold(1.0, heavy, "small_batch").threshold == pytest.approx(2)
    assert ce.distance_to_threshold(1.0, SGD([p], lr=0.1), "small_batch").threshold == pytest.approx(20)
    # Dampening d scales the gradient of the recurrence: the run is that of lr (1 - d) without.
    damped = SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
    assert ce.distance_to_threshold(1.0, damped, "small_batch").threshold == pytest.approx(4)


OPTIONS = [
    (Adam, {}),
    (Adam, {"weight_decay": 0.3, "eps": 1e-2}),
    (Adam, {"amsgrad": True, "betas": (0.6, 0.5)}),
    (Adam, {"maximize": True, "weight_decay": 0.1}),
    (AdamW, {"weight_decay": 0.3, "betas": (0.8, 0.9)}),
]


@pytest.mark.parametrize("done", [0, 1, 5])
@pytest.mark.parametrize(("cls", "options"), OPTIONS)
def test_the_preconditioner_is_that_of_torch_s_next_step(cls, options, done, monkeypatch):
    """P = -lr m' / (theta' - theta) of the real step, and eigenvalues of P^-1 H by dense linear algebra."""
    model, lr = small_model(), 0.01
    opt = cls(model.parameters(), lr=lr, **{"eps": 1e-3, **options})
    data = batches(done + 1)
    for x, y in data[:done]:
        take_step(model, opt, x, y)
    x, y = data[done]
    op = ce.HessianOperator(model, CE, x, y)
    found, sharpness = preconditioner(op, opt), ce.preconditioned_sharpness(op, opt)
    monkeypatch.setattr(preconditioned, "_DENSE", 0)
    assert ce.preconditioned_sharpness(op, opt) == pytest.approx(sharpness, rel=1e-8)
    w, sign = options.get("weight_decay", 0.0), -1.0 if options.get("maximize") else 1.0
    K = sign * double_backward(model, CE, x, y) + (w if cls is Adam else 0) * torch.eye(len(found), dtype=torch.float64)
    assert sharpness == pytest.approx(float(torch.linalg.eigvals(K / found.unsqueeze(1)).real.max()), rel=1e-8)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    take_step(model, opt, x, y)
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    moved = moved + lr * w * before if cls is AdamW else moved
    m = torch.cat([opt.state[p]["exp_avg"].flatten() for p in model.parameters()])
    assert torch.allclose(found * moved, -lr * m, rtol=1e-9, atol=1e-15)


def test_parameters_without_gradient_are_no_direction():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 1, bias=False).double(), nn.Linear(2, 1, bias=False).double()

        def forward(self, x):
            return self.used(x)

    model = Half()
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double(), torch.zeros(2, 1).double()
    opt = Adam(model.parameters(), lr=0.1, eps=0.0, weight_decay=50.0)
    op = ce.HessianOperator(model, MSE, x, y)
    P = preconditioner(op, opt)[:2]
    K = torch.diag(torch.tensor([1.0, 4.0]).double()) + 50 * torch.eye(2)
    assert ce.preconditioned_sharpness(op, opt) == pytest.approx(float((K.diagonal() / P).max()))


def test_refusals_name_what_is_wrong():
    model, x, y = _quadratic()
    op = ce.HessianOperator(model, MSE, x, y)
    p, q = model.weight, nn.Parameter(torch.zeros(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="regime: expected one of"):
        ce.distance_to_threshold(op, SGD([p], lr=0.1), "tiny")
    with pytest.raises(ce.UnsupportedError, match=r"small_batch.*nesterov"):
        ce.distance_to_threshold(op, SGD([p], lr=0.1, momentum=0.9, nesterov=True), "small_batch")
    with pytest.raises(ce.UnsupportedError, match=r"small_batch.*Adam"):
        ce.distance_to_threshold(op, Adam([p]), "small_batch")
    with pytest.raises(ce.UnsupportedError, match="give the HessianOperator"):
        ce.distance_to_threshold(ce.spectrum(op), Adam([p]))
    with pytest.raises(ce.UnsupportedError, match="RMSprop"):
        ce.distance_to_threshold(op, RMSprop([p]))
    with pytest.raises(ce.UnsupportedError, match="RMSprop"):
        ce.preconditioned_sharpness(op, RMSprop([p]))
    with pytest.raises(ce.UnsupportedError, match="different lr"):
        ce.distance_to_threshold(op, Adam([{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.2}]))
    groups = [{"params": [p]}, {"params": [q], "betas": (0.5, 0.9)}]
    with pytest.raises(ce.UnsupportedError, match="different betas"):
        ce.distance_to_threshold(op, Adam(groups, lr=0.1))
    with pytest.raises(ValueError, match="not the optimizer's"):
        ce.distance_to_threshold(op, Adam([q]))
    with pytest.raises(ValueError, match="preconditioner is zero for 3"):
        ce.distance_to_threshold(op, Adam([p], eps=0.0))
    with pytest.raises(TypeError, match="op: expected a HessianOperator"):
        ce.preconditioned_sharpness(ce.spectrum(op), Adam([p]))
    bad = Adam([p])
    bad.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr: expected a finite"):
        ce.distance_to_threshold(op, bad)


def test_operator_and_optimizer_are_left_as_they_were():
    model = small_model()
    opt = Adam(model.parameters(), lr=0.01)
    x, y = batches(1)[0]
    take_step(model, opt, x, y)
    before = [t.clone() for s in opt.state.values() for t in s.values()]
    grads = [p.grad.clone() for p in model.parameters()]
    op = ce.HessianOperator(model, CE, x, y)
    ce.distance_to_threshold(op, opt)
    assert all(map(torch.equal, before, (t for s in opt.state.values() for t in s.values())))
    assert all(map(torch.equal, grads, (p.grad for p in model.parameters())))
    assert torch.allclose(op.gradient, gradient(model, CE, x, y))
