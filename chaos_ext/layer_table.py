"""Which torch modules, functions and methods have a layer rule, and how their arguments map to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import _ops
from .layers import Elementwise, NotLayerwise, Reshape, Rule


def _gelu(approximate: str) -> Elementwise:
    return Elementwise(_ops.GELU_TANH if approximate == "tanh" else _ops.GELU_ERF)


MODULES: dict[type, Callable[[Any], Rule | None]] = {
    nn.ReLU: lambda m: Elementwise(_ops.RELU),
    nn.LeakyReLU: lambda m: Elementwise(_ops.LEAKY_RELU, m.negative_slope),
    nn.ELU: lambda m: Elementwise(_ops.ELU, m.alpha),
    nn.SELU: lambda m: Elementwise(_ops.SELU),
    nn.CELU: lambda m: Elementwise(_ops.CELU, m.alpha),
    nn.Sigmoid: lambda m: Elementwise(_ops.SIGMOID),
    nn.Tanh: lambda m: Elementwise(_ops.TANH),
    nn.Softplus: lambda m: Elementwise(_ops.SOFTPLUS, m.beta, m.threshold),
    nn.SiLU: lambda m: Elementwise(_ops.SILU),
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.Hardtanh: lambda m: Elementwise(_ops.HARDTANH, m.min_val, m.max_val),
    nn.ReLU6: lambda m: Elementwise(_ops.HARDTANH, 0.0, 6.0),
    nn.Identity: lambda m: None,
    nn.Flatten: lambda m: flatten_rule(m.start_dim, m.end_dim),
}

# nn.Dropout in eval mode and nn.Linear, whose parameters need slots, are handled where the program is built.

# Functional forms: name of each argument after the input with its default, and the rule they make.
FUNCTIONS: dict[object, tuple[dict[str, object], Callable[..., Rule]]] = {
    F.leaky_relu: (
        {"negative_slope": 0.01, "inplace": False},
        lambda negative_slope, inplace: Elementwise(_ops.LEAKY_RELU, negative_slope),
    ),
    F.elu: ({"alpha": 1.0, "inplace": False}, lambda alpha, inplace: Elementwise(_ops.ELU, alpha)),
    F.celu: ({"alpha": 1.0, "inplace": False}, lambda alpha, inplace: Elementwise(_ops.CELU, alpha)),
    F.softplus: ({"beta": 1.0, "threshold": 20.0}, lambda beta, threshold: Elementwise(_ops.SOFTPLUS, beta, threshold)),
    F.gelu: ({"approximate": "none"}, lambda approximate: _gelu(approximate)),
    F.hardtanh: (
        {"min_val": -1.0, "max_val": 1.0, "inplace": False},
        lambda min_val, max_val, inplace: Elementwise(_ops.HARDTANH, min_val, max_val),
    ),
    torch.flatten: ({"start_dim": 0, "end_dim": -1}, lambda start_dim, end_dim: flatten_rule(start_dim, end_dim)),
}
FUNCTIONS.update(
    {
        f: ({"inplace": False}, lambda inplace, kind=kind: Elementwise(kind))
        for kind, group in {
            _ops.RELU: (F.relu, torch.relu),
            _ops.SELU: (F.selu, torch.selu),
            _ops.SIGMOID: (torch.sigmoid, F.sigmoid),
            _ops.TANH: (torch.tanh, F.tanh),
            _ops.SILU: (F.silu,),
        }.items()
        for f in group
    }
)
METHODS: dict[object, object] = {"relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "flatten": torch.flatten}


def flatten_rule(start_dim: int, end_dim: int) -> Reshape:
    """[N, ...] to [N, features], the only flatten that keeps samples apart."""
    if start_dim != 1 or end_dim != -1:
        raise NotLayerwise(f"flatten(start_dim={start_dim}, end_dim={end_dim}) other than (1, -1)")
    return Reshape()
