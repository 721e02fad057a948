"""Networks whose layer is a function that forward calls, or a module of several rules: name -> (builder, shape)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from architectures import CLASSES, Attention, Head, Scale, scaled
from torch import Tensor, nn
from torch.nn import functional as F


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Volume(nn.Module):
    """A convolution with weights that forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 2, 2, 2, 2)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x.tanh(), self.weight, self.bias, padding=(1, 0, 1))


def _rows(function):
    return lambda: Head(nn.Linear(5, 6), Of(function), (5,)), (5,)


def _maps(function):
    return lambda: Head(nn.Conv2d(2, 4, 2), Of(function), (2, 4, 4)), (2, 4, 4)


def _layer(layer):
    return lambda: Head(nn.Linear(5, 6), layer(), (5,)), (5,)


def _layer_of_maps(layer):
    return lambda: Head(nn.Conv2d(2, 4, 2), layer(), (2, 4, 4)), (2, 4, 4)


def _volumes(layer):
    return lambda: Head(scaled(nn.BatchNorm3d(2)), layer(), (2, 4, 3, 4)), (2, 4, 3, 4)


def _volume_layer(layer):
    """After another one, so that its input moves, too."""
    return lambda: Head(nn.Conv3d(2, 2, 1), nn.Sequential(nn.Tanh(), layer(), nn.Sigmoid()), (2, 4, 3, 4)), (2, 4, 3, 4)


def _matrices(x: Tensor) -> Tensor:
    return x.view(-1, 2, 3)


def _heads(x: Tensor) -> Tensor:
    return x.view(-1, 1, 3, 2)


def _shifted(x: Tensor) -> Tensor:
    """Where a square root and a logarithm are smooth."""
    return x.square() + 0.3


# Modules with a rule of their own, or of several.
MODULES = {
    "Hardswish": _layer(nn.Hardswish),
    "Mish": _layer(nn.Mish),
    "LogSigmoid": _layer(nn.LogSigmoid),
    "Softsign": _layer(nn.Softsign),
    "Tanhshrink": _layer(nn.Tanhshrink),
    "Hardshrink": _layer(lambda: nn.Hardshrink(0.3)),
    "Softshrink": _layer(lambda: nn.Softshrink(0.1)),
    "Threshold": _layer(lambda: nn.Threshold(0.1, 0.3)),
    "Softmax": _layer(lambda: nn.Softmax(-1)),
    "Softmin": _layer(lambda: nn.Softmin(1)),
    "LogSoftmax": _layer(lambda: nn.LogSoftmax(1)),
    "Softmax2d": _layer_of_maps(nn.Softmax2d),
    "GLU": _layer(nn.GLU),
    "GLU channels": _layer_of_maps(lambda: nn.GLU(1)),
    "RMSNorm": _layer(lambda: scaled(nn.RMSNorm(6))),
    "RMSNorm two axes, eps": _layer_of_maps(lambda: scaled(nn.RMSNorm((3, 3), eps=0.1))),
    "RMSNorm not affine": _layer_of_maps(lambda: nn.RMSNorm(3, elementwise_affine=False)),
    "InstanceNorm1d": (lambda: Head(nn.Conv1d(2, 4, 2), nn.InstanceNorm1d(4), (2, 6)), (2, 6)),
    "InstanceNorm2d": _layer_of_maps(lambda: scaled(nn.InstanceNorm2d(4, affine=True))),
    "InstanceNorm2d running stats": _layer_of_maps(
        lambda: scaled(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))
    ),
    "InstanceNorm3d": _volumes(lambda: nn.InstanceNorm3d(2, eps=0.2)),
    "Conv3d": _volume_layer(lambda: nn.Conv3d(2, 3, 2)),
    "Conv3d stride padding dilation": _volume_layer(
        lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1), padding=(2, 1, 0), dilation=(2, 1, 1))
    ),
    "Conv3d groups no bias": _volume_layer(lambda: nn.Conv3d(2, 4, (3, 1, 2), groups=2, bias=False)),
    "Conv3d same, even kernel": _volume_layer(lambda: nn.Conv3d(2, 2, (2, 3, 2), padding="same")),
    "Conv3d circular": _volume_layer(lambda: nn.Conv3d(2, 2, 3, padding=1, padding_mode="circular")),
    "Conv3d reflect stride": _volume_layer(lambda: nn.Conv3d(2, 2, 2, 2, padding=1, padding_mode="reflect")),
    "AvgPool3d": _volumes(lambda: nn.AvgPool3d(2, stride=1, padding=1, count_include_pad=False)),
    "AdaptiveAvgPool3d": _volumes(lambda: nn.AdaptiveAvgPool3d((2, 1, 3))),
    "MaxPool3d": _volumes(lambda: nn.MaxPool3d(2, stride=1)),
    "AdaptiveMaxPool3d": _volumes(lambda: nn.AdaptiveMaxPool3d((2, 2, 3))),
    "ZeroPad3d": _volumes(lambda: nn.ZeroPad3d((1, 0, 2, 0, 0, 1))),
    "CircularPad3d": _volumes(lambda: nn.CircularPad3d(1)),
    "ReflectionPad3d": _volumes(lambda: nn.ReflectionPad3d(1)),
    "ReplicationPad3d": _volumes(lambda: nn.ReplicationPad3d(1)),
}

