"""Lyapunov exponents of any discrete map that comes with its tangent map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.progress import Progress
from ..errors import NonFiniteError
from .benettin import Benettin, start_block
from .exponents import kaplan_yorke_dimension, sum_of_positive_exponents


class History(NamedTuple):
    """How the exponents converged.

    Attributes:
        steps: after which step, int64 [m], transient included.
        exponents: means per step until then, float64 [m, k], columns in the order of the final exponents.
    """

    steps: Tensor
    exponents: Tensor


@dataclass(frozen=True)
class LyapunovResult:
    """A Lyapunov spectrum and how far to trust it.

    Attributes:
        exponents: float64 [k], descending, in nats per step.
        errors: one standard error of each, by block means [k]; NaN where the run has too few blocks.
        steps: measured steps.
        transient: steps before them.
        history: the convergence.
        x: the state at the end [d].
        directions: orthonormal columns [d, k]; the first j span the j fastest growing directions at x.
        log_gali: ln GALI_1 .. ln GALI_k of the free deviations over the measured steps [k]: GALI_j stays away from zero
            on tori of dimension >= j and falls exponentially with chaos (Skokos, Bountis, Antonopoulos 2007).
    """

    exponents: Tensor
    errors: Tensor
    steps: int
    transient: int
    history: History
    x: Tensor
    directions: Tensor
    log_gali: Tensor | None

    @property
    def kaplan_yorke_dimension(self) -> float:
        """See ``chaos_ext.kaplan_yorke_dimension``."""
        return kaplan_yorke_dimension(self.exponents, len(self.x))

    @property
    def sum_of_positive_exponents(self) -> float:
        """In nats per step."""
        return sum_of_positive_exponents(self.exponents)


def ordered(run: Benettin) -> tuple[Tensor, Tensor, int]:
    """Exponents, descending, with the order of their columns and the number of measured steps."""
    reading = run.reading()
    if not reading.steps:
        raise ValueError("exponents: expected at least one step after the transient, got none yet")
    exponents, order = (reading.growth / reading.steps).sort(descending=True, stable=True)
    return exponents, order, reading.steps


def running_history(run: Benettin, order: Tensor) -> History:
    """The running means after each kept block."""
    ends, blocks = run.history()
    steps = (ends - run.transient).double().unsqueeze(1).to(blocks.device)
    return History(ends, (blocks.cumsum(0) / steps)[:, order])


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
        >>> logistic = ce.systems.logistic()
        >>> ce.lyapunov_spectrum(logistic.step, logistic.tangent, logistic.x0, steps=100_000)  # ln 2 = 0.6931
    """
    k = _check(x0, steps, k, transient)
    check_every(qr_every)
    run = Benettin(start_block(len(x0), k, x0.dtype, x0.device, seed), qr_every, transient, gali)
    total = transient + steps
    with Progress(total if progress is True else None, shown=progress is True) as bar:
        after = progress if callable(progress) else lambda done, of: bar.report(1, False)
        x = _follow(run, step, tangent, x0.detach(), total, after)
    return _result(run, x) if full_output else ordered(run)[0]


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
            error.result = _result(run, x) if run.reading().steps else None
            raise
        x = following
        after(t + 1, total)
    return x


def _result(run: Benettin, x: Tensor) -> LyapunovResult:
    reading = run.reading()
    exponents, order, steps = ordered(run)
    history = running_history(run, order)
    errors, gali = run.errors()[order], reading.log_gali
    return LyapunovResult(exponents, errors, steps, run.transient, history, x, reading.directions, gali)


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


def check_count(k: int | None, size: int, name: str) -> int:
    """k, or all of them."""
    if k is None:
        return size
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise ValueError(f"k: expected an int in 1..{name} = {size} or None, got {k!r}")
    return k


def check_every(qr_every: int | str) -> None:
    if qr_every != "auto" and (isinstance(qr_every, bool) or not isinstance(qr_every, int) or qr_every < 1):
        raise ValueError(f"qr_every: expected 'auto' or an int >= 1, got {qr_every!r}")
