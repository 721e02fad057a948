"""What ``CGD.step`` may be given, made into one thing: the order of theta, a gradient, its loss, a spectrum.

HessianOperator   all of them are its own
DatasetHessian    likewise; the loss is that of all batches
Spectrum          of a HessianOperator: the gradient and loss that it carries
dense H [P, P]    the optimizer's order of parameters, and their ``.grad``
nothing           likewise, with the fixed directions of ``CGD(..., spectrum=...)``, or without any in a step that
                  needs none
a closure         that returns one of the first four

``curvature`` takes the directions from elsewhere (``elsewhere``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import is_

import torch
from torch import Tensor

from ..base.optimizers import refuse_gradient_hooks
from ..base.parameters import ParameterSpace
from ..base.snapshot import Origin
from ..base.tensors import all_finite
from ..curvature.dataset import DatasetHessian
from ..curvature.hessian import HessianOperator
from ..errors import NonFiniteError, UnsupportedError
from ..spectra.decompose import spectrum_of_matrix
from ..spectra.spectrum import Spectrum
from .elsewhere import Curvature, order_of, require_fitting, require_fitting_fixed, told
from .finding import Finder, Found

Source = HessianOperator | DatasetHessian | Spectrum | Tensor
_OPERATORS = (HessianOperator, DatasetHessian)


@dataclass(frozen=True)
class Resolved:
    """What a step works on.

    Attributes:
        space: the order of theta.
        gradient: [P].
        loss: at theta, detached; None where it is not known.
        origin: the model and batch behind it, None where they are not known.
        find: the directions to choose from; computed when called.
        has_directions: whether there are any; of ``.grad`` alone there are none.
    """

    space: ParameterSpace
    gradient: Tensor
    loss: Tensor | None
    origin: Origin | None
    find: Callable[[], Found]
    has_directions: bool = True

    @property
    def unused(self) -> frozenset[int]:
        """Parameters that the loss does not depend on, which a step leaves alone."""
        return frozenset() if self.origin is None else self.origin.unused

    def coefficients(self, found: Found) -> Tensor:
        """V^T g [r]."""
        spec = found.spec
        return spec.gradient_coefficients() if found.own else spec.coefficients(self.gradient.to(spec.dtype))

    def norm_squared(self, found: Found) -> Tensor:
        """||g||^2 in float64, of the very gradient whose coefficients are used."""
        if found.own:
            return found.spec.gradient_norm_squared
        wide = self.gradient.double()
        return wide.dot(wide)


def called(source: object, closure: object = None) -> Source | None:
    """The source itself, or what it returns if it is a closure.

    Raises:
        TypeError: something else, or both.
    """
    if closure is not None:
        if source is not None:
            raise TypeError("step: expected a source or a closure, got both; give one of them")
        if not callable(closure):
            raise TypeError(f"step: closure: expected a function, got {type(closure).__name__}; give it as source")
        source = closure
    if source is None or isinstance(source, Source):
        return source
    if not callable(source):
        raise TypeError(
            "step: expected a HessianOperator, DatasetHessian, Spectrum, Tensor or closure, got "
            f"{type(source).__name__}"
        )
    with torch.enable_grad():
        return _returned(source())


def _returned(result: object) -> Source:
    """What a closure returned, unless that is the loss, as torch's own optimizers want it, or something else."""
    if isinstance(result, (*_OPERATORS, Spectrum)) or (isinstance(result, Tensor) and result.dim() == 2):
        return result
    got = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
    scalar = result.numel() == 1 if isinstance(result, Tensor) else isinstance(result, (int, float))
    got += " (the loss?)" if scalar else ""
    raise TypeError(
        f"step: the closure returned {got}; CGD needs directions of the Hessian beside the gradient: return "
        "chaos_ext.HessianOperator(model, loss_fn, x, y) of the batch (no backward() is needed), a Spectrum of one, or "
        "a dense Hessian [P, P]; step returns the loss"
    )


def resolve(
    source: Source | None, trained: Sequence[Tensor], groups: int, finder: Finder, curvature: Curvature | None = None
) -> Resolved:
    """Checks a source against the optimizer's parameters.

    Args:
        source: as of ``CGD.step``, no closure.
        trained: the optimizer's parameters that require a gradient, in its order.
        groups: how many parameter groups it has.
        finder: of the step.
        curvature: where the directions come from instead, as of ``CGD.step``.

    Raises:
        TypeError: a dense Hessian of another dtype or device, once it is needed; a curvature that is none; fixed
            directions of less precision.
        ValueError: parameters of another model, another shape, ``.grad`` missing where it is required; two places to
            take directions from; fixed directions of other shapes.
        StaleOperatorError: the parameters changed since the operator was made.
        NonFiniteError: ``.grad`` has NaN or infinity.
        UnsupportedError: a dense Hessian with several parameter groups; parameters with gradient hooks, whose gradient
            is not the operator's.
    """
    elsewhere = None if curvature is None else told(curvature, isinstance(source, Tensor), finder.options)
    if isinstance(source, _OPERATORS):
        resolved = _of_operator(source, trained, finder)
    elif isinstance(source, Spectrum):
        resolved = _of_spectrum(source, trained, finder)
    else:
        resolved = _of_grad(source, trained, groups, finder, None if elsewhere is None else order_of(elsewhere))
    if finder.options.spectrum is not None:
        require_fitting_fixed(finder.options.spectrum, resolved.space)
    if elsewhere is None:
        return resolved
    require_fitting(elsewhere, resolved.space)
    return replace(
        resolved, find=partial(finder.of_other, elsewhere, resolved.space, resolved.origin), has_directions=True
    )


