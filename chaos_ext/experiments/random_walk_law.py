"""The law by which twins part (appendix A.10), and walks that obey it.

The difference of two twins starts with length eps in a direction of its own, and gets -lr (v + xi) at each step t, v a
constant drift and xi of covariance sigma^2 / P in each of P dimensions. With the start independent of all else

    E d(t)^2 = eps^2 + lr^2 |v|^2 t^2 + lr^2 sigma^2 t,

exactly and for every P, so the root mean square distance is sqrt(eps^2 + alpha t^2 + beta t), alpha = lr^2 |v|^2 and
beta = lr^2 sigma^2. Four things that are easily left out: it is the root mean square, above the mean; lr enters
squared; eps^2 stays; and v has to keep its direction: one that turns at random only adds to beta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .settings import Recorded

DRIFTS = ("constant", "none", "turning")
READINGS = 40
_CROSSOVER = 40.0  # sigma^2 / |v|^2: the step from which on the drift is the larger part


@dataclass(frozen=True, kw_only=True)
class RandomWalkSettings(Recorded):
    """What decides the numbers of ``chaos-ext reproduce random-walk``."""

    walks: int
    steps: int
    lr: float
    eps: float
    draws: int
    seeds: tuple[int, ...]

    @property
    def alpha(self) -> float:
        """Of the law with drift, |v| = 1."""
        return self.lr**2

    @property
    def beta(self) -> float:
        """Of the law, sigma^2 = ``_CROSSOVER``."""
        return self.lr**2 * _CROSSOVER

    @property
    def readings(self) -> list[int]:
        """Steps that are looked at."""
        return sorted({round(i * self.steps / READINGS) for i in range(READINGS + 1)})


def law(s: RandomWalkSettings, drift: str, t: float) -> float:
    """E d(t)^2; of a drift that turns, too, were it constant."""
    return s.eps**2 + (0.0 if drift == "none" else s.alpha) * t**2 + s.beta * t


def walks(s: RandomWalkSettings, drift: str, dimensions: int, count: int, generator: torch.Generator) -> Tensor:
    """Distances of so many walks at the readings [readings, count]."""

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, dimensions, generator=generator, dtype=torch.float64, device="cpu")

    def unit(rows: int) -> Tensor:
        return torch.nn.functional.normalize(draw(rows), dim=1)

    x, v = s.eps * unit(count), unit(1)
    sigma, wanted, found = math.sqrt(_CROSSOVER / dimensions), set(s.readings), []
    for t in range(s.steps + 1):
        if t in wanted:
            found.append(x.norm(dim=1))
        way = {"none": torch.zeros_like(v), "constant": v}.get(drift)
        x -= s.lr * ((unit(count) if way is None else way) + sigma * draw(count))
    return torch.stack(found)
