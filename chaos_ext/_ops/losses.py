"""Losses with their gradient and curvature at the logits: csrc/losses."""

from __future__ import annotations

import torch
from torch import Tensor

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
    return z.new_empty(()), torch.empty_like(z), torch.empty_like(z)


def cross_entropy_labels(z: Tensor, y: Tensor, own: float, others: float) -> tuple[Tensor, Tensor, Tensor]:
    """``cross_entropy`` with the target weights ``own`` at the label y [N] of each row and ``others`` elsewhere.

    A label outside [0, C) matches no class.
    """
    return _cross_entropy_labels(z, y, own, others)


@torch.library.register_fake("chaos_ext::cross_entropy_labels")
def _cross_entropy_labels_fake(z: Tensor, y: Tensor, own: float, others: float) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z), torch.empty_like(z)


def cross_entropy_tangent(p: Tensor, s: Tensor, dz: Tensor) -> Tensor:
    """s (diag p - p p^T) dz [N, C, k] for p [N, C], s [N], dz [N, C, k]."""
    return _cross_entropy_tangent(p, s, dz)


@torch.library.register_fake("chaos_ext::cross_entropy_tangent")
def _cross_entropy_tangent_fake(p: Tensor, s: Tensor, dz: Tensor) -> Tensor:
    return torch.empty_like(dz)


def bce_with_logits(z: Tensor, y: Tensor, w: Tensor, pw: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """loss [], delta and curvature (as z) of scale sum w ((1 - y) softplus(z) + pw y softplus(-z)).

    w and pw have z's shape or are empty [0] (ones).
    """
    return _bce_with_logits(z, y, w, pw, scale)


@torch.library.register_fake("chaos_ext::bce_with_logits")
def _bce_with_logits_fake(z: Tensor, y: Tensor, w: Tensor, pw: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z), torch.empty_like(z)


def mse(z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """loss [] and delta (as z) of scale sum (z - y)^2."""
    return _mse(z, y, scale)


@torch.library.register_fake("chaos_ext::mse")
def _mse_fake(z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z)
