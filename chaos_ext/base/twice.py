"""Functions of torch's whose second derivative torch does not have, or has wrongly, by others that are the same.

The second derivative of ``weight_norm`` on a CPU is not symmetric (torch 2.14); for activations see ``formulas``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import formulas
from .torch_internals import HARDSIGMOID, HARDSIGMOID_, WEIGHT_NORM, Mode


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    if dim == -1:
        return v * (g / v.square().sum().sqrt())
    return v * (g / v.square().sum([i for i in range(v.dim()) if i != dim], keepdim=True).sqrt())


def _celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    return formulas.celu(input, alpha, inplace=True)


_OTHERS: dict[Any, Any] = {
    F.hardsigmoid: formulas.hardsigmoid,
    HARDSIGMOID: formulas.hardsigmoid,
    HARDSIGMOID_: formulas.hardsigmoid_,
    WEIGHT_NORM: _weight_norm,
    F.mish: formulas.mish,
    **dict.fromkeys((F.celu, torch.celu), formulas.celu),
    torch.celu_: _celu_,
    **dict.fromkeys((torch.prelu, torch.Tensor.prelu), formulas.prelu),
}
# How the nodes of their graphs begin.
ONCE = ("HardsigmoidBackward", "WeightNormInterfaceBackward", "MishBackward", "CeluBackward", "PreluKernelBackward")

_ACCURATE: dict[Any, Any] = {
    **_OTHERS,
    **dict.fromkeys((torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid), formulas.sigmoid),
    **dict.fromkeys((torch.tanh, torch.Tensor.tanh, F.tanh), formulas.tanh),
    **dict.fromkeys((torch.sigmoid_, torch.Tensor.sigmoid_), formulas.sigmoid_),
    **dict.fromkeys((torch.tanh_, torch.Tensor.tanh_), formulas.tanh_),
    **dict.fromkeys((F.selu, torch.selu), formulas.selu),
    F.silu: formulas.silu,
    F.softplus: formulas.softplus,
    F.logsigmoid: formulas.logsigmoid,
    F.elu: formulas.elu,
    F.gelu: formulas.gelu,
}


class Twice(Mode):
    """While it is entered, what this thread runs can be differentiated twice.

    The derivatives at the kinks are the same, and inside the slope of Hardsigmoid is 1/6 also in float64, which torch's
    own backward rounds to float32.
    """

    others = _OTHERS

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self.others.get(func, func)(*args, **kwargs)


class Accurate(Twice):
    """The same, of all activations whose value or derivatives torch rounds more than it has to."""

    others = _ACCURATE
