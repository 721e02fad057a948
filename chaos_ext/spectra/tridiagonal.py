"""Eigenvalues of a dense symmetric matrix with its eigenvectors as an operator: no eigenvector is formed.

    S = Q T Q^T (reflections),  T = R diag(lambda) R^T (the rotations of implicit QL, kept),  U = Q R.

U^T v and U c cost O(n^2) each, and the decomposition a quarter of an eigh or less: forming the n eigenvectors is what
an eigh spends its time on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _ops
from ..base.tensors import unit_probe
from ..errors import NonFiniteError, NotConvergedError

# What QL drops, relative to ||S||. In float32, well below the rounding errors of the reduction to T.
TOL = {torch.float32: 2.0**-30, torch.float64: 2.0**-52}


class Tridiagonal:
    """S = U diag(eigenvalues) U^T of a symmetric matrix on the CPU; residual and orthogonality are checked.

    Only the lower triangle of S is read. U is orthogonal to float64 rounding also for a float32 matrix.

    Attributes:
        eigenvalues: [n], ascending, of S's dtype.

    Raises:
        TypeError: not a CPU tensor.
        NonFiniteError: S has a NaN or an infinity.
        NotConvergedError: QL did not converge, or the result fails its check.
    """

    def __init__(self, S: Tensor) -> None:
        if not S.is_cpu:
            raise TypeError(f"S: expected a CPU tensor, got one on {S.device}")
        S = S.detach().contiguous()
        self.dtype, self.size = S.dtype, len(S)
        self._reflectors, d, e = _ops.tridiagonalise(S)
        if not bool(torch.isfinite(d).all()):
            raise NonFiniteError("tridiagonal: the matrix has NaN or inf")
        values, *rotations = _ops.tridiagonal_ql(d, e, TOL[S.dtype])
        self._order, self._sweeps, self._planes = rotations
        if not bool(torch.isfinite(values).all()):
            raise NotConvergedError("tridiagonal: QL did not converge")
        self.eigenvalues = values.to(S.dtype)
        self._check(S, values)

    def __repr__(self) -> str:
        return f"Tridiagonal(n={self.size}, {self.dtype})"

    def coefficients(self, v: Tensor) -> Tensor:
        """U^T v for v [n] or [n, k]."""
        return self._apply(v, transpose=True)

    def combine(self, c: Tensor) -> Tensor:
        """U c for c [n] or [n, k]."""
        return self._apply(c, transpose=False)

    def columns(self, index: Tensor) -> EigenColumns:
        """The eigenvectors of these indices, or of a mask [n], as a matrix that is never formed."""
        return EigenColumns(self, index)

    def _apply(self, x: Tensor, *, transpose: bool) -> Tensor:
        if x.dim() not in (1, 2) or len(x) != self.size:
            raise ValueError(f"x: expected shape [{self.size}] or [{self.size}, k], got {list(x.shape)}")
        if not x.numel():
            return torch.zeros_like(x)
        rows = x.detach().double().reshape(self.size, -1).T.contiguous()
        out = _ops.tridiagonal_apply(self._reflectors, self._order, self._sweeps, self._planes, rows, transpose)
        return out.T.reshape(x.shape).to(x.dtype)

    def _check(self, S: Tensor, values: Tensor) -> None:
        """||S U w - U (lambda w)|| / ||S|| and | ||U w|| - ||w|| | for a fixed pseudo-random unit w."""
        if not self.size:
            return
        n, eps = self.size, torch.finfo(self.dtype).eps
        w = unit_probe(n, torch.float64, "cpu")
        scale = float(values.abs().max())
        if scale == 0:
            return
        u, Su = self.combine(torch.stack([w, values / scale * w], 1)).T
        unit, rest = (S, scale) if 1e-9 < scale < 1e9 else (S / scale, 1.0)
        residual = (unit @ u.to(S)).double() / rest - Su
        defects = torch.stack([residual.norm(), (u.norm() - 1).abs()])
        if not bool((defects <= 20 * eps * max(n, 10)).all()):
            raise NotConvergedError("tridiagonal: the eigenvalues fail their check (residual, orthogonality)", defects)


class EigenColumns:
    """Some eigenvectors Z [n, r] of a Tridiagonal: products ``Z @ c`` and ``Z.T @ x``, columns only on demand.

    Attributes:
        shape: (n, r).
        T: Z^T, for products only.
    """

    def __init__(self, vectors: Tridiagonal, index: Tensor) -> None:
        self._vectors = vectors
        self._index = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
        self.shape = (vectors.size, len(self._index))
        self.device = index.device
        self.T = _Transposed(vectors, self._index)

    def __matmul__(self, c: Tensor) -> Tensor:
        return self._vectors.combine(c.new_zeros(self.shape[0], *c.shape[1:]).index_copy_(0, self._index, c))

    def __getitem__(self, key: tuple[slice, slice | Tensor | list[int]]) -> Tensor:
        """``Z[:, index]``, formed column by column."""
        assert key[0] == slice(None)
        unit = torch.eye(self.shape[1], dtype=self._vectors.dtype, device=self.device)[:, key[1]]
        return self @ unit


class _Transposed:
    def __init__(self, vectors: Tridiagonal, index: Tensor) -> None:
        self._vectors, self._index = vectors, index

    def __matmul__(self, x: Tensor) -> Tensor:
        return self._vectors.coefficients(x)[self._index]
