"""A call is the same layer whichever way its arguments are given: in order, by keyword, or as numpy names them."""

import cases
import pytest
import torch
from oracles import double_backward, gradient, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce
from chaos_ext.graph.functions import HANDLERS
from chaos_ext.rules.automatic import AutoRule

CE = nn.CrossEntropyLoss()


class Net(nn.Module):
    """A hidden h [N, 4, 6], what the spelling under test makes of it, and an output layer."""

    def __init__(self, spelling):
        super().__init__()
        torch.manual_seed(0)
        self.spelling = spelling
        self.inner, self.act = nn.Linear(6, 24), nn.Tanh()
        used = set(spelling.__code__.co_names)
        self.weight = nn.Parameter(torch.randn(5, 6), "weight" in used)
        self.bias = nn.Parameter(torch.randn(5), "bias" in used)
        with torch.no_grad():
            self.out = nn.Linear(self._features(torch.zeros(2, 1, 2, 3)).shape[1], 3)

    def _features(self, x):
        h = self.act(self.inner(x.flatten(1))).view(-1, 4, 6)
        return self.spelling(h, self).flatten(1)

    def forward(self, x):
        return self.out(torch.tanh(self._features(x)))


def _image(h):
    return h.unsqueeze(1)


# name -> spellings, the first in order; each (h, net) -> tensor.
SPELLINGS = {
    "add": (
        lambda h, net: torch.add(h, h),
        lambda h, net: torch.add(input=h, other=h),
        lambda h, net: torch.add(other=h, input=h),
        lambda h, net: h.add(other=h),
        lambda h, net: torch.add(x1=h, x2=h),
    ),
    "add number": (
        lambda h, net: h + 2.0,
        lambda h, net: torch.add(input=h, other=2.0),
        lambda h, net: h.add(other=2.0),
    ),
    "sub": (lambda h, net: torch.sub(h, 0.5 * h), lambda h, net: torch.sub(other=0.5 * h, input=h)),
    "mul": (lambda h, net: torch.mul(h, h), lambda h, net: torch.mul(input=h, other=h), lambda h, net: h.mul(other=h)),
    "multiply": (lambda h, net: torch.multiply(h, 3), lambda h, net: torch.multiply(input=h, other=3)),
    "div": (
        lambda h, net: torch.div(h, 4),
        lambda h, net: torch.div(input=h, other=4),
        lambda h, net: h.div(other=4),
        lambda h, net: torch.div(h, 4, rounding_mode=None),
    ),
    "neg": (lambda h, net: torch.neg(h), lambda h, net: torch.neg(input=h)),
    "cat": (
        lambda h, net: torch.cat([h, -h], 2),
        lambda h, net: torch.cat(tensors=[h, -h], dim=2),
        lambda h, net: torch.cat(dim=-1, tensors=(h, -h)),
        lambda h, net: torch.concat(tensors=[h, -h], axis=2),
        lambda h, net: torch.concatenate([h, -h], axis=-1),
    ),
    "linear": (
        lambda h, net: F.linear(h, net.weight, net.bias),
        lambda h, net: F.linear(bias=net.bias, input=h, weight=net.weight),
    ),
    "linear without bias": (
        lambda h, net: F.linear(h, net.weight),
        lambda h, net: F.linear(weight=net.weight, input=h, bias=None),
    ),
    "dropout": (
        lambda h, net: F.dropout(h, 0.5, False),
        lambda h, net: F.dropout(training=False, input=h),
        lambda h, net: F.dropout2d(input=h, p=0.3, training=False),
    ),
    "max_pool1d": (
        lambda h, net: F.max_pool1d(h, 2, 1),
        lambda h, net: F.max_pool1d(input=h, kernel_size=2, stride=1),
        lambda h, net: torch.max_pool1d(stride=1, input=h, kernel_size=2),
    ),
    "max_pool2d": (
        lambda h, net: F.max_pool2d(_image(h), (2, 3), (2, 1)),
        lambda h, net: F.max_pool2d(stride=(2, 1), kernel_size=(2, 3), input=_image(h)),
        lambda h, net: torch.max_pool2d(input=_image(h), kernel_size=(2, 3), stride=(2, 1)),
    ),
    "avg_pool": (
        lambda h, net: F.avg_pool1d(h, 2),
        lambda h, net: F.avg_pool1d(input=h, kernel_size=2),
        lambda h, net: torch.avg_pool1d(kernel_size=2, input=h),
    ),
    "adaptive_avg_pool": (
        lambda h, net: F.adaptive_avg_pool1d(h, 3),
        lambda h, net: F.adaptive_avg_pool1d(input=h, output_size=3),
        lambda h, net: F.adaptive_avg_pool2d(output_size=(4, 3), input=_image(h)),
    ),
    "pixel_shuffle": (
        lambda h, net: F.pixel_shuffle(h.unsqueeze(3), 2),
        lambda h, net: F.pixel_shuffle(upscale_factor=2, input=h.unsqueeze(dim=3)),
    ),
    "interpolate": (
        lambda h, net: F.interpolate(h, None, 2),
        lambda h, net: F.interpolate(scale_factor=2, input=h),
    ),
    "flatten": (
        lambda h, net: torch.flatten(h, 1),
        lambda h, net: torch.flatten(input=h, start_dim=1),
        lambda h, net: torch.flatten(start_dim=1, x=h),
        lambda h, net: h.flatten(start_dim=1),
    ),
    "reshape": (
        lambda h, net: torch.reshape(h, (h.shape[0], 3, 8)),
        lambda h, net: torch.reshape(input=h, shape=(h.shape[0], 3, 8)),
        lambda h, net: h.reshape(shape=(-1, 3, 8)),
        lambda h, net: h.view(size=(-1, 3, 8)),
    ),
    "reshape by another's shape": (
        lambda h, net: torch.reshape(h, ((h * 2).shape[0], 3, 8)),
        lambda h, net: torch.reshape(shape=((h * 2).shape[0], 3, 8), input=h),
    ),
    "squeeze": (
        lambda h, net: torch.squeeze(_image(h), 1),
        lambda h, net: torch.squeeze(input=_image(h), dim=1),
        lambda h, net: torch.squeeze(torch.unsqueeze(input=h, dim=1), axis=1),
        lambda h, net: _image(h).squeeze(axis=1),
    ),
    "unflatten": (
        lambda h, net: torch.unflatten(h, 2, (2, 3)),
        lambda h, net: torch.unflatten(input=h, dim=2, sizes=(2, 3)),
    ),
    "view_as": (lambda h, net: h.view_as(2 * h), lambda h, net: h.view_as(other=2 * h)),
    "mean": (
        lambda h, net: torch.mean(h, 1),
        lambda h, net: torch.mean(input=h, dim=1),
        lambda h, net: torch.mean(axis=-2, x=h),
        lambda h, net: h.mean(dim=1),
        lambda h, net: h.mean(axis=1),
        lambda h, net: h.mean(axis=(1,), keepdims=True),
        lambda h, net: torch.mean(h, 1, keepdim=True),
    ),
    "sum": (
        lambda h, net: torch.sum(h, (1, 2), True),
        lambda h, net: torch.sum(input=h, dim=(1, 2), keepdim=True),
        lambda h, net: torch.sum(a=h, axis=(-1, -2), keepdims=True),
        lambda h, net: h.sum(axis=[1, 2], keepdims=True),
    ),
    "mean over samples": (
        lambda h, net: h - torch.mean(h, 0),
        lambda h, net: h - torch.mean(input=h, dim=0),
        lambda h, net: h - h.mean(axis=-3, keepdims=True),
    ),
    "sum over everything": (
        lambda h, net: h * torch.sum(h),
        lambda h, net: h * torch.sum(input=h),
        lambda h, net: h * h.sum(axis=()),
        lambda h, net: h * h.sum(dim=()),
    ),
    "permute": (
        lambda h, net: torch.permute(h, (0, 2, 1)),
        lambda h, net: torch.permute(dims=(0, 2, 1), input=h),
        lambda h, net: h.permute(0, 2, 1),
        lambda h, net: h.permute(dims=(-3, 2, 1)),
    ),
    "transpose": (
        lambda h, net: torch.transpose(h, 1, 2),
        lambda h, net: torch.transpose(input=h, dim0=2, dim1=1),
        lambda h, net: h.transpose(dim1=-1, dim0=1),
        lambda h, net: torch.swapaxes(h, axis1=1, axis0=2),
    ),
    "relu": (
        lambda h, net: torch.relu(h),
        lambda h, net: torch.relu(input=h),
        lambda h, net: F.relu(inplace=False, input=h),
    ),
    "tanh": (lambda h, net: torch.tanh(h), lambda h, net: torch.tanh(x=h), lambda h, net: F.tanh(input=h)),
    "sigmoid": (lambda h, net: torch.sigmoid(h), lambda h, net: torch.sigmoid(input=h)),
    "silu": (lambda h, net: F.silu(h), lambda h, net: F.silu(input=h)),
    "selu": (lambda h, net: F.selu(h), lambda h, net: torch.selu(input=h)),
    "leaky_relu": (
        lambda h, net: F.leaky_relu(h, 0.3),
        lambda h, net: F.leaky_relu(negative_slope=0.3, input=h),
    ),
    "elu": (lambda h, net: F.elu(h, 0.7), lambda h, net: F.elu(alpha=0.7, input=h)),
    # 1/alpha exact in float32, to which torch rounds it in its own derivative.
    "celu": (lambda h, net: F.celu(h, 0.5), lambda h, net: F.celu(input=h, alpha=0.5)),
    "softplus": (lambda h, net: F.softplus(h, 2.0), lambda h, net: F.softplus(beta=2.0, input=h)),
    "gelu": (lambda h, net: F.gelu(h, approximate="tanh"), lambda h, net: F.gelu(approximate="tanh", input=h)),
    "hardtanh": (
        lambda h, net: F.hardtanh(h, -0.5, 0.6),
        lambda h, net: F.hardtanh(max_val=0.6, input=h, min_val=-0.5),
    ),
    "relu6": (lambda h, net: F.relu6(h), lambda h, net: F.relu6(input=h)),
    "division by a tensor": (
        lambda h, net: h / (2 + h),
        lambda h, net: torch.div(other=2 + h, input=h),
    ),
    "weight that is computed": (
        lambda h, net: F.linear(h, 2 * net.weight, net.bias),
        lambda h, net: F.linear(weight=2 * net.weight, bias=net.bias, input=h),
    ),
    "matmul": (
        lambda h, net: torch.matmul(h, h.transpose(1, 2)),
        lambda h, net: torch.matmul(other=h.transpose(1, 2), input=h),
        lambda h, net: h.matmul(other=h.transpose(1, 2)),
        lambda h, net: torch.bmm(mat2=h.transpose(1, 2), input=h),
        lambda h, net: h @ h.mT,
    ),
    "softmax": (
        lambda h, net: torch.softmax(h, -1),
        lambda h, net: torch.softmax(dim=2, input=h),
        lambda h, net: h.softmax(dim=2),
        lambda h, net: F.softmax(dim=-1, input=h),
    ),
    "log_softmax": (lambda h, net: F.log_softmax(h, 1), lambda h, net: h.log_softmax(dim=-2)),
    "pow": (lambda h, net: h**2, lambda h, net: torch.pow(exponent=2, input=h), lambda h, net: h.pow(exponent=2)),
    "clamp": (
        lambda h, net: torch.clamp(h, -0.5, 0.6),
        lambda h, net: h.clamp(max=0.6, min=-0.5),
        lambda h, net: torch.clip(input=h, min=-0.5, max=0.6),
    ),
    "clamp from below": (lambda h, net: h.clamp_min(0.1), lambda h, net: torch.clamp(min=0.1, input=h)),
    "layer_norm": (
        lambda h, net: F.layer_norm(h[..., :5], (5,), net.bias),
        lambda h, net: F.layer_norm(weight=net.bias, normalized_shape=[5], input=h[..., :5]),
    ),
    "expand": (lambda h, net: h.unsqueeze(1).expand(-1, 2, 4, 6), lambda h, net: h.unsqueeze(1).expand([-1, 2, 4, 6])),
    "masked_fill": (
        lambda h, net: h.masked_fill(h > 0, 0.5),
        lambda h, net: torch.masked_fill(value=0.5, mask=h > 0, input=h),
    ),
    "flip": (lambda h, net: h.flip(1, 2), lambda h, net: torch.flip(dims=(1, 2), input=h)),
    "roll": (lambda h, net: torch.roll(h, 1, 2), lambda h, net: h.roll(dims=2, shifts=1)),
    "select": (lambda h, net: h.select(1, 2), lambda h, net: torch.select(index=2, dim=-2, input=h)),
    "narrow": (lambda h, net: h.narrow(1, 2, 2), lambda h, net: torch.narrow(length=2, start=-2, dim=1, input=h)),
    "movedim": (lambda h, net: h.movedim(1, 2), lambda h, net: torch.moveaxis(destination=-1, source=1, input=h)),
    "hardswish": (lambda h, net: F.hardswish(h), lambda h, net: F.hardswish(inplace=False, input=h)),
    "threshold": (
        lambda h, net: F.threshold(h, 0.1, 0.3),
        lambda h, net: F.threshold(value=0.3, input=h, threshold=0.1),
    ),
    "glu": (lambda h, net: F.glu(h, 1), lambda h, net: F.glu(dim=-2, input=h)),
    "attention": (
        lambda h, net: F.scaled_dot_product_attention(h, 2 * h, h),
        lambda h, net: F.scaled_dot_product_attention(value=h, key=2 * h, query=h, dropout_p=0.0),
    ),
    "pad": (lambda h, net: F.pad(h, (1, 2)), lambda h, net: F.pad(value=0.0, pad=[1, 2], input=h, mode="constant")),
    "layer": (lambda h, net: net.act(h), lambda h, net: net.act(input=h)),
    "an argument with *": (lambda h, net: h.sum(1, True), lambda h, net: h.sum(*(1, True))),
}
EACH = [(name, i) for name, spellings in SPELLINGS.items() for i in range(len(spellings))]


