"""Handlers of elementwise functions: which rule, with which settings, for functions, methods and what modules hold."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .. import _ops
from ..rules import activations as formulas
from ..rules.elementwise import PReLU, gelu, native
from ..rules.rule import NotLayerwise, Rule
from ..rules.table import MODULES
from .arguments import Call
from .site import Handler, Operation, Site


def activation(site: Site, call: Call, defaults: Mapping[str, object], make: Callable[..., Rule]) -> Operation:
    call.without_others(("input", *defaults), "called with unknown arguments")
    return [make(**{name: call.plain(name, default) for name, default in defaults.items()})], [call["input"]]


# Activation -> names of the arguments after the input with their defaults, and the rule that they make.
_ACTIVATIONS: dict[object, tuple[dict[str, object], Callable[..., Rule]]] = {
    F.leaky_relu: (
        {"negative_slope": 0.01, "inplace": False},
        lambda negative_slope, inplace: native(_ops.LEAKY_RELU, negative_slope),
    ),
    F.elu: ({"alpha": 1.0, "inplace": False}, lambda alpha, inplace: native(_ops.ELU, alpha)),
    F.celu: ({"alpha": 1.0, "inplace": False}, lambda alpha, inplace: native(_ops.CELU, alpha)),
    F.softplus: ({"beta": 1.0, "threshold": 20.0}, lambda beta, threshold: native(_ops.SOFTPLUS, beta, threshold)),
    F.gelu: ({"approximate": "none"}, gelu),
    F.hardtanh: (
        {"min_val": -1.0, "max_val": 1.0, "inplace": False},
        lambda min_val, max_val, inplace: native(_ops.HARDTANH, min_val, max_val),
    ),
    F.relu6: ({"inplace": False}, lambda inplace: native(_ops.HARDTANH, 0.0, 6.0)),
    F.hardsigmoid: ({"inplace": False}, lambda inplace: formulas.hardsigmoid()),
    F.hardswish: ({"inplace": False}, lambda inplace: formulas.hardswish()),
    F.mish: ({"inplace": False}, lambda inplace: formulas.mish()),
    F.threshold: (
        {"threshold": None, "value": None, "inplace": False},
        lambda threshold, value, inplace: formulas.threshold(threshold=threshold, value=value),
    ),
    F.hardshrink: ({"lambd": 0.5}, formulas.hardshrink),
    F.softshrink: ({"lambd": 0.5}, formulas.softshrink),
}
_PLAIN_ACTIVATIONS: dict[int, tuple[object, ...]] = {
    _ops.RELU: (F.relu, torch.relu, "relu", "relu_", torch.relu_),
    _ops.SELU: (F.selu, torch.selu),
    _ops.SIGMOID: (torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"),
    _ops.TANH: (torch.tanh, F.tanh, "tanh", "tanh_"),
    _ops.SILU: (F.silu,),
}
_WITHOUT_SETTINGS: dict[Callable[..., Rule], tuple[object, ...]] = {
    formulas.logsigmoid: (F.logsigmoid,),
    formulas.softsign: (F.softsign,),
    formulas.tanhshrink: (F.tanhshrink,),
    formulas.absolute: (torch.abs, "abs", abs, operator.abs),
    formulas.exp: (torch.exp, "exp"),
    formulas.expm1: (torch.expm1, "expm1"),
    formulas.log: (torch.log, "log"),
    formulas.log1p: (torch.log1p, "log1p"),
    formulas.sin: (torch.sin, "sin"),
    formulas.cos: (torch.cos, "cos"),
    formulas.erf: (torch.erf, "erf"),
    formulas.square: (torch.square, "square"),
    formulas.sqrt: (torch.sqrt, "sqrt"),
    formulas.rsqrt: (torch.rsqrt, "rsqrt"),
    formulas.reciprocal: (torch.reciprocal, "reciprocal"),
}
_ACTIVATIONS |= {f: ({}, make) for make, functions in _WITHOUT_SETTINGS.items() for f in functions}
_ACTIVATIONS |= {
    f: ({"inplace": False}, lambda inplace, kind=kind: native(kind))
    for kind, functions in _PLAIN_ACTIVATIONS.items()
    for f in functions
}


def _power(site: Site, call: Call) -> Operation:
    base, exponent = call["input"], call["exponent"]
    if not isinstance(exponent, (int, float)) or isinstance(base, (int, float)):
        raise NotLayerwise("a power other than of a tensor by a number has no layer rule")
    return [formulas.power(exponent=exponent)], [base]


def _clamp(site: Site, call: Call) -> Operation:
    low, high = call.plain("min"), call.plain("max")
    if not all(b is None or isinstance(b, (int, float)) for b in (low, high)) or low is high is None:
        raise NotLayerwise("limits that are not numbers have no layer rule")
    return [formulas.clamp(min=low, max=high)], [call["input"]]


def _prelu(site: Site, call: Call) -> Operation:
    return [PReLU(site.attribute(call["weight"]))], [call["input"]]


def _rrelu(site: Site, call: Call) -> Operation:
    if call.plain("training", False) is not False:
        raise NotLayerwise("rrelu in training mode draws random numbers")
    lower, upper = call.plain("lower", 1 / 8), call.plain("upper", 1 / 3)
    return [native(_ops.LEAKY_RELU, (lower + upper) / 2)], [call["input"]]


def rule_of(function: Any) -> Rule:
    """The rule of an activation that a module holds: a function or a module."""
    make = MODULES.get(type(function)) if isinstance(function, nn.Module) else None
    if make is not None:
        made = make(function, _no_leaf, torch.Size())
    else:
        defaults, maker = _ACTIVATIONS.get(function, ({}, None))
        made = None if maker is None else maker(**defaults)
    if made is None or isinstance(made, list):
        raise NotLayerwise(f"{getattr(function, '__name__', type(function).__name__)} has no layer rule")
    return made


def _no_leaf(name: str) -> Any:
    raise NotLayerwise("an activation with parameters has no layer rule here")


_LIMITS, _RRELU = ("input", "min", "max"), ("input", "lower", "upper", "training", "inplace")
TARGETS: list[tuple[Handler, tuple[str, ...], tuple[object, ...]]] = [
    (_power, ("input", "exponent"), (operator.pow, torch.pow, "pow")),
    (_clamp, _LIMITS, (torch.clamp, "clamp", "clamp_", torch.clip, "clip")),
    (_clamp, ("input", "min"), (torch.clamp_min, "clamp_min")),
    (_clamp, ("input", "max"), (torch.clamp_max, "clamp_max")),
    (_prelu, ("input", "weight"), (F.prelu, torch.prelu)),
    (_rrelu, _RRELU, (F.rrelu, torch.rrelu)),
    *(
        (partial(activation, defaults=defaults, make=make), ("input", *defaults), (target,))
        for target, (defaults, make) in _ACTIVATIONS.items()
    ),
]
