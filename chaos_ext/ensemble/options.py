"""The options of an optimizer as an ensemble needs them: one number for all members, or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ..base.optimizers import number
from ..base.parameters import ParameterSpace
from ..base.torch_internals import has_step_hooks
from ..errors import UnsupportedError
from ..optim.cgd import CGD

Number = float | Tensor  # of all members, or [B, 1]
SGD_NUMBERS = ("lr", "momentum", "dampening", "weight_decay")
ADAM_NUMBERS = ("lr", "beta1", "beta2", "eps", "weight_decay")
SGD_FLAGS = ("nesterov", "maximize")
ADAM_FLAGS = ("amsgrad", "maximize", "decoupled_weight_decay")
_BELOW_ONE = ("beta1", "beta2")


@dataclass(frozen=True)
class Group:
    """What one parameter group is stepped with.

    Attributes:
        numbers: by name, ``SGD_NUMBERS`` or ``ADAM_NUMBERS``.
        flags: by name, ``SGD_FLAGS`` or ``ADAM_FLAGS``.
    """

    numbers: Mapping[str, Number]
    flags: Mapping[str, bool]

    def of(self, rows: slice) -> dict[str, Number]:
        """The numbers of these members."""
        return {k: v[rows] if isinstance(v, Tensor) else v for k, v in self.numbers.items()}

    def like_member(self, i: int, members: int) -> Group:
        """All members with the options of one."""
        numbers = {
            k: v[i : i + 1].expand(members, 1).contiguous() if isinstance(v, Tensor) else v
            for k, v in self.numbers.items()
        }
        return replace(self, numbers=numbers)


def is_adam(opt: Optimizer) -> bool:
    """Whether it steps by Adam's recurrence; else by SGD's.

    Raises:
        UnsupportedError: neither.
    """
    if type(opt) not in (SGD, CGD, Adam, AdamW):
        raise UnsupportedError(
            f"opt: expected torch.optim.SGD, Adam, AdamW or chaos_ext.CGD (a subclass may step differently), got "
            f"{type(opt).__name__}"
        )
    return type(opt) in (Adam, AdamW)


def groups_of(opt: Optimizer) -> list[Group]:
    """The parameter groups as they are now.

    Raises:
        ValueError, TypeError: a number out of its range. UnsupportedError: ``differentiable=True``; step hooks.
    """
    adam = is_adam(opt)
    if has_step_hooks(opt):
        raise UnsupportedError("opt: it has step hooks, which would not see the members; remove them")
    return [_group(g, adam) for g in opt.param_groups]


def _group(group: dict[str, Any], adam: bool) -> Group:
    if group.get("differentiable"):
        raise UnsupportedError("opt: differentiable=True: the step of an ensemble cannot be differentiated")
    given = dict(group)
    if adam:
        given["beta1"], given["beta2"] = group["betas"]
    names, flags = (ADAM_NUMBERS, ADAM_FLAGS) if adam else (SGD_NUMBERS, SGD_FLAGS)
    numbers = {n: _number(n, given[n]) for n in names}
    made = Group(numbers, {n: bool(given.get(n, False)) for n in flags})
    _check_together(made)
    return made


def _number(name: str, value: object) -> float:
    return number(name, value, 1.0) if name in _BELOW_ONE else number(name, value)


def _check_together(group: Group) -> None:
    if not group.flags.get("nesterov"):
        return
    momentum, dampening = (torch.as_tensor(group.numbers[n]) for n in ("momentum", "dampening"))
    if bool((momentum <= 0).any()) or bool((dampening != 0).any()):
        raise ValueError("nesterov: expected momentum > 0 and dampening = 0 of every member")


def with_options(groups: Sequence[Group], given: Mapping[str, Any], members: int, space: ParameterSpace) -> list[Group]:
    """The groups with options replaced, by a number for all members or a tensor [B] with one for each.

    Raises:
        TypeError: an option that there is not. ValueError: out of range, or not one for each member.
    """
    options = dict(given)
    if "betas" in options:
        options["beta1"], options["beta2"] = _pair(options.pop("betas"))
    known = groups[0].numbers
    unknown = [n for n in options if n not in known]
    if unknown:
        names = ", ".join(n for n in known if n not in _BELOW_ONE) + (", betas" if "beta1" in known else "")
        raise TypeError(f"{unknown[0]}: not an option that may be given per member; expected some of {names}")
    numbers = {n: _per_member(n, v, members, space) for n, v in options.items()}
    made = [replace(g, numbers={**g.numbers, **numbers}) for g in groups]
    for g in made:
        _check_together(g)
    return made


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"betas: expected a pair, each a number or a tensor [B], got {value!r}")
    return value[0], value[1]


def _per_member(name: str, value: Any, members: int, space: ParameterSpace) -> Number:
    if isinstance(value, (list, tuple)):
        value = torch.tensor(value, dtype=torch.float64, device="cpu")
    if not isinstance(value, Tensor) or value.dim() == 0:
        return _number(name, value)
    if tuple(value.shape) != (members,) or value.is_complex():
        raise ValueError(
            f"{name}: expected a number, or a tensor [{members}] with one for each member, got shape "
            f"{tuple(value.shape)} {value.dtype}"
        )
    for i, v in enumerate(value.tolist()):
        try:
            _number(name, v)
        except ValueError as e:
            raise ValueError(f"member {i}: {e}") from None
    return value.detach().to(space.device, space.dtype).view(members, 1).clone()


def places(opt: Optimizer, space: ParameterSpace) -> list[int | None]:
    """Of each parameter of theta, its group; None where the optimizer does not have it.

    Raises:
        ValueError: parameters of another model.
    """
    found: list[int | None] = [None] * len(space.params)
    for i, group in enumerate(opt.param_groups):
        for p in group["params"]:
            if id(p) in space.index:
                found[space.index[id(p)]] = i
            elif p.requires_grad:
                raise ValueError(
                    f"opt: expected an optimizer of this model's parameters, got one with a parameter of shape "
                    f"{tuple(p.shape)} that the model does not have"
                )
    if all(i is None for i in found):
        raise ValueError("opt: it has none of the model's trained parameters")
    return found
