"""Functions of torch's whose backward torch cannot differentiate, or not rightly, by others that are the same function.

The second derivative of ``weight_norm`` on a CPU is not symmetric (torch 2.14).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .torch_internals import HARDSIGMOID, HARDSIGMOID_, WEIGHT_NORM, Mode


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    z = F.relu6(input + 3) / 6
    return input.copy_(z) if inplace else z


def _hardsigmoid_(input: Tensor) -> Tensor:
    return _hardsigmoid(input, inplace=True)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    if dim == -1:
        return v * (g / v.square().sum().sqrt())
    return v * (g / v.square().sum([i for i in range(v.dim()) if i != dim], keepdim=True).sqrt())


_OTHERS: dict[Any, Any] = {
    F.hardsigmoid: _hardsigmoid,
    HARDSIGMOID: _hardsigmoid,
    HARDSIGMOID_: _hardsigmoid_,
    WEIGHT_NORM: _weight_norm,
}
ONCE = ("HardsigmoidBackward", "WeightNormInterfaceBackward")  # how the nodes of their graphs begin


class Twice(Mode):
    """While it is entered, what this thread runs can be differentiated twice.

    The derivatives at the kinks are the same, and inside the slope is 1/6 also in float64, which torch's own backward
    rounds to float32.
    """

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        return _OTHERS.get(func, func)(*args, **kwargs)
