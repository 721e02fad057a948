"""Activations, convolutions and normalisations: csrc/layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks
from .layout import ACTIVATIONS, PIECEWISE_LINEAR
from .library import OPS

_activation = OPS.activation.default
_conv_lanes_ = OPS.conv_lanes_.default
_norm_tangent_ = OPS.norm_tangent_.default
_norm_tangent_backward_ = OPS.norm_tangent_backward_.default

# What a convolution may move over, and the table of positions and taps: csrc/layers/conv_lanes.h.
_FARTHEST, _MOST_PAIRS = 2**30 - 1, 2**28
# Of each kind of ``conv_lanes_``: out, lanes, scalars.
CONV_ROLES = ("ZXW", "ZWX", "XZW", "XWZ", "WZX", "WXZ")


def activation(z: Tensor, kind: int, alpha: float = 0.0, beta: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of an activation at z (any shape); the last is empty if piecewise linear.

    ``alpha, beta`` are the slope of LEAKY_RELU, the alpha of ELU and CELU, (beta, threshold) of SOFTPLUS and (min, max)
    of HARDTANH.
    """
    return _activation(z, kind, alpha, beta)


@torch.library.register_fake("chaos_ext::activation")
def _activation_fake(z: Tensor, kind: int, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    op = "activation"
    checks.arguments(op, {"z": z})
    checks.floating(op, "z", z)
    checks.contiguous(op, "z", z)
    checks.expect(0 <= kind < ACTIVATIONS, f"{op}: expected kind in [0, {ACTIVATIONS}), got {kind}")
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
def _conv_lanes_fake(
    out: Tensor,
    scalars: Tensor,
    lanes: Tensor,
    kind: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    accumulate: bool,
) -> None:
    op = "conv_lanes_"
    checks.arguments(op, {"out": out, "scalars": scalars, "lanes": lanes}, written=("out",))
    checks.expect(0 <= kind < len(CONV_ROLES), f"{op}: expected kind in 0..5, got {kind}")
    checks.floating(op, "out", out)
    for arg, t, axes in (("out", out, 5), ("scalars", scalars, 4), ("lanes", lanes, 5)):
        checks.dim(op, arg, t, axes)
        checks.like(op, arg, t, "out", out)
        checks.contiguous(op, arg, t)
    k = out.shape[4]
    checks.expect(lanes.shape[4] == k, f"{op}: expected lanes with {k} columns like out, got {lanes.shape[4]}")
    for arg, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        good = len(pair) == 2 and all(least <= x <= _FARTHEST for x in pair)
        checks.expect(good, f"{op}: expected {arg} of two numbers >= {least} and < 2^30, got {list(pair)}")
    roles = dict(zip(CONV_ROLES[kind], (out, lanes, scalars), strict=True))
    _check_channels(op, roles["X"], roles["W"], roles["Z"], groups)
    if out.numel() and scalars.numel() and lanes.numel():
        _check_extent(op, roles["X"], roles["W"], roles["Z"], k)


def _check_extent(op: str, X: Tensor, W: Tensor, Z: Tensor, k: int) -> None:
    sizes = (*X.shape[2:4], *W.shape[2:4], *Z.shape[2:4])
    for size in sizes:
        checks.expect(size <= _FARTHEST, f"{op}: expected images and kernels of sizes < 2^30, got {size}")
    _, _, kh, kw, OH, OW = sizes
    N, O, Cg = X.shape[0], W.shape[0], W.shape[1]
    checks.expect(
        OH * OW * kh * kw <= _MOST_PAIRS,
        f"{op}: expected at most 2^28 pairs of an output position and a tap, got {OH} x {OW} positions and "
        f"{kh} x {kw} taps",
    )
    checks.expect(
        N * O * OH * OW * Cg * kh * kw * k < checks.TOO_MANY,
        f"{op}: expected fewer than 2^63 products, got {N} samples of {OH * OW} positions, {O} by {Cg} channels, "
        f"{kh * kw} taps and {k} columns",
    )


def _check_channels(op: str, X: Tensor, W: Tensor, Z: Tensor, groups: int) -> None:
    O, c, C = W.shape[0], W.shape[1], X.shape[1]
    checks.expect(
        groups >= 1 and O % groups == 0 and c * groups == C,
        f"{op}: expected groups that divide {O} output channels and {C} input channels into {c}, got {groups}",
    )
    checks.expect(
        Z.shape[0] == X.shape[0] and Z.shape[1] == O,
        f"{op}: expected an output of {X.shape[0]} samples and {O} channels, got {Z.shape[0]} and {Z.shape[1]}",
    )


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
def _norm_tangent_fake(
    out: Tensor,
    xh: Tensor,
    r: Tensor,
    d: Tensor | None,
    gamma: Tensor | None,
    dgamma: Tensor | None,
    dbeta: Tensor | None,
) -> None:
    given = {"out": out, "xh": xh, "r": r}
    optional = {"d": d, "gamma": gamma, "dgamma": dgamma, "dbeta": dbeta}
    checks.arguments("norm_tangent_", given, optional, written=("out",))
    _check_norm("norm_tangent_", out, {"xh": xh, "r": r, **optional})


def _check_norm(op: str, out: Tensor, given: dict[str, Tensor | None]) -> None:
    """Every given operand's shape follows from out [B, G, M, k]."""
    checks.floating(op, "out", out)
    checks.dim(op, "out", out, 4)
    checks.contiguous(op, "out", out)
    B, G, M, k = out.shape
    shapes: dict[str, tuple[int, ...]] = {"xh": (B, G, M), "delta": (B, G, M), "r": (G,), "gamma": (G,)}
    shapes |= {"d": (B, G, M, k), "ddelta": (B, G, M, k)}
    for arg, t in given.items():
        if t is not None:
            checks.operand(op, arg, t, "out", out, shapes.get(arg, (G, k)))


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
def _norm_tangent_backward_fake(
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
    given = {"dweight": dweight, "dbias": dbias, "xh": xh, "r": r, "delta": delta}
    optional = {"d": d, "ddelta": ddelta, "gamma": gamma, "dgamma": dgamma}
    checks.arguments("norm_tangent_backward_", {"out": out, **given}, optional, written=("out", "dweight", "dbias"))
    _check_norm("norm_tangent_backward_", out, {**given, **optional})
