"""The diagonal of H as a method of the operator, by layer rules where there are any."""

from __future__ import annotations

from torch import Tensor

from ..base.torch_internals import without_grad
from .by_directions import WithThirdDerivatives
from .diagonal import columns_of, diagonal
from .layerwise import LayerwiseEngine


class WithDiagonal(WithThirdDerivatives):
    """A Hessian on a tape, or by torch."""

    @without_grad
    def diagonal(self) -> Tensor:
        """The diagonal of H [P], exact, without P x P numbers.

        With layer rules: squared gradients of single samples wherever all from a layer to the output is piecewise
        linear (its block of H is its Gauss-Newton block), unit tangents of a Linear layer or of single parameters
        elsewhere, forward only. A model or loss that torch differentiates as a whole takes products with the unit
        matrix, some columns at a time (``explain()`` says which of the two it is).

        Raises:
            NonFiniteError: NaN or infinity in a second derivative.
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        self.snapshot.require_fresh()
        if not isinstance(self._engine, LayerwiseEngine):
            return super().diagonal()
        space = self.snapshot.space
        return diagonal(self._engine.tape(space.dtype), space)

    def diagonal_columns(self) -> int:
        """How many columns ``diagonal()`` takes through the model, forward or back: what it costs in products."""
        self.snapshot.require_fresh()
        if not isinstance(self._engine, LayerwiseEngine):
            return self.snapshot.space.size
        return columns_of(self._engine.tape(self.snapshot.space.dtype))