# Functions, methods, operators.
FUNCTIONS = {
    "exp": _rows(torch.exp),
    "expm1": _rows(torch.expm1),
    "sin cos": _rows(lambda x: x.sin() + 2 * x.cos()),
    "erf": _rows(torch.erf),
    "square": _rows(torch.square),
    "x ** 3": _rows(lambda x: x**3),
    "pow": _rows(lambda x: _shifted(x).pow(-1.5)),
    "sqrt": _rows(lambda x: _shifted(x).sqrt()),
    "rsqrt": _rows(lambda x: torch.rsqrt(_shifted(x))),
    "log": _rows(lambda x: torch.log(_shifted(x))),
    "log1p": _rows(lambda x: x.exp().log1p()),
    "reciprocal": _rows(lambda x: _shifted(x).reciprocal()),
    "quotient": _rows(lambda x: x / _shifted(x) + 1 / _shifted(x)),
    "abs": _rows(abs),
    "clamp": _rows(lambda x: x.clamp(-0.2, 0.4) + torch.clamp_min(x, 0.1) + x.clamp(max=0.3)),
    "softmax": _rows(lambda x: F.softmax(x, dim=-1) * torch.log_softmax(x, 1)),
    "softmax over samples": _rows(lambda x: x.softmax(0)),
    "where": _rows(lambda x: torch.where(x > 0, x.square(), x.sin())),
    "where number": _rows(lambda x: torch.where(x > 0, 0.5, x.square())),
    "masked_fill": _rows(lambda x: x.square().masked_fill(x < 0, 0.7)),
    "mask": _rows(lambda x: x.square() * (x > 0).to(x.dtype)),
    "matmul": _rows(lambda x: x.unsqueeze(2) @ x.sin().unsqueeze(1)),
    "matmul of samples": _rows(lambda x: (x @ x.T) @ x),
    "matmul broadcast": _rows(lambda x: torch.matmul(_matrices(x), _matrices(x)[:1].transpose(1, 2))),
    "matmul five axes": _rows(lambda x: x.view(-1, 1, 1, 2, 3) @ x.sin().view(-1, 1, 1, 3, 2)),
    "bmm": _rows(lambda x: torch.bmm(_matrices(x), x.view(-1, 3, 2))),
    "einsum": _rows(lambda x: torch.einsum("nij,njk->nik", _matrices(x), x.view(-1, 3, 2))),
    "einsum implicit": _rows(lambda x: torch.einsum("bi,bi", x, x.sin()) * x + torch.einsum("ij,aj", x, x) @ x),
    "einsum one": _rows(lambda x: torch.einsum("nij->nji", _matrices(x)).square()),
    "chunk": _rows(lambda x: x.chunk(2, 1)[0] * x.chunk(2, -1)[1]),
    "split": _rows(lambda x: torch.cat([p.square() for p in (x.split([2, 4], 1)[0], torch.split(x, 4, 1)[1])], 1)),
    "unbind stack": _rows(lambda x: torch.stack([x.unbind(1)[2], x.unbind(1)[-1].sin()], 1)),
    "flip roll": _rows(lambda x: x.flip(1) * x.roll(2, 1) * torch.roll(x, 1, 0)),
    "expand": _rows(lambda x: x.unsqueeze(1).expand(-1, 3, -1).sin()),
    "repeat": _rows(lambda x: x.repeat(1, 2).square()),
    "select narrow": _rows(lambda x: x.select(1, 2).unsqueeze(1) * x.narrow(1, 1, 3)),
    "T mT": _rows(lambda x: x.T.mT.square()),
    "slices": _rows(lambda x: x[:, None, ..., 1:6:2].square()),
    "indices": _rows(lambda x: x[:, torch.tensor([0, 2, 2, 5])].square() + x[:, [1, 1, 3, 4]]),
    "indices of booleans": _rows(lambda x: x[:, torch.tensor([True, False, True, True, False, False])].sin()),
    "indices of two axes": _rows(lambda x: _matrices(x)[:, torch.tensor([0, 1, 1]), torch.tensor([2, 2, 0])].sin()),
    "index_select": _rows(lambda x: x.index_select(1, torch.tensor([3, 3, 0])).square()),
    "gather": _rows(lambda x: torch.gather(x, 1, (x > 0).long() + torch.arange(6) // 2).square()),
    "take_along_dim": _rows(lambda x: torch.take_along_dim(x, torch.tensor([[1, 1, 4]]), dim=1).square()),
    "repeat_interleave": _rows(lambda x: x.repeat_interleave(2, 1).square()),
    "cumsum tril": _rows(lambda x: torch.tril(_matrices(x.cumsum(1))).square()),
    "pad": _rows(lambda x: F.pad(x, (1, 2)).cos()),
    "pad number": _rows(lambda x: F.pad(x, (1, -2), value=0.7).square()),
    "glu": _rows(F.glu),
    "rms_norm": _rows(lambda x: F.rms_norm(x, (6,))),
    "layer_norm": _rows(lambda x: F.layer_norm(x, (6,))),
    "positions": _rows(lambda x: x + torch.arange(6, dtype=x.dtype).sin()),
    "attention": _maps(lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos(), scale=0.3)),
    "attention causal": _rows(
        lambda x: F.scaled_dot_product_attention(_heads(x), _heads(x).sin(), _heads(x).cos(), is_causal=True)
    ),
    "movedim": _maps(lambda x: x.movedim(1, -1).square()),
    "pad reflect": _maps(lambda x: F.pad(x, (1, 1, 2, 0), mode="reflect").square()),
    "pad circular": _maps(lambda x: F.pad(x, (1, 1, 2, 0), mode="circular").square()),
    "pad replicate": _maps(lambda x: F.pad(x, (1, 1, 2, 0), mode="replicate").square()),
    "conv3d": (lambda: Head(nn.Conv3d(2, 2, 1), Volume(), (2, 3, 3, 2)), (2, 3, 3, 2)),
    "group_norm": _maps(lambda x: F.group_norm(x, 2)),
    "hardswish": _maps(F.hardswish),
}


class Cells(nn.Module):
    """A cell on the entries of a sequence, from a state that it is given or from none."""

    def __init__(self, kind, first: bool = False, **options) -> None:
        super().__init__()
        self.embed, self.cell, self.out = nn.Linear(3, 4), kind(4, 3, **options), nn.Linear(3, CLASSES)
        count = 2 if kind is nn.LSTMCell else 1
        self.first = nn.ParameterList([torch.randn(1, 3) for _ in range(count)] if first else [])

    def forward(self, x: Tensor) -> Tensor:
        states = [s.expand(x.size(0), -1) for s in self.first]
        state = None if not states else tuple(states) if len(states) > 1 else states[0]
        for t in range(3):
            state = self.cell(self.embed(x[:, t]), state)
        return self.out(state[0] * state[1] if isinstance(self.cell, nn.LSTMCell) else state)


def _cells(*args, **options):
    return lambda: Cells(*args, **options), (4, 3)


class Weights(nn.Module):
    """Layers as functions of weights that forward reads, one of them computed."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(4, 2, 2, 2)), nn.Parameter(torch.randn(4))
        self.gamma, self.beta = nn.Parameter(torch.rand(3) + 0.5), nn.Parameter(torch.rand(3))
        self.scale, self.token = nn.Parameter(torch.rand(3) + 0.5), nn.Parameter(torch.randn(1, 1, 3))
        self.weight, self.slope = nn.Parameter(torch.randn(CLASSES, 15)), nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv2d(x, self.kernel, self.shift).mean(2)
        h = F.layer_norm(h, (3,), self.gamma, self.beta, 0.1) + F.rms_norm(h, (3,), self.scale)
        h = F.prelu(torch.cat([self.token.expand(x.size(0), -1, -1), h], 1), self.slope)
        return F.linear(h.flatten(1), self.weight / self.weight.square().sum(1, keepdim=True).sqrt())


class Cross(nn.Module):
    """Attention of queries to other keys, with a mask of each kind, batches second, and its weights."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(3, 4), nn.Linear(3, options.get("kdim") or 4)
        self.mix, self.out = nn.MultiheadAttention(4, 2, **options), nn.Linear(4, CLASSES)
        self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool).triu(1))
        self.bias = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        queries, keys = self.embed(x), torch.tanh(self.memory(x))
        h, weights = self.mix(queries, keys, keys, attn_mask=self.bias, key_padding_mask=(x[..., 0] > 1.5).T)
        more = self.mix(queries, keys, keys, attn_mask=self.mask, need_weights=False)[0]
        return self.out((h + more).mean(0)) + weights.square().mean((1, 2)).unsqueeze(1)


