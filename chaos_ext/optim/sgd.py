"""The recurrence of torch.optim.SGD, plain and with a low-rank product subtracted from the gradient on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from .. import _ops
from ..base.guards import refuse_autocast
from ..base.optimizers import SGD_NUMBERS, require_numbers
from ..base.parameters import FLOAT_DTYPES, Group
from ..base.signals import Deferred
from ..base.torch_internals import MOMENTUM_BUFFER
from ..errors import UnsupportedError
from .pruning import Pruning

SGD_OPTIONS = (*SGD_NUMBERS, "nesterov", "maximize")
PRUNING_OPTIONS = frozenset(f.name for f in fields(Pruning)) | {"generator"}


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
        group, buffer = self.group, self.state.get(MOMENTUM_BUFFER)
        first = buffer is None
        if group["momentum"] and first:
            buffer = torch.empty_like(self.param)
        # A graph that was made before must not take the new weights for those it has saved.
        increment_version([t for t in (self.param, buffer) if t is not None])
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
            self.state[MOMENTUM_BUFFER] = buffer


def sgd_(param: Tensor, d: Tensor, group: Group, state: dict[str, Any]) -> None:
    """torch.optim.SGD(foreach=False, fused=False) on one parameter: the same operations in the same order."""
    d = -d if group["maximize"] else d
    if group["weight_decay"] != 0:
        d = d.add(param, alpha=group["weight_decay"])
    momentum = group["momentum"]
    if momentum != 0:
        buffer = state.get(MOMENTUM_BUFFER)
        if buffer is None:
            buffer = d.detach().clone()
        else:
            buffer.mul_(momentum).add_(d, alpha=1 - group["dampening"])
        state[MOMENTUM_BUFFER] = buffer
        d = d.add(buffer, alpha=momentum) if group["nesterov"] else buffer
    param.add_(d, alpha=-float(group["lr"]))


def in_place(
    groups: Iterable[Group], trained: list[Tensor], places: Mapping[Tensor, tuple[torch.device, torch.dtype]]
) -> list[Tensor]:
    """The trained parameters, with options that make sense.

    Raises:
        UnsupportedError: one is no longer where the optimizer found it; autocast. ValueError, TypeError: options.
    """
    for group in groups:
        check_group(group)
    refuse_autocast(trained[0].device)
    for p in trained:
        if (p.device, p.dtype) != places[p]:
            raise UnsupportedError(
                f"params: a parameter moved from {places[p]} to {(p.device, p.dtype)} after CGD(...); make the "
                "optimizer after model.to(...)"
            )
    return trained


def places_of_last(groups: list[Group]) -> dict[Tensor, tuple[torch.device, torch.dtype]]:
    """Where the parameters of the last group are; raises TypeError, without that group, unless all are floats."""
    params = groups[-1]["params"]
    wrong = [p.dtype for p in params if p.dtype not in FLOAT_DTYPES]
    if wrong:
        groups.pop()
        raise TypeError(f"params: expected float32 or float64 parameters, got {wrong[0]}")
    return {p: (p.device, p.dtype) for p in params}


def numbers_of(groups: Iterable[Group]) -> str:
    """All options of groups that decide a step, as text."""
    return repr([[g[name] for name in SGD_OPTIONS] for g in groups])


def only_makes_state(opt: Optimizer, gradient: Tensor) -> bool:
    """Whether a step without a source is one of torch.distributed.checkpoint, with lr = 0 and no gradient, which makes
    momentum buffers and nothing else: then they are made."""
    idle = not any(g["lr"] for g in opt.param_groups) and not bool(gradient.any())
    if idle:
        make_state(opt)
    return idle


def make_state(opt: Optimizer) -> None:
    """The entries of the optimizer's state, as a first step would make them; momentum buffers are zeros."""
    with Deferred():
        for group in opt.param_groups:
            for p in group["params"]:
                state = opt.state[p] if p.requires_grad else {}
                if group["momentum"] and state.get(MOMENTUM_BUFFER) is None:
                    state[MOMENTUM_BUFFER] = torch.zeros_like(p)


def check_buffer(name: str, param: Tensor, buffer: object) -> None:
    """Raises ValueError for a momentum buffer that is not made like its parameter."""
    if buffer is None:
        return
    if not isinstance(buffer, Tensor):
        raise ValueError(f"momentum_buffer of {name}: expected a tensor or None, got {type(buffer).__name__}")
    if buffer.shape != param.shape or buffer.dtype != param.dtype or buffer.device != param.device:
        raise ValueError(
            f"momentum_buffer of {name}: expected shape {tuple(param.shape)}, {param.dtype} on {param.device} like the "
            f"parameter, got {tuple(buffer.shape)}, {buffer.dtype} on {buffer.device}; load a whole state_dict, or "
            "delete the buffer to start anew"
        )


def check_buffers(names: Iterable[str], params: Iterable[Tensor], states: Iterable[dict[str, Any]]) -> None:
    """Raises ValueError unless each momentum buffer is made like its parameter."""
    for name, p, state in zip(names, params, states, strict=True):
        check_buffer(name, p, state.get(MOMENTUM_BUFFER))


def check_loaded(opt: Optimizer) -> None:
    """Raises ValueError unless a step can be done with these options and buffers."""
    for group in opt.param_groups:
        check_group(group)
        params = group["params"]
        check_buffers([f"parameter {i}" for i in range(len(params))], params, [opt.state.get(p, {}) for p in params])


def check_group(group: Group) -> None:
    """Refuses what torch.optim.SGD refuses, numbers that are not finite, and options that are not a group's.

    Cheap enough for every step: anybody may change the options of a group at any time. Keys that are neither SGD's nor
    CGD's are the user's own, and ``foreach`` and ``fused`` change nothing but speed.

    Raises:
        ValueError, TypeError: a number out of its range, a pruning option. UnsupportedError: ``differentiable=True``.
    """
    require_numbers(group, SGD_NUMBERS)
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError("nesterov: expected momentum > 0 and dampening = 0")
    if not PRUNING_OPTIONS.isdisjoint(group):
        own = sorted(PRUNING_OPTIONS & set(group))
        raise ValueError(f"param_groups: {own} are pruning options, which hold for all groups; give them to CGD(...)")
    if group.get("differentiable"):
        raise UnsupportedError(
            "param_groups: differentiable=True: a CGD step cannot be differentiated; leave it out, or set it to False"
        )
