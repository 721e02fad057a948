"""Sums of squared gradients of single samples, layer by layer: the diagonal of sum_n sum_c s_nc g_nc g_nc^T.

g_nc is what a layer's parameters get from column c of the cotangents of sample n. For z = W a with positions p, inputs
or patches A_n [J, p] and cotangents D_nc [O, p],

    g_nc = D_nc A_n^T,   sum_c s (g_nc)_oj^2 = sum_pp' E_n[o, p, p'] A_n[j, p] A_n[j, p'],   E_n = sum_c s D_nc D_nc^T,

whichever side costs less: with one position, or many columns, no gradient of one sample is ever formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rules.conv import Convolution
from ..rules.linear import Linear
from ..rules.norm import FixedNorm
from ..rules.rule import Rule
from .sweep import Pulled

_BYTES = 1 << 26  # of what is formed at a time


def squares(pull: Pulled, signs: Tensor) -> list[Tensor | None]:
    """For each slot of the node the sum over samples and columns of s_nc g_nc^2, of the parameter's shape.

    Args:
        pull: the node with the cotangents [N, ..., k] of its output, where samples do not interact.
        signs: s [N, k].
    """
    rule, d = pull.rule, pull.ddelta
    saved: Any = pull.saved
    assert d is not None
    A = inputs_at_positions(rule, saved, len(signs))
    if A is not None:
        return _of_products(rule, A, d, signs)
    if type(rule) is FixedNorm:
        return _of_fixed_norm(rule.slots, saved, d, signs)
    return _of_any(pull, d, signs)


def inputs_at_positions(rule: Rule, saved: Any, n: int) -> Tensor | None:
    """A [N, G, J, p] of a Linear or a convolution of G groups; None of any other rule."""
    if type(rule) is Linear:
        a: Tensor = saved[0]
        return a.reshape(n, -1, a.shape[-1]).transpose(1, 2).unsqueeze(1)
    if type(rule) is Convolution and rule.source == "X":
        a, W, _ = saved
        g, planar = rule.geometry, a if a.dim() == 4 else a.unsqueeze(2)
        kernel = W.shape[2:] if W.dim() == 4 else (1, W.shape[2])
        A = F.unfold(planar, kernel, g.dilation, g.padding, g.stride)
        return A.view(n, g.groups, -1, A.shape[-1])
    return None


def _of_products(rule: Rule, A: Tensor, d: Tensor, signs: Tensor) -> list[Tensor | None]:
    """Of a weight and a bias, from A and cotangents as ``units_at_positions`` sees them."""
    D = units_at_positions(rule, d, A.shape[1])
    weight = None if rule.slots[0] is None else _products(A, D, signs)
    return [weight, None if rule.slots[1] is None else _sums(D, signs).reshape(-1)]


def units_at_positions(rule: Rule, d: Tensor, groups: int) -> Tensor:
    """Values or cotangents [N, ..., k] of the output as [N, G, O, p, k]."""
    if type(rule) is Linear:
        return d.reshape(len(d), 1, -1, *d.shape[-2:]).transpose(2, 3)
    return d.reshape(len(d), groups, d.shape[1] // groups, -1, d.shape[-1])


def by_curvature(A: Tensor, E: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonals [G, O, J] of a weight and [G, O] of its bias, from the curvature E [N, G, O, p, p] of each unit."""
    weight = torch.stack([_against_positions(a, e.flatten(2)) for a, e in zip(A, E, strict=True)]).sum(0)
    return weight, E.sum((0, 3, 4))


def _sums(D: Tensor, signs: Tensor) -> Tensor:
    """Of a bias: [G, O] from D [N, G, O, p, k]."""
    return (D.sum(3).square() * signs[:, None, None]).sum((0, 3))


def _products(A: Tensor, D: Tensor, signs: Tensor) -> Tensor:
    """Of a weight: [G, O, J] from A [N, G, J, p] and D [N, G, O, p, k]."""
    J, p, k = A.shape[2], A.shape[3], D.shape[4]
    if p == 1:
        return _weighted((D.squeeze(3).square() * signs[:, None, None]).sum(3), A.squeeze(3).square())
    total = A.new_zeros(A.shape[1], D.shape[2], J)
    by_positions = p * p * (k + J) < k * J * (p + 2)
    for a, d, s in zip(A, D, signs, strict=True):
        total += _by_positions(a, d, s) if by_positions else _by_columns(a, d, s)
    return total


def _weighted(E: Tensor, A2: Tensor) -> Tensor:
    """sum_n E [N, G, O] A2 [N, G, J]: [G, O, J]."""
    return torch.bmm(E.permute(1, 2, 0), A2.transpose(0, 1))


def _by_positions(a: Tensor, d: Tensor, s: Tensor) -> Tensor:
    """Of one sample through E [G, O, p, p]."""
    return _against_positions(a, torch.matmul(d * s, d.transpose(2, 3)).flatten(2))


def _against_positions(a: Tensor, E: Tensor) -> Tensor:
    """sum_pp' E [G, O, p p'] a [G, J, p] a [G, J, p']: [G, O, J], a few inputs at a time."""
    step = max(1, _BYTES // (a.shape[0] * E.shape[2] * a.element_size()))
    parts = [torch.bmm(E, (b.unsqueeze(3) * b.unsqueeze(2)).flatten(2).transpose(1, 2)) for b in a.split(step, 1)]
    return torch.cat(parts, 2)


def _by_columns(a: Tensor, d: Tensor, s: Tensor) -> Tensor:
    """Of one sample through its gradients [G, O, J] of a few columns at a time."""
    groups, units, _, _ = d.shape
    total = a.new_zeros(groups, units, a.shape[1])
    step = max(1, _BYTES // (total.numel() * a.element_size()))
    for columns, signs in zip(d.split(step, 3), s.split(step), strict=True):
        rows = columns.permute(0, 3, 1, 2).flatten(1, 2)  # [G, k O, p]
        gradients = torch.bmm(rows, a.transpose(1, 2)).unflatten(1, (-1, units)).square_()
        total += torch.einsum("gkoj,k->goj", gradients, signs)
    return total


def _of_fixed_norm(slots: Sequence[int | None], saved: Any, d: Tensor, signs: Tensor) -> list[Tensor | None]:
    (n, k), channels, xh = signs.shape, d.shape[1], saved.xh
    D, h = d.reshape(n, channels, -1, k), xh.reshape(n, channels, 1, -1)
    gamma = torch.matmul(h, D).squeeze(2)
    found = ((gamma, slots[0]), (D.sum(2), slots[1]))
    return [None if s is None else (g.square() * signs.unsqueeze(1)).sum((0, 2)) for g, s in found]


def _of_any(pull: Pulled, d: Tensor, signs: Tensor) -> list[Tensor | None]:
    """Samples kept apart as columns of their own: zeros everywhere else; a few columns at a time."""
    n, k = signs.shape
    step = max(1, _BYTES // max(1, n * d.numel() // k * d.element_size()))
    total: list[Tensor | None] = [None] * len(pull.rule.slots)
    for columns, s in zip(d.split(step, -1), signs.split(step, 1), strict=True):
        apart = d.new_zeros(*columns.shape[:-1], n, columns.shape[-1])
        for i in range(n):
            apart[i, ..., i, :] = columns[i]
        nothing = [None] * len(pull.dinputs), [None] * len(pull.dslots)
        _, parts = pull.rule.tangent_backward(pull.saved, pull.delta, *nothing, apart.flatten(-2))
        for j, part in enumerate(parts):
            if part is not None:
                found = (part.square() * s.flatten()).sum(-1)
                total[j] = found if total[j] is None else total[j] + found
    return total
