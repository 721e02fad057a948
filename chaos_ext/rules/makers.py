"""How the settings of torch's modules map to layer rules: a maker for each kind.

A maker gets the module, its parameters by name, and the shape of its input. It returns a rule, a list of rules to be
applied in turn, or ``IDENTITY``, or raises ``NotLayerwise`` with the reason why torch's own derivatives have to do.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _ops
from ..base.torch_internals import padding_of
from .conv import Convolution, Geometry
from .elementwise import native
from .embedding import Embedding
from .joints import Affine, LinearMap, Reshape
from .linear import Linear
from .norm import FixedNorm, GroupStatistics, RowStatistics, by_channel
from .padding import Pad
from .pooling import Select
from .rms import RmsNorm
from .rule import Leaf, NotLayerwise, Rule
from .softmax import LogSoftmax, Softmax
from .volumes import Depth, VolumeConvolution

IDENTITY = None
LeafOf = Callable[[str], Leaf]


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """A setting of a layer for each of its dimensions."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _pair(value: Any, dims: int) -> tuple[int, int]:
    """A setting of a one- or two-dimensional layer as (height, width)."""
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    return (values[0], values[0]) if dims == 2 and len(values) == 1 else (1 if dims == 1 else values[0], values[-1])


def linear(m: nn.Linear, leaf: LeafOf, shape: torch.Size) -> Rule:
    if len(shape) < 2:
        raise NotLayerwise("an input without a batch axis")
    return Linear(leaf("weight"), leaf("bias"))


def _dims(m: nn.Module, shape: torch.Size, offset: int = 2) -> int:
    """Spatial dimensions; unbatched inputs have no rule."""
    dims = int(type(m).__name__[-2])
    if len(shape) != dims + offset:
        raise NotLayerwise("an input without a batch axis")
    return dims


