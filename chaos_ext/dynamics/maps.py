"""Lyapunov exponents of any discrete map that comes with its tangent map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from ..base.progress import Progress
from ..errors import NonFiniteError
from .benettin import Benettin, check_count, check_every, start_block
from .result import LyapunovResult, ordered, result_of


@overload
def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    *,
    steps: int,
    k: int | None = ...,
    transient: int = ...,
    full_output: Literal[False] = ...,
    qr_every: int | str = ...,
    gali: bool = ...,
    seed: int = ...,
    progress: bool | Callable[[int, int], None] = ...,
) -> Tensor: ...


@overload
def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    *,
    steps: int,
    k: int | None = ...,
    transient: int = ...,
    full_output: Literal[True],
    qr_every: int | str = ...,
    gali: bool = ...,
    seed: int = ...,
    progress: bool | Callable[[int, int], None] = ...,
) -> LyapunovResult: ...


@overload
def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    *,
    steps: int,
    k: int | None = ...,
    transient: int = ...,
    full_output: bool,
    qr_every: int | str = ...,
    gali: bool = ...,
    seed: int = ...,
    progress: bool | Callable[[int, int], None] = ...,
) -> Tensor | LyapunovResult: ...


def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    *,
    steps: int,
    k: int | None = None,
    transient: int = 0,
    full_output: bool = False,
    qr_every: int | str = "auto",
    gali: bool = False,
    seed: int = 0,
    progress: bool | Callable[[int, int], None] = False,
) -> Tensor | LyapunovResult:
    """Lyapunov exponents of x <- step(x), by QR (Benettin et al. 1980).

    Args:
        step: x [d] -> the next x [d].
        tangent: (x [d], V [d, k]) -> J(x) V, the Jacobian of ``step`` at x times V.
        x0: initial state, float64 or float32.
        steps: how many to measure.
        k: number of leading exponents; None: all d.
        transient: first steps, which move the state and turn the deviations but are not measured.
        full_output: return a LyapunovResult instead of the exponents.
        qr_every: re-orthonormalise at every multiple of this many steps, and whenever the stretch of the deviations
            nears what the dtype can bear; "auto": only then.
        gali: also follow GALI_1 .. GALI_k.
        seed: of the initial deviations (the identity if k = d).
        progress: True: a bar on the terminal (needs tqdm); or called with (steps done, steps in all) after every step.

    Returns:
        float64 [k], descending, in nats per step, or a LyapunovResult.

    Raises:
        ValueError, TypeError: arguments out of range.
        NonFiniteError: NaN or infinity in state or deviations; names the step, and its ``result`` is the
            LyapunovResult until then (None if nothing was measured yet).

    Example:
        >>> henon = ce.systems.henon()
        >>> exponents = ce.lyapunov_spectrum(henon.step, henon.tangent, henon.x0, steps=2000, transient=100)
        >>> round(float(exponents.sum()), 6)  # ln 0.3, at every step
        -1.203973
    """
    k = _check(x0, steps, k, transient)
    check_every(qr_every)
    run = Benettin(start_block(len(x0), k, x0.dtype, x0.device, seed), qr_every, transient, gali)
    total = transient + steps
    with Progress(total if progress is True else None, shown=progress is True) as bar:
        after = progress if callable(progress) else lambda done, of: bar.report(1, False)
        x = _follow(run, step, tangent, x0.detach(), total, after)
    return result_of(run, x) if full_output else ordered(run)[0]


def _follow(
    run: Benettin,
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    total: int,
    after: Callable[[int, int], None],
) -> Tensor:
    """The state after all steps."""
    for t in range(total):
        try:
            run.advance(lambda V, x=x: (tangent(x, V), None))  # type: ignore[misc]
            following = step(x)
            if not bool(torch.isfinite(following).all()):
                raise NonFiniteError(f"step {t}: the state has NaN or infinity; results until then are kept")
        except NonFiniteError as error:
            error.result = result_of(run, x) if run.reading().steps else None
            raise
        x = following
        after(t + 1, total)
    return x


def _check(x0: Tensor, steps: int, k: int | None, transient: int) -> int:
    if not isinstance(x0, Tensor) or x0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x0: expected a float32 or float64 tensor, got {getattr(x0, 'dtype', type(x0).__name__)}")
    if x0.dim() != 1 or not len(x0):
        raise ValueError(f"x0: expected shape [d] with d >= 1, got {tuple(x0.shape)}")
    if not bool(torch.isfinite(x0).all()):
        raise NonFiniteError("x0: expected finite values, got NaN or infinity")
    for name, value, least in (("steps", steps, 1), ("transient", transient, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an int >= {least}, got {value!r}")
    return check_count(k, len(x0), "d")
