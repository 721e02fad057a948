"""Classical chaotic maps with published Lyapunov exponents: examples, and a check of any method.

Each is a ``System`` for ``lyapunov_spectrum(s.step, s.tangent, s.x0, steps=...)``. A flow is the map of one Runge-Kutta
step of fourth order, with the exact tangent of that step. "Sprott 2003" is J. C. Sprott, Chaos and Time-Series
Analysis, Oxford University Press 2003, appendix A. Parameters other than the published ones make a system whose
``exponents`` are NaN; its ``sum`` stays exact where it has a closed form.

Example:
    >>> import chaos_ext as ce
    >>> s = ce.systems.cat_map()
    >>> ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=100, transient=20)
    tensor([ 0.9624, -0.9624], dtype=torch.float64)
    >>> s.exponents
    (0.9624236501192069, -0.9624236501192069)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base.arguments import log_of, require_int, require_numbers

Field = Callable[[Tensor], Tensor]
Tangent = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class System:
    """A discrete map x(t+1) = step(x(t)) with its Jacobian J(x) and what is known of its exponents.

    Attributes:
        step: x [d] -> the next x [d].
        tangent: (x [d], V [d, k]) -> J(x) V [d, k].
        x0: a state near the attractor, [d], float64.
        exponents: published values in nats per unit of time, descending, the leading ones where not all d are known;
            NaN where none is.
        sum: exact sum of all exponents per unit of time (the mean of ln|det J| for a map, of the field's divergence for
            a flow), or NaN.
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
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _published(values: tuple[float, ...], standard: bool) -> tuple[float, ...]:
    """The values at the parameters that they were published for, NaN at others."""
    return values if standard else (math.nan,) * len(values)


def _columns(rows: list[list[float]], V: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=V.dtype, device=V.device) @ V


def logistic(r: float = 4.0) -> System:
    """The logistic map x <- r x (1 - x), one-dimensional.

    At r = 4 it is conjugate to the tent map, so the exponent is exactly ln 2 (Ulam and von Neumann 1947). For
    1 < r < 3 orbits end in the fixed point 1 - 1 / r, with the exponent ln|2 - r|.

    Args:
        r: growth rate; in [0, 4] the interval [0, 1] is mapped into itself, above nearly all orbits diverge.
    """
    require_numbers(r=r)
    known, x0 = math.log(2) if r == 4 else math.nan, _vector(0.3)
    return System(lambda x: r * x * (1 - x), lambda x, V: r * (1 - 2 * x) * V, x0, (known,), known, "conjugacy")


def henon(a: float = 1.4, b: float = 0.3) -> System:
    """Henon's map (x, y) <- (1 - a x^2 + y, b x) (Henon 1976).

    det J = -b, so the sum of the exponents is exactly ln|b|. For (a, b) = (1.4, 0.3) Sprott 2003 gives 0.41922 and
    -1.62319.

    Args:
        a: strength of the folding; orbits from ``x0`` stay bounded up to about 1.42 (for b = 0.3).
        b: contraction of areas a step, |b| < 1 for an attractor; not 0.

    Raises:
        ValueError: b is 0, where an exponent is -inf.
    """
    require_numbers(a=a, b=b)
    return System(
        lambda x: torch.stack([1 - a * x[0] ** 2 + x[1], b * x[0]]),
        lambda x, V: torch.stack([-2 * a * x[0] * V[0] + V[1], b * V[0]]),
        _vector(0.1, 0.1),
        _published((0.41922, -1.62319), (a, b) == (1.4, 0.3)),
        log_of("b", abs(b)),
        "Sprott 2003",
    )


def lozi(a: float = 1.7, b: float = 0.5) -> System:
    """Lozi's map (x, y) <- (1 - a |x| + y, b x) (Lozi 1978), Henon's with straight pieces.

    |det J| = |b|, so the sum of the exponents is exactly ln|b|. For (a, b) = (1.7, 0.5) Sprott 2003 gives 0.47023 and
    -1.16338. At the kink x = 0 the tangent takes the slope 0.

    Args:
        a: strength of the folding.
        b: contraction of areas a step, |b| < 1 for an attractor; not 0.

    Raises:
        ValueError: b is 0.
    """
    require_numbers(a=a, b=b)
    return System(
        lambda x: torch.stack([1 - a * x[0].abs() + x[1], b * x[0]]),
        lambda x, V: torch.stack([-a * x[0].sign() * V[0] + V[1], b * V[0]]),
        _vector(0.1, 0.1),
        _published((0.47023, -1.16338), (a, b) == (1.7, 0.5)),
        log_of("b", abs(b)),
        "Sprott 2003",
    )


def ikeda(u: float = 0.9, kappa: float = 0.4, alpha: float = 6.0) -> System:
    """Ikeda's map z <- 1 + u z exp(i (kappa - alpha / (1 + |z|^2))) of a complex z, as (Re z, Im z).

    Light in a ring cavity (Ikeda 1979; in this form Hammel, Jones and Moloney 1985). det J = u^2, so the sum of the
    exponents is exactly 2 ln u. For (u, kappa, alpha) = (0.9, 0.4, 6) Sprott 2003 gives 0.5076 and -0.7183.

    Args:
        u: share of the amplitude that a round trip leaves, in (0, 1).
        kappa: phase of the empty cavity.
        alpha: strength of the nonlinear phase.

    Raises:
        ValueError: u is not above 0.
    """
    require_numbers(u=u, kappa=kappa, alpha=alpha)

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

    known = _published((0.5076, -0.7183), (u, kappa, alpha) == (0.9, 0.4, 6.0))
    return System(step, tangent, _vector(0.1, 0.1), known, 2 * log_of("u", u), "Sprott 2003")


