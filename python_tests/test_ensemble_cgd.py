"""CGD on an Ensemble: every member does what CGD does to it alone, and what the formula says."""

import copy
from typing import Any

import pytest
import torch
from ensembles import CE, F64, batch, deltas, mlp
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import chaos_ext as ce

B, STEPS = 3, 4

# Every set and option that CGD has, and an ensemble takes.
OPTIONS: dict[str, dict[str, Any]] = {
    "chaotic": {"lr": 0.1},
    "chaotic_k": {"lr": 0.1, "k": 3},
    "chaotic_by_optimizer": {"lr": 0.4, "momentum": 0.5, "weight_decay": 0.1, "threshold": "optimizer"},
    "negative": {"lr": 0.1, "prune": "negative"},
    "negative_some": {"lr": 0.1, "prune": "negative", "k": 4, "mix": 0.5, "momentum": 0.9},
    "positive_all": {
        "lr": 0.05,
        "prune": "positive",
        "momentum": 0.9,
        "dampening": 0.3,
        "weight_decay": 0.1,
        "maximize": True,
    },
    "nesterov": {"lr": 0.05, "prune": "negative", "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    "dominant": {"lr": 0.1, "prune": "dominant", "k": 2},
    "bulk": {"lr": 0.1, "prune": "bulk", "k": 2, "mix": 0.7, "momentum": 0.9},
    "for_a_while": {"lr": 0.1, "prune": "negative", "start": 1, "stop": 3},
    "random": {"lr": 0.1, "prune": "negative", "k": 3, "order": "random"},
    "noise": {"lr": 0.1, "prune": "negative", "mix": 0.0, "noise": 0.1},
    "bulk_noise": {"lr": 0.1, "prune": "bulk", "k": 2, "noise": 0.1},
    "none": {"lr": 0.1, "prune": "negative", "k": 0},
}


def seeds() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(B)]


class Alone:
    """B separate runs of CGD."""

    def __init__(
        self, model: nn.Module, thetas: Tensor, options: dict[str, Any], per_member: dict[str, Tensor]
    ) -> None:
        self.models = [copy.deepcopy(model) for _ in thetas]
        self.opts = []
        for i, (own, theta, generator) in enumerate(zip(self.models, thetas, seeds(), strict=False)):
            vector_to_parameters(theta.clone(), own.parameters())
            mine = {n: float(v[i]) for n, v in per_member.items()}
            self.opts.append(ce.CGD(own.parameters(), generator=generator, **{**options, **mine}))

    def step(self, i: int, x: Tensor, y: Tensor, loss_fn: Any = CE) -> Tensor:
        return self.opts[i].step(ce.HessianOperator(self.models[i], loss_fn, x, y))

    def theta(self, i: int) -> Tensor:
        return parameters_to_vector(self.models[i].parameters()).detach()


def ensemble(model: nn.Module, options: dict[str, Any], loss_fn: Any = CE, **more: Any) -> ce.Ensemble:
    opt = ce.CGD(model.parameters(), **options)
    if opt.noise or options.get("order") == "random":
        more["generators"] = seeds()
    return ce.Ensemble.around(model, loss_fn, opt, deltas(model, B - 1, 0.3), **more)


def require_equal(ens: ce.Ensemble, alone: Alone, tolerance: float) -> None:
    for i in range(len(ens)):
        expected = alone.theta(i)
        error = float((ens.thetas[i] - expected).norm() / expected.norm())
        assert error <= tolerance, f"member {i}: {error:.2g}"


def batches(own: bool, t: int, dtype: torch.dtype = F64, shape: tuple[int, ...] = (6,)) -> tuple[Tensor, Tensor]:
    """[B, N, ...] of step t; the same for all members unless ``own``."""
    made = [batch(5, shape, seed=B * t + i * own, dtype=dtype) for i in range(B)]
    return torch.stack([x for x, _ in made]), torch.stack([y for _, y in made])


def compare(model: nn.Module, name: str, own: bool, tolerance: float, **per_member: Tensor) -> ce.Ensemble:
    options = OPTIONS[name]
    dtype = next(model.parameters()).dtype
    ens = ensemble(model, options, **per_member)
    alone = Alone(model, ens.thetas, options, per_member)
    for t in range(STEPS):
        x, y = batches(own, t, dtype)
        losses = ens.step(x, y, batched=True) if own else ens.step(x[0], y[0])
        expected = torch.stack([alone.step(i, x[i], y[i]) for i in range(B)])
        torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)
        require_equal(ens, alone, tolerance)
        for info, opt in zip(ens.last_step, alone.opts, strict=True):
            assert (info.step, info.pruned, info.n_negative) == (t, opt.last_step.pruned, opt.last_step.n_negative)
            assert abs(info.share - opt.last_step.share) <= 100 * tolerance
    return ens


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", OPTIONS)
def test_members_are_separate_runs_of_cgd(name, own):
    compare(mlp(), name, own, 1e-11)


@pytest.mark.parametrize("name", ["chaotic", "negative_some", "bulk"])
def test_members_are_separate_runs_in_float32(name):
    """A share of the gradient of 1e-4 goes with eigenvalues that rounding moves past the zero tolerance."""
    compare(mlp(torch.float32), name, True, 3e-4)


def test_learning_rates_and_thresholds_are_each_members_own():
    lr = torch.tensor([0.1, 1.5, 4.0], dtype=F64)
    ens = compare(mlp(), "chaotic", False, 1e-11, lr=lr)
    assert len({info.pruned for info in ens.last_step}) > 1
    compare(mlp(), "chaotic_by_optimizer", False, 1e-11, momentum=torch.tensor([0.0, 0.5, 0.9], dtype=F64))


