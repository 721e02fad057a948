"""The spectral density of a symmetric operator by stochastic Lanczos quadrature.

For a random start v with ||v|| = 1, k Lanczos steps give T [k, k]; its eigenvalues theta_i with the squared first
components tau_i^2 of its eigenvectors are the nodes and weights of a Gauss quadrature for the spectral measure of v,

    v^T f(A) v = sum_i tau_i^2 f(theta_i)    for every polynomial f of degree up to 2 k - 1,

and over random starts the mean of v^T f(A) v is tr f(A) / n (Ubaru, Chen and Saad 2017). With Gaussians of one width
in place of f that is the density, smoothed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base import memory
from ..base.arguments import cpu_generator, require_int, require_number
from .operand import Operand, norms

_REACH = 5.0  # widths of the grid beyond the outermost node


@dataclass(frozen=True)
class SpectralDensity:
    """The density of eigenvalues, smoothed by Gaussians.

    Attributes:
        grid: [points] eigenvalues, ascending.
        density: [points], per unit of eigenvalue; its integral is 1. The number of eigenvalues is ``size`` times it.
        standard_error: [points] of the density over the random starts.
        width: standard deviation of the Gaussians.
        nodes, weights: [probes, steps] of the quadrature of each start; a weight of 0 where Lanczos ended earlier.
        size: n.
        products: columns that were multiplied with the operator.
    """

    grid: Tensor
    density: Tensor
    standard_error: Tensor
    width: float
    nodes: Tensor
    weights: Tensor
    size: int
    products: int

    def share(self, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
        """The share of eigenvalues in (low, high], not smoothed.

        Args:
            low, high: ends of the interval.

        Returns:
            The share in [0, 1], and its standard error over the random starts.
        """
        inside = (self.weights * ((self.nodes > low) & (self.nodes <= high))).sum(1)
        return float(inside.mean()), float(inside.std() / len(inside) ** 0.5)


def spectral_density(
    op: Any,
    *,
    probes: int = 10,
    steps: int = 80,
    points: int = 1000,
    width: float | None = None,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    """The spectral density of a symmetric operator by stochastic Lanczos quadrature, matrix-free.

    The extreme eigenvalues come out sharp, the bulk smoothed by the quadrature; ``spectrum`` gives exact eigenvalues.

    Args:
        op: a HessianOperator, a GGNOperator, or anything with ``shape`` (n, n) and ``@``.
        probes: random starts, at least 2; ``probes * steps`` products.
        steps: Lanczos steps of each, with full reorthogonalisation: n * steps numbers are held for each start.
        points: of the grid.
        width: standard deviation of the Gaussians; None: a hundredth of the range of the nodes.
        generator: of the CPU; None: a fresh one with seed 0. The global generator is not touched.

    Returns:
        A ``SpectralDensity``; ``figures.plot_spectral_density`` draws it.

    Raises:
        TypeError, ValueError: an operator without ``shape`` or ``@``, numbers out of range.
        MemoryBudgetError: the Lanczos vectors of one start do not fit.
        NonFiniteError: NaN or infinity in a product.
        StaleOperatorError: as of the operator.

    Example:
        >>> d = ce.spectral_density(op)
        >>> round(float(torch.trapezoid(d.density, d.grid)), 3)
        1.0
    """
    A = Operand(op)
    for name, value, least in (("probes", probes, 2), ("steps", steps, 1), ("points", points, 2)):
        require_int(name, value, least)
    if width is not None:
        require_number("width", width)
        if width <= 0:
            raise ValueError(f"width: expected a positive number, got {width!r}")
    nodes, weights = _quadratures(A, probes, min(steps, A.size), cpu_generator(generator))
    low, high = float(nodes[weights > 0].min()), float(nodes[weights > 0].max())
    sigma = float(width) if width is not None else _width(low, high)
    ends = low - _REACH * sigma, high + _REACH * sigma
    grid = torch.linspace(*ends, points, dtype=torch.float64, device=nodes.device)
    each = torch.stack([_smoothed(grid, t, w, sigma) for t, w in zip(nodes, weights, strict=True)])
    error = each.std(0) / probes**0.5
    return SpectralDensity(grid, each.mean(0), error, sigma, nodes, weights, A.size, A.products)


def _width(low: float, high: float) -> float:
    """Of a matrix with one eigenvalue there is no range."""
    return (high - low) / 100 or abs(high) / 100 or 1e-2


def _smoothed(grid: Tensor, nodes: Tensor, weights: Tensor, sigma: float) -> Tensor:
    bells = torch.exp(-0.5 * ((grid.unsqueeze(1) - nodes) / sigma) ** 2)
    return bells @ weights / (sigma * math.sqrt(2 * math.pi))


def _quadratures(A: Operand, probes: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Nodes and weights [probes, steps] in float64; as many starts at a time as fit."""
    need = (steps + 3) * A.size * A.dtype.itemsize
    memory.require(need, A.device, "Lanczos vectors", "take fewer steps")
    together = max(1, min(probes, int(memory.available_bytes(A.device) // 4 // need)))
    found = [_lanczos(A, A.signs(min(together, probes - i), generator), steps) for i in range(0, probes, together)]
    return torch.cat([t for t, _ in found]), torch.cat([w for _, w in found])


def _lanczos(A: Operand, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Of each column of the start [n, b] its own Lanczos process, all in step; one that ends early adds zeros."""
    b = start.shape[1]
    basis = start.new_zeros(b, steps, A.size)
    T = torch.zeros(b, steps, steps, dtype=torch.float64, device=start.device)
    q, alive = (start / start.norm(dim=0)).T, torch.ones(b, dtype=torch.bool, device=start.device)
    for j in range(steps):
        basis[:, j] = q
        w = (A @ q.T.contiguous()).T
        T[:, j, j] = (w.double() * q.double()).sum(1)
        for _ in range(2):  # twice is enough
            known = basis[:, : j + 1]
            w = w - torch.bmm(torch.bmm(w.unsqueeze(1), known.transpose(1, 2)), known).squeeze(1)
        beta = norms(w.T)
        scale = T[:, : j + 1].abs().amax((1, 2))
        alive = alive & (beta > 10 * torch.finfo(A.dtype).eps * A.size**0.5 * scale)
        q = torch.where(alive.unsqueeze(1), w / torch.where(alive, beta, 1.0).unsqueeze(1), 0.0)
        if j + 1 < steps:
            T[:, j, j + 1] = T[:, j + 1, j] = torch.where(alive, beta, 0.0).double()
        if not bool(alive.any()):
            break
    values, vectors = torch.linalg.eigh(T)
    return values, vectors[:, 0].square()
