"""Singular values and vectors of T = diag(e^l) U: LAPACK's dgejsv where e^l fits a double, else Jacobi in log scales.

dgejsv (Drmac and Veselic 2008) is one-sided Jacobi with preconditioning, to full relative accuracy on T^T = U^T
diag(e^l), whose columns are scaled, not ill conditioned in themselves. It comes with scipy, which is optional.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import NotConvergedError
from .jacobi import rotated

# ln of the largest over the smallest scale that leaves room in a double for the entries of unit rows.
FITS = 600.0
_F, _C, _VECTORS, _NONE = 2, 0, 0, 3  # the wrapper's codes of dgejsv's job letters


class Decomposition(NamedTuple):
    """T = left diag(e^logs) right^T.

    Attributes:
        logs: ln sigma, float64 [k], descending; -inf where T has zero rows.
        left, right: singular vectors as columns [k, k], in this order; None where they were not asked for.
    """

    logs: Tensor
    left: Tensor | None
    right: Tensor | None


def decompose_(l: Tensor, U: Tensor, scratch: Tensor, vectors: bool = False) -> Decomposition:
    """The singular value decomposition of diag(e^l) U; U and ``scratch`` [k, k] are overwritten."""
    l, order = l.sort(descending=True, stable=True)
    rank = int((l > -math.inf).sum())
    rows = torch.index_select(U, 0, order, out=scratch)[:rank]
    own = _decomposed(l[:rank], rows, vectors)
    logs = torch.cat([own.logs, l[rank:]])
    if own.left is None or own.right is None:
        return Decomposition(logs, None, None)
    left = torch.zeros_like(U)
    left[order[:rank], :rank] = own.left
    left[order[rank:], torch.arange(rank, len(l), device=U.device)] = 1.0
    return Decomposition(logs, left, _completed(own.right))


def _decomposed(l: Tensor, rows: Tensor, vectors: bool) -> Decomposition:
    """Of rows that are not zero, in the order of descending scales."""
    lapack = _lapack() if rows.shape[0] == rows.shape[1] else None
    if lapack is not None and len(l) and float(l[0] - l[-1]) <= FITS:
        found, device = _by_lapack(lapack, l.cpu(), rows.cpu(), vectors), rows.device
        vectors_there = (None if V is None else V.to(device) for V in found[1:])
        return Decomposition(found.logs.to(device), *vectors_there)
    logs, right, left = rotated(l, rows, vectors)
    return Decomposition(logs, left, right.mT if vectors else None)


def _by_lapack(lapack: Any, l: Tensor, rows: Tensor, vectors: bool) -> Decomposition:
    middle = float(l[0] + l[-1]) / 2
    n = len(l)
    rows *= (l - middle).exp().unsqueeze(1)
    job = _VECTORS if vectors else _NONE
    # T^T in LAPACK's order of columns is T in ours of rows: no copy.
    values, U, V, work, _, info = lapack.dgejsv(
        rows.numpy().T,
        joba=_C,
        jobu=job,
        jobv=job,
        jobr=0,
        jobt=0,
        jobp=0,
        overwrite_a=1,
        **({} if vectors else {"lwork": max(7, 6 * n)}),
    )
    if info != 0:
        raise NotConvergedError(f"dgejsv: singular values did not converge (info = {info})")
    logs = torch.from_numpy(values).log() + math.log(work[0] / work[1]) + middle
    if not vectors:
        return Decomposition(logs, None, None)
    return Decomposition(logs, torch.from_numpy(V), torch.from_numpy(U))


def _lapack() -> Any:
    """scipy.linalg.lapack, or None where scipy is not installed."""
    try:
        from scipy.linalg import lapack
    except ImportError:
        return None
    return lapack


def _completed(columns: Tensor) -> Tensor:
    """An orthogonal matrix [n, n] whose first columns are these orthonormal ones [n, m]."""
    n, m = columns.shape
    if n == m:
        return columns
    Q = torch.linalg.qr(torch.cat([columns, torch.eye(n, dtype=columns.dtype, device=columns.device)], 1)).Q
    return torch.cat([columns, Q[:, m:]], 1)
