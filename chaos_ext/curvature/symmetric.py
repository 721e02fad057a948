"""What all symmetric operators on theta have in common, and the difference of two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base.parameters import ParameterSpace
from ..errors import UnsupportedError

_BLOCK = 256  # columns of the unit matrix at a time


class Symmetric:
    """A symmetric matrix [P, P] that is known by its products: ``op @ v`` for v [P] or [P, k]."""

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of every result."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Of every result."""
        raise NotImplementedError

    @property
    def is_shared(self) -> bool:
        """Whether it is of the batches of several ranks."""
        return False

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v [P] or [P, k], of the same shape."""
        raise NotImplementedError

    def __sub__(self, other: Symmetric) -> Difference:
        """The difference as an operator: ``op - ggn`` is the part of H that the model's own curvature adds."""
        return Difference(self, other) if isinstance(other, Symmetric) else NotImplemented

    def diagonal(self) -> Tensor:
        """The diagonal [P], exact, from products with the unit matrix, some columns at a time.

        Raises:
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        size = self.shape[0]
        out = torch.empty(size, dtype=self.dtype, device=self.device)
        for i in range(0, size, _BLOCK):
            eye = torch.zeros(size, min(_BLOCK, size - i), dtype=self.dtype, device=self.device)
            eye[i : i + _BLOCK].fill_diagonal_(1)
            out[i : i + _BLOCK] = (self @ eye)[i : i + _BLOCK].diagonal()
        return out

    def to_scipy(self) -> Any:
        """The operator as a ``scipy.sparse.linalg.LinearOperator`` of numpy arrays on the CPU.

        Its products are those of ``op @ v``, computed on the operator's device in its dtype; they raise as these do,
        StaleOperatorError included, and TypeError for complex arrays.

        Raises:
            ImportError: scipy is not installed.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as e:
            raise ImportError("to_scipy: needs scipy; install it with: pip install scipy") from e
        numpy_dtype = torch.empty(0, dtype=self.dtype, device="cpu").numpy().dtype

        def product(v: Any) -> Any:
            if v.dtype.kind == "c":
                raise TypeError("v: expected real numbers, got complex ones; multiply their two parts one by one")
            flat = torch.tensor(v.astype(numpy_dtype), device=self.device)  # a copy: numpy's may be read-only
            columns = flat.reshape(len(flat), -1)
            return (self @ columns).cpu().numpy().reshape(v.shape)

        return LinearOperator(self.shape, product, rmatvec=product, matmat=product, rmatmat=product, dtype=numpy_dtype)


class OnTheta(Symmetric):
    """A symmetric matrix on the parameters of ``space``."""

    space: ParameterSpace

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return self.space.size, self.space.size

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of every result unless asked otherwise."""
        return self.space.dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters and of every result."""
        return self.space.device


class Difference(Symmetric):
    """``a - b`` of two symmetric operators on one theta, as an operator.

    Args:
        a, b: of one shape, dtype and device, and of parameters of the same names where they have any.

    Attributes:
        space: the order of theta, where ``a`` has one.

    Raises:
        ValueError: they are not. UnsupportedError: one is made with ``group``, and the other without.
    """

    def __init__(self, a: Symmetric, b: Symmetric) -> None:
        kinds = [(tuple(op.shape), op.dtype, op.device) for op in (a, b)]
        if kinds[0] != kinds[1]:
            what = [f"{shape} of {dtype} on {device}" for shape, dtype, device in kinds]
            raise ValueError(f"a - b: expected operators of one shape, dtype and device, got {what[0]} and {what[1]}")
        names = [getattr(getattr(op, "space", None), "names", None) for op in (a, b)]
        if None not in names and names[0] != names[1]:
            raise ValueError(f"a - b: expected operators on the same parameters, got {names[0]} and {names[1]}")
        if a.is_shared != b.is_shared:
            raise UnsupportedError(
                "a - b: one is of the batches of all ranks (group=), the other of this rank's alone; make both with "
                "group=, or both without"
            )
        self._a, self._b, self.space = a, b, getattr(a, "space", None)

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return self._a.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of every result."""
        return self._a.dtype

    @property
    def device(self) -> torch.device:
        """Of every result."""
        return self._a.device

    @property
    def is_shared(self) -> bool:
        """Whether both are of the batches of several ranks."""
        return self._a.is_shared

    def __matmul__(self, v: Tensor) -> Tensor:
        """a v - b v for v [P] or [P, k], of the same shape."""
        return self._a @ v - self._b @ v

    def dense(self) -> Tensor:
        """The difference as a [P, P] matrix, bit for bit symmetric.

        Raises:
            MemoryBudgetError: P * P numbers do not fit.
        """
        return dense_of(self._a).sub_(dense_of(self._b))

    def diagonal(self) -> Tensor:
        """The diagonal [P], exact."""
        return self._a.diagonal() - self._b.diagonal()


def dense_of(op: Any) -> Tensor:
    """The operator's own ``dense()``."""
    if not hasattr(op, "dense"):
        raise TypeError(f"dense: a {type(op).__name__} has no dense form")
    matrix: Tensor = op.dense()
    return matrix
