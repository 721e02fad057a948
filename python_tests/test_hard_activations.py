"""Hardsigmoid, which torch differentiates once only, by the same function as two that it differentiates twice."""

import pytest
import torch
from differences import of_gradients
from oracles import double_backward, gradient, relative
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack

import chaos_ext as ce


class Composed(nn.Module):
    def forward(self, x):
        return F.relu6(x + 3) / 6


class Calls(nn.Module):
    """The function, into a tensor of its own or not."""

    def __init__(self, inplace=False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return F.hardsigmoid(2 * x, self.inplace)


class Opaque(nn.Module):
    """A forward that torch.fx cannot trace."""

    def forward(self, x):
        return F.hardsigmoid(2 * x) if x.sum() > -1e9 else x


class Doubled(nn.Module):
    def forward(self, x):
        return F.relu6(2 * x + 3) / 6


def _net(layer):
    """With entries on both sides of each kink."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        net[0].weight.mul_(6)
    return net


X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(6) % 3
LAYERS = {
    "module": (nn.Hardsigmoid, Composed),
    "module in place": (lambda: nn.Hardsigmoid(inplace=True), Composed),
    "function": (Calls, Doubled),
    "function in place": (lambda: Calls(True), Doubled),
    "untraceable": (Opaque, Doubled),
}


def _loss(z, y):
    """A loss without a rule: torch differentiates the model as a whole."""
    return F.cross_entropy(z, y)


@pytest.mark.parametrize("loss", [F.cross_entropy, _loss], ids=["rules", "whole"])
@pytest.mark.parametrize("name", LAYERS)
def test_hessian(name, loss):
    make, same = LAYERS[name]
    op, reference = ce.HessianOperator(_net(make()), loss, X, Y), _net(same())
    expected = double_backward(reference, F.cross_entropy, X, Y)
    assert (op.explain()[0].name == "(model)") == (loss is _loss)
    H, v = op.dense(), torch.randn(op.shape[0], 3, dtype=torch.float64)
    assert torch.equal(H, H.T)
    assert relative(H, expected) < 1e-10
    assert relative(op @ v, expected @ v) < 1e-10
    assert relative(op.gradient, gradient(reference, F.cross_entropy, X, Y)) < 1e-12
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("name", ["module", "untraceable"])
def test_hessian_is_differences_of_the_gradient_as_written(name):
    """To the 3e-8 by which torch's own float64 gradient is off: it rounds 1/6 to float32."""
    model = _net(LAYERS[name][0]())
    op = ce.HessianOperator(model, F.cross_entropy, X, Y)
    assert relative(op.dense(), of_gradients(model, F.cross_entropy, X, Y)) < 2e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kinks_are_where_torch_has_them(dtype):
    z = torch.tensor([-3.5, -3.0, -2.9, 0.0, 2.9, 3.0, 3.5], dtype=dtype, requires_grad=True)
    for rule, function in ((nn.Hardsigmoid(), F.hardsigmoid), (nn.Hardswish(), F.hardswish)):
        (slopes,) = torch.autograd.grad(function(z).sum(), z)
        model = nn.Sequential(nn.Linear(1, 7), rule).to(dtype)
        with torch.no_grad():
            model[0].weight.zero_()
            model[0].bias.copy_(z)
        op = ce.HessianOperator(model, nn.MSELoss(), torch.zeros(1, 1, dtype=dtype), function(z.detach())[None] - 3.5)
        assert relative(op.gradient[7:], slopes) < 1e-7  # 2 / 7 of the sum, times 3.5, times phi'


def test_rrelu_is_a_leaky_relu_in_eval_and_random_in_training():
    model = _net(nn.RReLU(0.1, 0.4)).eval()
    op = ce.HessianOperator(model, F.cross_entropy, X, Y)
    expected = double_backward(_net(nn.LeakyReLU(0.25)), F.cross_entropy, X, Y)
    assert op.explain()[0].name != "(model)"
    assert relative(op.dense(), expected) < 1e-10
    with pytest.raises(ce.UnsupportedError, match="draws random numbers"):
        ce.HessianOperator(model.train(), F.cross_entropy, X, Y)
