"""Members of an ensemble do what torch's optimizers do to models of their own."""

import logging

import pytest
import torch
from ensembles import CE, F64, OPTIMIZERS, Alone, batch, deltas, mlp, require_like
from torch import nn
from torch.optim import SGD, Adam

import chaos_ext as ce

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def _run(model, opt, steps=25, batched=False, dtype=F64, **options):
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 3), **options)
    per_member = {k: v for k, v in options.items() if k != "csv"}
    alone = [Alone(model, t, opt, **_of(per_member, i)) for i, t in enumerate(ens.thetas)]
    for t in range(steps):
        batches = [_on(model, batch(5, seed=t + 100 * i * batched, dtype=dtype)) for i in range(4)]
        expected = torch.stack([one.step(*b) for one, b in zip(alone, batches, strict=True)])
        x, y = (torch.stack(parts) for parts in zip(*batches, strict=True)) if batched else batches[0]
        losses = ens.step(x, y, batched=batched)
        torch.testing.assert_close(losses, expected, rtol=TOLERANCE[dtype], atol=1e-12)
    require_like(ens, alone, TOLERANCE[dtype])
    assert ens.steps == steps
    return ens


def _on(model, tensors):
    return tuple(t.to(next(model.parameters()).device) for t in tensors)


def _of(options, i):
    def one(value):
        return float(value[i]) if isinstance(value, torch.Tensor) else value

    return {k: tuple(map(one, v)) if isinstance(v, tuple) else one(v) for k, v in options.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_of_every_optimizer(name, dtype, device):
    cls, options = OPTIMIZERS[name]
    model = mlp(dtype).to(device)
    _run(model, cls(model.parameters(), **options), dtype=dtype)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_that_the_optimizer_has_is_taken_over(name):
    cls, options = OPTIMIZERS[name]
    model = mlp()
    opt = cls(model.parameters(), **options)
    for t in range(3):
        opt.zero_grad()
        CE(model(batch(seed=t)[0]), batch(seed=t)[1]).backward()
        opt.step()
    _run(model, opt, steps=10)


@pytest.mark.parametrize("name", ["sgd", "momentum_all", "adam_all", "amsgrad"])
def test_own_batches(name):
    cls, options = OPTIMIZERS[name]
    model = mlp()
    _run(model, cls(model.parameters(), **options), batched=True)


def test_options_of_sgd_per_member():
    model = mlp()
    given = {
        "lr": torch.tensor([0.1, 0.2, 0.05, 0.0]),
        "momentum": torch.tensor([0.0, 0.9, 0.5, 0.8]),
        "dampening": torch.tensor([0.5, 0.0, 0.3, 0.9]),
        "weight_decay": torch.tensor([0.0, 0.1, 0.2, 0.0]),
    }
    given = {k: v.to(F64) for k, v in given.items()}
    _run(model, SGD(model.parameters(), lr=1.0), **given)


def test_options_of_nesterov_per_member():
    model = mlp()
    _run(
        model, SGD(model.parameters(), lr=0.1, momentum=0.5, nesterov=True), momentum=torch.tensor([0.1, 0.9, 0.5, 0.8])
    )


@pytest.mark.parametrize("name", ["adam_all", "amsgrad", "adamw_all"])
def test_options_of_adam_per_member(name):
    cls, options = OPTIMIZERS[name]
    model = mlp()
    b1, b2 = torch.tensor([0.9, 0.5, 0.0, 0.7], dtype=F64), torch.tensor([0.99, 0.5, 0.9, 0.7], dtype=F64)
    given = {
        "lr": torch.tensor([0.01, 0.02, 0.005, 0.03], dtype=F64),
        "betas": (b1, b2),
        "eps": torch.tensor([1e-8, 1e-3, 1e-2, 1e-4], dtype=F64),
        "weight_decay": torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=F64),
    }
    _run(model, cls(model.parameters(), **options), **given)


def test_adam_without_eps_leaves_nothing_between_the_parameters():
    """0 / 0 in what fills up a row is nobody's divergence."""
    model = mlp()
    ens = _run(model, Adam(model.parameters(), lr=0.01, eps=0.0))
    assert ens.diverged.tolist() == [-1] * 4


