"""Activations in arithmetic whose value and two derivatives torch computes without cancellation, for any argument.

Torch's own round more than they need to: the derivative of a sigmoid as y (1 - y), 1 + erf in the tail of GELU,
1 / alpha of CELU to float32. The second derivative of Mish is NaN from z = 89 (float32) or 710 (float64) on, and that
of PReLU with respect to input and slope is 0 at z = 0, where it is 1. At kinks the derivatives are those of torch's
backward.
Arguments are named and ordered as those of torch's functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def _pieces(low: Tensor, z: Tensor, below: Callable[[Tensor], Tensor], above: Callable[[Tensor], Tensor]) -> Tensor:
    """``below`` where ``low``, else ``above``; each sees a zero where it is not asked, so that nothing overflows."""
    zero = torch.zeros_like(z)
    return torch.where(low, below(torch.where(low, z, zero)), above(torch.where(low, zero, z)))


def _put(input: Tensor, function: Callable[[Tensor], Tensor], inplace: bool) -> Tensor:
    """In place it is of a copy, which the derivative needs."""
    return input.copy_(function(input.clone())) if inplace else function(input)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^-z): far below, where it is nothing, constant."""
    lowest = 1 - math.log(torch.finfo(input.dtype).max)
    return 1 / (1 + torch.exp(-input.clamp(min=lowest)))


def sigmoid_(input: Tensor) -> Tensor:
    return _put(input, sigmoid, True)


def tanh(input: Tensor) -> Tensor:
    """sigma(2 z) - sigma(-2 z) for large z."""

    def far(z: Tensor) -> Tensor:
        return torch.where(z < 0, 2 * sigmoid(2 * z) - 1, 1 - 2 * sigmoid(-2 * z))

    return _pieces(input.abs() < 0.5, input, torch.tanh, far)


def tanh_(input: Tensor) -> Tensor:
    return _put(input, tanh, True)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    return _put(input, lambda z: z * sigmoid(z), inplace)


def _log_of_sum(x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return _pieces(x < 0, x, lambda x: torch.log1p(torch.exp(x)), lambda x: x + torch.log1p(torch.exp(-x)))


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Linear for beta z above the threshold."""
    return _pieces(input * beta < threshold, input, lambda z: _log_of_sum(beta * z) / beta, lambda z: z)


def logsigmoid(input: Tensor) -> Tensor:
    return -_log_of_sum(-input)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """z tanh(log(1 + e^z)), the tanh being w / (w + 2) with w = e^z (e^z + 2)."""

    def below(z: Tensor) -> Tensor:
        w = torch.exp(z) * (torch.exp(z) + 2)
        return w / (w + 2)

    def above(z: Tensor) -> Tensor:
        e = torch.exp(-z)
        return 1 - 2 * e.square() / (1 + 2 * e + 2 * e.square())

    return _put(input, lambda z: z * _pieces(z < 0, z, below, above), inplace)


def _exp_minus_one(z: Tensor) -> Tensor:
    """e^z - 1 for z <= 0: torch's derivative of expm1 is the result plus 1."""
    return _pieces(z < -1, z, lambda z: torch.exp(z) - 1, torch.expm1)


def _elu(z: Tensor, alpha: float, scale: float, rate: float) -> Tensor:
    """At z = 0 with the slope from below, and without curvature."""
    curve = scale * alpha * _exp_minus_one(rate * torch.where(z < 0, z, torch.zeros_like(z)))
    return torch.where(z > 0, scale * z, torch.where(z < 0, curve, scale * alpha * rate * z))


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return _put(input, lambda z: _elu(z, alpha, 1.0, 1.0), inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return _put(input, lambda z: _elu(z, alpha, 1.0, 1 / alpha), inplace)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    return _put(input, lambda z: _elu(z, 1.6732632423543772848, 1.0507009873554804934, 1.0), inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """z Phi(z), or z sigma(2 sqrt(2 / pi) (z + 0.044715 z^3))."""
    if approximate == "tanh":
        return input * sigmoid(2 * math.sqrt(2 / math.pi) * input * (1 + 0.044715 * input.square()))
    return input * (0.5 * torch.erfc(-math.sqrt(0.5) * input))


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """With one slope, or one a channel (axis 1)."""
    slopes = weight.view(-1, *(1 for _ in input.shape[2:])) if weight.numel() > 1 else weight.reshape(())
    return torch.where(input > 0, input, slopes * input)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return _put(input, lambda z: F.relu6(z + 3) / 6, inplace)


def hardsigmoid_(input: Tensor) -> Tensor:
    return hardsigmoid(input, inplace=True)
