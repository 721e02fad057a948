"""Where a step takes its directions from: fixed ones, or those of the operator that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.parameters import Group, ParameterSpace
from ..base.snapshot import Origin
from ..curvature.hessian import HessianOperator
from ..errors import UnsupportedError
from ..spectra.decompose import Operator, directions
from ..spectra.extreme import extreme
from ..spectra.spectrum import Spectrum
from .elsewhere import Curvature, require_fitting, returned
from .pruning import Pruning
from .removal import frozen_projection
from .tracked import Tracked, order_among, refreshed


@dataclass(frozen=True)
class Found:
    """Directions to choose from.

    Attributes:
        spec: the spectrum.
        own: whether the gradient that it carries is that of the step.
        tracked: the same directions, where they are kept for the steps that follow.
    """

    spec: Spectrum
    own: bool = True
    tracked: Tracked | None = None


@dataclass(frozen=True)
class Finder:
    """What decides where the directions of one step come from, beside what the step is given.

    Attributes:
        options: of the optimizer.
        trained: its parameters that require a gradient, in its order.
        step: which one it is.
        tracked: the directions that are kept, if any are.
    """

    options: Pruning
    trained: Sequence[Tensor]
    step: int
    tracked: Tracked | None = None

    def of_fixed(self) -> Found | None:
        """The directions of ``CGD(..., spectrum=...)``, if there are any."""
        return None if self.options.spectrum is None else Found(self.options.spectrum, own=False)

    def of_operator(self, op: Operator) -> Found:
        """For a step along the operator's own gradient."""
        return self.of_fixed() or self._followed(op.space, lambda: op) or Found(directions_of(op, self.options))

    def of_spectrum(self, spec: Spectrum) -> Found:
        """For a step along the gradient that a spectrum carries."""
        self.refuse_without_operator(spec)
        return self.of_fixed() or Found(spec)

    def of_other(self, curvature: Curvature, space: ParameterSpace, origin: Origin | None) -> Found:
        """For a step along another gradient, that of ``origin``."""
        self.refuse_without_operator(curvature)
        followed = self._followed(space, lambda: self._operator_of(curvature, space, origin))
        if followed is not None:
            return followed
        if not isinstance(curvature, (Spectrum, Operator)):
            curvature = _made(curvature, space, origin)
        spec = curvature if isinstance(curvature, Spectrum) else directions_of(curvature, self.options)
        return Found(spec, own=False)

    def of_kept(self, space: ParameterSpace) -> Found | None:
        """For a step that is given no operator, while directions are kept."""
        return self._followed(space, _no_operator)

    @property
    def order(self) -> ParameterSpace | None:
        """The parameters of the directions that are kept, in their order; None where there are none."""
        if self.options.refresh_every is None or self.tracked is None:
            return None
        if len(self.tracked.order) != len(self.trained):
            return None
        return ParameterSpace((f"params[{i}]", self.trained[i]) for i in self.tracked.order)

    def _followed(self, space: ParameterSpace, make: Callable[[], Operator]) -> Found | None:
        """Directions that are kept, or refreshed where it is time."""
        every, known = self.options.refresh_every, self.tracked
        if every is None:
            return None
        order = order_among(self.trained, space)
        if known is None or not known.is_of(self.options, order, space) or not 0 <= self.step - known.step < every:
            known = refreshed(known, make(), self.options, self.step, order)
        return Found(known.spectrum(self.options.zero_tol), own=False, tracked=known)

    def _operator_of(self, curvature: Curvature, space: ParameterSpace, origin: Origin | None) -> Operator:
        made = curvature if isinstance(curvature, Operator) else _made(curvature, space, origin)  # type: ignore[arg-type]
        self.refuse_without_operator(made)
        assert isinstance(made, Operator)
        return made

    def refuse_without_operator(self, given: object) -> None:
        """Raises ValueError for what directions cannot be refreshed from."""
        if self.options.refresh_every is not None and isinstance(given, (Spectrum, Tensor)):
            raise ValueError(
                "refresh_every: directions are refreshed from an operator; give step a HessianOperator, a "
                "DatasetHessian, or one of them (or a function that returns one) as curvature, not a "
                f"{type(given).__name__}"
            )


def _no_operator() -> Operator:
    raise ValueError(
        "step: directions are to be refreshed at this step, from an operator: expected a HessianOperator, or a "
        "function that returns one as curvature"
    )


def _made(make: Callable[[], object], space: ParameterSpace, origin: Origin | None) -> Operator | Spectrum:
    """What a function gives as curvature, which must not have moved what the gradient belongs to."""
    with torch.enable_grad():
        made = returned(make())
    require_fitting(made, space)
    if origin is not None:
        origin.snapshot.require_fresh()
    return made


def directions_of(op: Operator, options: Pruning) -> Spectrum:
    """The directions that a step with this operator chooses from: all, or those that a selection of k needs."""
    if options.k is not None and not options.draws_directions and options.prune is not None:
        return extreme(op, options.prune, options.k, zero_tol=options.zero_tol, spectrum_dtype=options.spectrum_dtype)
    return directions(op, zero_tol=options.zero_tol, spectrum_dtype=options.spectrum_dtype)


def pruned_gradient(op: HessianOperator, options: Pruning, step: int, groups: Sequence[Group]) -> tuple[Tensor, int]:
    """The gradient of step t without its directions, as a function of theta, and how many they are.

    Raises:
        UnsupportedError: it is not one.
    """
    if options.is_random:
        raise UnsupportedError("jacobian='true': noise and order='random' make no differentiable map of theta")
    if options.switch_share is not None:
        raise UnsupportedError("jacobian='true': with switch_share steps depend on those before; use jacobian='frozen'")
    if options.refresh_every is not None:
        raise UnsupportedError(
            "jacobian='true': with refresh_every directions are those of earlier steps, and found to a tolerance; use "
            "jacobian='frozen'"
        )
    if not options.projects_at(step):
        return op.gradient, 0
    spec = options.spectrum or directions(op, zero_tol=options.zero_tol, spectrum_dtype=options.spectrum_dtype)
    mask = options.select(spec, groups, None)
    direction = op.gradient.unsqueeze(1)
    frozen_projection(spec, mask, options.how)(direction)
    return direction.squeeze(1), int(mask.sum())
