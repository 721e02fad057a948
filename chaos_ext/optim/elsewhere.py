"""Directions from elsewhere: of another operator (of the whole data set, say) or of a spectrum, also of an older step.

A spectrum belongs to the theta at which it was taken, and may be used at another one on purpose. An operator has
computed nothing yet: a stale one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_

import torch

from ..base.parameters import ParameterSpace
from ..errors import UnsupportedError
from ..spectra.decompose import Operator
from ..spectra.spectrum import Spectrum
from .pruning import Pruning

Curvature = Operator | Spectrum | Callable[[], Operator | Spectrum]
_EXPECTED = "a HessianOperator, a DatasetHessian, a GGNOperator, a Spectrum, or a function that returns one of these"


def told(curvature: object, dense: bool, options: Pruning) -> Curvature:
    """The curvature, if it is one and the only place to take directions from.

    Args:
        curvature: as of ``CGD.step``.
        dense: whether the step is given a dense Hessian.
        options: of the optimizer.

    Raises:
        TypeError: something else. ValueError: there are directions already.
    """
    if options.spectrum is not None:
        raise ValueError(
            "curvature: the directions of this optimizer are fixed by CGD(..., spectrum=...); set opt.spectrum = None, "
            "or leave curvature out"
        )
    if dense:
        raise ValueError(
            "curvature: the step is given a dense Hessian, which has directions of its own; leave one of them out "
            "(with curvature alone the step uses .grad)"
        )
    if not isinstance(curvature, (Operator, Spectrum)) and not callable(curvature):
        raise TypeError(f"curvature: expected {_EXPECTED}, got {type(curvature).__name__}")
    return curvature


def refuse_other_map(curvature: Curvature | None, mapped: bool) -> None:
    """Raises UnsupportedError where a tangent map of this step was asked for, and got directions of its operator."""
    if curvature is not None and mapped:
        raise UnsupportedError(
            "curvature: a TangentMap or LyapunovAnalyzer has taken the map of this step with the operator's own "
            "directions, and knows no others; step without curvature, or take no tangent map"
        )


def returned(made: object) -> Operator | Spectrum:
    """What a function returned as curvature.

    Raises:
        TypeError: something else.
    """
    if not isinstance(made, (Operator, Spectrum)):
        raise TypeError(f"curvature: expected {_EXPECTED}; the function returned {type(made).__name__}")
    return made


def order_of(curvature: Curvature) -> ParameterSpace | None:
    """The parameters that it speaks of, in its order; None where it does not know them."""
    if isinstance(curvature, Operator):
        return curvature.space
    if isinstance(curvature, Spectrum) and curvature.origin is not None:
        return curvature.origin.snapshot.space
    return None


def require_fitting(curvature: Curvature, space: ParameterSpace) -> None:
    """Refuses directions that are none of these parameters in this order; a function's are looked at when they come.

    Raises:
        ValueError: other parameters, another order, other shapes, another device.
        TypeError: a spectrum of less precision than the parameters have.
        StaleOperatorError: the parameters changed since the operator was made; a spectrum was edited.
    """
    if not isinstance(curvature, (Operator, Spectrum)):
        return
    if isinstance(curvature, Spectrum):
        curvature.require_unedited()
        _require_numbers(curvature, space)
    else:
        curvature.snapshot.require_fresh()
    own = order_of(curvature)
    if own is not None and not (len(own.params) == len(space.params) and all(map(is_, own.params, space.params))):
        raise ValueError(
            f"curvature: expected directions of the parameters that the step moves, {_listed(space)}, in this order, "
            f"got those of {_listed(own)}; take it of the same model (of a copy: save the spectrum and load it)"
        )


def _require_numbers(spec: Spectrum, space: ParameterSpace) -> None:
    if spec.size != space.size:
        raise ValueError(f"curvature: expected a spectrum of P = {space.size} like the parameters, got P = {spec.size}")
    shapes = [tuple(s) for s in space.shapes]
    if spec.shapes is not None and spec.origin is None and spec.shapes != shapes:
        raise ValueError(f"curvature: its parameters have shapes {spec.shapes}, those that the step moves {shapes}")
    device = spec.parts()[0].device
    if device != space.device:
        raise ValueError(
            f"curvature: expected a spectrum on {space.device} like the parameters, got {device}; load it with "
            "map_location"
        )
    if torch.finfo(spec.dtype).eps > torch.finfo(space.dtype).eps:
        raise TypeError(f"curvature: expected a spectrum of {space.dtype} like the parameters, got {spec.dtype}")


def _listed(space: ParameterSpace) -> str:
    names = ", ".join(space.names[:4])
    return f"{names}, ... ({len(space.names)} parameters, P = {space.size})" if len(space.names) > 4 else names
