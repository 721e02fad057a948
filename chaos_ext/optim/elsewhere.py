"""Directions from elsewhere: of another operator (of the whole data set, say) or of a spectrum, also of an older step.

A spectrum belongs to the theta at which it was taken, and may be used at another one on purpose. An operator has
computed nothing yet: a stale one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_

from ..base.parameters import ParameterSpace
from ..errors import UnsupportedError
from ..spectra.decompose import Operator
from ..spectra.spectrum import Spectrum
from .pruning import Pruning, require_numbers

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
    if isinstance(curvature, Spectrum):
        curvature.require_unedited()
        require_numbers(curvature, space.params, "curvature")
        _require_shapes(curvature, space, "curvature")
    elif isinstance(curvature, Operator):
        curvature.snapshot.require_fresh()
    own = order_of(curvature)
    if own is not None and not (len(own.params) == len(space.params) and all(map(is_, own.params, space.params))):
        raise _others("curvature", space, own)


def require_fitting_fixed(spec: Spectrum, space: ParameterSpace) -> None:
    """The same of the directions of ``CGD(..., spectrum=...)``, which may be those of another model like this one."""
    require_numbers(spec, space.params, "spectrum")
    _require_shapes(spec, space, "spectrum")
    own = order_of(spec)
    if own is not None and own.names != space.names and set(own.names) == set(space.names):
        raise _others("spectrum", space, own)


def _require_shapes(spec: Spectrum, space: ParameterSpace, name: str) -> None:
    own = order_of(spec)
    known, shapes = spec.shapes if own is None else [tuple(s) for s in own.shapes], [tuple(s) for s in space.shapes]
    if known is not None and known != shapes:
        raise ValueError(
            f"{name}: its parameters have shapes {known}, those that the step moves, in order, {shapes}; give CGD the "
            "parameters in model.parameters() order, or step with a HessianOperator"
        )


def _others(name: str, space: ParameterSpace, own: ParameterSpace) -> ValueError:
    return ValueError(
        f"{name}: expected directions of the parameters that the step moves, {_listed(space)}, in this order, "
        f"got those of {_listed(own)}; take it of the same model (of a copy: save the spectrum and load it)"
    )


def _listed(space: ParameterSpace) -> str:
    names = ", ".join(space.names[:4])
    return f"{names}, ... ({len(space.names)} parameters, P = {space.size})" if len(space.names) > 4 else names
