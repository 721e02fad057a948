"""Activations at arguments where torch's own lose digits, or are NaN: they keep their rules, and every digit."""

from __future__ import annotations

import mpmath
import pytest
import torch
from differences import of_gradients
from mpmath import mp
from torch import Tensor, nn

import chaos_ext as ce
from chaos_ext import errors
from chaos_ext.base.torch_internals import entered
from chaos_ext.base.twice import Accurate
from chaos_ext.rules.elementwise import gelu
from chaos_ext.rules.table import MODULES, register_rule, unregister_rule

MAGNITUDES = (0.0, 1e-100, 1e-12, 0.3, 1.0, 9.0, 19.0, 50.0, 100.0, 720.0, 1e4)


def _sigma(z):
    return 1 / (1 + mpmath.exp(-z))


def _elu(alpha, scale=1, rate=1):
    scale, rate = mpmath.mpf(scale), mpmath.mpf(rate)
    return lambda z: scale * (z if z > 0 else alpha * mpmath.expm1(z * rate))


def _softplus(z):
    return mpmath.log1p(mpmath.exp(z)) if z < 20 else z  # what torch takes for it above the threshold


def _log_sigma(z):
    return -mpmath.log1p(mpmath.exp(-z))


def _gelu_tanh(z):
    return z * _sigma(2 * mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf(0.044715) * z**3))


# Module, and its function in arithmetic of any precision.
SMOOTH = {
    "sigmoid": (nn.Sigmoid, _sigma),
    "tanh": (nn.Tanh, mpmath.tanh),
    "softplus": (nn.Softplus, _softplus),
    "silu": (nn.SiLU, lambda z: z * _sigma(z)),
    "silu in place": (lambda: nn.SiLU(inplace=True), lambda z: z * _sigma(z)),
    "mish": (nn.Mish, lambda z: z * mpmath.tanh(mpmath.log1p(mpmath.exp(z)))),
    "logsigmoid": (nn.LogSigmoid, _log_sigma),
    "elu": (lambda: nn.ELU(1.7), _elu(1.7)),
    "elu in place": (lambda: nn.ELU(1.7, inplace=True), _elu(1.7)),
    "selu": (nn.SELU, _elu(1.6732632423543772848, 1.0507009873554804934)),
    "mish in place": (lambda: nn.Mish(inplace=True), lambda z: z * mpmath.tanh(mpmath.log1p(mpmath.exp(z)))),
    "celu in place": (
        lambda: nn.CELU(1.3, inplace=True),
        lambda z: z if z > 0 else mpmath.mpf(1.3) * mpmath.expm1(z / mpmath.mpf(1.3)),
    ),
    "celu": (lambda: nn.CELU(1.3), lambda z: z if z > 0 else mpmath.mpf(1.3) * mpmath.expm1(z / mpmath.mpf(1.3))),
    "gelu": (nn.GELU, lambda z: z * mpmath.ncdf(z)),
    "gelu tanh": (lambda: nn.GELU("tanh"), _gelu_tanh),
    "tanhshrink": (nn.Tanhshrink, lambda z: z - mpmath.tanh(z)),
    "softsign": (nn.Softsign, lambda z: z / (1 + abs(z))),
}
PIECES = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardshrink": nn.Hardshrink,
    "softshrink": nn.Softshrink,
    "hardtanh": nn.Hardtanh,
}
ALL = {**{name: make for name, (make, _) in SMOOTH.items()}, **PIECES}


def _points(dtype: torch.dtype) -> Tensor:
    """Without 0, where some have a kink, and without what float32 does not hold."""
    z = torch.tensor([s * m for m in MAGNITUDES[1:] for s in (1, -1)], dtype=dtype)
    return z[z != 0]


def _exact(function, z: float) -> list[float]:
    """Value and two derivatives, by differences: of steps that are 25 digits smaller than z, with 800."""
    with mp.workdps(800):
        at = mpmath.mpf(z)
        h = abs(at) * mpmath.mpf(10) ** -25
        low, mid, high = function(at - h), function(at), function(at + h)
        return [float(mid), float((high - low) / (2 * h)), float((high - 2 * mid + low) / h**2)]


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rules_keep_their_digits(name, dtype):
    make, function = SMOOTH[name]
    module, z = make(), _points(dtype)
    ours = MODULES[type(module)](module, None, z.shape).phi(z.clone())
    expected = torch.tensor([_exact(function, float(t)) for t in z], dtype=torch.float64).T
    eps = torch.finfo(dtype).eps
    assert name != "tanhshrink" or ours[0].equal(z - torch.tanh(z))  # forward's own rounding: nothing to gain
    for found, wanted in [*zip(ours, expected, strict=True)][name == "tanhshrink" :]:
        # Relative to the number, but for exponentials of large arguments, and what underflows.
        torch.testing.assert_close(found.double(), wanted, rtol=1e3 * eps, atol=torch.finfo(dtype).tiny / eps)


