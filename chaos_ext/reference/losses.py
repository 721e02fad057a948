"""Twins of the losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = torch.log_softmax(z, 1)
    loss = -torch.where(t == 0, torch.zeros_like(t), t * log_p).sum()
    p = log_p.exp()
    return loss, p * t.sum(1, keepdim=True) - t, p


def cross_entropy_labels(z: Tensor, y: Tensor, own: float, others: float) -> tuple[Tensor, Tensor, Tensor]:
    mine = y[:, None] == torch.arange(z.shape[1], device=z.device)
    return cross_entropy(z, torch.where(mine, z.new_tensor(own), z.new_tensor(others)))


def cross_entropy_tangent(p: Tensor, s: Tensor, dz: Tensor) -> Tensor:
    B = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("n,ncd,ndk->nck", s, B, dz)


def bce_with_logits(z: Tensor, y: Tensor, w: Tensor, pw: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    w = w if w.numel() else torch.ones_like(z)
    pw = pw if pw.numel() else torch.ones_like(z)
    negative, positive = (1 - y) * w, pw * y * w
    loss = scale * (negative * F.softplus(z) + positive * F.softplus(-z)).sum()
    delta = scale * (negative * torch.sigmoid(z) - positive * torch.sigmoid(-z))
    return loss, delta, scale * (negative + positive) * torch.sigmoid(z) * torch.sigmoid(-z)


def mse(z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return scale * (z - y).square().sum(), 2 * scale * (z - y)
