"""How H changes along its own directions: by layer rules where there are any, by torch elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .arguments import require_directions
from .eigenvalue_gradient import WithEigenvalueGradient
from .engine import Engine
from .functional import FunctionalEngine
from .layerwise import LayerwiseEngine
from .third import jets_are_right, lacks_jets, mean_of_thirds
from .third_by_torch import ThirdByTorch
from .trust import DOUBLE_BACKWARD

log = logging.getLogger("chaos_ext")


class WithThirdDerivatives(WithEigenvalueGradient):
    """A Hessian on a tape, or by torch."""

    _engine: Engine
    _loss_fn: Callable[..., Tensor]
    _y: object

    def displaced(self, theta: Tensor) -> AbstractContextManager[Any]:
        """The operator of the same loss and batch at another theta [P]."""
        raise NotImplementedError

    def curvature_along(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """H V [P, m], and the mean of D^3 L(v, v, .), [P], over the columns of V [P, m], in V's dtype.

        Args:
            V: of the parameters' dtype, or float64 with layer rules.

        Raises:
            ValueError, TypeError: V of another shape, dtype or device.
            UnsupportedError: no third derivative, or one that differences of H v contradict.
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        require_directions(V, self.space)
        self.snapshot.require_fresh()
        engine = self._engine
        if isinstance(engine, LayerwiseEngine) and self._has_jets(engine):
            return engine.hvp(V), mean_of_thirds(engine.tape(V.dtype), self.space, V)
        return self._by_torch(V)

    def _has_jets(self, engine: LayerwiseEngine) -> bool:
        tape = engine.tape(self.dtype)
        if lacks_jets(tape) is not None:
            return False
        right = jets_are_right(engine.program, self.space, self.snapshot.theta, tape.values[0])
        if not right:
            log.warning("third derivatives by layer rules are not the derivative of H here; using torch's")
        return right

    def _by_torch(self, V: Tensor) -> tuple[Tensor, Tensor]:
        products = self._engine.hvp(V)  # which also decides on the path
        path = self._engine.path if isinstance(self._engine, FunctionalEngine) else DOUBLE_BACKWARD
        args = self.snapshot.tree.model, self._loss_fn, self.snapshot.space, self.origin.x, self._y
        torchs = ThirdByTorch(*args, path=path, check=False)
        torchs.require_right(V[:, 0].to(self.dtype), self._displaced_product)
        torchs = torchs if V.dtype == self.dtype else torchs.in_double()
        if torchs.space.dtype != V.dtype:
            raise UnsupportedError(
                f"eigenvalue_gradient: this model has no copy in {V.dtype}; take a {self.dtype} spectrum"
            )
        total = torch.zeros_like(V[:, 0])
        for v in V.unbind(1):
            total += torchs.third(v.contiguous())
        return products, total / V.shape[1]

    def _displaced_product(self, theta: Tensor, v: Tensor) -> Tensor:
        with self.displaced(theta) as there:
            product: Tensor = there @ v
        return product