def _operator(spelling):
    model = Net(spelling).double()
    x, y = cases.batch(5, cases.LOSSES["ce"][1])
    return model, x, y, ce.HessianOperator(model, CE, x, y)


def _rules(op):
    """What each node is, and whether it keeps samples apart."""
    return [(type(n.rule), getattr(n.rule, "rowwise", None)) for n in op._engine.program.nodes]


@pytest.mark.parametrize(("name", "i"), EACH)
def test_every_spelling_is_the_layer_that_it_is_in_order(name, i):
    model, x, y, op = _operator(SPELLINGS[name][i])
    assert relative(op.dense(), double_backward(model, CE, x, y)) < 1e-10
    assert relative(op.gradient, gradient(model, CE, x, y)) < 1e-12
    first = _operator(SPELLINGS[name][0])[3]
    assert set(_rules(op)) == set(_rules(first))
    assert not any(kind is AutoRule for kind, _ in _rules(op))
    if op.shape == first.shape:
        assert relative(op.dense(), first.dense()) < 1e-12


# Spellings that no layer rule knows are torch's affair, node by node: never the whole model's.
ELSEWHERE = {
    "alpha": lambda h, net: torch.add(h, other=h, alpha=2),
    "rounding": lambda h, net: h + torch.div(input=h, other=0.01, rounding_mode="floor"),
    "indices": lambda h, net: F.max_pool1d(input=h, kernel_size=2, return_indices=True)[0],
    "axis that is computed": lambda h, net: h.mean(axis=h.dim() - 1),
    "axes that are computed": lambda h, net: h.sum(dim=(1, h.dim() - 1), keepdim=True),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_has_no_rule_is_one_node_of_torchs(name):
    model, x, y, op = _operator(ELSEWHERE[name])
    assert relative(op.dense(), double_backward(model, CE, x, y)) < 1e-10
    kinds = [kind for kind, _ in _rules(op)]
    assert kinds.count(AutoRule) in (1, 2)


def test_the_table_says_what_may_be_given_in_order():
    """For functions of torch that have a signature in Python; the others are held by the comparisons above."""
    import inspect

    for target, (_, names) in HANDLERS.items():
        try:
            parameters = list(inspect.signature(target).parameters)
        except (TypeError, ValueError):
            continue
        if callable(target) and target.__module__ == "torch.nn.functional" and parameters[0] == "input":
            assert tuple(parameters[: len(names)]) == names[: len(parameters)], target
