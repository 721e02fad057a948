"""Third derivatives are held against differences of exact products H v before they are believed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import UnsupportedError
from .differences import along, directions
from .examination import limits

_SCALES = (1.0, 1e-2)  # of the step: smaller ones pass between the kinks of a large network


def agrees(
    third: Callable[[Tensor], Tensor], product: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor
) -> bool | None:
    """Whether D3 L[v, v, .] is the derivative of H v along v; None where differences settle nowhere.

    Args:
        third, product: of theta [P], along v.
        theta: where; or near there, if there is a kink.
        v: [P].
    """
    nearby = theta + (0.1 * theta.abs() + 0.01) * directions(len(theta), theta, 2)[1]
    for point in (theta, nearby):
        for scale in _SCALES:
            found = along(product, point, scale * v)
            if found is not None:
                return found.agrees(scale * third(point), limits(theta.dtype)[1])
    return None


def wrong(why: str) -> UnsupportedError:
    """Third derivatives that contradict differences."""
    return UnsupportedError(
        "eigenvalue_gradient: third derivatives of this model and loss are not the derivative of H, which differences "
        f"of H v show{why and f' ({why})'}; take (ce.spectrum at theta + h u minus that at theta - h u) / 2h instead"
    )


def unchecked(why: str) -> UnsupportedError:
    """Third derivatives that nothing vouches for."""
    return UnsupportedError(
        f"eigenvalue_gradient: third derivatives of this model and loss could not be checked against differences of "
        f"H v ({why})"
    )
