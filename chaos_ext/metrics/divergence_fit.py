"""What a fit of diverging twins says: coefficients with intervals, and the laws that it was compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..base import html
from .intervals import Estimate


@dataclass(frozen=True)
class Coefficients:
    """The fit of d(t) = sqrt(alpha t^2 + beta t + eps^2), each coefficient >= 0, with intervals.

    Attributes:
        alpha: of the ballistic part, in units of distance^2 / step^2; sqrt(alpha) is a speed.
        beta: of the diffusive part, in units of distance^2 / step.
        eps: offset, a distance; None where the law has none.
        crossover: beta / alpha, the step from which on the ballistic part is the larger one; inf without one.
        block: points a block that was resampled (three times the rule of Politis and White for the residuals, or as
            given); None where members were, or where the residuals' memory is too long to tell.
    """

    alpha: Estimate
    beta: Estimate
    eps: Estimate | None
    crossover: Estimate
    block: int | None

    def distance(self, t: Tensor) -> Tensor:
        """The fitted distance.

        Args:
            t: steps >= 0, of any shape.
        """
        t = t.double()
        offset = 0.0 if self.eps is None else self.eps.value**2
        return (self.alpha.value * t**2 + self.beta.value * t + offset).sqrt()


@dataclass(frozen=True)
class DivergenceLaw:
    """One law, fitted to all points, and how well it predicts.

    Attributes:
        name: of the law.
        formula: its distance at step t.
        parameters: name -> value of the fit to all points; v in distance / step, d and eps distances, tau in steps.
        residual: root mean square of what the fit to all points leaves; in distance, or in ln(distance) with
            ``errors="relative"``.
        prediction_error: the same of the last third of the points, by the fit to the first two thirds alone.
    """

    name: str
    formula: str
    parameters: dict[str, float]
    residual: float
    prediction_error: float


@dataclass(frozen=True)
class DivergenceFit:
    """What ``fit_divergence`` found.

    Attributes:
        plain: of sqrt(alpha t^2 + beta t).
        offset: of sqrt(alpha t^2 + beta t + eps^2).
        laws: all laws, by prediction error, the smallest first; of equal ones the one with fewer parameters.
        points: number of times.
        members: number of twins whose root mean square distance was fitted.
        resampled: "blocks" of points or "members".
        errors: "absolute" or "relative".
        level: of the intervals.
        resamples: number of bootstrap fits.
    """

    plain: Coefficients
    offset: Coefficients
    laws: tuple[DivergenceLaw, ...]
    points: int
    members: int
    resampled: str
    errors: str
    level: float
    resamples: int

    @property
    def alpha(self) -> Estimate:
        """Of the law without offset."""
        return self.plain.alpha

    @property
    def beta(self) -> Estimate:
        """Of the law without offset."""
        return self.plain.beta

    @property
    def best(self) -> DivergenceLaw:
        """The law with the smallest prediction error. Laws that contain one another can be nearly equal: see ``laws``.

        Where a pure law holds, one that contains it and finds the other coefficient near zero predicts as well.
        """
        return self.laws[0]

    def _repr_html_(self) -> str:
        laws = [(w.name, w.formula, w.prediction_error, w.residual) for w in self.laws]
        return html.table(
            f"How twins part: {self.points} points, {self.members} member(s)",
            [*laws, ("alpha", str(self.alpha), "", ""), ("beta", str(self.beta), "", "")],
            ("law", "distance", "prediction error", "residual"),
        )

    def table(self) -> str:
        """Coefficients with intervals, then the laws by prediction error, as text of a few lines."""
        lines = [f"{self.points} points of {self.members} member(s), errors {self.errors}, {self.level:.0%} intervals"]
        for name, c in (("without offset", self.plain), ("with offset", self.offset)):
            parts = [f"alpha {c.alpha}", f"beta {c.beta}"] + ([] if c.eps is None else [f"eps {c.eps}"])
            lines.append(f"{name:15} {'   '.join(parts)}   crossover {c.crossover}")
        lines.append(f"{'law':32}{'prediction error':>18}{'residual':>12}  parameters")
        for law in self.laws:
            values = ", ".join(f"{n} = {v:.4g}" for n, v in law.parameters.items())
            lines.append(f"{law.name:32}{law.prediction_error:18.4g}{law.residual:12.4g}  {values}")
        return "\n".join(lines)
