"""Where a gradient and a Hessian come from, and which parameters they say nothing about."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.snapshot import Origin


@dataclass(frozen=True)
class Provenance(Origin):
    """The origin of what an operator computes.

    Attributes:
        unused: places in theta's order of the parameters that the loss does not depend on.
    """

    unused: frozenset[int] = frozenset()


def unused_parameters(origin: Origin | None) -> frozenset[int]:
    """Those of the operator behind a result; none where it is not known."""
    return origin.unused if isinstance(origin, Provenance) else frozenset()