def _of_operator(op: HessianOperator | DatasetHessian, trained: Sequence[Tensor], finder: Finder) -> Resolved:
    op.snapshot.require_fresh()
    space = _same_parameters(op.space, trained)
    refuse_gradient_hooks(space)
    return Resolved(space, op.gradient, op.loss, op.origin, partial(finder.of_operator, op))


def _of_spectrum(spec: Spectrum, trained: Sequence[Tensor], finder: Finder) -> Resolved:
    if spec.origin is None:
        raise ValueError(
            "spectrum: it was loaded from a file; use it as CGD(..., spectrum=...) or step(op, curvature=...) with "
            "another source"
        )
    spec.origin.snapshot.require_fresh()
    space = _same_parameters(spec.origin.snapshot.space, trained)
    refuse_gradient_hooks(space)
    gradient, loss = spec.gradient, spec.loss
    assert gradient is not None
    loss = None if loss is None else loss.clone()
    return Resolved(space, gradient, loss, spec.origin, partial(finder.of_spectrum, spec))


def _of_grad(
    H: Tensor | None, trained: Sequence[Tensor], groups: int, finder: Finder, order: ParameterSpace | None
) -> Resolved:
    fixed = finder.options.spectrum
    if H is not None:
        finder.refuse_without_operator(H)
    if order is None:
        order = finder.order if fixed is None or fixed.origin is None else fixed.origin.snapshot.space
    if order is not None:
        space = _same_parameters(order, trained)
    else:
        _check_order(H, trained, groups)
        space = ParameterSpace((f"params[{i}]", p) for i, p in enumerate(trained))
    gradient = _grad(space)

    def find() -> Found:
        kept = finder.of_kept(space)
        if kept is not None:
            return kept
        if H is None and fixed is None:
            raise ValueError(
                "step: expected a HessianOperator, a Spectrum or a dense Hessian; none is only for steps that do not "
                "prune, for CGD(..., spectrum=...) and for curvature="
            )
        return finder.of_fixed() or Found(_of_matrix(H, space, gradient, finder))  # type: ignore[arg-type]

    known = H is not None or fixed is not None or finder.tracked is not None
    return Resolved(space, gradient, None, None, find, known)


def _of_matrix(H: Tensor, space: ParameterSpace, gradient: Tensor, finder: Finder) -> Spectrum:
    if H.dtype != space.dtype or H.device != space.device:
        raise TypeError(f"step: expected a {space.dtype} Hessian on {space.device}, got {H.dtype}")
    zero_tol, dtype = finder.options.zero_tol, finder.options.spectrum_dtype
    return spectrum_of_matrix(H, gradient, zero_tol=zero_tol, spectrum_dtype=dtype, form=False)


def _same_parameters(space: ParameterSpace, trained: Sequence[Tensor]) -> ParameterSpace:
    in_order = len(trained) == len(space.params) and all(map(is_, trained, space.params))
    if not in_order and {id(p) for p in trained} != set(space.index):
        raise ValueError(
            "operator: its model's trainable parameters are not this optimizer's (another model, a replaced "
            "parameter, or a parameter left out: set requires_grad=False on what is not trained)"
        )
    return space


def _check_order(H: Tensor | None, trained: Sequence[Tensor], groups: int) -> None:
    """Without an operator, theta is taken in the optimizer's order: refused where that cannot be the model's."""
    size = sum(p.numel() for p in trained)
    if H is not None and tuple(H.shape) != (size, size):
        raise ValueError(f"step: expected a dense Hessian of shape [{size}, {size}], got {tuple(H.shape)}")
    if H is not None and groups > 1:
        raise UnsupportedError(
            "step: a dense Hessian with several parameter groups has no agreed order; pass a HessianOperator"
        )


def _grad(space: ParameterSpace) -> Tensor:
    missing = [n for n, p in zip(space.names, space.params, strict=True) if p.grad is None]
    if missing:
        raise ValueError(
            f"step: .grad is required and missing for {', '.join(missing)}: expected a HessianOperator, which needs "
            "none (and knows what its loss does not depend on), or backward() before the step"
        )
    gradient = space.flatten([p.grad for p in space.params])  # type: ignore[misc]
    if not all_finite(gradient):
        raise NonFiniteError("step: .grad has NaN or inf")
    return gradient
