"""The largest and the smallest singular value of Y diag(e^l) U in the middle of a block, without factoring it.

Largest: Golub-Kahan-Lanczos, which also converges where sigma_1 / sigma_2 is near 1 and power steps stall. Smallest:
with w in the coordinates of the block, T = diag(e^l) U and T^-1 by an LU factorisation of U that lasts a block,

    1 / sigma_min = max_w ||T^-1 w|| / ||Y w||,

by a subspace that grows along residuals (generalised Davidson): Y is nearly orthonormal, so its Gram matrix needs no
inverse, only the lengths of its columns. Both start from what the previous reading found, and return a bound of the
residual, the distance to *a* singular value relative to it; the value itself is more accurate, by its square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_MOST = 40  # vectors of a basis
_BREAKDOWN = 1e-14

Map = Callable[[Tensor], Tensor]


class Extreme(NamedTuple):
    """One end of the spectrum.

    Attributes:
        log: ln sigma.
        tolerance: of it, from the residual.
        vector: to start the next reading from [k].
    """

    log: float
    tolerance: float
    vector: Tensor


class Factors(NamedTuple):
    """A product Y diag(e^l) U.

    Attributes:
        Y: the block [n, k], of any floating dtype.
        l: log scales [k].
        U: unit rows [k, k].
        solve, solve_transposed: U^-1 and U^-T of a vector [k].
        lean: about 1 / sigma_min of Y with columns of length one.
    """

    Y: Tensor
    l: Tensor
    U: Tensor
    solve: Map
    solve_transposed: Map
    lean: float

    def block(self, x: Tensor) -> Tensor:
        return (self.Y @ x.to(self.Y.dtype)).double()

    def block_transposed(self, x: Tensor) -> Tensor:
        return (self.Y.mT @ x.to(self.Y.dtype)).double()


def largest(f: Factors, start: Tensor, tol: float) -> Extreme:
    """sigma_1, from a right vector [k]."""
    top = float(f.l.max())
    scale = (f.l - top).exp()
    V, lefts = [start / start.norm()], []  # type: list[Tensor], list[Tensor]
    alphas, betas = [], []  # type: list[float], list[float]
    while True:
        u = f.block(scale * (f.U @ V[-1]))
        u = _orthogonal(u - betas[-1] * lefts[-1] if betas else u, lefts)
        alphas.append(float(u.norm()))
        lefts.append(u / alphas[-1] if alphas[-1] > 0 else u)
        v = f.U.mT @ (scale * f.block_transposed(lefts[-1])) - alphas[-1] * V[-1]
        v = _orthogonal(v, V)
        betas.append(float(v.norm()))
        P, sigma, Rt = torch.linalg.svd(_bidiagonal(alphas, betas[:-1]))
        value = float(sigma[0])
        residual = betas[-1] * abs(float(P[-1, 0]))
        if value == 0:
            return Extreme(-math.inf, 0.0, V[0])
        if residual <= tol * value or len(V) >= min(_MOST, len(f.l)) or betas[-1] <= _BREAKDOWN * value:
            return Extreme(math.log(value) + top, residual / value, torch.stack(V, 1) @ Rt[0].to(V[0].device))
        V.append(v / betas[-1])


def _bidiagonal(diagonal: list[float], above: list[float]) -> Tensor:
    B = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    return B + torch.diag(torch.tensor(above, dtype=torch.float64, device="cpu"), 1) if above else B


def _orthogonal(x: Tensor, basis: list[Tensor]) -> Tensor:
    """x less its components along orthonormal vectors; twice is enough."""
    if basis:
        Q = torch.stack(basis, 1)
        for _ in range(2):
            x = x - Q @ (Q.mT @ x)
    return x


def smallest(f: Factors, start: Tensor, tol: float) -> Extreme:
    """sigma_k, from a vector of the block's coordinates [k]."""
    low = float(f.l.min())
    if low == -math.inf:
        return Extreme(-math.inf, 0.0, start)
    scale = (low - f.l).exp()
    lengths = torch.linalg.vector_norm(f.Y, dim=0, dtype=torch.float64)
    if not bool((lengths > 0).all()):
        return Extreme(-math.inf, 0.0, start)
    W, X, Z = [start / start.norm()], [], []  # type: list[Tensor], list[Tensor], list[Tensor]
    while True:
        X.append(f.solve(scale * W[-1]))
        Z.append(f.block(W[-1]))
        found = _quotient(torch.stack(X, 1), torch.stack(Z, 1))
        if found is None:
            return Extreme(-math.inf, math.inf, start)
        size, combination = found
        x, z = torch.stack(X, 1) @ combination, torch.stack(Z, 1) @ combination
        residual = (scale * f.solve_transposed(x) / size - size * f.block_transposed(z)) / lengths
        error = float(residual.norm()) / size * f.lean
        following = _orthogonal(residual / lengths, W)
        length = float(following.norm())
        if error <= tol or len(W) >= min(_MOST, len(f.l)) or length <= _BREAKDOWN * size:
            return Extreme(low - math.log(size), error, torch.stack(W, 1) @ combination)
        W.append(following / length)


def _quotient(X: Tensor, Z: Tensor) -> tuple[float, Tensor] | None:
    """max ||X c|| / ||Z c|| and c with ||Z c|| = 1; None where Z has no full rank or numbers are not finite."""
    R = torch.linalg.qr(Z, mode="r").R
    M = torch.linalg.solve_triangular(R, X, upper=True, left=False)
    if not bool(torch.isfinite(M).all()):
        return None
    _, sizes, right = torch.linalg.svd(M, full_matrices=False)
    c = torch.linalg.solve_triangular(R, right[:1].mT, upper=True).squeeze(1)
    return float(sizes[0]), c
