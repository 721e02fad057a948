"""Activations with two derivatives as torch's differentiable arithmetic, which gives the third.

Small slopes are formed from sigmoids of both signs, never by subtraction from 1, and are the derivatives of the values
also to torch. Conventions at kinks are those of the native activations: of piecewise linear functions all higher
derivatives are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _ops
from .rule import Tangent

Derivatives = tuple[Tensor, Tensor, Tangent]  # value, slope, curvature (None: zero)


def _relu(z: Tensor) -> Derivatives:
    return F.relu(z), (z > 0).to(z.dtype), None


def _leaky_relu(z: Tensor, slope: float) -> Derivatives:
    return F.leaky_relu(z, slope), torch.where(z > 0, 1.0, slope).to(z.dtype), None


def _hardtanh(z: Tensor, low: float, high: float) -> Derivatives:
    return F.hardtanh(z, low, high), ((z > low) & (z < high)).to(z.dtype), None


def _exponential(z: Tensor, scale: float, alpha: float, rate: float) -> Derivatives:
    """scale (z > 0 ? z : alpha expm1(rate z)), whose slope at 0 is that from below, and its curvature 0."""
    below = z.clamp(max=0.0) * rate
    power = scale * alpha * rate * torch.exp(below)
    value = torch.where(z > 0, scale * z, scale * alpha * torch.expm1(below))
    return value, torch.where(z > 0, scale, power), torch.where(z < 0, rate * power, 0.0)


def _sigmoid(z: Tensor) -> Derivatives:
    slope = torch.sigmoid(z) * torch.sigmoid(-z)
    return torch.sigmoid(z), slope, -torch.tanh(z / 2) * slope


def _tanh(z: Tensor) -> Derivatives:
    slope = 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z)
    return torch.tanh(z), slope, -2 * torch.tanh(z) * slope


def _softplus(z: Tensor, beta: float, threshold: float) -> Derivatives:
    """Linear for beta z > threshold; without a curvature from there on."""
    t = beta * z
    curvature = beta * torch.sigmoid(t) * torch.sigmoid(-t)
    slope = torch.where(t > threshold, 1.0, torch.sigmoid(t))
    return F.softplus(z, beta, threshold), slope, torch.where(t >= threshold, 0.0, curvature)


def _silu(z: Tensor) -> Derivatives:
    s, r = torch.sigmoid(z), torch.sigmoid(-z)
    return F.silu(z), s * (1 + z * r), s * r * (2 - z * torch.tanh(z / 2))


def _gelu_erf(z: Tensor) -> Derivatives:
    below, density = torch.erfc(-z * 0.5**0.5) / 2, torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return F.gelu(z), below + z * density, density * (2 - z.square())


def _gelu_tanh(z: Tensor) -> Derivatives:
    """z S with S = sigmoid(2 u), u = k (z + c z^3)."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    t, dt, ddt = 2 * k * (z + c * z**3), 2 * k * (1 + 3 * c * z.square()), 12 * k * c * z
    s, sr = torch.sigmoid(t), torch.sigmoid(t) * torch.sigmoid(-t)
    ds, dds = sr * dt, sr * (ddt - torch.tanh(t / 2) * dt.square())
    return F.gelu(z, approximate="tanh"), s + z * ds, 2 * ds + z * dds


def has_derivatives(kind: int) -> bool:
    """Whether the native activation of this kind is known here."""
    return kind in ACTIVATIONS


def derivatives(kind: int, z: Tensor, alpha: float, beta: float) -> Derivatives:
    """Of the native activation of this kind at z."""
    value, slope, curvature = ACTIVATIONS[kind](z, alpha, beta)
    return _known(z, value, slope), slope if curvature is None else _known(z, slope, curvature), curvature


def _known(z: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """The value, with this slope for torch to take."""
    return value.detach() + slope.detach() * (z - z.detach())


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

# By the kind of the native activation: a function of (z, alpha, beta).
ACTIVATIONS: dict[int, Callable[[Tensor, float, float], Derivatives]] = {
    _ops.RELU: lambda z, alpha, beta: _relu(z),
    _ops.LEAKY_RELU: lambda z, alpha, beta: _leaky_relu(z, alpha),
    _ops.HARDTANH: _hardtanh,
    _ops.ELU: lambda z, alpha, beta: _exponential(z, 1.0, alpha, 1.0),
    _ops.SELU: lambda z, alpha, beta: _exponential(z, _SELU_SCALE, _SELU_ALPHA, 1.0),
    _ops.CELU: lambda z, alpha, beta: _exponential(z, 1.0, alpha, 1.0 / alpha),
    _ops.SIGMOID: lambda z, alpha, beta: _sigmoid(z),
    _ops.TANH: lambda z, alpha, beta: _tanh(z),
    _ops.SOFTPLUS: _softplus,
    _ops.SILU: lambda z, alpha, beta: _silu(z),
    _ops.GELU_ERF: lambda z, alpha, beta: _gelu_erf(z),
    _ops.GELU_TANH: lambda z, alpha, beta: _gelu_tanh(z),
}
