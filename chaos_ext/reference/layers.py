"""Twins of the layers' operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad

from .. import _ops

_FUNCTIONS = {
    _ops.RELU: lambda z, alpha, beta: F.relu(z),
    _ops.LEAKY_RELU: lambda z, alpha, beta: F.leaky_relu(z, alpha),
    _ops.ELU: lambda z, alpha, beta: F.elu(z, alpha),
    _ops.SELU: lambda z, alpha, beta: F.selu(z),
    _ops.CELU: lambda z, alpha, beta: F.celu(z, alpha),
    _ops.SIGMOID: lambda z, alpha, beta: torch.sigmoid(z),
    _ops.TANH: lambda z, alpha, beta: torch.tanh(z),
    _ops.SOFTPLUS: lambda z, alpha, beta: F.softplus(z, alpha, beta),
    _ops.SILU: lambda z, alpha, beta: F.silu(z),
    _ops.GELU_ERF: lambda z, alpha, beta: F.gelu(z),
    _ops.GELU_TANH: lambda z, alpha, beta: F.gelu(z, approximate="tanh"),
    _ops.HARDTANH: lambda z, alpha, beta: F.hardtanh(z, alpha, beta),
}


def activation(z: Tensor, kind: int, alpha: float = 0.0, beta: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """torch's own function, backward and double backward."""
    with torch.enable_grad():
        x = z.detach().requires_grad_()
        a = _FUNCTIONS[kind](x, alpha, beta)
        (d1,) = torch.autograd.grad(a.sum(), x, create_graph=True)
        if kind in _ops.PIECEWISE_LINEAR:
            return a.detach(), d1.detach(), z.new_empty(0)
        (d2,) = torch.autograd.grad(d1.sum(), x)
    return a.detach(), d1.detach(), d2


def conv_lanes(
    X: Tensor | None,
    W: Tensor | None,
    Z: Tensor | None,
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The third operand of a convolution from the two given ones, of which one has a last axis of columns.

    ``sizes`` are those of X [N, C, H, W] and W [O, C / groups, kh, kw].
    """
    options: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def one(x: Any, w: Any, z: Any) -> Tensor:
        if z is None:
            return F.conv2d(x, w, **options)
        if x is None:
            return grad.conv2d_input(sizes[0], w, z, **options)
        return grad.conv2d_weight(x, sizes[1], z, **options)

    k = next(t.shape[4] for t in (X, W, Z) if t is not None and t.dim() == 5)
    return torch.stack([one(*(t if t is None or t.dim() == 4 else t[..., i] for t in (X, W, Z))) for i in range(k)], -1)


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
    roles = _ops.CONV_ROLES[kind]
    given: dict[str, Tensor | None] = dict(zip(roles, (None, lanes, scalars), strict=True))
    shapes = {role: tuple(t.shape[:4]) for role, t in zip(roles, (out, lanes, scalars), strict=True)}
    sizes = shapes["X"], shapes["W"]
    result = conv_lanes(given["X"], given["W"], given["Z"], sizes, stride, padding, dilation, groups)
    out.copy_(out + result if accumulate else result)


def normalise(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """z = gamma (x - mean x) / std x + beta of x [B, G, M] with means over B and M, one gamma and beta a group."""
    centred = x - x.mean((0, 2), keepdim=True)
    z = centred * centred.square().mean((0, 2), keepdim=True).rsqrt()
    z = z if gamma is None else z * gamma[:, None]
    return z if beta is None else z + beta[:, None]


def _mean(t: Tensor) -> Tensor:
    """Over the entries of each group."""
    return t.mean((0, 2), keepdim=True)


def _wide(t: Tensor | None, absent: float) -> Tensor | float:
    """[G] or [G, k] so that it meets [B, G, M, k]."""
    return absent if t is None else t.reshape(len(t), 1, -1)


def _normalised_tangent(d: Tensor, xh: Tensor, r: Tensor) -> Tensor:
    """Of xh = r (x - mean x)."""
    return _wide(r, 1.0) * (d - _mean(d) - xh * _mean(xh * d))


def norm_tangent_(
    out: Tensor,
    xh: Tensor,
    r: Tensor,
    d: Tensor | None,
    gamma: Tensor | None,
    dgamma: Tensor | None,
    dbeta: Tensor | None,
) -> None:
    xh, d = xh[..., None], torch.zeros_like(out) if d is None else d
    out.copy_(_wide(gamma, 1.0) * _normalised_tangent(d, xh, r) + xh * _wide(dgamma, 0.0) + _wide(dbeta, 0.0))


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
    """The product rule on r gamma (delta - mean delta - xh mean(xh delta)), with dr = -r^2 mean(xh d)."""
    d, ddelta = (torch.zeros_like(out) if t is None else t for t in (d, ddelta))
    xh, delta, wide_r = xh[..., None], delta[..., None], _wide(r, 1.0)
    dxh, dr = _normalised_tangent(d, xh, r), -(wide_r**2) * _mean(xh * d)
    inner = delta - _mean(delta) - xh * _mean(xh * delta)
    tangent = ddelta - _mean(ddelta) - dxh * _mean(xh * delta) - xh * _mean(dxh * delta + xh * ddelta)
    scale, dscale = wide_r * _wide(gamma, 1.0), dr * _wide(gamma, 1.0) + wide_r * _wide(dgamma, 0.0)
    out.copy_(dscale * inner + scale * tangent)
    dweight.copy_((dxh * delta + xh * ddelta).sum((0, 2)))
    dbias.copy_(ddelta.sum((0, 2)))