def standard_map(K: float = 1.0) -> System:
    """The standard map p <- p + K sin x, x <- x + p, both mod 2 pi; the state is (x, p) (Chirikov 1979).

    It preserves areas, so the exponents are +l and -l. In the chaotic sea of K = 1, where ``x0`` lies, Sprott 2003
    gives l = 0.10497; for K > 4 Chirikov's estimate is l = ln(K / 2), right to a few per cent. Both are values of the
    chaotic sea; on islands of regular motion l = 0.

    Args:
        K: strength of the kicks; from about 0.97 on no torus bounds the chaotic sea, at 0 the map is integrable.
    """
    require_numbers(K=K)
    tau = 2 * math.pi

    def step(x: Tensor) -> Tensor:
        p = (x[1] + K * torch.sin(x[0])) % tau
        return torch.stack([(x[0] + p) % tau, p])

    def tangent(x: Tensor, V: Tensor) -> Tensor:
        p = V[1] + K * torch.cos(x[0]) * V[0]
        return torch.stack([V[0] + p, p])

    known = 0.10497 if K == 1 else math.log(K / 2) if K > 4 else math.nan
    source = "Sprott 2003" if K == 1 else "Chirikov 1979"
    return System(step, tangent, _vector(6.0, 0.0), (known, -known), 0.0, source)


def cat_map() -> System:
    """Arnold's cat map (x, y) <- (2 x + y, x + y) mod 1.

    J is the same everywhere, with the eigenvalues (3 +- sqrt 5) / 2: exponents exactly +-ln((3 + sqrt 5) / 2).
    """
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
    """One Runge-Kutta step of Lorenz's flow of 1963.

    dx/dt = sigma (y - x), dy/dt = x (rho - z) - y, dz/dt = x y - beta z. The divergence is -(sigma + 1 + beta), the sum
    of the flow's exponents; that of the step differs by O(dt^4). For the standard parameters Sprott 2003 gives 0.9056,
    0 and -14.5723 a unit of time.

    Args:
        sigma: Prandtl number, above 0.
        rho: relative Rayleigh number; chaotic from about 24.74 on at the standard sigma and beta, with windows.
        beta: a ratio of lengths, above 0.
        dt: step size, above 0; the sum of the exponents is off by 1e-4 at 0.01 and by 0.1 at 0.05.
    """
    require_numbers(sigma=sigma, rho=rho, beta=beta, dt=dt)

    def field(x: Tensor) -> Tensor:
        a, b, c = x.tolist()
        return x.new_tensor([sigma * (b - a), a * (rho - c) - b, a * b - beta * c])

    def jacobian(x: Tensor, V: Tensor) -> Tensor:
        a, b, c = x.tolist()
        return _columns([[-sigma, sigma, 0.0], [rho - c, -1.0, -a], [b, a, -beta]], V)

    standard = (sigma, rho, beta) == (10.0, 28.0, 8 / 3)
    known = _published((0.9056, 0.0, -14.5723), standard)
    step, tangent = runge_kutta(field, jacobian, dt)
    return System(step, tangent, _vector(0.0, 1.0, 20.0), known, -(sigma + 1 + beta), "Sprott 2003", dt)


def lorenz96(n: int = 40, forcing: float = 8.0, dt: float = 0.05) -> System:
    """One Runge-Kutta step of Lorenz's model of 1996, dx_i/dt = (x_(i+1) - x_(i-2)) x_(i-1) - x_i + F, i modulo n.

    The divergence is -n, the sum of the flow's exponents. For n = 40, F = 8 Lorenz and Emanuel 1998 find errors to
    double in 2.1 days of 0.2 units, 13 positive exponents and a Kaplan-Yorke dimension of 27.1. ``exponents`` holds the
    largest, ln 2 / 0.42 = 1.65, which the digits of 2.1 leave between 1.61 and 1.69; ``lyapunov_spectrum`` gives
    1.679 +- 0.015 over 3,000 units of time.

    Args:
        n: number of sites on the circle, at least 4.
        forcing: F; at n = 40 chaotic from about 4.5 on.
        dt: step size, above 0; 0.05 is Lorenz's.
    """
    require_int("n", n, 4)
    require_numbers(forcing=forcing, dt=dt)

    def field(x: Tensor) -> Tensor:
        return (x.roll(-1) - x.roll(2)) * x.roll(1) - x + forcing

    def jacobian(x: Tensor, V: Tensor) -> Tensor:
        slope, before = (x.roll(-1) - x.roll(2)).unsqueeze(1), x.roll(1).unsqueeze(1)
        return (V.roll(-1, 0) - V.roll(2, 0)) * before + slope * V.roll(1, 0) - V

    known = _published((math.log(2) / 0.42,), (n, forcing) == (40, 8.0))
    x0 = torch.full((n,), forcing, dtype=torch.float64, device="cpu")
    x0[n // 2] += 0.01
    step, tangent = runge_kutta(field, jacobian, dt)
    return System(step, tangent, x0, known, -float(n), "Lorenz and Emanuel 1998", dt)


def runge_kutta(field: Field, jacobian: Tangent, dt: float) -> tuple[Field, Tangent]:
    """The classical fourth-order step of dx/dt = field(x) and the exact tangent of that step.

    Args:
        field: x [d] -> dx/dt [d].
        jacobian: (x [d], V [d, k]) -> the field's Jacobian at x times V, [d, k].
        dt: step size.

    Returns:
        step, x [d] -> x [d] a time dt later; and tangent, (x [d], V [d, k]) -> the Jacobian of that step times V.
    """
    require_numbers(dt=dt)

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
