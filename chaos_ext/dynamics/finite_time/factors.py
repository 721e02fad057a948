"""The right factor T = diag(e^l) U of a product, with unit rows of U, and how a new triangular factor joins it.

Sums of ln R_ii over thousands of steps leave the range of a double, so l is never exponentiated but for differences
that belong to one row: row i of R T is sum_(j >= i) R_ij e^(l_j) U_j, formed relative to its largest term
m_i = max_j (l_j + ln|R_ij|).

U stays well conditioned as long as rows come in the order of descending scales, columns of the block that R is made of
along with them: row i then changes by what is no larger than itself. (Pivoting by norms before a plain QR: Tomas,
Chang, Scalettar, Bai 2012, after Loh et al. 1992. Without it U would stay triangular for a product that starts from the
identity, at a condition of 1e19 after 600 steps of a small network.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Rows and columns of a block: small against a matrix, large enough for a full-speed GEMM.
BLOCK = 512
_ROUNDS = 5
_LARGEST = 700.0  # exp of it is finite; a factor that needs more multiplies numbers below the rounding errors of R


def fold_(l: Tensor, U: Tensor, R: Tensor) -> None:
    """(l, U) <- (l', U') with diag(e^l') U' = R diag(e^l) U, in place; R [k, k] upper triangular is overwritten.

    k^3 / 2 multiplications in GEMMs. Rows of zeros get l = -inf and keep a unit vector in U, so that a singular map
    costs its own direction only.

    Args:
        l: logarithms of the row scales, float64 [k].
        U: unit rows, float64 [k, k].
        R: what multiplies from the left, float64.
    """
    k = len(l)
    for i in range(0, k, BLOCK):
        rows = slice(i, min(i + BLOCK, k))
        scale = _relative_(R[rows, i:], l[i:])
        product = R[rows, i:] @ U[i:]  # of rows that were not overwritten yet
        norms = torch.linalg.vector_norm(product, dim=1)
        empty = norms == 0
        product /= torch.where(empty, 1.0, norms).unsqueeze(1)
        U[rows] = torch.where(empty.unsqueeze(1), U[rows], product)
        l[rows] = torch.where(empty, -math.inf, scale + norms.log())


def _relative_(R: Tensor, l: Tensor) -> Tensor:
    """R_ij <- R_ij e^(l_j - m_i) and m_i [rows]: no term of a row exceeds one, and what underflows is negligible."""
    m = (R.abs().log() + l).amax(1)  # -inf of a row that is zero, or meets nothing but zero rows
    m = torch.where(torch.isfinite(m), m, 0.0)
    R *= (l - m.unsqueeze(1)).clamp_max(_LARGEST).exp()
    return m


def inverse_norms(R: Tensor, lengths: Tensor, count: int) -> Tensor:
    """The ``count`` largest singular values of B^-1, descending, with B = R diag(1 / lengths).

    By subspace iteration, so estimates from below; a diagonal element of zero counts as infinite, and as one for the
    others.

    Args:
        R: upper triangular [k, k], float64; left as it was.
        lengths: what columns are divided by, [k].
        count: how many.
    """
    count = min(count, len(R))
    zero = R.diagonal() == 0
    R.diagonal()[zero] = 1.0
    sizes = _inverse_norms(R, torch.where(lengths > 0, lengths, 1.0).unsqueeze(1), count)
    R.diagonal()[zero] = 0.0
    infinite = min(int(zero.sum()), count)
    return torch.cat([sizes.new_full((infinite,), math.inf), sizes[: count - infinite]])


def _inverse_norms(R: Tensor, lengths: Tensor, count: int) -> Tensor:
    X = _start(len(R), count, R)
    sizes = X.new_ones(count)
    for _ in range(_ROUNDS):
        X = torch.linalg.solve_triangular(R.mT, lengths * torch.linalg.qr(X).Q, upper=False)
        if bool(torch.isfinite(X).all()):
            X = lengths * torch.linalg.solve_triangular(R, torch.linalg.qr(X).Q, upper=True)
        if not bool(torch.isfinite(X).all()):
            return torch.full_like(sizes, math.inf)
        sizes = torch.linalg.svdvals(X)
    return sizes


def norm(A: Tensor) -> float:
    """||A||_2 of a matrix [k, k], about, from below: a few rounds of subspace iteration."""
    X = _start(len(A), min(2, len(A)), A)
    for _ in range(_ROUNDS):
        X = A @ torch.linalg.qr(A.mT @ torch.linalg.qr(X).Q).Q
        if not bool(torch.isfinite(X).all()):
            return math.inf
    return float(torch.linalg.svdvals(X)[0])


def _start(k: int, count: int, like: Tensor) -> Tensor:
    """Columns that are orthogonal to nothing in particular, the same ones every time."""
    generator = torch.Generator().manual_seed(k)
    X = torch.randn(k, count, generator=generator, dtype=torch.float64, device="cpu")
    # The last rows of a triangular factor are where its smallest singular values come from.
    X[-count:] += torch.eye(count, dtype=torch.float64, device="cpu") * math.sqrt(k)
    return X.to(like.device, like.dtype)