def by_hand(model: nn.Module, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian by torch.func alone."""
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for s in shapes])
        return CE(functional_call(model, {n: t.view(s) for n, t, s in zip(names, parts, shapes, strict=True)}, (x,)), y)

    return torch.func.grad(loss)(theta), hessian(loss)(theta)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_steps_are_those_of_the_formula(activation):
    """d = g - V V^T g over lambda < 0 or lambda > 2 / lr, then heavy ball, by torch.linalg.eigh of the dense H."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)).double()
    lr, mu = torch.tensor([0.3, 1.0, 2.5], dtype=F64), 0.5
    opt = ce.CGD(model.parameters(), lr=0.3, momentum=mu)
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, B - 1, 0.5), lr=lr)
    thetas, velocity = ens.thetas, [None] * B
    for t in range(STEPS):
        x, y = (part[:, :3] for part in batches(True, t, shape=(4,)))
        ens.step(x, y, batched=True)
        for i in range(B):
            g, H = by_hand(model, thetas[i], x[i], y[i])
            values, V = torch.linalg.eigh(H)
            zero = 1e-12 * values.abs().max()
            chosen = (values < -zero) | (values > 2 / lr[i])
            d = g - V[:, chosen] @ (V[:, chosen].T @ g)
            velocity[i] = d if velocity[i] is None else mu * velocity[i] + d
            thetas[i] -= lr[i] * velocity[i]
    torch.testing.assert_close(ens.thetas, thetas, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", ["spectrum", "directions"])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_spectra_are_those_of_single_operators(own, form):
    model = mlp()
    opt = torch.optim.Adam(model.parameters())
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, B - 1, 0.3))
    x, y = batches(own, 0)
    specs = getattr(ens, form)(x, y, batched=True) if own else getattr(ens, form)(x[0], y[0])
    before = ens.thetas
    for i, spec in enumerate(specs):
        one = copy.deepcopy(model)
        ens.load_into(one, i)
        op = ce.HessianOperator(one, CE, x[i], y[i])
        values = torch.linalg.eigvalsh(op.dense())
        values = values[values.abs() > 1e-12 * values.abs().max()]
        torch.testing.assert_close(spec.eigenvalues, values, rtol=1e-9, atol=1e-13)
        assert spec.nullity == op.shape[0] - len(values)
        torch.testing.assert_close(spec.gradient, op.gradient)
        torch.testing.assert_close(spec.loss, op.loss)
        V = spec.eigenvectors()
        torch.testing.assert_close(op @ V, V * spec.eigenvalues, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(V.T @ op.gradient, spec.gradient_coefficients(), rtol=1e-9, atol=1e-12)
    assert torch.equal(before, ens.thetas)


def test_a_spectrum_of_float32_members_in_float64():
    model = mlp(torch.float32)
    ens = ce.Ensemble.around(model, CE, torch.optim.SGD(model.parameters(), lr=0.1), deltas(model, 1, 0.3))
    x, y = batch(dtype=torch.float32)
    for i, spec in enumerate(ens.spectrum(x, y, spectrum_dtype=F64, zero_tol=1e-9)):
        ens.load_into(model, i)
        expected = ce.spectrum(ce.HessianOperator(model, CE, x, y), spectrum_dtype=F64, zero_tol=1e-9)
        torch.testing.assert_close(spec.eigenvalues, expected.eigenvalues)


def test_batch_norm_moves_once_a_step_in_every_member():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    ens = ensemble(model, OPTIONS["negative"])
    alone = Alone(model, ens.thetas, OPTIONS["negative"], {})
    for t in range(STEPS):
        x, y = batches(True, t)
        ens.step(x, y, batched=True)
        for i in range(B):
            alone.step(i, x[i], y[i])
        require_equal(ens, alone, 1e-10)
        for name, own in ens.buffers.items():
            for i, one in enumerate(alone.models):
                torch.testing.assert_close(own[i], one.state_dict()[name])


def test_convolutions_and_losses_without_rules_take_part():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()

    def loss_fn(z: Tensor, y: Tensor) -> Tensor:
        return CE(z, y) + 0.1 * z.square().mean()

    ens = ensemble(model, OPTIONS["negative"], loss_fn)
    alone = Alone(model, ens.thetas, OPTIONS["negative"], {})
    for t in range(2):
        x, y = batches(True, t, shape=(1, 6))
        ens.step(x, y, batched=True)
        for i in range(B):
            alone.step(i, x[i], y[i], loss_fn)
    require_equal(ens, alone, 1e-10)


def test_fixed_directions_are_the_same_for_all_members():
    model = mlp()
    fixed = ce.spectrum(ce.HessianOperator(model, CE, *batch(seed=50)))
    options = {"lr": 0.1, "prune": "positive", "k": 3, "spectrum": fixed}
    ens = ensemble(model, options)
    alone = Alone(model, ens.thetas, options, {})
    for t in range(2):
        x, y = batches(True, t)
        ens.step(x, y, batched=True)
        for i in range(B):
            alone.step(i, x[i], y[i])
    require_equal(ens, alone, 1e-11)


def test_equal_members_stay_equal_bit_for_bit():
    model = mlp()
    theta = parameters_to_vector(model.parameters()).detach()
    for own in (False, True):
        ens = ce.Ensemble(model, CE, ce.CGD(model.parameters(), lr=0.2, momentum=0.9), theta.expand(5, -1).clone())
        for t in range(STEPS):
            x, y = batch(seed=t)
            if own:
                ens.step(x.expand(5, *x.shape).clone(), y.expand(5, -1).clone(), batched=True)
            else:
                ens.step(x, y)
        assert bool((ens.thetas == ens.thetas[:1]).all())
