"""What a finite-time run says: exponents, how far to trust them, which are zero, and what was read on the way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...base.html import table
from .run import Extremes, FiniteTime


@dataclass(frozen=True)
class FiniteTimeSpectrum:
    """Finite-time Lyapunov exponents ln sigma_i(Y_t) / t and how far to trust them.

    Attributes:
        exponents: float64 [k], descending, in nats per step; -inf for a direction that was lost exactly.
        tolerance: how far rounding may have moved each ln sigma_i, float64 [k], inf where that cannot be told: by the
            condition of the factors, of each block of steps (a step with lr lambda near 1 conditions one exponent at
            the bottom), and of directions that shrank and grew again.
        neutral: |ln sigma_i| within ``neutral_tolerance``: neither chaotic nor stable, bool [k].
        neutral_tolerance: what was asked for, or ``tolerance``, float64 [k].
        steps: t, measured steps.
        transient: steps before them.
        is_restricted: whether k is less than the dimension: then these are exponents of the map restricted to k random
            directions, which bound the leading ones from below.
        condition: of theta's rows of the last block, for the theta block of an optimizer with buffers, else 1; it is a
            factor of ``tolerance``.
        extremes: the largest and smallest exponent on the way.
        seconds: where the time went: "tangent", "qr", "fold", "extremes", "read-out".
        x: the state at the end [d], or None where it is a model's.
        right, left: orthonormal columns, initial directions that grow by sigma_i and where they end; of a map, else
            None (see ``LyapunovAnalyzer.singular_vectors``).
    """

    exponents: Tensor
    tolerance: Tensor
    neutral: Tensor
    neutral_tolerance: Tensor
    steps: int
    transient: int
    is_restricted: bool
    condition: float
    extremes: Extremes
    seconds: dict[str, float]
    x: Tensor | None = None
    right: Tensor | None = None
    left: Tensor | None = None

    def _repr_html_(self) -> str:
        positive = int(((self.exponents > 0) & ~self.neutral).sum())
        rows: list[tuple[str, object]] = [
            ("steps", self.steps),
            ("exponents", len(self.exponents)),
            ("positive", positive),
            ("neutral", int(self.neutral.sum())),
            ("negative", len(self.exponents) - positive - int(self.neutral.sum())),
            ("largest", float(self.exponents[0])),
            ("smallest", float(self.exponents[-1])),
            ("largest tolerance of ln σ", float(self.tolerance.max())),
        ]
        return table("Finite-time exponents, nats per step", rows)


def spectrum_of(run: FiniteTime, neutral_tol: float | None, x: Tensor | None = None) -> FiniteTimeSpectrum:
    """Where a run stands; with the state x of a map also its singular vectors."""
    tolerance, logs = run.errors(), run.decomposition(vectors=x is not None).logs
    wanted = tolerance.clone() if neutral_tol is None else tolerance.new_full(tolerance.shape, neutral_tol)
    shape = run.shape
    return FiniteTimeSpectrum(
        exponents=logs / run.measured,
        tolerance=tolerance.clone(),
        neutral=(logs.abs() <= wanted) & logs.isfinite() & wanted.isfinite(),
        neutral_tolerance=wanted,
        steps=run.measured,
        transient=run.transient,
        is_restricted=shape.k < shape.rows,
        condition=run.condition,
        extremes=run.extremes(),
        seconds=dict(run.seconds),
        x=x,
        right=None if x is None else run.singular_vectors("right"),
        left=None if x is None or run.stopped is not None else run.singular_vectors("left"),
    )


def check_neutral(neutral_tol: object) -> None:
    """Raises ValueError for what is neither None nor a tolerance."""
    number = isinstance(neutral_tol, (int, float)) and not isinstance(neutral_tol, bool)
    if neutral_tol is not None and not (number and 0 <= neutral_tol < float("inf")):  # type: ignore[operator]
        raise ValueError(f"neutral_tol: expected a finite number >= 0 or None, got {neutral_tol!r}")
