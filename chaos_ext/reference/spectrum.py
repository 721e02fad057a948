"""Twins of the tridiagonal eigensolver's parts."""

from __future__ import annotations

import torch
from torch import Tensor


def tridiagonalise(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = len(S)
    A, blocks = S.double().tril() + S.double().tril(-1).T, (n + 15) // 16
    reflectors = torch.zeros(16 * blocks, 16 * (blocks | 1), dtype=torch.float64)
    e = A.new_zeros(max(n - 1, 0))
    for i in range(n - 1, 0, -1):
        v = A[i, :i].clone()
        e[i - 1] = v[-1]
        if v[:-1].any():
            e[i - 1] = -torch.copysign(v.norm(), v[-1])
            v[-1] -= e[i - 1]
            H = torch.eye(i, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v)
            A[:i, :i] = H @ A[:i, :i] @ H
            reflectors[i, :i] = v
    return reflectors.to(S.dtype), A.diagonal().clone(), e


def tridiagonal_ql(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One sweep at a time, as matrices: other sweeps than the operator's, the same values."""
    n, l = len(d), 0
    sweeps: list[tuple[int, int, int]] = []
    rotations: list[tuple[float, float]] = []
    T = torch.diag(d) + torch.diag(e, 1) + torch.diag(e, -1)
    small = tol * float(T.abs().max()) if n else 0.0
    while l < n - 1:
        m = next((i for i in range(l, n - 1) if T[i, i + 1].abs() <= small), n - 1)
        if m == l:
            l += 1
            continue
        near = torch.linalg.eigvalsh(T[l : l + 2, l : l + 2])
        f, g = T[m - 1, m], T[m, m] - near[(near - T[l, l]).abs().argmin()]
        sweeps.append((l, m, len(rotations)))
        for i in range(m - 1, l - 1, -1):
            r = torch.hypot(f, g)
            c, s = g / r, f / r
            G = torch.eye(n, dtype=d.dtype)
            G[i : i + 2, i : i + 2] = torch.tensor([[c, -s], [s, c]])
            T = G @ T @ G.T
            rotations.append((float(c), float(s)))
            f, g = (T[i - 1, i + 1], T[i, i + 1]) if i > l else (f, g)
    order = T.diagonal().argsort(stable=True)
    table = torch.tensor(sweeps, dtype=torch.int64).reshape(-1, 3)
    return T.diagonal()[order], order, table, torch.tensor(rotations, dtype=d.dtype).reshape(-1, 2)


def tridiagonal_apply(
    reflectors: Tensor, order: Tensor, sweeps: Tensor, rotations: Tensor, x: Tensor, transpose: bool
) -> Tensor:
    n = x.shape[1]
    U = torch.eye(n, dtype=torch.float64)
    for v in reflectors[:n, :n].double():
        U = U - 2 * torch.outer(v, v @ U) / (v @ v) if v.any() else U
    for l, m, first in sweeps.tolist():
        for c, s, i in zip(*rotations[first : first + m - l].T.tolist(), range(m - 1, l - 1, -1), strict=True):
            U[:, [i, i + 1]] = U[:, [i, i + 1]] @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    U = U[:, order]
    return x @ U if transpose else x @ U.T
