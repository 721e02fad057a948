"""The declarative table of layers: every layer with every option that changes its formula, in a small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 3


class Head(nn.Module):
    """The layer between an input layer and a smooth output: its Hessian has all kinds of blocks."""

    def __init__(self, before: nn.Module | None, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.layer = before or nn.Identity(), layer
        with torch.no_grad():
            features = layer(self.before(torch.randn(2, *shape))).flatten(1).shape[1]
        self.out = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(self.before(x))).flatten(1))


def _conv1(*args, **kwargs):
    return lambda: Head(nn.Conv1d(2, 4, 1), nn.Conv1d(*args, **kwargs), (2, 7)), (2, 7)


def _conv2(*args, **kwargs):
    return lambda: Head(nn.Conv2d(2, 4, 1), nn.Conv2d(*args, **kwargs), (2, 5, 6)), (2, 5, 6)


def _up1(*args, **kwargs):
    return lambda: Head(nn.Conv1d(2, 4, 1), nn.ConvTranspose1d(*args, **kwargs), (2, 4)), (2, 4)


def _up2(*args, **kwargs):
    return lambda: Head(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(*args, **kwargs), (2, 3, 4)), (2, 3, 4)


def _pool1(layer):
    return lambda: Head(nn.Sequential(nn.Conv1d(2, 3, 3), nn.Sigmoid()), layer(), (2, 10)), (2, 10)


def _pool2(layer):
    return lambda: Head(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Sigmoid()), layer(), (2, 6, 7)), (2, 6, 7)


def _features(layer):
    return lambda: Head(nn.Linear(5, 6), layer(), (5,)), (5,)


def _images(layer):
    return lambda: Head(nn.Conv2d(2, 4, 2), layer(), (2, 4, 4)), (2, 4, 4)


def _signals(layer):
    return lambda: Head(nn.Conv1d(2, 4, 2), layer(), (2, 6)), (2, 6)


def scaled(norm: nn.Module) -> nn.Module:
    """gamma != 1, beta != 0, running statistics other than 0 and 1."""
    gen = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for t in (*norm.parameters(), *norm.buffers()):
            if t.is_floating_point():
                t.copy_(0.5 + torch.rand(t.shape, generator=gen))
    return norm


# name -> (builder, shape of one sample). Layers with a rule of their own.
LAYERS = {
    "Conv1d": _conv1(4, 3, 3),
    "Conv1d stride padding dilation": _conv1(4, 3, 3, stride=2, padding=2, dilation=2),
    "Conv1d groups no bias": _conv1(4, 6, 2, groups=2, bias=False),
    "Conv1d same": _conv1(4, 3, 4, padding="same"),
    "Conv1d circular": _conv1(4, 3, 3, padding=2, padding_mode="circular"),
    "Conv2d": _conv2(4, 3, 3),
    "Conv2d no bias": _conv2(4, 3, (2, 3), bias=False),
    "Conv2d stride": _conv2(4, 3, 3, stride=(2, 1)),
    "Conv2d padding": _conv2(4, 3, 3, padding=(2, 1)),
    "Conv2d dilation": _conv2(4, 3, (3, 2), dilation=(1, 3), padding=1),
    "Conv2d groups": _conv2(4, 6, 3, groups=2, padding=1),
    "Conv2d depthwise": _conv2(4, 4, 3, groups=4, padding=1, stride=2),
    "Conv2d same": _conv2(4, 3, (3, 5), padding="same"),
    "Conv2d same, even kernel": _conv2(4, 3, (2, 4), padding="same", dilation=(1, 1)),
    "Conv2d valid": _conv2(4, 3, 2, padding="valid"),
    "Conv2d circular": _conv2(4, 3, 3, padding=(1, 2), padding_mode="circular"),
    "Conv2d circular groups": _conv2(4, 4, 3, padding=1, padding_mode="circular", groups=2),
    "Conv2d reflect": _conv2(4, 3, 3, padding=(2, 1), padding_mode="reflect"),
    "Conv2d replicate stride": _conv2(4, 3, 3, padding=2, padding_mode="replicate", stride=2),
    "Conv2d same reflect": _conv2(4, 3, (2, 3), padding="same", padding_mode="reflect"),
    "ConvTranspose1d": _up1(4, 3, 3, stride=2, padding=1, output_padding=1),
    "ConvTranspose2d": _up2(4, 3, 2),
    "ConvTranspose2d stride output_padding": _up2(4, 3, 3, stride=(2, 3), padding=1, output_padding=(1, 2)),
    "ConvTranspose2d groups dilation no bias": _up2(4, 6, 2, groups=2, dilation=2, bias=False),
    "MaxPool1d": _pool1(lambda: nn.MaxPool1d(2)),
    "MaxPool1d overlapping": _pool1(lambda: nn.MaxPool1d(3, stride=1, padding=1)),
    "MaxPool2d after sigmoid": _pool2(lambda: nn.MaxPool2d(2)),
    "MaxPool2d overlapping": _pool2(lambda: nn.MaxPool2d(3, stride=(1, 2), padding=1)),
    "MaxPool2d dilation ceil_mode": _pool2(lambda: nn.MaxPool2d(2, stride=2, dilation=2, ceil_mode=True)),
    "AdaptiveMaxPool2d": _pool2(lambda: nn.AdaptiveMaxPool2d((2, 4))),
    "AvgPool1d": _pool1(lambda: nn.AvgPool1d(3, stride=2, padding=1, count_include_pad=False)),
    "AvgPool2d": _pool2(lambda: nn.AvgPool2d(2)),
    "AvgPool2d padding": _pool2(lambda: nn.AvgPool2d(3, stride=2, padding=1)),
    "AvgPool2d without pad, ceil_mode": _pool2(
        lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)
    ),
    "AvgPool2d divisor": _pool2(lambda: nn.AvgPool2d(2, divisor_override=3)),
    "AdaptiveAvgPool1d": _pool1(lambda: nn.AdaptiveAvgPool1d(3)),
    "AdaptiveAvgPool2d": _pool2(lambda: nn.AdaptiveAvgPool2d((2, 3))),
    "BatchNorm1d": _features(lambda: scaled(nn.BatchNorm1d(6))),
    "BatchNorm1d signals": _signals(lambda: scaled(nn.BatchNorm1d(4))),
    "BatchNorm2d": _images(lambda: scaled(nn.BatchNorm2d(4))),
    "BatchNorm2d eps": _images(lambda: scaled(nn.BatchNorm2d(4, eps=0.3, momentum=None))),
    "BatchNorm2d not affine": _images(lambda: nn.BatchNorm2d(4, affine=False)),
    "BatchNorm2d no running stats": _images(lambda: scaled(nn.BatchNorm2d(4, track_running_stats=False))),
    "LayerNorm": _features(lambda: scaled(nn.LayerNorm(6))),
    "LayerNorm no bias": _features(lambda: scaled(nn.LayerNorm(6, bias=False, eps=0.1))),
    "LayerNorm not affine": _features(lambda: nn.LayerNorm(6, elementwise_affine=False)),
    "LayerNorm images": _images(lambda: scaled(nn.LayerNorm((4, 3, 3)))),
    "LayerNorm last axis": _images(lambda: scaled(nn.LayerNorm(3))),
    "GroupNorm": _images(lambda: scaled(nn.GroupNorm(2, 4))),
    "GroupNorm one group": _signals(lambda: scaled(nn.GroupNorm(1, 4, eps=0.2))),
    "GroupNorm not affine": _images(lambda: nn.GroupNorm(4, 4, affine=False)),
    "PReLU": _features(nn.PReLU),
    "PReLU channels": _images(lambda: scaled(nn.PReLU(4))),
    "Linear on the last axis": _images(lambda: nn.Linear(3, 2)),
    "Flatten": _images(nn.Flatten),
    "Unflatten": _features(lambda: nn.Unflatten(1, (2, 3))),
    "Upsample": _images(lambda: nn.Upsample(scale_factor=2)),
    "Upsample bilinear": _images(lambda: nn.Upsample(size=(5, 4), mode="bilinear", align_corners=True)),
    "PixelShuffle": _images(lambda: nn.PixelShuffle(2)),
    "ReflectionPad2d": _images(lambda: nn.ReflectionPad2d((1, 0, 2, 1))),
    "AdaptiveMaxPool1d": _pool1(lambda: nn.AdaptiveMaxPool1d(3)),
    "BatchNorm3d": (lambda: Head(None, scaled(nn.BatchNorm3d(2)), (2, 2, 2, 3)), (2, 2, 2, 3)),
    "PixelUnshuffle": _pool2(lambda: nn.Sequential(nn.AdaptiveAvgPool2d((4, 2)), nn.PixelUnshuffle(2))),
    "ChannelShuffle": _images(lambda: nn.ChannelShuffle(2)),
    "UpsamplingNearest2d": _images(lambda: nn.UpsamplingNearest2d(scale_factor=2)),
    "UpsamplingBilinear2d": _images(lambda: nn.UpsamplingBilinear2d(size=(4, 5))),
    "ZeroPad1d": _signals(lambda: nn.ZeroPad1d((1, 2))),
    "ZeroPad2d": _images(lambda: nn.ZeroPad2d((1, 0, 2, 1))),
    "CircularPad1d": _signals(lambda: nn.CircularPad1d((1, 2))),
    "CircularPad2d": _images(lambda: nn.CircularPad2d((1, 0, 2, 1))),
    "ReflectionPad1d": _signals(lambda: nn.ReflectionPad1d((1, 2))),
    "ReplicationPad1d": _signals(lambda: nn.ReplicationPad1d((3, 0))),
    "ReplicationPad2d": _images(lambda: nn.ReplicationPad2d((1, 0, 2, 1))),
    "Dropout": _features(lambda: nn.Dropout(0.4)),
    "Dropout1d": _signals(lambda: nn.Dropout1d(0.4)),
    "Dropout2d": _images(lambda: nn.Dropout2d(0.4)),
    "Dropout3d": (lambda: Head(scaled(nn.BatchNorm3d(2)), nn.Dropout3d(0.4), (2, 2, 2, 3)), (2, 2, 2, 3)),
    "FeatureAlphaDropout": _images(lambda: nn.FeatureAlphaDropout(0.4)),
    "AlphaDropout": _features(lambda: nn.AlphaDropout(0.4)),
}


class Tokens(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(7, 4, **options), nn.Linear(4, 4), nn.Linear(20, CLASSES)

    def forward(self, x):
        return self.out(torch.tanh(self.mix(self.embed(x))).view(x.shape[0], -1))


class Block(nn.Module):
    """A residual block, as ResNets have it: in-place additions and activations."""

    def __init__(self, channels: int, out: int, stride: int, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = scaled(norm(out)), scaled(norm(out))
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential() if stride == 1 else nn.Sequential(nn.Conv2d(channels, out, 1, stride), norm(out))

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.down(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.blocks = nn.Sequential(Block(3, 3, 1, norm), Block(3, 4, 2, norm))
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = self.blocks(F.silu(self.stem(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.out(torch.flatten(x, 1))


class Functional(nn.Module):
    """Functional calls, arithmetic, concatenation, slices, means."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate = nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2)
        self.weight, self.scale = nn.Parameter(torch.randn(CLASSES, 6)), nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        batch = x.size(0)
        a, b = F.gelu(self.a(x)), torch.tanh(self.b(x))
        mixed = a * torch.sigmoid(self.gate(x)) - 0.5 * b + 1.0
        pooled = F.max_pool2d(mixed, 2) + F.avg_pool2d(b, 2)
        both = torch.cat([pooled.mean((2, 3)), (-b[:, :, 0, 1] / 2)], dim=1)
        return F.linear(both.view(batch, -1), self.weight) * self.scale


class TiedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.second.weight = self.first.weight
        self.out = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.out(self.second(torch.tanh(self.first(x))).flatten(1))


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, CLASSES)
        self.conv.weight.requires_grad_(False)
        scaled(self.norm).bias.requires_grad_(False)

    def forward(self, x):
        return self.out(torch.sigmoid(self.norm(self.conv(x))).flatten(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.embed(x)
        h = self.norm(h + self.mix(h, h, h, need_weights=False)[0])
        return self.out(h.mean(1))


class Branching(nn.Module):
    """A submodule whose forward torch.fx cannot trace, inside one that it can."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(6, 6)

        def forward(self, h):
            return self.lin(h).sin() if h.sum() > -1e9 else h

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.out = nn.Linear(5, 6), self.Inner(), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.out(self.inner(torch.tanh(self.first(x))))


class Scale(nn.Module):
    """A parameter used directly, with broadcasting over samples and features."""

    def __init__(self):
        super().__init__()
        self.scale, self.lin, self.out = nn.Parameter(torch.rand(5)), nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out((self.lin(x * self.scale.exp())).softmax(-1))


# Whole graphs of layers with rules.
GRAPHS = {
    "residual BatchNorm": (ResNet, (2, 6, 6)),
    "residual GroupNorm": (lambda: ResNet(lambda c: nn.GroupNorm(1, c)), (2, 6, 6)),
    "functional calls": (Functional, (2, 5, 5)),
    "tied convolutions": (TiedConv, (2, 4, 4)),
    "frozen parts": (Frozen, (2, 4, 4)),
    "MLP with BatchNorm": (
        lambda: nn.Sequential(nn.Linear(5, 6), scaled(nn.BatchNorm1d(6)), nn.Tanh(), nn.Linear(6, CLASSES)),
        (5,),
    ),
    "MLP with LayerNorm": (
        lambda: nn.Sequential(nn.Linear(5, 6), scaled(nn.LayerNorm(6)), nn.ReLU(), nn.Linear(6, CLASSES)),
        (5,),
    ),
    "sequence": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, CLASSES)), (5, 3)),
}

# Layers by torch's own derivatives of them alone, in a graph of rules.
AUTOMATIC = {
    "untraceable submodule": (Branching, (5,)),
}