def convolution(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule | list[Rule]:
    dims = _dims(m, shape)
    own = partial(convolution_of, leaf("weight"), leaf("bias"), dims, m.stride, dilation=m.dilation, groups=m.groups)
    own = partial(own, kernel=m.kernel_size) if dims == 3 else own
    if m.padding_mode != "zeros" or m.padding == "same":
        pads = padding_of(m)
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
        if mode == "constant" and pads[::2] == pads[1::2]:
            padding: Any = tuple(reversed(pads[::2]))
        else:
            pad = Pad(partial(F.pad, pad=pads, mode=mode), dims)
            return [pad, own(padding=0)]
    else:
        padding = 0 if m.padding == "valid" else m.padding
    return own(padding=padding)


def convolution_of(
    weight: Leaf, bias: Leaf, dims: int, stride: Any, padding: Any, dilation: Any, groups: int, kernel: Any = None
) -> Rule:
    """A convolution of up to three dimensions with zeros around its input; of three ``kernel`` is the weight's."""
    if dims == 3:
        (s, *strides), (p, *pads), (d, *dilations) = (_each(v, 3) for v in (stride, padding, dilation))
        settings: dict[str, Any] = {"stride": strides, "padding": pads, "dilation": dilations, "groups": groups}
        return VolumeConvolution(
            weight, partial(convolution_of, bias=bias, dims=2, **settings), Depth(kernel[0], s, p, d)
        )
    function = F.conv1d if dims == 1 else F.conv2d
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    planar = (0, _pair(padding, dims)[1]) if dims == 1 else _pair(padding, dims)
    geometry = Geometry(_pair(stride, dims), planar, _pair(dilation, dims), groups)
    return Convolution(weight, bias, geometry, partial(function, **settings))


def transposed_convolution(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule:
    dims = _dims(m, shape)
    function = F.conv_transpose1d if dims == 1 else F.conv_transpose2d
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    settings = {name: getattr(m, name) for name in names}
    padding = (0, *m.padding) if dims == 1 else tuple(m.padding)
    geometry = Geometry(_pair(m.stride, dims), padding, _pair(m.dilation, dims), m.groups)
    return Convolution(leaf("weight"), leaf("bias"), geometry, partial(function, **settings), transposed=True)


def _partial(function: Any, **settings: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A pooling function that returns (values, indices)."""
    return partial(function, **settings)


def max_pool(
    shape: torch.Size, dims: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Rule:
    if len(shape) != dims + 2:
        raise NotLayerwise("an input without a batch axis")
    stride = kernel_size if stride is None or stride == [] else stride
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
    reach = [1 + (k - 1) * d for k, d in zip(_each(kernel_size, dims), _each(dilation, dims), strict=True)]
    overlapping = any(r > s for r, s in zip(reach, _each(stride, dims), strict=True))
    settings = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    return Select(_partial(function, **settings, ceil_mode=ceil_mode, return_indices=True), overlapping)


def max_pool_module(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule:
    if m.return_indices:
        raise NotLayerwise("return_indices")
    return max_pool(shape, _dims(m, shape), m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)


def adaptive_max_pool(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule:
    dims = _dims(m, shape)
    if m.return_indices:
        raise NotLayerwise("return_indices")
    function: Any = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[dims - 1]
    return Select(_partial(function, output_size=m.output_size, return_indices=True), overlapping=True)


def batch_norm(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule:
    if len(shape) < 2:
        raise NotLayerwise("an input without a channel axis")
    if m.training or (m.running_mean is None and m.running_var is None):
        return GroupStatistics(leaf("weight"), leaf("bias"), m.eps)
    return FixedNorm(leaf("weight"), leaf("bias"), leaf("running_mean"), leaf("running_var"), m.eps)


def norm_of_axes(weight: Leaf, bias: Leaf, own: torch.Size, eps: float, axes: int) -> Rule:
    """LayerNorm over the last axes, of sizes ``own``, of a tensor with so many."""

    def view(s: torch.Size) -> tuple[int, ...]:
        return (*s[: len(s) - len(own)], own.numel())

    return RowStatistics(weight, bias, lambda s: own, view, eps, rowwise=axes > len(own))


def norm_of_groups(weight: Leaf, bias: Leaf, groups: int, eps: float) -> Rule:
    """GroupNorm; with a group a channel, InstanceNorm."""

    def view(s: torch.Size) -> tuple[int, ...]:
        return (s[0], groups, s[1:].numel() // groups)

    return RowStatistics(weight, bias, by_channel, view, eps, rowwise=True)


def layer_norm(m: nn.LayerNorm, leaf: LeafOf, shape: torch.Size) -> Rule:
    return norm_of_axes(leaf("weight"), leaf("bias"), torch.Size(m.normalized_shape), m.eps, len(shape))


def rms_norm(m: nn.RMSNorm, leaf: LeafOf, shape: torch.Size) -> Rule:
    own = len(m.normalized_shape)
    return RmsNorm(leaf("weight"), own, m.eps, rowwise=len(shape) > own)


def group_norm(m: nn.GroupNorm, leaf: LeafOf, shape: torch.Size) -> Rule:
    return norm_of_groups(leaf("weight"), leaf("bias"), m.num_groups, m.eps)


def instance_norm(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule:
    _dims(m, shape)
    if not m.training and m.running_mean is not None:
        return FixedNorm(leaf("weight"), leaf("bias"), leaf("running_mean"), leaf("running_var"), m.eps)
    return norm_of_groups(leaf("weight"), leaf("bias"), shape[1], m.eps)


def embedding(m: nn.Embedding, leaf: LeafOf, shape: torch.Size) -> Rule:
    if m.max_norm is not None:
        raise NotLayerwise("max_norm rewrites the weight in forward")
    if m.scale_grad_by_freq:
        raise NotLayerwise("scale_grad_by_freq: what torch returns is not the gradient")
    return Embedding(leaf("weight"), m.padding_idx)


def eval_only(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule | None:
    if m.training and m.p > 0:
        raise NotLayerwise("dropout in training mode draws random numbers")
    return IDENTITY


def plain(kind: int) -> Callable[..., Rule]:
    return lambda m, leaf, shape: native(kind)


def rrelu(m: nn.RReLU, leaf: LeafOf, shape: torch.Size) -> Rule:
    if m.training:
        raise NotLayerwise("RReLU in training mode draws random numbers")
    return native(_ops.LEAKY_RELU, (m.lower + m.upper) / 2)


def softmax(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule | list[Rule]:
    if m.dim is None:
        raise NotLayerwise("softmax without an axis")
    dim = m.dim % len(shape)
    if isinstance(m, nn.LogSoftmax):
        return LogSoftmax(dim)
    return [Affine(-1.0, 0.0), Softmax(dim)] if isinstance(m, nn.Softmin) else Softmax(dim)


def flatten(m: nn.Flatten, leaf: LeafOf, shape: torch.Size) -> Rule:
    start, end = m.start_dim, m.end_dim
    return Reshape(lambda inputs: inputs[0].flatten(start, end))


def unflatten(m: nn.Unflatten, leaf: LeafOf, shape: torch.Size) -> Rule:
    dim, sizes = m.dim, m.unflattened_size
    return Reshape(lambda inputs: inputs[0].unflatten(dim, sizes))


def linear_map(m: nn.Module, leaf: LeafOf, shape: torch.Size) -> Rule:
    """The module itself, linear in its input and each sample alone; referenced weakly, as in ``Leaf``."""
    reference = weakref.ref(m)

    def function(a: Tensor) -> Tensor:
        own = reference()
        assert own is not None
        return own(a)

    return LinearMap(function, rowwise=True)
