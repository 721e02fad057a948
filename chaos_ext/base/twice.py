"""Functions of torch's whose backward torch cannot differentiate, by others that are the same function."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .torch_internals import HARDSIGMOID, HARDSIGMOID_, Mode


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    z = F.relu6(input + 3) / 6
    return input.copy_(z) if inplace else z


def _hardsigmoid_(input: Tensor) -> Tensor:
    return _hardsigmoid(input, inplace=True)


_OTHERS: dict[Any, Any] = {
    F.hardsigmoid: _hardsigmoid,
    HARDSIGMOID: _hardsigmoid,
    HARDSIGMOID_: _hardsigmoid_,
}
ONCE = ("HardsigmoidBackward",)  # how the nodes of their graphs begin


class Twice(Mode):
    """While it is entered, what this thread runs can be differentiated twice.

    The derivatives at the kinks are the same, and inside the slope is 1/6 also in float64, which torch's own backward
    rounds to float32.
    """

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        return _OTHERS.get(func, func)(*args, **kwargs)
