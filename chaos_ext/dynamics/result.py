"""What a run of deviations says: exponents in order, their history and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..base.html import table
from .benettin import Benettin
from .exponents import kaplan_yorke_dimension, sum_of_positive_exponents

SHOWN = 20  # exponents in a notebook


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

    def _repr_html_(self) -> str:
        shown = zip(range(1, SHOWN + 1), self.exponents.tolist(), self.errors.tolist(), strict=False)
        title = f"Lyapunov exponents after {self.steps} steps, nats per step"
        return table(title, shown, ("", "exponent", "standard error"))

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


def running_history(run: Benettin) -> History:
    """The running means after each kept block."""
    order = ordered(run)[1]
    ends, blocks = run.history()
    steps = (ends - run.transient).double().unsqueeze(1).to(blocks.device)
    return History(ends, (blocks.cumsum(0) / steps)[:, order])


def result_of(run: Benettin, x: Tensor) -> LyapunovResult:
    """Where a run stands whose state is x [d] now."""
    reading = run.reading()
    exponents, order, steps = ordered(run)
    history = running_history(run)
    errors, gali = run.errors()[order], reading.log_gali
    return LyapunovResult(exponents, errors, steps, run.transient, history, x, reading.directions, gali)