class Encoder(nn.Module):
    def __init__(self, masked: bool = False, **options) -> None:
        super().__init__()
        self.embed, self.masked = nn.Linear(3, 4), masked
        layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True, **options)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(4), enable_nested_tensor=False)
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=x.dtype) if self.masked else None
        return self.out(self.layers(self.embed(x), mask).mean(1))


class Decoder(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(3, 4), nn.Linear(3, 4)
        layer = nn.TransformerDecoderLayer(4, 2, 5, dropout=0.0, batch_first=True, **options)
        self.layers, self.out = nn.TransformerDecoder(layer, 1), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.embed(x[:, :2]), torch.tanh(self.memory(x))).mean(1))


class Recurrent(nn.Module):
    """A recurrence on embedded entries: all its outputs, and its last states where it is given the first ones."""

    def __init__(self, kind, states: bool = False, **options) -> None:
        super().__init__()
        self.embed, self.cell = nn.Linear(3, 4), kind(4, 3, **options)
        size, both = options.get("proj_size") or 3, 2 if options.get("bidirectional") else 1
        count, self.time_first = both * options.get("num_layers", 1), not options.get("batch_first", False)
        self.out = nn.Linear(4 * both * size, CLASSES)
        sizes = (size, 3) if kind is nn.LSTM else (size,)
        self.first = nn.ParameterList([torch.randn(count, 1, n) for n in sizes] if states else [])
        self.last = nn.Linear(size, CLASSES) if states else None

    def forward(self, x: Tensor) -> Tensor:
        e = self.embed(x).transpose(0, 1) if self.time_first else self.embed(x)
        h = [s.expand(-1, x.size(0), -1) for s in self.first]
        out, last = self.cell(e, (tuple(h) if isinstance(self.cell, nn.LSTM) else h[0]) if h else None)
        z = self.out((out.transpose(0, 1) if self.time_first else out).flatten(1))
        if self.last is None:
            return z
        return z + self.last((last[0] if isinstance(self.cell, nn.LSTM) else last).square().sum(0))


