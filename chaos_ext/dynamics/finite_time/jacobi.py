"""Singular values of diag(e^l) U to full relative accuracy, e^l never formed: one-sided Jacobi between rows.

Rows i and j with rho = e^(l_j - l_i) <= 1 and gamma = U_i . U_j become orthogonal by the rotation with
tan = rho tau, tau = 2 gamma / ((1 - rho^2) + sqrt((1 - rho^2)^2 + 4 rho^2 gamma^2)):

    U_i <- U_i + rho^2 tau U_j,      U_j <- U_j - tau U_i,      both times cos, which goes into l with their lengths.

(Demmel and Veselic 1992: the relative error is that of well scaled rows, however l is graded.) Disjoint pairs rotate at
once; n - 1 rounds of a round robin are a sweep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import NotConvergedError

_SWEEPS = 60


def rotated(l: Tensor, U: Tensor, vectors: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """ln sigma [n], descending, the right singular vectors as rows [n, n], and the left ones as columns if wanted.

    Args:
        l: logarithms of the row scales, float64 [n], finite, best descending.
        U: unit rows [n, m], float64, linearly independent.
        vectors: whether to return left singular vectors [n, n], too.

    Raises:
        NotConvergedError: rows that are not independent to rounding.
    """
    l, U = l.clone(), U.clone()
    n = len(l)
    J = torch.eye(n, dtype=U.dtype, device=U.device) if vectors else None
    tol = torch.finfo(U.dtype).eps * n**0.5
    worst = 0.0
    for _ in range(_SWEEPS):
        worst = max((_rotate_(l, U, J, *pair, tol) for pair in _rounds(n, U.device)), default=0.0)
        if worst <= tol:
            break
    else:
        raise NotConvergedError(f"Jacobi: rows still have cosines of {worst:.1g} after {_SWEEPS} sweeps")
    l, order = l.sort(descending=True, stable=True)
    return l, U[order], None if J is None else J[order].mT


def _rounds(n: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """All pairs of n, each once, in rounds of disjoint pairs (the circle method)."""
    if not n:  # every direction was lost
        return []
    even = n + n % 2
    ring = torch.arange(1, even, device=device)
    rounds = []
    for r in range(even - 1):
        order = torch.cat([ring.new_zeros(1), ring.roll(r)])
        p, q = order[: even // 2], order[even // 2 :].flip(0)
        real = (p < n) & (q < n)
        rounds.append((p[real], q[real]))
    return rounds


def _rotate_(l: Tensor, U: Tensor, J: Tensor | None, p: Tensor, q: Tensor, tol: float) -> float:
    """Makes these pairs orthogonal; returns the largest cosine among them before."""
    swap = l[p] < l[q]
    i, j = torch.where(swap, q, p), torch.where(swap, p, q)
    gamma = (U[i] * U[j]).sum(1)
    worst = float(gamma.abs().max()) if len(gamma) else 0.0
    active = gamma.abs() > tol
    if not bool(active.any()):
        return worst
    i, j, gamma = i[active], j[active], gamma[active]
    rho, gap = (l[j] - l[i]).exp(), -torch.expm1(2 * (l[j] - l[i]))
    tau = 2 * gamma / (gap + (gap.square() + 4 * (rho * gamma).square()).sqrt())
    log_cos = -0.5 * torch.log1p((rho * tau).square())
    upper = U[i] + (rho.square() * tau).unsqueeze(1) * U[j]
    lower = U[j] - tau.unsqueeze(1) * U[i]
    for rows, new in ((i, upper), (j, lower)):
        norms = torch.linalg.vector_norm(new, dim=1)
        U[rows] = new / norms.unsqueeze(1)
        l[rows] += norms.log() + log_cos
    if J is not None:
        t, cos = (rho * tau).unsqueeze(1), log_cos.exp().unsqueeze(1)
        J[i], J[j] = cos * (J[i] + t * J[j]), cos * (J[j] - t * J[i])
    return worst
