"""Which torch modules have a layer rule, and how their settings map to it: one dictionary, class -> maker.

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
from .elementwise import Elementwise, PReLU, gelu
from .embedding import Embedding
from .joints import LinearMap, Reshape
from .linear import Linear
from .norm import FixedNorm, GroupStatistics, RowStatistics, by_channel
from .padding import Pad
from .pooling import Select
from .rule import Leaf, NotLayerwise, Rule

IDENTITY = None
LeafOf = Callable[[str], Leaf]


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
    function = F.conv1d if dims == 1 else F.conv2d
    if m.padding_mode != "zeros" or m.padding == "same":
        pads = padding_of(m)
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
        if mode == "constant" and pads[::2] == pads[1::2]:
            padding: Any = tuple(reversed(pads[::2]))
        else:
            pad = Pad(partial(F.pad, pad=pads, mode=mode), dims)
            return [pad, _convolution(m, leaf, dims, 0, function)]
    else:
        padding = 0 if m.padding == "valid" else m.padding
    return _convolution(m, leaf, dims, padding, function)


def _convolution(m: Any, leaf: LeafOf, dims: int, padding: Any, function: Callable[..., Tensor]) -> Rule:
    settings = {"stride": m.stride, "padding": padding, "dilation": m.dilation, "groups": m.groups}
    stride, dilation = _pair(m.stride, dims), _pair(m.dilation, dims)
    pads = (padding,) * dims if isinstance(padding, int) else tuple(padding)
    planar = (0, pads[0]) if dims == 1 else (pads[0], pads[1])
    geometry = Geometry(stride, planar, dilation, m.groups)
    return Convolution(leaf("weight"), leaf("bias"), geometry, partial(function, **settings))


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
    function: Any = F.max_pool1d if dims == 1 else F.max_pool2d
    reach = [1 + (k - 1) * d for k, d in zip(_pair(kernel_size, dims), _pair(dilation, dims), strict=True)]
    overlapping = any(r > s for r, s in zip(reach, _pair(stride, dims), strict=True))
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
    function: Any = F.adaptive_max_pool1d if dims == 1 else F.adaptive_max_pool2d
    return Select(_partial(function, output_size=m.output_size, return_indices=True), overlapping=True)


def batch_norm(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule:
    if len(shape) < 2:
        raise NotLayerwise("an input without a channel axis")
    if m.training or (m.running_mean is None and m.running_var is None):
        return GroupStatistics(leaf("weight"), leaf("bias"), m.eps)
    return FixedNorm(leaf("weight"), leaf("bias"), leaf("running_mean"), leaf("running_var"), m.eps)


def layer_norm(m: nn.LayerNorm, leaf: LeafOf, shape: torch.Size) -> Rule:
    own = torch.Size(m.normalized_shape)

    def view(s: torch.Size) -> tuple[int, ...]:
        return (*s[: len(s) - len(own)], own.numel())

    return RowStatistics(leaf("weight"), leaf("bias"), lambda s: own, view, m.eps, rowwise=len(shape) > len(own))


def group_norm(m: nn.GroupNorm, leaf: LeafOf, shape: torch.Size) -> Rule:
    groups = m.num_groups

    def view(s: torch.Size) -> tuple[int, ...]:
        return (s[0], groups, s[1:].numel() // groups)

    return RowStatistics(leaf("weight"), leaf("bias"), by_channel, view, m.eps, rowwise=True)


def embedding(m: nn.Embedding, leaf: LeafOf, shape: torch.Size) -> Rule:
    if m.max_norm is not None:
        raise NotLayerwise("max_norm rewrites the weight in forward")
    if m.scale_grad_by_freq:
        raise NotLayerwise("scale_grad_by_freq: what torch returns is not the gradient")
    return Embedding(leaf("weight"), m.padding_idx)


def _eval_only(m: Any, leaf: LeafOf, shape: torch.Size) -> Rule | None:
    if m.training and m.p > 0:
        raise NotLayerwise("dropout in training mode draws random numbers")
    return IDENTITY


def _plain(kind: int) -> Callable[..., Rule]:
    return lambda m, leaf, shape: Elementwise(kind)


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


MODULES: dict[type, Callable[[Any, LeafOf, torch.Size], Rule | list[Rule] | None]] = {
    nn.Linear: linear,
    nn.ReLU: _plain(_ops.RELU),
    nn.SELU: _plain(_ops.SELU),
    nn.Sigmoid: _plain(_ops.SIGMOID),
    nn.Tanh: _plain(_ops.TANH),
    nn.SiLU: _plain(_ops.SILU),
    nn.LeakyReLU: lambda m, leaf, shape: Elementwise(_ops.LEAKY_RELU, m.negative_slope),
    nn.ELU: lambda m, leaf, shape: Elementwise(_ops.ELU, m.alpha),
    nn.CELU: lambda m, leaf, shape: Elementwise(_ops.CELU, m.alpha),
    nn.Softplus: lambda m, leaf, shape: Elementwise(_ops.SOFTPLUS, m.beta, m.threshold),
    nn.GELU: lambda m, leaf, shape: gelu(m.approximate),
    nn.Hardtanh: lambda m, leaf, shape: Elementwise(_ops.HARDTANH, m.min_val, m.max_val),
    nn.ReLU6: lambda m, leaf, shape: Elementwise(_ops.HARDTANH, 0.0, 6.0),
    nn.PReLU: lambda m, leaf, shape: PReLU(leaf("weight")),
    nn.Embedding: embedding,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.ConvTranspose1d: transposed_convolution,
    nn.ConvTranspose2d: transposed_convolution,
    nn.MaxPool1d: max_pool_module,
    nn.MaxPool2d: max_pool_module,
    nn.AdaptiveMaxPool1d: adaptive_max_pool,
    nn.AdaptiveMaxPool2d: adaptive_max_pool,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.Flatten: flatten,
    nn.Unflatten: unflatten,
    nn.Identity: lambda m, leaf, shape: IDENTITY,
    nn.Dropout: _eval_only,
    nn.Dropout1d: _eval_only,
    nn.Dropout2d: _eval_only,
    nn.Dropout3d: _eval_only,
    nn.AlphaDropout: _eval_only,
    nn.FeatureAlphaDropout: _eval_only,
}
MODULES |= dict.fromkeys(
    (
        *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
        *(nn.ZeroPad1d, nn.ZeroPad2d, nn.CircularPad1d, nn.CircularPad2d),
        *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
        *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
        *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    ),
    linear_map,
)

_builtin = frozenset(MODULES)


def register_rule(
    module_class: type[nn.Module], make: Callable[[Any, LeafOf, torch.Size], Rule | list[Rule] | None]
) -> None:
    """Gives a layer of your own a rule (see ``Rule``), in place of torch's derivatives of it.

    A class with a registered rule gets the new one. Models captured before are captured again.

    Args:
        module_class: exactly this class, not its subclasses; its forward takes one tensor.
        make: ``make(module, leaf, shape)`` returns the rule of one module, a list of rules to be applied in turn, or
            None for the identity. ``leaf(name)`` is the parameter or buffer of that name as a ``Leaf``, to be called
            with theta; ``shape`` is that of the input [N, ...] when the model is captured (N may be another later).

    Every captured model is compared with torch in float64 before a rule is used; an operator of a model whose
    registered rule is wrong raises ChaosExtError.

    Raises:
        TypeError: not an nn.Module class, or not callable.
        ValueError: the class has a rule of the package.
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise TypeError(f"module_class: expected a subclass of torch.nn.Module, got {module_class!r}")
    if not callable(make):
        raise TypeError(f"make: expected a callable make(module, leaf, shape), got {type(make).__name__}")
    if module_class in _builtin:
        raise ValueError(f"module_class: {module_class.__name__} has a rule already; register a subclass of it")
    MODULES[module_class] = make


def unregister_rule(module_class: type[nn.Module]) -> None:
    """Takes back ``register_rule``; a class without a registered rule is left as it is."""
    if module_class not in _builtin:
        MODULES.pop(module_class, None)


def is_registered(module_class: type) -> bool:
    """Whether the class has a rule by ``register_rule``."""
    return module_class in MODULES and module_class not in _builtin