def test_parameter_groups():
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.1, "momentum": 0.9}, {"params": [model[2].bias]}]
    _run(model, SGD(groups, lr=0.02, weight_decay=0.1))  # the last weight is not trained at all


def test_a_schedule():
    model = mlp()
    opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 1))
    alone = [Alone(model, t, opt) for t in ens.thetas]
    for t in range(9):
        ens.set_options(lr=0.1 / (t + 1))
        for one in alone:
            one.opt.param_groups[0]["lr"] = 0.1 / (t + 1)
            one.step(*batch(seed=t))
        ens.step(*batch(seed=t))
    require_like(ens, alone, 1e-12)


def test_momentum_may_begin_later():
    model = mlp()
    opt = SGD(model.parameters(), lr=0.1)
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 1))
    alone = [Alone(model, t, opt) for t in ens.thetas]
    for t in range(6):
        ens.set_options(momentum=0.9 if t > 2 else 0.0)
        for one in alone:
            one.opt.param_groups[0]["momentum"] = 0.9 if t > 2 else 0.0
            one.step(*batch(seed=t))
        ens.step(*batch(seed=t))
    require_like(ens, alone, 1e-12)


LOSSES = {
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), "labels"),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), "labels"),
    "weighted": (nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=F64)), "labels"),
    "ignored": (nn.CrossEntropyLoss(ignore_index=1), "labels"),
    "probabilities": (nn.CrossEntropyLoss(), "numbers"),
    "mse": (nn.MSELoss(), "numbers"),
    "mse_sum": (nn.MSELoss(reduction="sum"), "numbers"),
    "bce": (nn.BCEWithLogitsLoss(), "numbers"),
    "own": (lambda z, y: (z.exp().sum(1) - y).square().mean(), "labels"),
}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, batched, caplog):
    caplog.set_level(logging.INFO, "chaos_ext")
    loss_fn, kind = LOSSES[name]
    model = mlp()
    opt = SGD(model.parameters(), lr=0.01)
    ens = ce.Ensemble.around(model, loss_fn, opt, deltas(model, 2))
    alone = [Alone(model, t, opt) for t in ens.thetas]
    for _ in range(5):
        x, y = torch.randn(3, 5, 6, dtype=F64), torch.randint(0, 3, (3, 5))
        y = torch.rand(3, 5, 3, dtype=F64) if kind == "numbers" else y
        if not batched:
            x, y = x[:1].expand_as(x), y[:1].expand_as(y)
        expected = [one.step(a, b, loss_fn) for one, a, b in zip(alone, x, y, strict=True)]
        losses = ens.step(x, y, batched=True) if batched else ens.step(x[0], y[0])
        torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-10, atol=1e-12)
    require_like(ens, alone, 1e-10)
    assert "vmapping" not in caplog.text  # a rule that is wrong would have been found out, and left aside


def test_moving_the_users_model_afterwards_changes_nothing():
    model = mlp()
    ens = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), deltas(model, 1))
    model.float()
    ens.set_options(lr=torch.tensor([0.1, 0.2], dtype=F64))
    before = ens.thetas
    ens.step(*batch())
    assert ens.thetas.dtype == F64
    assert not torch.equal(ens.thetas, before)


def test_the_default_dtype_does_not_matter():
    """Torch's fused Adam counts steps in float32 whatever the default is."""
    torch.set_default_dtype(F64)
    try:
        model = mlp()
        _run(model, Adam(model.parameters(), lr=0.01, betas=(0.8, 0.9)))
    finally:
        torch.set_default_dtype(torch.float32)


class Pair(nn.Module):
    """Two inputs in a dict, of which one is read."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, parts):
        return self.net(parts["a"]) * parts["b"].cos().mean()


def test_batches_of_several_tensors():
    model = Pair()
    opt = SGD(model.parameters(), lr=0.1)
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 2))
    alone = [Alone(model, t, opt) for t in ens.thetas]
    for t in range(4):
        x, y = batch(seed=t)
        parts = {"a": x, "b": x[:, :2]}
        ens.step(parts, y)
        for one in alone:
            one.step(parts, y)
    require_like(ens, alone, 1e-12)
