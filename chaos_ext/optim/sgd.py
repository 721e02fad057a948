"""The recurrence of torch.optim.SGD, plain and with a low-rank product subtracted from the gradient on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..errors import UnsupportedError

Group = dict[str, Any]


@dataclass(frozen=True)
class Update:
    """The step of one parameter: gradient minus L R, then SGD.

    Attributes:
        param: updated in place.
        gradient: of the parameter's shape.
        removed: L [O, q] and R [q, I] with O * I the parameter's size, or None where nothing is subtracted.
        group: its options.
        state: its optimizer state, which holds ``momentum_buffer`` from the first step on.
    """

    param: Tensor
    gradient: Tensor
    removed: tuple[Tensor, Tensor] | None
    group: Group
    state: dict[str, Any]

    def apply_(self) -> None:
        if self.removed is None:
            sgd_(self.param, self.gradient, self.group, self.state)
        elif not self.param.is_contiguous():
            L, R = self.removed
            sgd_(self.param, self.gradient - (L @ R).view(self.gradient.shape), self.group, self.state)
        else:
            self._fused_()

    def _fused_(self) -> None:
        assert self.removed is not None
        group, buffer = self.group, self.state.get("momentum_buffer")
        first = buffer is None
        if group["momentum"] and first:
            buffer = torch.empty_like(self.param)
        _ops.projected_sgd_(
            self.param,
            self.gradient,
            *self.removed,
            buffer if group["momentum"] else None,
            first,
            float(group["lr"]),
            float(group["momentum"]),
            float(group["dampening"]),
            float(group["weight_decay"]),
            group["nesterov"],
            group["maximize"],
        )
        if group["momentum"]:
            self.state["momentum_buffer"] = buffer


def sgd_(param: Tensor, d: Tensor, group: Group, state: dict[str, Any]) -> None:
    """torch.optim.SGD(foreach=False, fused=False) on one parameter: the same operations in the same order."""
    d = -d if group["maximize"] else d
    if group["weight_decay"] != 0:
        d = d.add(param, alpha=group["weight_decay"])
    momentum = group["momentum"]
    if momentum != 0:
        buffer = state.get("momentum_buffer")
        if buffer is None:
            buffer = d.detach().clone()
        else:
            buffer.mul_(momentum).add_(d, alpha=1 - group["dampening"])
        state["momentum_buffer"] = buffer
        d = d.add(buffer, alpha=momentum) if group["nesterov"] else buffer
    param.add_(d, alpha=-float(group["lr"]))


def check_group(group: Group) -> None:
    """Refuses what torch.optim.SGD refuses."""
    for name in ("lr", "momentum", "weight_decay"):
        if not 0 <= float(group[name]) < float("inf"):
            raise ValueError(f"{name}: expected a finite value >= 0, got {group[name]!r}")
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError("nesterov: expected momentum > 0 and dampening = 0")


@dataclass(frozen=True)
class Threshold:
    """Which curvatures are chaotic: kappa < 0 or kappa > upper, kappa = sign * lambda + shift."""

    lr: float
    upper: float
    sign: float = 1.0
    shift: float = 0.0


def chaotic_threshold(groups: Sequence[Group], rule: str) -> Threshold:
    """The threshold of the "paper" or of the "optimizer" (a companion root of the recurrence outside the unit circle).

    SGD: kappa < 0 or lr kappa > 2. Heavy ball: lr (1 - dampening) kappa > 2 (1 + mu). Nesterov:
    lr kappa > (2 + 2 mu) / (1 + 2 mu). Under ``maximize`` the step ascends and kappa = -lambda (+ weight decay).

    Raises:
        UnsupportedError: groups that differ in what the threshold needs.
    """
    names = ["lr", "maximize"]
    if rule == "optimizer":
        names += ["momentum", "dampening", "weight_decay", "nesterov"]
    for name in names:
        if len({float(g[name]) for g in groups}) > 1:
            raise UnsupportedError(
                f"prune='chaotic': parameter groups have different {name}, and one threshold cannot hold for the "
                "eigenvectors of H, which cross groups; use one value, or prune='negative' or 'positive'"
            )
    g = groups[0]
    lr, mu, sign = float(g["lr"]), float(g["momentum"]), -1.0 if g["maximize"] else 1.0
    if rule == "paper":
        return Threshold(lr, 2 / lr if lr else float("inf"), sign)
    factor = 2.0
    if mu and g["nesterov"]:
        factor = (2 + 2 * mu) / (1 + 2 * mu)
    elif mu:
        factor = 2 * (1 + mu) / (1 - g["dampening"]) if g["dampening"] < 1 else float("inf")
    return Threshold(lr, factor / lr if lr else float("inf"), sign, float(g["weight_decay"]))
