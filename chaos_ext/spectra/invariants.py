"""Trace and Frobenius norm of a symmetric operator: exact where that is cheap, else Hutch++ with a standard error.

With a sketch Q, an orthonormal basis of range(A S) for random signs S, and random signs g,

    tr A      = tr Q^T A Q  +  E[h^T A h],        h = (I - Q Q^T) g
    ||A||_F^2 = ||A Q||_F^2 + E[||A h||^2]

(Meyer, Musco, Musco and Woodruff 2021): what is random is left to the part that the sketch does not see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base.arguments import cpu_generator, require_int
from ..curvature.ggn import GGNOperator
from ..curvature.hessian import HessianOperator
from ..curvature.jacobian import columns_of
from ..errors import NonFiniteError
from .operand import Operand, scale_of

_SMALL = 2048  # columns of a compressed or dense form that is cheap


@dataclass(frozen=True)
class MatrixEstimate:
    """A number that was read off a matrix, exactly or from random products.

    Attributes:
        value: the number.
        standard_error: of the random part; 0 if exact.
        products: columns that were multiplied with the operator.
        path: how it was found.
    """

    value: float
    standard_error: float
    products: int
    path: str

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.6g}" + (f" +- {self.standard_error:.2g}" if self.standard_error else "")


def trace(
    op: Any, *, exact: bool | None = None, products: int = 99, generator: torch.Generator | None = None
) -> MatrixEstimate:
    """The trace of a symmetric operator: the sum of its eigenvalues.

    Exact where that costs no more than ``products`` products: of tensors, of small and compressible Hessians, of
    Hessians whose diagonal takes few columns (convolutional ReLU networks, say), of Gauss-Newton matrices with few
    outputs. Else by Hutch++.

    Args:
        op: a HessianOperator, a GGNOperator, or anything with ``shape`` (n, n) and ``@``.
        exact: True: always exact, by the diagonal or column by column; False: always Hutch++; None: as above.
        products: columns that Hutch++ may multiply, at least 6: a third for the sketch, a third for its trace.
        generator: of the CPU; None: a fresh one with seed 0. The global generator is not touched.

    Returns:
        A ``MatrixEstimate``; ``float()`` gives the value.

    Raises:
        TypeError, ValueError: an operator without ``shape`` or ``@``, fewer than 6 products.
        NonFiniteError: NaN or infinity in a product.
        StaleOperatorError: as of the operator.

    Example:
        >>> ce.trace(op).standard_error
        0.0
        >>> round(float(ce.trace(op)) / float(op.dense().trace()), 4)
        1.0
    """
    A = Operand(op)
    require_int("products", products, 6)
    if exact is not False:
        found = _exact_trace(A, op, math.inf if exact else products)
        if found is not None:
            return found
    found, scale = _deflated(A, products, cpu_generator(generator), lambda X, AX: (X.double() * AX.double()).sum(0))
    return MatrixEstimate(scale * found.value, scale * found.standard_error, found.products, found.path)


def frobenius_norm(
    op: Any, *, exact: bool | None = None, products: int = 99, generator: torch.Generator | None = None
) -> MatrixEstimate:
    """The Frobenius norm of a symmetric operator: the root of the sum of its squared entries, or squared eigenvalues.

    Exact of tensors, of small and compressible Hessians and of Gauss-Newton matrices with at most 2048 outputs; else
    the root of an unbiased estimate of its square, with the standard error that this has to first order.

    Args:
        op, products, generator: as of ``trace``.
        exact: True: always exact, column by column if need be; False: never; None: as above.

    Returns:
        A ``MatrixEstimate``.

    Raises:
        TypeError, ValueError, NonFiniteError, StaleOperatorError: as of ``trace``.

    Example:
        >>> round(float(ce.frobenius_norm(op)) / float(op.dense().norm()), 4)
        1.0
    """
    A = Operand(op)
    require_int("products", products, 6)
    if exact is not False:
        found = _exact_norm(A, op, math.inf if exact else products)
        if found is not None:
            return found
    square, scale = _deflated(A, products, cpu_generator(generator), lambda X, AX: AX.double().square().sum(0))
    value = math.sqrt(max(square.value, 0.0))
    error = square.standard_error / (2 * value) if value else 0.0
    return MatrixEstimate(scale * value, scale * error, square.products, square.path)


def _exact_trace(A: Operand, op: Any, most: float) -> MatrixEstimate | None:
    if isinstance(op, Tensor):
        return _known(float(op.diagonal().double().sum()), "of a matrix")
    S = _compressed(op)
    if S is not None:
        return _known(float(S.diagonal().double().sum()), "compressed Hessian")
    if isinstance(op, GGNOperator):
        J = op.jacobian()
        if columns_of(J) <= min(most, _SMALL):
            return _known(_sum(A, columns_of(J), lambda c: _squares(J, c)), "Jacobian of the outputs")
    if isinstance(op, HessianOperator) and op.diagonal_columns() <= most:
        return _known(float(op.diagonal().double().sum()), "diagonal")
    if A.size <= most and not (math.isinf(most) and hasattr(op, "diagonal")):
        total = _sum(A, A.size, lambda eye: (eye * (A @ eye)).double().sum())
        return MatrixEstimate(total, 0.0, A.products, "column by column")
    if math.isinf(most):
        return _known(float(op.diagonal().double().sum()), "diagonal")
    return None


def _squares(J: Any, c: Tensor) -> Tensor:
    """Sum of signs |J^T L e|^2 over the unit columns c of the outputs."""
    signs = (c * J.root.signs.unsqueeze(1)).sum(0)
    return (J.pull(J.root.apply(c)).double().square().sum(0) * signs).sum()


def _sum(A: Operand, size: int, of: Callable[[Tensor], Tensor]) -> float:
    """Over the columns of the unit matrix [size, size], in blocks."""
    return sum((float(of(eye)) for eye in _unit_blocks(A, size)), 0.0)


def _unit_blocks(A: Operand, size: int) -> Iterator[Tensor]:
    for i in range(0, size, 128):
        eye = torch.zeros(size, min(128, size - i), dtype=A.dtype, device=A.device)
        eye[i : i + 128].fill_diagonal_(1)
        yield eye


def _exact_norm(A: Operand, op: Any, most: float) -> MatrixEstimate | None:
    if isinstance(op, Tensor):
        return _known(_norm(op), "of a matrix")
    S = _compressed(op)
    if S is not None:
        return _known(_norm(S), "compressed Hessian")
    if isinstance(op, GGNOperator) and columns_of(op.jacobian()) <= _SMALL:
        J = op.jacobian(op.widest())
        signs, gram = J.root.signs, J.gram()
        scale = scale_of(gram)
        square = float(((gram / scale).square() * torch.outer(signs, signs)).sum())
        return _known(scale * math.sqrt(max(square, 0.0)), "Gram matrix of the outputs")
    if A.size <= most:
        norms = [_norm(A @ eye) for eye in _unit_blocks(A, A.size)]
        return MatrixEstimate(math.hypot(*norms), 0.0, A.products, "column by column")
    return None


def _norm(t: Tensor) -> float:
    """Also where the squares of its entries vanish or overflow."""
    scale = scale_of(t)
    return scale * float((t.double() / scale).norm())


def _known(value: float, path: str) -> MatrixEstimate:
    if not math.isfinite(value):
        raise NonFiniteError(f"op: NaN or inf on the way to its trace or norm ({path}); use a wider dtype")
    return MatrixEstimate(value, 0.0, 0, path)


def _compressed(op: Any) -> Tensor | None:
    """S of H = Q S Q^T, whose trace and norm are those of H; None where it is large or does not exist."""
    bound = op.compressed_bound(op.dtype) if isinstance(op, HessianOperator) else None
    return op.compressed().parts()[1] if bound is not None and bound <= _SMALL else None


def _deflated(
    A: Operand, products: int, generator: torch.Generator, form: Callable[[Tensor, Tensor], Tensor]
) -> tuple[MatrixEstimate, float]:
    """The sum of form(x, A x / scale) over an orthonormal basis, and the scale; form is a quadratic form of x.

    Args:
        form: of columns X and A X [n, k], one number a column.
    """
    sketched = min(products // 3, A.size)
    sketch = A @ A.signs(sketched, generator)
    scale = scale_of(sketch)  # without it the squares of a small A vanish
    Q = torch.linalg.qr(sketch / scale).Q
    seen = float(form(Q, (A @ Q).double() / scale).sum())
    G = A.signs(products - 2 * sketched, generator)
    for _ in range(2):  # the second time for what rounding left
        G = G - Q @ (Q.T @ G)
    samples = form(G, (A @ G).double() / scale)
    error = float(samples.std() / len(samples) ** 0.5)
    return MatrixEstimate(seen + float(samples.mean()), error, A.products, "Hutch++"), scale
