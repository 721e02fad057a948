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
from .pruning import Pruning, frozen_projection


@dataclass(frozen=True)
class Found:
    """Directions to choose from.

    Attributes:
        spec: the spectrum.
        own: whether the gradient that it carries is that of the step.
    """

    spec: Spectrum
    own: bool = True


@dataclass(frozen=True)
class Finder:
    """What decides where the directions of one step come from, beside what the step is given.

    Attributes:
        options: of the optimizer.
    """

    options: Pruning

    def of_fixed(self) -> Found | None:
        """The directions of ``CGD(..., spectrum=...)``, if there are any."""
        return None if self.options.spectrum is None else Found(self.options.spectrum, own=False)

    def of_operator(self, op: Operator) -> Found:
        """For a step along the operator's own gradient."""
        return self.of_fixed() or Found(directions_of(op, self.options))

    def of_spectrum(self, spec: Spectrum) -> Found:
        """For a step along the gradient that a spectrum carries."""
        return self.of_fixed() or Found(spec)

    def of_other(self, curvature: Curvature, space: ParameterSpace, origin: Origin | None) -> Found:
        """For a step along another gradient, that of ``origin``."""
        if not isinstance(curvature, (Spectrum, Operator)):
            curvature = _made(curvature, space, origin)
        spec = curvature if isinstance(curvature, Spectrum) else directions_of(curvature, self.options)
        return Found(spec, own=False)


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
    if not options.projects_at(step):
        return op.gradient, 0
    spec = options.spectrum or directions(op, zero_tol=options.zero_tol, spectrum_dtype=options.spectrum_dtype)
    mask = options.select(spec, groups, None)
    direction = op.gradient.unsqueeze(1)
    frozen_projection(spec, mask, options)(direction)
    return direction.squeeze(1), int(mask.sum())
