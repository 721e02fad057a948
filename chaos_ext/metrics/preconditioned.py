"""The curvature that Adam steps on: P^-1 H, with the preconditioner P of the step that it is about to do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from ..base.optimizers import ADAM_NUMBERS, number, require_numbers
from ..base.parameters import Group
from ..base.torch_internals import EXP_AVG_SQ, MAX_EXP_AVG_SQ, STEP
from ..curvature.dataset import DatasetHessian
from ..curvature.hessian import HessianOperator
from ..errors import UnsupportedError
from ..spectra.lanczos import lanczos

_DENSE = 512  # parameters up to which the matrix is formed


def preconditioned_sharpness(op: HessianOperator | DatasetHessian, opt: Optimizer) -> float:
    """The largest eigenvalue of P^-1 (s H + w I) for the step that Adam or AdamW is about to do on this batch.

    P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps), diagonal, with t and v after the step (of ``amsgrad`` the running
    maximum), s = -1 under ``maximize`` and w the weight decay of Adam (not the decoupled one of AdamW, which enters the
    edge instead). With P held fixed the step is a heavy ball on P^-1 H (Cohen et al., "Adaptive gradient methods at the
    edge of stability", 2022).

    Args:
        op: the operator of the batch, or of a data set.
        opt: torch.optim.Adam or AdamW, before the step.

    Raises:
        UnsupportedError: another optimizer; parameter groups that differ in lr, betas, weight decay or ``maximize``.
        ValueError: a parameter that is not the optimizer's; a preconditioner with zeros (eps = 0 and no gradient yet).
        StaleOperatorError: the parameters or the batch changed since the operator was made.
        NotConvergedError: Lanczos did not find the eigenvalue.
    """
    if not isinstance(op, (HessianOperator, DatasetHessian)):
        raise TypeError(f"op: expected a HessianOperator or a DatasetHessian, got {type(op).__name__}")
    group = common_group(opt)
    sign = -1.0 if group["maximize"] else 1.0
    shift = 0.0 if group["decoupled_weight_decay"] else float(group["weight_decay"])
    D = _stepped(op, preconditioner(op, opt).rsqrt()).to(op.device, op.dtype).unsqueeze(1)

    def apply(X: Tensor) -> Tensor:
        return D * (sign * (op @ (D * X)) + shift * (D * X))

    if len(D) > _DENSE:
        return float(lanczos(apply, len(D), 1, "largest", dtype=op.dtype, device=op.device)[0][0])
    K = apply(torch.eye(len(D), dtype=op.dtype, device=op.device)).double()
    return float(torch.linalg.eigvalsh((K + K.T) / 2)[-1])


def _stepped(op: HessianOperator | DatasetHessian, values: Tensor) -> Tensor:
    """Zero for parameters that the loss of this batch does not use: torch leaves them as they are."""
    for i in op.unused:
        values[op.space.slice(i)] = 0
    return values


def edge(opt: Optimizer) -> float:
    """(1 + b1) (2 - lr w) / ((1 - b1) lr), w being a decoupled weight decay; infinite at lr = 0."""
    group = common_group(opt)
    lr, b1 = float(group["lr"]), float(group["betas"][0])
    decay = float(group["weight_decay"]) if group["decoupled_weight_decay"] else 0.0
    return (1 + b1) * (2 - lr * decay) / ((1 - b1) * lr) if lr else float("inf")


def common_group(opt: Optimizer) -> Group:
    """The options that all parameter groups share.

    Raises:
        UnsupportedError: they do not, or the optimizer is neither Adam nor AdamW. ValueError, TypeError: options that
            are no finite numbers.
    """
    if type(opt) not in (Adam, AdamW):
        raise UnsupportedError(f"opt: expected torch.optim.Adam or AdamW, got {type(opt).__name__}")
    groups = opt.param_groups
    for g in groups:
        require_numbers(g, ADAM_NUMBERS)
        for beta in g["betas"]:
            number("betas", beta, below=1.0)
    for name in ("lr", "betas", "weight_decay", "maximize", "decoupled_weight_decay"):
        if len({str([float(v) for v in _several(g[name])]) for g in groups}) > 1:
            raise UnsupportedError(
                f"opt: parameter groups have different {name}, and one edge cannot hold for eigenvectors that cross "
                "groups; use one value"
            )
    return groups[0]


def _several(value: Any) -> Any:
    return value if isinstance(value, (tuple, list)) else (value,)


def preconditioner(op: HessianOperator | DatasetHessian, opt: Optimizer) -> Tensor:
    """The diagonal of P of the next step, float64 [P]."""
    of = {p: group for group in opt.param_groups for p in group["params"]}
    space, gradient = op.space, op.gradient.double()
    missing = [n for n, p in zip(space.names, space.params, strict=True) if p not in of]
    if missing:
        raise ValueError(f"op: its parameters {', '.join(missing)} are not the optimizer's (another model?)")
    parts = [
        _of_parameter(p, of[p], opt.state.get(p, {}), gradient[space.slice(i)]) for i, p in enumerate(space.params)
    ]
    found = torch.cat(parts)
    zeros = int((_stepped(op, (found <= 0).double()) > 0).sum())
    if zeros:
        raise ValueError(
            f"opt: the preconditioner is zero for {zeros} parameters that have had no gradient yet; use an eps > 0"
        )
    return found


def _of_parameter(p: Tensor, group: Group, state: dict[str, Any], gradient: Tensor) -> Tensor:
    b1, b2 = (float(b) for b in group["betas"])
    e = -gradient if group["maximize"] else gradient
    if not group["decoupled_weight_decay"]:
        e = e + float(group["weight_decay"]) * p.detach().reshape(-1).double()
    v, t = (1 - b2) * e.square(), float(state.get(STEP, 0)) + 1
    if EXP_AVG_SQ in state:
        v = v + b2 * state[EXP_AVG_SQ].reshape(-1).double()
    if group["amsgrad"] and MAX_EXP_AVG_SQ in state:
        v = torch.maximum(v, state[MAX_EXP_AVG_SQ].reshape(-1).double())
    return (1 - b1**t) * ((v / (1 - b2**t)).sqrt() + float(group["eps"]))
