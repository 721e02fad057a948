"""The tangent map of a step by torch.func, for maps that come without one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vmap

from ..errors import UnsupportedError

Step = Callable[[Tensor], Tensor]
Jvp = Callable[[Tensor, Tensor], Tensor]

# Differences of a smooth step are right to more digits than this; what detaches is wrong in the first one.
_AGREE = 1e-2
_NUMBERS = 1 << 24  # of a chunk of columns with all that a step may make of them


def linearised(step: Step, x0: Tensor) -> Jvp:
    """(x, V [d, k]) -> J(x) V, forward mode, columns in chunks; checked at x0 against differences of ``step``.

    Raises:
        UnsupportedError: torch cannot differentiate the step.
        ValueError: what it returns is not the derivative, as where the step detaches or leaves torch.
    """
    chunk = max(1, _NUMBERS // (64 * len(x0)))

    def tangent(x: Tensor, V: Tensor) -> Tensor:
        def along(v: Tensor) -> Tensor:
            derivative: Tensor = jvp(lambda z: step(z.clone()), (x,), (v,))[1]
            return derivative

        try:
            return vmap(along, in_dims=1, out_dims=1, chunk_size=chunk)(V)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UnsupportedError(
                f"tangent=None: torch.func cannot differentiate step ({reason}); give tangent=, the map of deviations"
            ) from error

    _check(step, tangent, x0)
    return tangent


def _check(step: Step, tangent: Jvp, x: Tensor) -> None:
    """Along two random directions: a kink next to x, where differences say nothing, is rarely crossed by both."""
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(len(x), 2, generator=generator, dtype=torch.float64, device="cpu").to(x.device, x.dtype)
    V = V / V.norm(dim=0)
    h = (1e-6 if x.dtype == torch.float64 else 1e-3) * max(1.0, float(x.norm()) / len(x) ** 0.5)
    JV = tangent(x, V).detach()
    gaps = []
    for v, Jv in zip(V.mT, JV.mT, strict=True):
        difference = (step(x + h * v).detach() - step(x - h * v).detach()) / (2 * h)
        size = max(float(difference.norm()), float(Jv.norm()))
        rounding = 10 * torch.finfo(x.dtype).eps * float(x.norm()) / h
        gaps.append(max(float((difference - Jv).norm()) - rounding, 0.0) / size if size else 0.0)
    if min(gaps) > _AGREE:
        raise ValueError(
            f"tangent=None: the derivative of step by torch.func and differences of step disagree at x0 by "
            f"{min(gaps):.2g} of their size, as where a step detaches or leaves torch; give tangent=, "
            "the map of deviations"
        )
