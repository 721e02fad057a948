"""Where each parameter lies in a deviation of the optimizer's whole state [S, k]."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from operator import is_

from torch import Tensor

from ..base.parameters import ParameterSpace
from ..curvature.hessian import HessianOperator
from ..errors import UnsupportedError


@dataclass(frozen=True)
class Layout:
    """Rows of theta in its own order, then buffer 0 of the parameters that have one, then buffer 1.

    Attributes:
        parameters: the parameters in theta's order (not their ids, which others may get once these are gone).
        theta: rows of each parameter.
        buffers: rows of each of its buffers.
        size: S.
    """

    parameters: tuple[Tensor, ...]
    theta: tuple[slice, ...]
    buffers: tuple[tuple[slice, ...], ...]
    size: int

    @classmethod
    def of(cls, space: ParameterSpace, counts: Mapping[Tensor, int]) -> Layout:
        """From the number of buffers of each parameter."""
        rows: list[list[slice]] = [[] for _ in space.params]
        start = space.size
        for j in range(max(counts[p] for p in space.params)):
            for own, p, size in zip(rows, space.params, space.sizes, strict=True):
                if counts[p] > j:
                    own.append(slice(start, start + size))
                    start += size
        theta = tuple(space.slice(i) for i in range(len(space.params)))
        return cls(space.params, theta, tuple(map(tuple, rows)), start)

    def fits(self, space: ParameterSpace) -> bool:
        """Whether theta is made of these very parameters."""
        return len(self.parameters) == len(space.params) and all(map(is_, self.parameters, space.params))


def require_same(
    space: ParameterSpace, trained: Sequence[Tensor], then: Sequence[Tensor], known: Container[Tensor]
) -> None:
    """Raises ValueError unless theta is made of exactly the parameters that the optimizer trains, and did.

    Args:
        space: of the operator.
        trained: the parameters that the optimizer trains now.
        then: those that it trained when the map was made.
        known: all that it had then, frozen ones included.
    """
    now, before = {id(p) for p in trained}, {id(p) for p in then}
    missing = [n for n, p in zip(space.names, space.params, strict=True) if id(p) not in now]
    extra = [tuple(p.shape) for p in trained if id(p) not in space.index]
    if missing:
        raise ValueError(
            f"operator: its parameters {', '.join(missing)} are not the optimizer's (another model, or parameters "
            "left out: set requires_grad=False on what is not trained)"
        )
    if extra:
        raise ValueError(
            f"operator: the optimizer also trains parameters of shapes {extra} that its model does not have"
        )
    if any(p not in known for p in trained):
        raise ValueError("opt: a parameter joined the optimizer after the TangentMap was made; make a new one")
    changed = [n for n, p in zip(space.names, space.params, strict=True) if id(p) not in before]
    changed += [f"one of shape {tuple(p.shape)}" for p in then if id(p) not in now]
    if changed:
        raise ValueError(
            f"opt: requires_grad of {', '.join(changed)} changed after the TangentMap was made, so deviations have "
            "other rows; make a new TangentMap or LyapunovAnalyzer"
        )


def check_deviations(Y: object, op: HessianOperator, size: int) -> None:
    """Raises TypeError or ValueError unless Y is [S, k] in the dtype and on the device of the operator.

    And UnsupportedError where H is not the derivative of the gradient that the optimizer follows.
    """
    if op.held_constant is not None:
        raise UnsupportedError(
            f"model: its forward takes something out of the graph ({op.held_constant}) that the gradient changes with: "
            "H holds it constant, and so would the tangent map, which is another one than that of the step that is done"
        )
    if not isinstance(Y, Tensor) or Y.dtype != op.dtype or Y.device != op.device:
        got = f"{Y.dtype} on {Y.device}" if isinstance(Y, Tensor) else type(Y).__name__
        raise TypeError(f"Y: expected a {op.dtype} tensor on {op.device}, got {got}")
    if Y.dim() != 2 or Y.shape[0] != size:
        raise ValueError(f"Y: expected shape [S, k] with S = {size}, got {tuple(Y.shape)}")