@pytest.mark.parametrize("name", [n for n in SMOOTH if n not in ("tanhshrink", "softsign")])
def test_the_second_opinion_of_validation_keeps_them(name):
    make, function = SMOOTH[name]
    z, mode = _points(torch.float64).requires_grad_(), entered(Accurate())
    with mode, mode:
        a = make()(z.clone())
        (d1,) = torch.autograd.grad(a.sum(), z, create_graph=True)
        (d2,) = torch.autograd.grad(d1.sum(), z)
    expected = torch.tensor([_exact(function, float(t)) for t in z], dtype=torch.float64).T
    for found, wanted in zip((a, d1, d2), expected, strict=True):
        # Where sigma - 1/2 is small it comes by subtraction; far down there is nothing to compare.
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-12, atol=1e-16 if found is d2 else 1e-150)


def _net(name: str, z: float, place: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """All arguments near z."""
    torch.manual_seed(0)
    after = {"last": [], "bare": [nn.Linear(4, 3, bias=False)], "inside": [nn.Linear(4, 3)]}[place]
    model = nn.Sequential(nn.Linear(3, 4), ALL[name](), *after).to(dtype)
    with torch.no_grad():
        model[0].weight.mul_(0.01 * min(abs(z), 1))
        model[0].bias.copy_(z * torch.tensor([1.0, 1.1, 1.0, 1.05]))
    x = torch.randn(5, 3, dtype=dtype)
    return model, x, torch.randint(3, (5,))


@pytest.mark.parametrize("place", ["last", "bare"])
@pytest.mark.parametrize("name", ALL)
def test_every_activation_keeps_its_rule(name, place):
    for z in (0.0, 1e-12, *(s * m for m in (9.0, 30.0, 720.0, 1e4) for s in (1, -1))):
        for dtype in (torch.float64, torch.float32):
            model, x, y = _net(name, z, place, dtype)
            for again in range(2):  # a new program, and one that is known
                op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
                paths = {row.path for row in op.explain()}
                assert all(p.startswith("enter") for p in paths), (z, dtype, again, op.explain())
            assert torch.isfinite(op.dense()).all()


class Whole(nn.Module):
    """A loss that has no rule, so that torch differentiates the model."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z, y) + z.square().mean()


@pytest.mark.parametrize(
    "name", ["mish", "mish in place", "celu", "celu in place", "prelu", "gelu", "silu in place", "sigmoid"]
)
@pytest.mark.parametrize("z", [-9.0, 0.3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_torchs_derivatives_of_the_whole_model_are_those_of_the_rules(name, z, dtype):
    """Of Mish torch's own are NaN from 89 (float32) on; those of CELU belong to another alpha."""
    model, x, y = _net(name, z, "inside", dtype)
    found = ce.HessianOperator(model, Whole(), x, y).dense().double()
    wide = model.double()
    expected = ce.HessianOperator(wide, nn.CrossEntropyLoss(), x.double(), y).dense()
    # + mean z^2, a mean squared error whose targets are zeros
    expected += ce.HessianOperator(wide, nn.MSELoss(), x.double(), torch.zeros(5, 3, dtype=torch.float64)).dense()
    tol = 1e-11 if dtype == torch.float64 else 1e-4
    assert (found - expected).abs().max() <= tol * expected.abs().max()


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), Whole()], ids=["rules", "torch"])
def test_prelu_at_zeros(loss_fn):
    """At z = 0 its gradient is that of z <= 0, whose derivative with respect to input and slope is 1; torch says 0."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.PReLU(4), nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(3, (5,))
    with torch.no_grad():
        assert (model[:2](x) == 0).any()
    H = ce.HessianOperator(model, loss_fn, x, y).dense()
    expected = of_gradients(model, loss_fn, x, y)
    assert (H - expected).abs().max() < 1e-9 * expected.abs().max()
    model[0].bias.data.zero_()
    x[:2] = 0.0  # now also an input of PReLU that moves is 0
    straight = nn.Sequential(model[0], nn.PReLU(4).double(), model[3])
    H = ce.HessianOperator(straight, loss_fn, x, y).dense()
    slopes = slice(16, 20)
    # Along the slopes there is no kink: these rows are differences of gradients.
    torch.testing.assert_close(H[slopes], of_gradients(straight, loss_fn, x, y)[slopes], rtol=1e-8, atol=1e-9)


class Tail(nn.GELU):
    """The same function."""


def test_a_wrong_rule_is_found_in_the_tail_too():
    register_rule(Tail, lambda m, leaf, shape: gelu("tanh"))
    try:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), Tail(), nn.Linear(4, 3, bias=False)).double()
        with torch.no_grad():
            model[0].bias.fill_(-9.0)
        x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(3, (5,))
        with pytest.raises(errors.ChaosExtError, match="check the rule registered for Tail"):
            ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
        register_rule(Tail, lambda m, leaf, shape: gelu("none"))
        assert ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y).explain()[0].path.startswith("enter")
    finally:
        unregister_rule(Tail)
