"""Classical chaotic maps with published Lyapunov exponents: examples, and a check of any method.

Each is a ``System`` for ``lyapunov_spectrum(s.step, s.tangent, s.x0, steps=...)``. A flow is the map of one Runge-Kutta
step of fourth order, with the exact tangent of that step. Numbers without another source: J. C. Sprott, Chaos and
Time-Series Analysis, Oxford 2003, appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]
Tangent = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class System:
    """A discrete map.

    Attributes:
        step: x [d] -> next x.
        tangent: (x [d], V [d, k]) -> J(x) V.
        x0: a state near the attractor, float64.
        exponents: published values in nats per unit of time, descending; NaN where none is known.
        sum: exact sum of all exponents per unit of time, or NaN.
        time: units of time a step: 1 for maps, dt for flows. Divide exponents by it to compare.
        source: of the published values.
    """

    step: Field
    tangent: Tangent
    x0: Tensor
    exponents: tuple[float, ...]
    sum: float
    source: str
    time: float = 1.0


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _columns(rows: list[list[float]], V: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=V.dtype, device=V.device) @ V


def logistic(r: float = 4.0) -> System:
    """x <- r x (1 - x). At r = 4 the exponent is ln 2 (conjugate to the tent map; Ulam and von Neumann 1947)."""
    known = math.log(2) if r == 4 else float("nan")
    return System(
        lambda x: r * x * (1 - x), lambda x, V: r * (1 - 2 * x) * V, _vector(0.3), (known,), known, "conjugacy"
    )


def henon(a: float = 1.4, b: float = 0.3) -> System:
    """(x, y) <- (1 - a x^2 + y, b x) (Henon 1976); det J = -b, so the sum is exactly ln b."""
    return System(
        lambda x: torch.stack([1 - a * x[0] ** 2 + x[1], b * x[0]]),
        lambda x, V: torch.stack([-2 * a * x[0] * V[0] + V[1], b * V[0]]),
        _vector(0.1, 0.1),
        (0.41922, -1.62319) if (a, b) == (1.4, 0.3) else (float("nan"),) * 2,
        math.log(abs(b)),
        "Sprott 2003",
    )


def lozi(a: float = 1.7, b: float = 0.5) -> System:
    """(x, y) <- (1 - a |x| + y, b x) (Lozi 1978); the sum is exactly ln b."""
    return System(
        lambda x: torch.stack([1 - a * x[0].abs() + x[1], b * x[0]]),
        lambda x, V: torch.stack([-a * x[0].sign() * V[0] + V[1], b * V[0]]),
        _vector(0.1, 0.1),
        (0.47023, -1.16338) if (a, b) == (1.7, 0.5) else (float("nan"),) * 2,
        math.log(abs(b)),
        "Sprott 2003",
    )


def ikeda(u: float = 0.9, kappa: float = 0.4, alpha: float = 6.0) -> System:
    """z <- 1 + u z exp(i (kappa - alpha / (1 + |z|^2))) (Hammel, Jones, Moloney 1985); the sum is exactly 2 ln u."""

    def parts(x: Tensor) -> tuple[float, float, float, float, float]:
        a, b = x.tolist()
        s = 1 + a * a + b * b
        t = kappa - alpha / s
        return a, b, math.cos(t), math.sin(t), 2 * alpha / (s * s)

    def step(x: Tensor) -> Tensor:
        a, b, c, s, _ = parts(x)
        return x.new_tensor([1 + u * (a * c - b * s), u * (a * s + b * c)])

    def tangent(x: Tensor, V: Tensor) -> Tensor:
        a, b, c, s, q = parts(x)
        p, r = -(a * s + b * c), a * c - b * s  # derivative of the rotated point by its angle
        return _columns([[u * (c + p * q * a), u * (-s + p * q * b)], [u * (s + r * q * a), u * (c + r * q * b)]], V)

    known = (0.5076, -0.7183) if (u, kappa, alpha) == (0.9, 0.4, 6.0) else (float("nan"),) * 2
    return System(step, tangent, _vector(0.1, 0.1), known, 2 * math.log(u), "Sprott 2003")


def standard_map(K: float = 1.0) -> System:
    """p <- p + K sin x, x <- x + p, both mod 2 pi (Chirikov 1979); area preserving, so exponents are +-l.

    l = 0.10497 in the chaotic sea of K = 1, and l = ln(K / 2) to a few per cent for K > 4.
    """
    tau = 2 * math.pi

    def step(x: Tensor) -> Tensor:
        p = (x[1] + K * torch.sin(x[0])) % tau
        return torch.stack([(x[0] + p) % tau, p])

    def tangent(x: Tensor, V: Tensor) -> Tensor:
        p = V[1] + K * torch.cos(x[0]) * V[0]
        return torch.stack([V[0] + p, p])

    known = 0.10497 if K == 1 else math.log(K / 2) if K > 4 else float("nan")
    source = "Sprott 2003" if K == 1 else "Chirikov 1979"
    return System(step, tangent, _vector(6.0, 0.0), (known, -known), 0.0, source)


def cat_map() -> System:
    """(x, y) <- (2 x + y, x + y) mod 1 (Arnold): exponents exactly +-ln((3 + sqrt 5) / 2)."""
    rows = [[2.0, 1.0], [1.0, 1.0]]
    known = math.log((3 + math.sqrt(5)) / 2)
    return System(
        lambda x: _columns(rows, x.unsqueeze(1)).squeeze(1) % 1,
        lambda x, V: _columns(rows, V),
        _vector(0.2, 0.4),
        (known, -known),
        0.0,
        "eigenvalues",
    )


def lorenz63(sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3, dt: float = 0.01) -> System:
    """One Runge-Kutta step of Lorenz's 1963 flow; its divergence is -(sigma + 1 + beta)."""

    def field(x: Tensor) -> Tensor:
        a, b, c = x.tolist()
        return x.new_tensor([sigma * (b - a), a * (rho - c) - b, a * b - beta * c])

    def jacobian(x: Tensor, V: Tensor) -> Tensor:
        a, b, c = x.tolist()
        return _columns([[-sigma, sigma, 0.0], [rho - c, -1.0, -a], [b, a, -beta]], V)

    standard = (sigma, rho, beta) == (10.0, 28.0, 8 / 3)
    known = (0.9056, 0.0, -14.5723) if standard else (float("nan"),) * 3
    step, tangent = runge_kutta(field, jacobian, dt)
    return System(step, tangent, _vector(0.0, 1.0, 20.0), known, -(sigma + 1 + beta), "Sprott 2003", dt)


