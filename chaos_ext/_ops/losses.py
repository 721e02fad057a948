"""Losses with their gradient and curvature at the logits: csrc/losses."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .library import OPS

_cross_entropy = OPS.cross_entropy.default
_cross_entropy_labels = OPS.cross_entropy_labels.default
_cross_entropy_tangent = OPS.cross_entropy_tangent.default
_bce_with_logits = OPS.bce_with_logits.default
_mse = OPS.mse.default


def cross_entropy(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """loss [], delta [N, C] and p [N, C] of sum t (logsumexp z - z) for logits z and target weights t [N, C]."""
    return _cross_entropy(z, t)


@torch.library.register_fake("chaos_ext::cross_entropy")
def _cross_entropy_fake(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    checks.arguments("cross_entropy", {"z": z, "t": t})
    _check_logits("cross_entropy", z)
    checks.operand("cross_entropy", "t", t, "z", z, z.shape)
    return z.new_empty(()), torch.empty_like(z), torch.empty_like(z)


def _check_logits(op: str, z: Tensor) -> None:
    checks.floating(op, "z", z)
    checks.dim(op, "z", z, 2)
    checks.contiguous(op, "z", z)
    checks.expect(z.shape[1] > 0 or z.shape[0] == 0, f"{op}: expected z with at least one class, got {list(z.shape)}")


def cross_entropy_labels(z: Tensor, y: Tensor, own: float, others: float) -> tuple[Tensor, Tensor, Tensor]:
    """``cross_entropy`` with the target weights ``own`` at the label y [N] of each row and ``others`` elsewhere.

    A label outside [0, C) matches no class.
    """
    return _cross_entropy_labels(z, y, own, others)


@torch.library.register_fake("chaos_ext::cross_entropy_labels")
def _cross_entropy_labels_fake(z: Tensor, y: Tensor, own: float, others: float) -> tuple[Tensor, Tensor, Tensor]:
    op = "cross_entropy_labels"
    checks.arguments(op, {"z": z, "y": y})
    _check_logits(op, z)
    checks.dtype(op, "y", y, torch.int64)
    checks.shape(op, "y", y, z.shape[:1])
    checks.contiguous(op, "y", y)
    return z.new_empty(()), torch.empty_like(z), torch.empty_like(z)


def cross_entropy_tangent(p: Tensor, s: Tensor, dz: Tensor) -> Tensor:
    """s (diag p - p p^T) dz [N, C, k] for p [N, C], s [N], dz [N, C, k]."""
    return _cross_entropy_tangent(p, s, dz)


@torch.library.register_fake("chaos_ext::cross_entropy_tangent")
def _cross_entropy_tangent_fake(p: Tensor, s: Tensor, dz: Tensor) -> Tensor:
    op = "cross_entropy_tangent"
    checks.arguments(op, {"p": p, "s": s, "dz": dz})
    checks.floating(op, "p", p)
    checks.dim(op, "p", p, 2)
    checks.contiguous(op, "p", p)
    checks.operand(op, "s", s, "p", p, p.shape[:1])
    checks.dim(op, "dz", dz, 3)
    checks.operand(op, "dz", dz, "p", p, (*p.shape, dz.shape[2]))
    return torch.empty_like(dz)


def bce_with_logits(z: Tensor, y: Tensor, w: Tensor, pw: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """loss [], delta and curvature (as z) of scale sum w ((1 - y) softplus(z) + pw y softplus(-z)).

    w and pw have z's shape or are empty [0] (ones).
    """
    return _bce_with_logits(z, y, w, pw, scale)


@torch.library.register_fake("chaos_ext::bce_with_logits")
def _bce_with_logits_fake(z: Tensor, y: Tensor, w: Tensor, pw: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    op = "bce_with_logits"
    checks.arguments(op, {"z": z, "y": y, "w": w, "pw": pw})
    checks.floating(op, "z", z)
    checks.contiguous(op, "z", z)
    checks.elementwise(op, "y", y, "z", z)
    for arg, weight in (("w", w), ("pw", pw)):
        checks.like(op, arg, weight, "z", z)
        if not (weight.dim() == 1 and weight.shape[0] == 0):
            checks.elementwise(op, arg, weight, "z", z)
    return z.new_empty(()), torch.empty_like(z), torch.empty_like(z)


def mse(z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """loss [] and delta (as z) of scale sum (z - y)^2."""
    return _mse(z, y, scale)


@torch.library.register_fake("chaos_ext::mse")
def _mse_fake(z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    checks.arguments("mse", {"z": z, "y": y})
    checks.floating("mse", "z", z)
    checks.contiguous("mse", "z", z)
    checks.elementwise("mse", "y", y, "z", z)
    return z.new_empty(()), torch.empty_like(z)
