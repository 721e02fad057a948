"""Which functions, methods and modules have a layer rule: the lists are literal, so that none is lost unseen."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce
from chaos_ext.graph.functions import HANDLERS
from chaos_ext.graph.modules import COMPOSED, SEVERAL
from chaos_ext.rules.table import MODULES, is_registered

FUNCTIONS = {
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv),
    *(operator.neg, operator.getitem, operator.pow, operator.abs, operator.matmul, abs, getattr),
    *(torch.add, torch.sub, torch.mul, torch.multiply, torch.div, torch.neg),
    *(torch.cat, torch.concat, torch.concatenate, torch.stack),
    *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten),
    *(torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.movedim, torch.moveaxis, torch.t),
    *(torch.mean, torch.sum, torch.cumsum, torch.tril, torch.triu, torch.diagonal, torch.rot90, torch.tile),
    *(torch.select, torch.narrow, torch.broadcast_to, torch.roll, torch.flip, torch.where, torch.masked_fill),
    *(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, torch.avg_pool1d, torch.adaptive_avg_pool1d),
    *(torch.relu, torch.relu_, torch.selu, torch.sigmoid, torch.tanh, torch.prelu, torch.rrelu),
    *(torch.abs, torch.exp, torch.expm1, torch.log, torch.log1p, torch.sin, torch.cos, torch.erf, torch.square),
    *(torch.sqrt, torch.rsqrt, torch.reciprocal, torch.pow, torch.clamp, torch.clip, torch.clamp_min, torch.clamp_max),
    *(torch.matmul, torch.mm, torch.bmm, torch.mv, torch.einsum, torch.softmax, torch.log_softmax),
    *(torch.conv1d, torch.conv2d, torch.layer_norm, torch.rms_norm, torch.channel_shuffle),
    *(torch.conv3d, F.conv3d, torch.gather, torch.index_select, torch.take_along_dim, torch.repeat_interleave),
    *(F.linear, F.conv1d, F.conv2d, F.layer_norm, F.rms_norm, F.group_norm, F.batch_norm, F.pad, F.fold, F.unfold),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.max_pool1d, F.max_pool2d, F.max_pool3d),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.interpolate, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle),
    *(F.relu, F.selu, F.sigmoid, F.tanh, F.silu, F.leaky_relu, F.elu, F.celu, F.softplus, F.gelu, F.hardtanh, F.relu6),
    *(F.hardsigmoid, F.hardswish, F.mish, F.logsigmoid, F.softsign, F.tanhshrink, F.hardshrink, F.softshrink),
    *(F.threshold, F.prelu, F.rrelu, F.glu, F.softmax, F.softmin, F.log_softmax, F.scaled_dot_product_attention),
}
METHODS = {
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "neg", "mean", "sum", "cumsum", "tril", "triu"),
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "diagonal", "rot90", "roll", "flip"),
    *("view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"),
    *("select", "narrow", "expand", "expand_as", "broadcast_to", "repeat", "tile", "to", "type_as", "float", "double"),
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "abs", "exp", "expm1", "log", "log1p", "sin", "cos"),
    *("erf", "square", "sqrt", "rsqrt", "reciprocal", "pow", "clamp", "clamp_", "clip", "clamp_min", "clamp_max"),
    *("matmul", "mm", "bmm", "mv", "softmax", "log_softmax", "masked_fill", "masked_fill_"),
    *("gather", "index_select", "take_along_dim", "repeat_interleave"),
    "torchvision.ops.stochastic_depth.stochastic_depth",
    "torchvision.models.swin_transformer._get_relative_position_bias",
    "torchvision.models.swin_transformer._patch_merging_pad",
    "torchvision.models.swin_transformer.shifted_window_attention",
}
WITH_A_RULE = {
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Mish, nn.LogSigmoid, nn.Softsign),
    *(nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.RReLU),
    *(nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.Flatten, nn.Unflatten, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
}
OF_SEVERAL = {
    *(nn.GLU, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
    *(nn.TransformerEncoder, nn.TransformerDecoder, nn.RNN, nn.GRU, nn.LSTM),
    *(nn.RNNCell, nn.GRUCell, nn.LSTMCell),
}


def test_functions_and_methods_with_a_handler():
    assert set(HANDLERS) == FUNCTIONS | METHODS


def test_modules_with_a_rule():
    assert {m for m in MODULES if not is_registered(m)} == WITH_A_RULE
    assert {*COMPOSED, *SEVERAL} == OF_SEVERAL


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
            picked = torch.addcmul(h, h, h)
            return self.out(torch.add(h, h, alpha=2) + torch.lgamma(2 + h) * 2**picked)

    op = ce.HessianOperator(Model(), F.cross_entropy, torch.randn(3, 4), torch.arange(3))
    reasons = {n.name: n.rule.why for n in op._engine.program.nodes if hasattr(n.rule, "why")}
    assert reasons == {
        "add": "add (a sum with further arguments)",
        "lgamma": "lgamma (lgamma has no layer rule)",
        "addcmul": "addcmul (addcmul has no layer rule)",
        "pow_1": "pow_1 (a power other than of a tensor by a number has no layer rule)",
    }
