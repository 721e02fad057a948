"""Normalisation as torch's differentiable arithmetic: of its own functions the third derivatives are wrong.

``layer_norm``, ``batch_norm`` and ``instance_norm`` save their mean and 1 / sigma for the second derivative, where they
count as constants: the third derivative is off by as much as it is large (layer_norm in every nesting of torch's
transformations, the others in forward mode; in reverse mode they refuse). ``group_norm`` and ``rms_norm`` are right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.torch_internals import Mode


class ComposedNorms(Mode):
    """While it is entered, this thread's normalisation functions are arithmetic."""

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        made = _COMPOSED.get(func)
        found = None if made is None else made[0](_named(made[1], args, kwargs))
        return func(*args, **kwargs) if found is None else found


def _named(names: tuple[str, ...], args: Any, kwargs: Any) -> dict[str, Any]:
    return {**_DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs}


_DEFAULTS = {"weight": None, "bias": None, "running_mean": None, "running_var": None, "eps": 1e-5, "training": False}
_DEFAULTS |= {"use_input_stats": True}


def _layer_norm(given: dict[str, Any]) -> Tensor:
    x, own = given["input"], given["normalized_shape"]
    axes = tuple(range(-len(own), 0))
    z = _normalised(x, axes, given["eps"])
    z = z if given["weight"] is None else z * given["weight"]
    return z if given["bias"] is None else z + given["bias"]


def _batch_norm(given: dict[str, Any]) -> Tensor | None:
    x, mean, variance = given["input"], given["running_mean"], given["running_var"]
    if not given["training"]:
        if mean is None or variance is None:
            return None
        fixed = (x - _by_channel(mean, x)) * (_by_channel(variance, x) + given["eps"]).rsqrt()
        return _scaled(fixed, given)
    if mean is not None or variance is not None:
        return None  # it updates them
    return _scaled(_normalised(x, (0, *range(2, x.dim())), given["eps"]), given)


def _instance_norm(given: dict[str, Any]) -> Tensor | None:
    x = given["input"]
    if given["running_mean"] is not None or not given["use_input_stats"] or x.dim() < 3:
        return None
    return _scaled(_normalised(x, tuple(range(2, x.dim())), given["eps"]), given)


def _normalised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    xc = x - x.mean(axes, keepdim=True)
    return xc * (xc.square().mean(axes, keepdim=True) + eps).rsqrt()


def _scaled(z: Tensor, given: dict[str, Any]) -> Tensor:
    z = z if given["weight"] is None else z * _by_channel(given["weight"], z)
    return z if given["bias"] is None else z + _by_channel(given["bias"], z)


def _by_channel(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *(1 for _ in x.shape[2:]))


def _of_torch(function: str) -> tuple[str, ...]:
    """The names in order of a builtin's arguments, which it does not tell."""
    stats = ("running_mean", "running_var")
    flag = "training" if function == "batch_norm" else "use_input_stats"
    return ("input", "weight", "bias", *stats, flag, "momentum", "eps")


def _of_functional(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


_COMPOSED: dict[Any, tuple[Callable[[dict[str, Any]], Tensor | None], tuple[str, ...]]] = {
    F.layer_norm: (_layer_norm, _of_functional(F.layer_norm)),
    torch.layer_norm: (_layer_norm, ("input", "normalized_shape", "weight", "bias", "eps")),
    F.batch_norm: (_batch_norm, _of_functional(F.batch_norm)),
    torch.batch_norm: (_batch_norm, _of_torch("batch_norm")),
    F.instance_norm: (_instance_norm, _of_functional(F.instance_norm)),
    torch.instance_norm: (_instance_norm, _of_torch("instance_norm")),
}
