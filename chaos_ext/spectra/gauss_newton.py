"""The nonzero eigenpairs of a Gauss-Newton matrix G = B diag(signs) B^T with B = J^T L [P, M], M outputs.

With few outputs, none of it needs P x P numbers:

    explicit   B = Q R;  R diag(signs) R^T = U diag(lambda) U^T;  V = Q U
    Gram       B^T B = U diag(lambda) U^T (all signs +);  V = B U diag(lambda)^(-1/2), which is never formed

The Gram matrix [M, M] has the eigenvalues of G themselves, to the same rounding; the columns of V are orthogonal to
eps max|lambda| / sqrt(lambda_i lambda_j). Where that is not enough B has to be formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import memory
from ..curvature.basis import Columns, Coordinates
from ..curvature.ggn import GGNOperator, explicit
from ..curvature.jacobian import Jacobian, columns_of
from ..errors import NonFiniteError
from .eigh import eigh

_SMALL_BYTES, _SMALL_WORK = 1 << 28, 5e9  # of B and of its QR: up to which the explicit way is taken unasked
_DEFECT = 1e-7  # of the orthogonality of eigenvectors


class DualColumns:
    """Orthonormal columns B W [P, r] in the given dtype, as products that go through the model's tape."""

    def __init__(self, jacobian: Jacobian, W: Tensor, dtype: torch.dtype) -> None:
        self._J, self._W, self._dtype = jacobian, W, dtype
        self.columns = W.shape[1]

    def __deepcopy__(self, memo: object) -> DualColumns:
        return self  # nothing of it is ever written to

    def coordinates(self, v: Tensor) -> Tensor:
        return (self._W.T @ self._J.root.transposed(self._J.push(v.to(self._W)))).to(self._dtype)

    def lift(self, c: Tensor) -> Tensor:
        return self._J.pull(self._J.root.apply(self._W @ c.to(self._W))).to(self._dtype)


def eigenpairs(ggn: GGNOperator, dtype: torch.dtype, zero_tol: float) -> tuple[Tensor, Tensor, Columns]:
    """Eigenvalues, among them all that zero_tol does not make zeros, with V = Q Z: (values, Z, Q).

    Raises:
        MemoryBudgetError: neither B nor G fits where it is needed.
        NonFiniteError: an eigenvalue is larger than the dtype can hold.
    """
    found = _eigenpairs(ggn, dtype, zero_tol)
    if not bool(torch.isfinite(found[0]).all()):
        raise NonFiniteError(f"spectrum: an eigenvalue of G is NaN or larger than {dtype} can hold; use a wider dtype")
    return found


def _eigenpairs(ggn: GGNOperator, dtype: torch.dtype, zero_tol: float) -> tuple[Tensor, Tensor, Columns]:
    size = ggn.shape[0]
    J = ggn.jacobian(ggn.widest())
    columns = columns_of(J)
    if columns >= size:
        need = 4 * dtype.itemsize * size**2
        memory.require(need, ggn.device, "dense eigendecomposition", "use spectrum(ggn, k=...)", ggn.memory_budget)
        return *eigh(ggn.dense_in(dtype)), Coordinates(size)
    need = size * columns * J.dtype.itemsize
    small = need <= _SMALL_BYTES and 4.0 * size * columns**2 <= _SMALL_WORK
    found = None if small else _by_gram(J, dtype, zero_tol)
    if found is not None:
        return found
    remedy = "pass a larger zero_tol (1e-8), or use spectrum(ggn, k=...)"
    memory.require(3 * need, ggn.device, "eigenvectors of small eigenvalues", remedy, ggn.memory_budget)
    return _explicit(J, dtype)


def _explicit(J: Jacobian, dtype: torch.dtype) -> tuple[Tensor, Tensor, Columns]:
    Q, R = torch.linalg.qr(explicit(J))
    values, U = eigh((R * J.root.signs) @ R.T)
    return values.to(dtype), (Q @ U).to(dtype), Coordinates(J.size)


def _by_gram(J: Jacobian, dtype: torch.dtype, zero_tol: float) -> tuple[Tensor, Tensor, Columns] | None:
    """None where its eigenvectors would not be orthogonal enough, or G is not semidefinite."""
    if not J.lasting or bool((J.root.signs < 0).any()):
        return None
    gram = J.gram()
    values, U = eigh((gram + gram.T) / 2)
    largest = float(values[-1]) if len(values) else 0.0
    kept = values > 0.9 * zero_tol * largest  # and those that count as near the threshold
    values, U = values[kept], U[:, kept]
    if len(values) and torch.finfo(J.dtype).eps * largest > _DEFECT * float(values[0]):
        return None
    unit = torch.eye(len(values), dtype=dtype, device=values.device)
    return values.to(dtype), unit, DualColumns(J, U / values.sqrt(), dtype)