def lorenz96(n: int = 40, forcing: float = 8.0, dt: float = 0.05) -> System:
    """One Runge-Kutta step of dx_i = (x_(i+1) - x_(i-2)) x_(i-1) - x_i + F; its divergence is -n.

    For n = 40, F = 8 the largest exponent is 1.68 a unit of time, 13 are positive, and the Kaplan-Yorke dimension is
    27.1 (Lorenz and Emanuel 1998).
    """

    def field(x: Tensor) -> Tensor:
        return (x.roll(-1) - x.roll(2)) * x.roll(1) - x + forcing

    def jacobian(x: Tensor, V: Tensor) -> Tensor:
        slope, before = (x.roll(-1) - x.roll(2)).unsqueeze(1), x.roll(1).unsqueeze(1)
        return (V.roll(-1, 0) - V.roll(2, 0)) * before + slope * V.roll(1, 0) - V

    known = (1.68,) if (n, forcing) == (40, 8.0) else (float("nan"),)
    x0 = torch.full((n,), forcing, dtype=torch.float64)
    x0[n // 2] += 0.01
    step, tangent = runge_kutta(field, jacobian, dt)
    return System(step, tangent, x0, known, -float(n), "Lorenz and Emanuel 1998", dt)


def runge_kutta(field: Field, jacobian: Tangent, dt: float) -> tuple[Field, Tangent]:
    """The classical fourth-order step of dx/dt = field(x) and the exact tangent of that step.

    Args:
        field: x [d] -> dx/dt.
        jacobian: (x, V [d, k]) -> the field's Jacobian at x times V.
        dt: step size.
    """

    def stages(x: Tensor) -> list[Tensor]:
        """The four states at which the field is taken."""
        b = x + dt / 2 * field(x)
        c = x + dt / 2 * field(b)
        return [x, b, c, x + dt * field(c)]

    def step(x: Tensor) -> Tensor:
        a, b, c, d = (field(s) for s in stages(x))
        return x + dt / 6 * (a + 2 * b + 2 * c + d)

    def tangent(x: Tensor, V: Tensor) -> Tensor:
        p, q, r, s = stages(x)
        a = jacobian(p, V)
        b = jacobian(q, V + dt / 2 * a)
        c = jacobian(r, V + dt / 2 * b)
        d = jacobian(s, V + dt * c)
        return V + dt / 6 * (a + 2 * b + 2 * c + d)

    return step, tangent
