"""Loss and its derivatives at the outputs z [b, N, ...] of all members: losses [b], delta of the shape of z.

Cross-entropy of class indices and the squared error by hand, as sums over each member's own rows; any other loss by
torch's derivatives, vmapped, and without the second one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from ..base.torch_internals import grad_mode, has_hooks
from ..rules.losses import as_module
from .scratch import Scratch

Target = Tensor  # [N, ...] of all members, or [b, N, ...]


class Result(NamedTuple):
    """A loss at one z.

    Attributes:
        losses: [b].
        delta: d loss / dz, of the shape of z.
        curvature: dz [b, k, N, ...] -> (d2 loss / dz2) dz; None where it is not known.
    """

    losses: Tensor
    delta: Tensor
    curvature: Callable[[Tensor], Tensor] | None = None


def loss_of(loss_fn: Callable[..., Tensor]) -> Callable[[Tensor, Target, bool, Scratch], Result]:
    """``loss(z, y, own, scratch)`` with ``own``: whether each member has targets of its own."""
    m: Any = as_module(loss_fn)
    plain = not (has_hooks(m) or "forward" in vars(m)) if isinstance(m, nn.Module) else False
    plain = plain and getattr(m, "reduction", None) in ("mean", "sum")

    def loss(z: Tensor, y: Target, own: bool, scratch: Scratch) -> Result:
        if plain and type(m) is nn.CrossEntropyLoss and _is_simple(m, z, y, own):
            return _cross_entropy(m, z, y if own else y.expand(len(z), -1), scratch)
        if plain and type(m) is nn.MSELoss and y.dtype == z.dtype and y.shape == (z.shape if own else z.shape[1:]):
            return _squared(m, z, y, scratch)
        return _vmapped(loss_fn, z, y, own)

    return loss


def _is_simple(m: nn.CrossEntropyLoss, z: Tensor, y: Target, own: bool) -> bool:
    """Class indices of rows, none of them ignored, without class weights."""
    rows = y.dtype == torch.int64 and z.dim() == 3 and y.shape == (z.shape[:2] if own else z.shape[1:2])
    if not rows or m.weight is not None:
        return False
    low, high = torch.aminmax(y)
    return int(low) >= 0 and int(high) < z.shape[2] and not int(low) <= m.ignore_index <= int(high)


def _cross_entropy(m: nn.CrossEntropyLoss, z: Tensor, y: Tensor, scratch: Scratch) -> Result:
    """sum_nc t_nc (logsumexp(z_n) - z_nc), t = own at the row's class and others elsewhere; delta = s p - t.

    At the row's class delta is minus the sum of the others: p - 1 has no digits left where a batch is fitted.
    """
    classes, scale = z.shape[2], 1 / z.shape[1] if m.reduction == "mean" else 1.0
    others = m.label_smoothing / classes * scale
    own = (1 - m.label_smoothing) * scale
    index = y.unsqueeze(2)
    logs = torch.log_softmax(z, 2)
    losses = logs.gather(2, index).sum((1, 2)).mul_(-own)
    if others:
        losses.sub_(logs.sum((1, 2)), alpha=others)
    delta = torch.exp(logs, out=scratch.take("delta", z.shape, z)).mul_(scale)
    if others:
        delta.sub_(others)
    delta.scatter_(2, index, 0.0)
    delta.scatter_(2, index, delta.sum(2, keepdim=True).neg_())
    return Result(losses, delta, lambda dz: _softmax_curvature(logs.exp(), scale, dz))


def _softmax_curvature(p: Tensor, scale: float, dz: Tensor) -> Tensor:
    """s p_c (dz_c - mean dz), the mean over p; taken from the dz of the largest p, of which little is left."""
    p = p.unsqueeze(1)
    top = p.argmax(3, keepdim=True).expand(*dz.shape[:3], 1)
    u = dz - dz.gather(3, top)
    return u.sub_((p * u).sum(3, keepdim=True)).mul_(p).mul_(scale)


def _squared(m: nn.MSELoss, z: Tensor, y: Tensor, scratch: Scratch) -> Result:
    scale = 1 / z[0].numel() if m.reduction == "mean" else 1.0
    delta = torch.sub(z, y, out=scratch.take("delta", z.shape, z))
    losses = delta.square().flatten(1).sum(1).mul_(scale)
    return Result(losses, delta.mul_(2 * scale), lambda dz: dz * (2 * scale))


def _vmapped(loss_fn: Callable[..., Tensor], z: Tensor, y: Target, own: bool) -> Result:
    mode = grad_mode(True)
    with mode, mode:
        delta, losses = vmap(grad_and_value(loss_fn), in_dims=(0, 0 if own else None))(z, y)
    return Result(losses.detach(), delta.detach())
