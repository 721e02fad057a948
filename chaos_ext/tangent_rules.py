"""How one step of torch's SGD, Adam and AdamW maps small deviations: one rule a parameter, in place.

With s = -1 under ``maximize`` (torch negates the gradient before it adds weight decay w) and K = s H + w I, a rule gets
the deviation d of the parameter, those of its buffers, and the rows of H d. All formulas are derivatives of the very
recurrences in torch/optim/sgd.py and torch/optim/adam.py.

Buffers are carried in units of one's choice: a deviation y of a buffer stands for y / c in the buffer's own units. The
c of a run are constants, so they change neither exponents nor determinants; good ones keep the map well conditioned (a
heavy-ball step has condition 7e3 at lambda = 80, lr = 1e-3 in (theta, v), and 2.3 in (theta, lr v)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from .errors import UnsupportedError

Group = dict[str, Any]


@dataclass(frozen=True)
class Slot:
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


@dataclass(frozen=True)
class Rule:
    """The tangent of one optimizer's step.

    Attributes:
        buffers: how many buffers of its own size a parameter of this group has.
        check: (group, its buffers in Y) -> None; refuses options that the rule does not cover.
        advance_: (slot, Y [S, k], H Y [P, k], g [P]) -> None; writes the slot's rows of Y, may overwrite those of H Y.
        units: (group, root mean square of the gradient) -> c of each buffer.
    """

    buffers: Callable[[Group], int]
    check: Callable[[Group, int], None]
    advance_: Callable[[Slot, Tensor, Tensor, Tensor], None]
    units: Callable[[Group, float], tuple[float, ...]]


def sgd_(slot: Slot, Y: Tensor, HY: Tensor, gradient: Tensor) -> None:
    """Plain: d' = d - lr K d. With momentum: v' = mu v + (1 - dampening) K d, d' = d - lr v'.

    Nesterov: d' = d - lr (K d + mu v'). The step that creates a buffer has no dampening. Dampening without momentum is
    ignored, as torch does.
    """
    group, d = slot.group, Y[slot.theta]
    lr, mu = float(group["lr"]), float(group["momentum"])
    K = _curvature_(slot, d, HY)
    if mu == 0:
        d.sub_(K, alpha=lr)
        return
    v, c = Y[slot.buffers[0]], slot.units[0]
    first = slot.state.get("momentum_buffer") is None
    v.mul_(mu).add_(K, alpha=c * (1.0 if first else 1 - float(group["dampening"])))
    if group["nesterov"]:
        d.sub_(K, alpha=lr).sub_(v, alpha=lr * mu / c)
    else:
        d.sub_(v, alpha=lr / c)


def check_sgd(group: Group, buffers: int) -> None:
    """Refuses momentum that appears in the middle of a run: the state space would change its dimension."""
    if float(group["momentum"]) and not buffers:
        raise UnsupportedError(
            "TangentMap: a parameter group got momentum after the map was made; make the TangentMap when every group "
            "that will ever have momentum has it"
        )


def _curvature_(slot: Slot, d: Tensor, HY: Tensor) -> Tensor:
    """K d = s H d + w d, in the memory of H d."""
    K = HY[slot.theta]
    if slot.group["maximize"]:
        K.neg_()
    decay = float(slot.group["weight_decay"])
    if decay and not slot.group.get("decoupled_weight_decay", False):
        K.add_(d, alpha=decay)
    return K


def adam_(slot: Slot, Y: Tensor, HY: Tensor, gradient: Tensor) -> None:
    """m' = b1 m + (1 - b1) K d, v' = b2 v + 2 (1 - b2) e K d, d' = (1 - lr w) d - A m' + B v' (w: decoupled decay).

    e is the gradient that enters the recurrence, A and B the derivatives of the update by the moments (``_slopes``).
    """
    group, d = slot.group, Y[slot.theta]
    b1, b2 = (float(b) for b in group["betas"])
    decay = float(group["weight_decay"])
    decoupled = bool(group.get("decoupled_weight_decay", False))
    e = gradient[slot.theta].double()
    e = -e if group["maximize"] else e
    if decay and not decoupled:
        e = e + decay * slot.param.detach().reshape(-1).double()
    A, B = _slopes(slot, e, b1, b2)
    K = _curvature_(slot, d, HY)
    m, v = Y[slot.buffers[0]], Y[slot.buffers[1]]
    c_m, c_v = slot.units
    m.mul_(b1).add_(K, alpha=c_m * (1 - b1))
    v.mul_(b2).add_(K.mul_(_column(2 * (1 - b2) * c_v * e, K)))
    if decoupled:
        d.mul_(1 - float(group["lr"]) * decay)
    d.sub_(torch.mul(m, _column(A / c_m, m), out=K)).add_(torch.mul(v, _column(B / c_v, v), out=K))


def _slopes(slot: Slot, e: Tensor, b1: float, b2: float) -> tuple[Tensor, Tensor]:
    """A = (lr / bc1) / q and B = (lr / bc1) m' / (2 q^2 sqrt(v' bc2)) [P_l] with q = sqrt(v' / bc2) + eps, float64.

    0 / 0 counts as 0: at a dead unit, whose gradients have all been zero, m' = v' = 0.
    """
    group, state = slot.group, slot.state
    t = float(state.get("step", 0)) + 1
    m, v = (1 - b1) * e, (1 - b2) * e.square()
    if "exp_avg" in state:
        m = m + b1 * state["exp_avg"].reshape(-1).double()
        v = v + b2 * state["exp_avg_sq"].reshape(-1).double()
    root, scale = v.sqrt(), (1 - b2**t) ** 0.5
    inverse = _inverse(root / scale + float(group["eps"]))
    A = float(group["lr"]) / (1 - b1**t) * inverse
    return A, A * inverse * m * _inverse(2 * scale * root)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x, torch.zeros_like(x))


def _column(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype).unsqueeze(1)


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


SGD_RULE = Rule(lambda group: int(float(group["momentum"]) != 0), check_sgd, sgd_, _sgd_units)
ADAM_RULE = Rule(lambda group: 2, check_adam, adam_, _adam_units)


def rule_for(opt: Optimizer) -> Rule | None:
    """The rule of this optimizer's very class (a subclass may step differently), or None.

    An optimizer that offers ``tangent_projection`` declares torch.optim.SGD's recurrence on a projected gradient.
    """
    if type(opt) in (Adam, AdamW):
        return ADAM_RULE
    if type(opt) is SGD or hasattr(opt, "tangent_projection"):
        return SGD_RULE
    return None
