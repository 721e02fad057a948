"""Activations, convolutions and normalisations: csrc/layers."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import OPS

_activation = OPS.activation.default
_conv_lanes_ = OPS.conv_lanes_.default
_norm_tangent_ = OPS.norm_tangent_.default
_norm_tangent_backward_ = OPS.norm_tangent_backward_.default

# Values of ``kind``; the parameters that a kind does not name are ignored.
RELU, LEAKY_RELU, ELU, SELU, CELU, SIGMOID, TANH, SOFTPLUS, SILU, GELU_ERF, GELU_TANH, HARDTANH = range(12)
PIECEWISE_LINEAR = frozenset((RELU, LEAKY_RELU, HARDTANH))


def activation(z: Tensor, kind: int, alpha: float = 0.0, beta: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of an activation at z (any shape); the last is empty if piecewise linear.

    ``alpha, beta`` are the slope of LEAKY_RELU, the alpha of ELU and CELU, (beta, threshold) of SOFTPLUS and (min, max)
    of HARDTANH.
    """
    return _activation(z, kind, alpha, beta)


@torch.library.register_fake("chaos_ext::activation")
def _activation_fake(z: Tensor, kind: int, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    d2 = z.new_empty(0) if kind in PIECEWISE_LINEAR else torch.empty_like(z)
    return torch.empty_like(z), torch.empty_like(z), d2


def conv_lanes_(
    out: Tensor,
    scalars: Tensor,
    lanes: Tensor,
    kind: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    accumulate: bool,
) -> None:
    """One product of a convolution of X [N, C, H, W] with W [O, C / groups, kh, kw] to Z [N, O, OH, OW].

    ``out`` and ``lanes`` carry k columns, the last axis. kind: 0 Z from X, 1 Z from W, 2 X from Z, 3 X from W, 4 W from
    Z, 5 W from X (out from lanes); ``scalars`` is the third operand. accumulate: add to out.
    """
    _conv_lanes_(out, scalars, lanes, kind, stride, padding, dilation, groups, accumulate)


@torch.library.register_fake("chaos_ext::conv_lanes_")
def _conv_lanes_fake(*args: object) -> None:
    return None


def norm_tangent_(
    out: Tensor,
    xh: Tensor,
    r: Tensor,
    d: Tensor | None,
    gamma: Tensor | None,
    dgamma: Tensor | None,
    dbeta: Tensor | None,
) -> None:
    """out = r gamma (d - mean d - xh mean(xh d)) + xh dgamma + dbeta, the means over the groups' entries.

    Entries are [B, G, M] with means over B and M: out, d [B, G, M, k], xh [B, G, M], r, gamma [G], dgamma, dbeta
    [G, k]. None is a zero, of gamma a one.
    """
    _norm_tangent_(out, xh, r, d, gamma, dgamma, dbeta)


@torch.library.register_fake("chaos_ext::norm_tangent_")
def _norm_tangent_fake(*args: object) -> None:
    return None


def norm_tangent_backward_(
    out: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    xh: Tensor,
    r: Tensor,
    delta: Tensor,
    d: Tensor | None,
    ddelta: Tensor | None,
    gamma: Tensor | None,
    dgamma: Tensor | None,
) -> None:
    """Tangents of out = r gamma (delta - mean delta - xh mean(xh delta)) [B, G, M, k], and of the gradients.

    xh is the normalised value of an input whose tangent is d, dweight and dbias [G, k] are the tangents of the sums of
    xh delta and of delta. Shapes as of ``norm_tangent_``; delta as xh, ddelta as d.
    """
    _norm_tangent_backward_(out, dweight, dbias, xh, r, delta, d, ddelta, gamma, dgamma)


@torch.library.register_fake("chaos_ext::norm_tangent_backward_")
def _norm_tangent_backward_fake(*args: object) -> None:
    return None
