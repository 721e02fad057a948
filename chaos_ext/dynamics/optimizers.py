"""How one step of torch's SGD, Adam and AdamW maps small deviations: coefficients of a native update of each parameter.

With s = -1 under ``maximize`` (torch negates the gradient before it adds weight decay w), K = s H + w I, d the
deviation of a parameter and v, u those of its buffers:

    PLAIN      d' = d - lr K d
    MOMENTUM   v' = mu v + c K d,                            d' = d - lr (K d + mu v') or d - lr v'
    ADAM       v' = b1 v + (1 - b1) K d,  u' = b2 u + 2 (1 - b2) e K d,  d' = (1 - lr w) d - A v' + B u'

All formulas are derivatives of the very recurrences in torch/optim/sgd.py and torch/optim/adam.py.

Buffers are carried in units of one's choice: a deviation y of a buffer stands for y / c in the buffer's own units. The
c of a run are constants, so they change neither exponents nor determinants; good ones keep the map well conditioned (a
heavy-ball step has condition 7e3 at lambda = 80, lr = 1e-3 in (theta, v), and 2.3 in (theta, lr v)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from .. import _ops
from ..base.optimizers import ADAM_NUMBERS, SGD_NUMBERS, number, require_numbers
from ..base.parameters import Group
from ..base.torch_internals import EXP_AVG, EXP_AVG_SQ, MOMENTUM_BUFFER, STEP
from ..errors import UnsupportedError
from .projected import Projected


class Slot(NamedTuple):
    """One parameter's place in a deviation [S, k].

    Attributes:
        param: the parameter.
        group: its options, as they are now.
        state: its optimizer state before the step.
        theta: its rows of theta.
        buffers: the rows of each of its buffers.
        units: c of each buffer.
    """

    param: Tensor
    group: Group
    state: dict[str, Any]
    theta: slice
    buffers: tuple[slice, ...]
    units: tuple[float, ...]


class Update(NamedTuple):
    """What becomes of one parameter's rows, as ``_ops.tangent_update_`` wants it: K = h + decay d there.

    Attributes:
        kind: PLAIN, MOMENTUM or ADAM.
        decay, mu, c1, e1, e2, b2, keep: its coefficients; the sign s is in decay, c1 and e1, and in q.
        vectors: q, A, B [rows] of ADAM.
    """

    kind: int
    decay: float = 0.0
    mu: float = 0.0
    c1: float = 0.0
    e1: float = 0.0
    e2: float = 0.0
    b2: float = 0.0
    keep: float = 1.0
    vectors: tuple[Tensor, ...] = ()

    @property
    def coefficients(self) -> tuple[float, ...]:
        return self.decay, self.mu, self.c1, self.e1, self.e2, self.b2, self.keep


UNTOUCHED = Update(_ops.PLAIN)  # d' = d, and buffers as they are


@dataclass(frozen=True)
class Rule:
    """The tangent of one optimizer's step.

    Attributes:
        buffers: how many buffers of its own size a parameter of this group has.
        check: (group, its buffers in Y) -> None; refuses options that the rule does not cover.
        require_numbers: group -> None; refuses numbers that are not finite or out of range.
        update: (slot, g [P]) -> the update of its rows.
        units: (group, root mean square of the gradient) -> c of each buffer.
    """

    buffers: Callable[[Group], int]
    check: Callable[[Group, int], None]
    require_numbers: Callable[[Group], None]
    update: Callable[[Slot, Tensor], Update]
    units: Callable[[Group, float], tuple[float, ...]]


class UpdateLists(NamedTuple):
    """What ``_ops.tangent_update_`` takes last: the updates of all parameters as flat lists.

    Attributes:
        vectors, slots, coefficients: its arguments of these names.
        rows: how many rows of Y the updates write, over all parameters.
    """

    vectors: list[Tensor]
    slots: list[int]
    coefficients: list[float]
    rows: int

    @classmethod
    def of(cls, slots: Sequence[Slot], updates: Sequence[Update]) -> UpdateLists:
        vectors: list[Tensor] = []
        places: list[int] = []
        coefficients: list[float] = []
        rows = 0
        for slot, update in zip(slots, updates, strict=True):
            size = slot.theta.stop - slot.theta.start
            places += _ops.SlotRecord(update.kind, slot.theta.start, size, *(b.start for b in slot.buffers))
            coefficients += _ops.CoefficientRecord(*update.coefficients)
            vectors += update.vectors
            rows += size * (1 + _ops.BUFFERS[update.kind])
        return cls(vectors, places, coefficients, rows)


def sgd(slot: Slot, gradient: Tensor) -> Update:
    """Plain: d' = d - lr K d. With momentum: v' = mu v + (1 - dampening) K d, d' = d - lr v'.

    Nesterov: d' = d - lr (K d + mu v'). The step that creates a buffer has no dampening. Dampening without momentum is
    ignored, as torch does.
    """
    group = slot.group
    lr, mu = float(group["lr"]), float(group["momentum"])
    sign, decay = _curvature(group)
    if mu == 0:
        # A parameter whose group has momentum in other phases of the run keeps its buffer as it is.
        return Update(_ops.PLAIN, decay, e1=sign * lr)
    c = slot.units[0]
    first = slot.state.get(MOMENTUM_BUFFER) is None
    c1 = sign * c * (1.0 if first else 1 - float(group["dampening"]))
    if group["nesterov"]:
        return Update(_ops.MOMENTUM, decay, mu, c1, sign * lr, lr * mu / c)
    return Update(_ops.MOMENTUM, decay, mu, c1, 0.0, lr / c)


def _curvature(group: Group) -> tuple[float, float]:
    """s and the decay with which K d = s (h + decay d)."""
    sign = -1.0 if group["maximize"] else 1.0
    decoupled = group.get("decoupled_weight_decay", False)
    return sign, 0.0 if decoupled else sign * float(group["weight_decay"])


def check_sgd(group: Group, buffers: int) -> None:
    """Refuses momentum that appears in the middle of a run: the state space would change its dimension."""
    if float(group["momentum"]) and not buffers:
        raise UnsupportedError(
            "TangentMap: a parameter group got momentum after the map was made; make the TangentMap when every group "
            "that will ever have momentum has it"
        )


def adam(slot: Slot, gradient: Tensor) -> Update:
    """m' = b1 m + (1 - b1) K d, v' = b2 v + 2 (1 - b2) e K d, d' = (1 - lr w) d - A m' + B v' (w: decoupled decay).

    e is the gradient that enters the recurrence, A and B the derivatives of the update by the moments (``_slopes``).
    """
    group = slot.group
    b1, b2 = (float(b) for b in group["betas"])
    weight_decay, decoupled = float(group["weight_decay"]), bool(group.get("decoupled_weight_decay", False))
    e = gradient[slot.theta].double()
    e = -e if group["maximize"] else e
    if weight_decay and not decoupled:
        e = e + weight_decay * slot.param.detach().reshape(-1).double()
    A, B = _slopes(slot, e, b1, b2)
    sign, decay = _curvature(group)
    c_m, c_v = slot.units
    vectors = (2 * (1 - b2) * c_v * sign * e, A / c_m, B / c_v)
    return Update(
        _ops.ADAM,
        decay,
        b1,
        sign * c_m * (1 - b1),
        b2=b2,
        keep=1 - float(group["lr"]) * weight_decay if decoupled else 1.0,
        vectors=tuple(t.to(gradient.dtype) for t in vectors),
    )


def _slopes(slot: Slot, e: Tensor, b1: float, b2: float) -> tuple[Tensor, Tensor]:
    """A = (lr / bc1) / q and B = (lr / bc1) m' / (2 q^2 sqrt(v' bc2)) [P_l] with q = sqrt(v' / bc2) + eps, float64.

    0 / 0 counts as 0: at a dead unit, whose gradients have all been zero, m' = v' = 0.
    """
    group, state = slot.group, slot.state
    t = float(state.get(STEP, 0)) + 1
    m, v = (1 - b1) * e, (1 - b2) * e.square()
    if EXP_AVG in state:
        m = m + b1 * state[EXP_AVG].reshape(-1).double()
        v = v + b2 * state[EXP_AVG_SQ].reshape(-1).double()
    root, scale = v.sqrt(), (1 - b2**t) ** 0.5
    inverse = _inverse(root / scale + float(group["eps"]))
    A = float(group["lr"]) / (1 - b1**t) * inverse
    return A, A * inverse * m * _inverse(2 * scale * root)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x, torch.zeros_like(x))


def check_adam(group: Group, buffers: int) -> None:
    """Refuses amsgrad: its running maximum is a fourth block of state, and the map is singular wherever it moves."""
    if group["amsgrad"]:
        raise UnsupportedError(
            "TangentMap: amsgrad=True keeps a running maximum, which is not differentiable; use amsgrad=False, or "
            "supply a tangent with register_tangent"
        )


def _sgd_units(group: Group, rms: float) -> tuple[float, ...]:
    return (float(group["lr"]) or 1.0,)


def _adam_units(group: Group, rms: float) -> tuple[float, ...]:
    lr, scale = float(group["lr"]) or 1.0, rms or 1.0
    return lr / scale, lr / scale**2


def _sgd_numbers(group: Group) -> None:
    require_numbers(group, SGD_NUMBERS)


def _adam_numbers(group: Group) -> None:
    require_numbers(group, ADAM_NUMBERS)
    for beta in group["betas"]:
        number("betas", beta, below=1.0)


SGD_RULE = Rule(lambda group: int(float(group["momentum"]) != 0), check_sgd, _sgd_numbers, sgd, _sgd_units)
ADAM_RULE = Rule(lambda group: 2, check_adam, _adam_numbers, adam, _adam_units)


def rule_for(opt: Optimizer) -> Rule | None:
    """The rule of this optimizer's very class (a subclass may step differently), or None.

    An optimizer that is ``Projected`` declares torch.optim.SGD's recurrence on a projected gradient.
    """
    if type(opt) in (Adam, AdamW):
        return ADAM_RULE
    if type(opt) is SGD or isinstance(opt, Projected):
        return SGD_RULE
    return None


def required_rule(opt: Optimizer) -> Rule:
    """``rule_for(opt)``, with its groups checked.

    Raises:
        UnsupportedError: there is none, or an option is not covered. ValueError: options out of range.
    """
    rule = rule_for(opt)
    if rule is None:
        raise UnsupportedError(
            f"TangentMap: no tangent for {type(opt).__name__}; known are torch.optim.SGD, Adam and AdamW, and "
            "chaos_ext.CGD (a subclass may step differently); supply one with chaos_ext.register_tangent"
        )
    for group in opt.param_groups:
        rule.require_numbers(group)
        rule.check(group, rule.buffers(group))
    return rule
