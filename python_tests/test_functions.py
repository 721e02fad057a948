"""Which functions, methods and modules have a layer rule: the lists are literal, so that none is lost unseen."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce
from chaos_ext.graph.functions import HANDLERS
from chaos_ext.rules.table import MODULES, is_registered

FUNCTIONS = {
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv),
    *(operator.neg, operator.getitem),
    *(torch.add, torch.sub, torch.mul, torch.multiply, torch.div, torch.neg),
    *(torch.cat, torch.concat, torch.concatenate),
    *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten),
    *(torch.permute, torch.transpose, torch.swapaxes, torch.mean, torch.sum),
    *(torch.max_pool1d, torch.max_pool2d, torch.avg_pool1d, torch.adaptive_avg_pool1d),
    *(torch.relu, torch.relu_, torch.selu, torch.sigmoid, torch.tanh),
    *(F.linear, F.dropout, F.dropout2d, F.max_pool1d, F.max_pool2d),
    *(F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.interpolate, F.pixel_shuffle),
    *(F.relu, F.selu, F.sigmoid, F.tanh, F.silu, F.leaky_relu, F.elu, F.celu, F.softplus, F.gelu, F.hardtanh, F.relu6),
}
METHODS = {
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "neg", "mean", "sum", "permute", "transpose"),
    *("view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"),
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"),
}
WITH_A_RULE = {
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.CircularPad1d, nn.CircularPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.Flatten, nn.Unflatten, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
}


def test_functions_and_methods_with_a_handler():
    assert set(HANDLERS) == FUNCTIONS | METHODS


def test_modules_with_a_rule():
    assert {m for m in MODULES if not is_registered(m)} == WITH_A_RULE


@pytest.mark.parametrize("module_class", [nn.Linear, nn.Flatten, nn.AvgPool2d])
def test_a_rule_of_the_package_is_not_replaced(module_class):
    with pytest.raises(ValueError, match="has a rule already"):
        ce.register_rule(module_class, lambda module, leaf, shape: None)


def test_the_reason_why_a_function_has_no_rule():
    """In ``explain()``: why torch's derivatives of this node take over."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = torch.tanh(self.inner(x))
            return self.out(torch.add(h, h, alpha=2) + h.exp() / (1 + h[:, torch.tensor([0, 1, 2, 3, 4, 5])].square()))

    op = ce.HessianOperator(Model(), F.cross_entropy, torch.randn(3, 4), torch.arange(3))
    reasons = {n.name: n.rule.why for n in op._engine.program.nodes if hasattr(n.rule, "why")}
    assert reasons == {
        "add": "add (a sum with further arguments)",
        "exp": "exp (exp has no layer rule)",
        "getitem": "getitem (getitem has no layer rule)",
        "square": "square (square has no layer rule)",
        "truediv": "truediv (division by a tensor has no layer rule)",
    }
