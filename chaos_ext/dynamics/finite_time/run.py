"""A run of deviations whose product is kept: what ``method="svd"`` measures, step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ...base import memory
from ...errors import NonFiniteError, UnsupportedError
from .extremes import Basis, largest, smallest
from .product import ProductSVD
from .readout import Decomposition

EVERY = 20
# A residual relative to the singular value; the value itself is off by about its square.
RESIDUAL = 1e-3
_T = TypeVar("_T")


class Extremes(NamedTuple):
    """The largest and the smallest finite-time exponent during a run, in nats per step.

    Attributes:
        steps: t of each reading, int64 [m].
        largest, smallest: ln sigma_1 / t and ln sigma_k / t, float64 [m].
        largest_tolerance, smallest_tolerance: how far they may be off by the residual of their iteration, float64 [m].
    """

    steps: Tensor
    largest: Tensor
    smallest: Tensor
    largest_tolerance: Tensor
    smallest_tolerance: Tensor


class Shape(NamedTuple):
    """What is multiplied.

    Attributes:
        size: S, the rows of Y.
        k: its columns.
        rows: how many rows count: S, or P for the theta block of an optimizer with buffers.
        dtype, device: of Y.
    """

    size: int
    k: int
    rows: int
    dtype: torch.dtype
    device: torch.device


class FiniteTime:
    """The product of the maps of one run.

    Args:
        shape: of the deviations.
        start: makes the first ones, orthonormal columns [S, k].
        every: read the extremes at every multiple of this many measured steps; None: never.
        transient: first steps, of which no map is taken.

    Attributes:
        steps: done so far, transient included.
        torn: whether a step began to write and did not come to its end.
        stopped: the step at which NaN or infinity came up, or None; readings are then of the last whole block.
        seconds: where the time went: "tangent", "qr", "fold", "extremes", "read-out".
    """

    method = "svd"

    def __init__(self, shape: Shape, start: Callable[[], Tensor], every: int | None, transient: int) -> None:
        self.shape, self.start, self.every, self.transient = shape, start, every, transient
        self.steps, self.closed, self.stopped = 0, 0, None  # type: int, int, int | None
        self.torn = False
        self.product: ProductSVD | None = None  # large: not before it is needed
        self.rows: list[tuple[float, ...]] = []  # t, largest, smallest, and their tolerances, as ln sigma
        self.bases: tuple[Basis | None, Basis | None] = None, None
        self.seconds = dict.fromkeys(("tangent", "qr", "fold", "extremes", "read-out"), 0.0)
        self._read: tuple[int, Decomposition, Tensor, float] | None = None

    @property
    def measured(self) -> int:
        """Steps whose maps are in the product: all after the transient, or until the last block of a stopped run."""
        if self.stopped is None:
            return max(self.steps - self.transient, 0)
        # Which rows of the last block are theta's is lost with it.
        return max(self.closed - self.transient, 0) if self.shape.rows == self.shape.size else 0

    def prepare(self, make: Callable[[Tensor], _T]) -> _T | Callable[[], None]:
        """What the first half of a step makes of Y, which it does not write to."""
        if self.stopped is not None:
            raise NonFiniteError(
                f"the run stopped at step {self.stopped}; make a new analyzer, or resume an older state"
            )
        if self.steps < self.transient:
            return lambda: None
        if self.product is None:
            self.product = ProductSVD(self.start(), self.seconds)
        began = time.perf_counter()
        try:
            return make(self.product.Y)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.steps}: {error}; results until then are kept") from error
        finally:
            self.seconds["tangent"] += time.perf_counter() - began

    def commit(self, write_: Callable[[], Tensor | None]) -> bool:
        """The second half of a step; see ``Benettin.commit``. Returns whether extremes were read."""
        self.torn = True
        began = time.perf_counter()
        squares = write_()
        self.seconds["tangent"] += time.perf_counter() - began
        return self._count(squares)

    def advance(self, apply_: Callable[[Tensor], tuple[Tensor, Tensor | None]]) -> bool:
        """One step; ``apply_`` returns J Y in fresh memory, and None."""
        JY = self.prepare(apply_)
        if self.product is not None and isinstance(JY, tuple):
            self.torn = True
            self.product.Y = JY[0]
        return self._count(None)

    def stop(self) -> None:
        """No step can follow; what was measured until the last whole block stays."""
        if self.stopped is None:
            vars(self).update(stopped=self.steps, torn=False, _read=None)

    def _count(self, squares: Tensor | None) -> bool:
        product = self.product
        if product is None:
            vars(self).update(steps=self.steps + 1, torn=False)
            return False
        lengths = torch.linalg.vector_norm(product.Y, dim=0) if squares is None else squares.sqrt()
        low, high = torch.stack(torch.aminmax(lengths)).tolist()
        if squares is not None and not (math.isfinite(high) and low > 0):  # squares overflow and vanish before lengths
            low, high = torch.stack(torch.aminmax(torch.linalg.vector_norm(product.Y, dim=0))).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            self.stop()
            kept = "results" if self.shape.rows == self.shape.size else "extremes"
            raise NonFiniteError(f"step {self.steps}: the deviations have NaN or infinity; {kept} until then are kept")
        product.pending += 1
        if product.is_due(low, high):
            product.factor_()
            self.closed = self.steps + 1
        vars(self).update(steps=self.steps + 1, _read=None)
        due = self.every is not None and self.measured % self.every == 0
        if due:
            self._read_extremes(product)
        self.torn = False
        return due

    def _read_extremes(self, product: ProductSVD) -> None:
        began = time.perf_counter()
        f = product.factors(self.shape.rows)
        top, bottom = (read(f, b, RESIDUAL) for read, b in zip((largest, smallest), self.bases, strict=True))
        if bottom.tolerance > RESIDUAL and f.R is not None:  # which has become too old within the block
            bottom = smallest(product.factors(self.shape.rows, anew=True), bottom.basis, RESIDUAL)
        self.rows.append((self.steps, top.log, bottom.log, top.tolerance, bottom.tolerance))
        self.bases = top.basis, bottom.basis
        self.seconds["extremes"] += time.perf_counter() - began

    def extremes(self) -> Extremes:
        """All readings so far."""
        columns = torch.tensor(self.rows, dtype=torch.float64, device="cpu").view(-1, 5).unbind(1)
        t = columns[0] - self.transient
        return Extremes(columns[0].long(), *(c / t for c in columns[1:]))

    def row(self) -> list[float]:
        """What is streamed, the last reading: largest, smallest, and their tolerances, in nats per step."""
        t = self.rows[-1][0] - self.transient
        return [v / t for v in self.rows[-1][1:]]

    def leading(self) -> float:
        """The largest exponent, for a progress bar."""
        return self.row()[0]

    def exponents(self) -> Tensor:
        """float64 [k], descending, in nats per step."""
        return self.decomposition().logs / self.measured

    def uncertainty(self) -> Tensor:
        """How far each may be off by rounding."""
        return self.errors() / self.measured

    def decomposition(self, vectors: bool = False) -> Decomposition:
        """Of the product of all steps so far (of a stopped run: until its last whole block); once for each step.

        Raises:
            ValueError: there was no step after the transient yet. MemoryBudgetError: vectors that do not fit.
        """
        return self._reading(vectors)[1]

    def errors(self) -> Tensor:
        """How far each ln sigma may be off, float64 [k], descending ln sigma."""
        return self._reading(False)[2]

    @property
    def condition(self) -> float:
        """Of the theta rows of the block at the end, columns of length one; 1 if all rows count."""
        return self._reading(False)[3] if self.shape.rows < self.shape.size else 1.0

    def _reading(self, vectors: bool) -> tuple[int, Decomposition, Tensor, float]:
        product = self.product
        if self.stopped is not None and self.steps > self.transient and not self.measured:
            raise UnsupportedError(
                f"exponents: the run stopped at step {self.stopped}, and which rows of its last block are theta's is "
                "lost with it; extremes are kept; load a saved state for exponents until then"
            )
        if product is None or not self.measured:
            raise ValueError("exponents: expected at least one step after the transient, got none yet")
        known = self._read
        if known is None or (vectors and known[1].right is None):
            if vectors:
                self._require_room()
            began = time.perf_counter()
            errors = product.errors()
            whole = self.stopped is None
            part = self.shape.rows if whole and self.shape.rows < self.shape.size else None
            found, condition = product.decomposition(part, vectors, whole)
            if part is not None:  # rounding of a block is magnified where its theta rows lean towards one another
                errors = errors * condition
            self._read = known = self.steps, found, errors, condition
            self.seconds["read-out"] += time.perf_counter() - began
        return known

    def _require_room(self) -> None:
        s = self.shape
        need = (6 * s.k * s.k + 2 * s.rows * s.k) * 8
        memory.require(need, s.device, f"singular vectors of k = {s.k} columns", "ask for exponents only")

    def singular_vectors(self, side: str) -> Tensor:
        """Columns by descending exponent: initial directions ("right") or where they end ("left"), [rows, k]."""
        if side not in ("left", "right"):
            raise ValueError(f"side: expected 'left' or 'right', got {side!r}")
        if side == "left" and self.stopped is not None:
            raise UnsupportedError(f"side='left': the run stopped at step {self.stopped}, and its last block is lost")
        d = self.decomposition(vectors=True)
        assert d.left is not None
        assert d.right is not None
        if side == "left":
            return d.left.to(self.shape.dtype)
        return (self.start()[: self.shape.rows].double() @ d.right).to(self.shape.dtype)

    def options(self) -> dict[str, Any]:
        """What a saved state must have been made with."""
        return {"k": self.shape.k, "every": self.every, "transient": self.transient}

    def release(self) -> None:
        """Gives back the memory that only factorisations and readings need, until the next one."""
        if self.product is not None:
            self.product.release()