def _recurrent(*args, **options):
    return lambda: Recurrent(*args, **options), (4, 3)


GRAPHS = {
    "RNN": _recurrent(nn.RNN),
    "RNN relu": _recurrent(nn.RNN, nonlinearity="relu", batch_first=True),
    "RNN two layers, states": _recurrent(nn.RNN, True, num_layers=2, bias=False),
    "GRU": _recurrent(nn.GRU, batch_first=True),
    "GRU two layers both ways, states": _recurrent(nn.GRU, True, num_layers=2, bidirectional=True),
    "LSTM": _recurrent(nn.LSTM, batch_first=True),
    "LSTM both ways": _recurrent(nn.LSTM, bidirectional=True, bias=False),
    "LSTM two layers, states": _recurrent(nn.LSTM, True, num_layers=2, batch_first=True),
    "LSTM proj_size": _recurrent(nn.LSTM, True, proj_size=2, bidirectional=True),
    "RNNCell": _cells(nn.RNNCell),
    "RNNCell relu, states": _cells(nn.RNNCell, True, nonlinearity="relu", bias=False),
    "GRUCell": _cells(nn.GRUCell),
    "GRUCell states": _cells(nn.GRUCell, True, bias=False),
    "LSTMCell": _cells(nn.LSTMCell),
    "LSTMCell states": _cells(nn.LSTMCell, True, bias=False),
    "weights of forward": (Weights, (2, 5, 4)),
    "softmax with scales": (Scale, (5,)),
    "MultiheadAttention": (Attention, (4, 3)),
    "MultiheadAttention of others": (Cross, (4, 3)),
    "MultiheadAttention kdim vdim": (lambda: Cross(kdim=3, vdim=3, bias=False), (4, 3)),
    "TransformerEncoder": (Encoder, (4, 3)),
    "TransformerEncoder norm_first mask": (lambda: Encoder(True, norm_first=True, activation=F.gelu), (4, 3)),
    "TransformerDecoder": (Decoder, (4, 3)),
    "TransformerDecoder norm_first": (lambda: Decoder(norm_first=True, activation=nn.SiLU()), (4, 3)),
}
