"""Random convolutional networks (Hypothesis) against double backward: layer kinds, strides, residuals, losses."""

import architectures as arch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import double_backward, gradient, relative
from test_random_networks import SEEDS, SETTINGS, losses
from torch import nn

import chaos_ext as ce

TOL = 1e-10
SMOOTH = [nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus]
KINKED = [nn.ReLU, nn.LeakyReLU, nn.PReLU]


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + x


@st.composite
def convolutions(draw, channels, size):
    """A convolution that keeps at least one position, and its output channels."""
    groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
    out = groups * draw(st.integers(1, 2))
    kernel, padding = draw(st.integers(1, min(3, size))), draw(st.integers(0, 1))
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    padding = min(padding, size - 1)
    options = {"stride": draw(st.integers(1, 2)), "padding": padding, "groups": groups, "bias": draw(st.booleans())}
    return nn.Conv2d(channels, out, kernel, padding_mode=mode, **options), out


@st.composite
def norms(draw, channels):
    kind = draw(st.sampled_from(["none", "batch", "batch without statistics", "group", "instance of group"]))
    if kind == "none":
        return nn.Identity()
    if kind.startswith("batch"):
        return arch.scaled(nn.BatchNorm2d(channels, track_running_stats="without" not in kind))
    return arch.scaled(nn.GroupNorm(1 if kind == "group" else channels, channels))


@st.composite
def networks(draw):
    torch.manual_seed(draw(SEEDS))
    channels, size = draw(st.integers(1, 2)), draw(st.integers(3, 5))
    first, layers = channels, []
    x = torch.zeros(1, channels, size, size)
    for _ in range(draw(st.integers(1, 3))):
        conv, out = draw(convolutions(channels, min(x.shape[2:])))
        block = [conv, draw(norms(out)), draw(st.sampled_from(SMOOTH + KINKED))()]
        if draw(st.booleans()):
            block.append(Residual(nn.Sequential(nn.Conv2d(out, out, 3, padding=1), nn.Tanh())))
        layers += block
        channels, x = out, conv(torch.zeros(1, channels, *x.shape[2:]))
    pool = draw(st.sampled_from(["none", "max", "average", "adaptive"]))
    if min(x.shape[2:]) >= 2 and pool != "none":
        layers.append(
            {"max": nn.MaxPool2d(2, 1), "average": nn.AvgPool2d(2, ceil_mode=True)}.get(pool, nn.AdaptiveAvgPool2d(1))
        )
    layers.append(nn.Flatten())
    outputs = draw(st.integers(2, 3))
    features = nn.Sequential(*layers).eval()(torch.zeros(2, first, size, size)).shape[1]
    model = nn.Sequential(*layers, nn.Linear(features, outputs)).double()
    return model.train(draw(st.booleans())), (first, size, size), outputs


@st.composite
def problems(draw):
    model, shape, outputs = draw(networks())
    n = draw(st.integers(2, 4))
    loss_fn, y = draw(losses(n, outputs))
    return model, loss_fn, torch.randn(n, *shape, dtype=torch.float64), y


@settings(max_examples=60, **SETTINGS)
@given(problems())
def test_hessian_equals_double_backward(problem):
    model, loss_fn, x, y = problem
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    op = ce.HessianOperator(model, loss_fn, x, y)
    H = op.dense()
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    expected = double_backward(model, loss_fn, x, y)
    assert op.explain()[0].name != "(model)", op.explain()[0].why
    assert torch.equal(H, H.T)
    assert relative(H, expected) < TOL
    assert relative(op.gradient, gradient(model, loss_fn, x, y)) < TOL
    v = torch.randn(len(H), 3, dtype=torch.float64)
    assert relative(op @ v, expected @ v) < TOL
