"""Which torch modules have a layer rule: one dictionary, class -> maker (see ``makers``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import _ops
from . import activations as formulas
from . import makers
from .elementwise import PReLU, gelu, native
from .rule import Rule
from .softmax import Softmax

MODULES: dict[type, Callable[[Any, makers.LeafOf, torch.Size], Rule | list[Rule] | None]] = {
    nn.Linear: makers.linear,
    nn.ReLU: makers.plain(_ops.RELU),
    nn.SELU: makers.plain(_ops.SELU),
    nn.Sigmoid: makers.plain(_ops.SIGMOID),
    nn.Tanh: makers.plain(_ops.TANH),
    nn.SiLU: makers.plain(_ops.SILU),
    nn.LeakyReLU: lambda m, leaf, shape: native(_ops.LEAKY_RELU, m.negative_slope),
    nn.ELU: lambda m, leaf, shape: native(_ops.ELU, m.alpha),
    nn.CELU: lambda m, leaf, shape: native(_ops.CELU, m.alpha),
    nn.Softplus: lambda m, leaf, shape: native(_ops.SOFTPLUS, m.beta, m.threshold),
    nn.GELU: lambda m, leaf, shape: gelu(m.approximate),
    nn.Hardtanh: lambda m, leaf, shape: native(_ops.HARDTANH, m.min_val, m.max_val),
    nn.ReLU6: lambda m, leaf, shape: native(_ops.HARDTANH, 0.0, 6.0),
    nn.PReLU: lambda m, leaf, shape: PReLU(leaf("weight")),
    nn.Hardsigmoid: lambda m, leaf, shape: formulas.hardsigmoid(),
    nn.Hardswish: lambda m, leaf, shape: formulas.hardswish(),
    nn.Mish: lambda m, leaf, shape: formulas.mish(),
    nn.LogSigmoid: lambda m, leaf, shape: formulas.logsigmoid(),
    nn.Softsign: lambda m, leaf, shape: formulas.softsign(),
    nn.Tanhshrink: lambda m, leaf, shape: formulas.tanhshrink(),
    nn.Hardshrink: lambda m, leaf, shape: formulas.hardshrink(lambd=m.lambd),
    nn.Softshrink: lambda m, leaf, shape: formulas.softshrink(lambd=m.lambd),
    nn.Threshold: lambda m, leaf, shape: formulas.threshold(threshold=m.threshold, value=m.value),
    nn.RReLU: makers.rrelu,
    nn.Embedding: makers.embedding,
    nn.Conv1d: makers.convolution,
    nn.Conv2d: makers.convolution,
    nn.Conv3d: makers.convolution,
    nn.ConvTranspose1d: makers.transposed_convolution,
    nn.ConvTranspose2d: makers.transposed_convolution,
    nn.MaxPool1d: makers.max_pool_module,
    nn.MaxPool2d: makers.max_pool_module,
    nn.MaxPool3d: makers.max_pool_module,
    nn.AdaptiveMaxPool1d: makers.adaptive_max_pool,
    nn.AdaptiveMaxPool2d: makers.adaptive_max_pool,
    nn.AdaptiveMaxPool3d: makers.adaptive_max_pool,
    nn.BatchNorm1d: makers.batch_norm,
    nn.BatchNorm2d: makers.batch_norm,
    nn.BatchNorm3d: makers.batch_norm,
    nn.LayerNorm: makers.layer_norm,
    nn.GroupNorm: makers.group_norm,
    nn.RMSNorm: makers.rms_norm,
    nn.InstanceNorm1d: makers.instance_norm,
    nn.InstanceNorm2d: makers.instance_norm,
    nn.InstanceNorm3d: makers.instance_norm,
    nn.Softmax: makers.softmax,
    nn.Softmin: makers.softmax,
    nn.LogSoftmax: makers.softmax,
    nn.Softmax2d: lambda m, leaf, shape: Softmax(len(shape) - 3),
    nn.Flatten: makers.flatten,
    nn.Unflatten: makers.unflatten,
    nn.Identity: lambda m, leaf, shape: makers.IDENTITY,
    nn.Dropout: makers.eval_only,
    nn.Dropout1d: makers.eval_only,
    nn.Dropout2d: makers.eval_only,
    nn.Dropout3d: makers.eval_only,
    nn.AlphaDropout: makers.eval_only,
    nn.FeatureAlphaDropout: makers.eval_only,
}
MODULES |= dict.fromkeys(
    (
        *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
        *(nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.ZeroPad3d, nn.CircularPad3d, nn.ReflectionPad3d, nn.ReplicationPad3d),
        *(nn.ZeroPad1d, nn.ZeroPad2d, nn.CircularPad1d, nn.CircularPad2d),
        *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
        *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
        *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    ),
    makers.linear_map,
)

_builtin = frozenset(MODULES)


def register_rule(
    module_class: type[nn.Module], make: Callable[[Any, makers.LeafOf, torch.Size], Rule | list[Rule] | None]
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
