"""Some members on their way through a step of CGD: their forms, and what of these the host needs for eigenproblems."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..base.tensors import unit_probe
from ..errors import NonFiniteError
from ..spectra.spectrum import Spectrum
from .forms import Form
from .single import same_bits


class One(NamedTuple):
    """The eigenproblem of one member, on the host.

    Attributes:
        S, gradient: in the coordinates that are kept.
        kept: which, of all n; None: all.
        loss, norm_squared: scalars, the latter ||g||^2 in float64.
    """

    S: Tensor
    gradient: Tensor
    kept: Tensor | None
    loss: Tensor
    norm_squared: Tensor


class Host:
    """What the host needs of some members."""

    def __init__(
        self, S: Tensor, gradient: Tensor, kept: Tensor | None, losses: Tensor, squares: Tensor, finite: Tensor
    ) -> None:
        self.S, self.gradient, self._kept = S, gradient, None if kept is None else _checked(S, kept.cpu())
        self._losses, self._squares = losses, squares
        self._finite = torch.isfinite(losses + squares + finite).tolist()

    def mask(self, j: int) -> Tensor | None:
        """The coordinates of member j [n] that are kept; None: all."""
        return None if self._kept is None else self._kept[j]

    def of(self, j: int) -> One:
        """Raises NonFiniteError unless loss, gradient and parameters of this member are finite."""
        if not self._finite[j]:
            raise NonFiniteError("loss: parameters, loss or gradient are NaN or inf on this batch")
        mask = self.mask(j)
        S, g = self.S[j], self.gradient[j]
        kept = None if mask is None else mask.nonzero().squeeze(1)
        if kept is not None:
            S, g = S.index_select(0, kept).index_select(1, kept), g.index_select(0, kept)
        return One(S, g, kept, self._losses[j], self._squares[j])


class Part(NamedTuple):
    """Some members.

    Attributes:
        rows: which.
        losses: [b].
        out: their gradients, each [b, *shape].
        form: their Hessians.
        host: what the host needs of them.
        found: spectra that are known already, by place in this part.
    """

    rows: slice
    losses: Tensor
    out: list[Tensor]
    form: Form
    host: Host
    found: dict[int, tuple[One, Spectrum]]

    def copied_to(self, out: list[Tensor]) -> Part:
        """With the gradients also there."""
        for view, g in zip(out, self.out, strict=True):
            view.copy_(g)
        return self._replace(out=out)


class Seen(NamedTuple):
    """What ``directions`` has found, for the step that may follow on the same batch.

    Attributes:
        steps: done before.
        tolerance: of what counts as zero.
        x, y, own: copies of the batch.
        parts: with spectra.
    """

    steps: int
    tolerance: float
    x: Tensor
    y: Tensor
    own: bool
    parts: list[Part]

    def is_of(self, steps: int, tolerance: float, x: Tensor, y: Tensor, own: bool) -> bool:
        """Whether that step is this one."""
        same = (steps, tolerance, own) == (self.steps, self.tolerance, self.own)
        return same and same_bits(x, self.x) and same_bits(y, self.y)


def _checked(S: Tensor, kept: Tensor) -> Tensor:
    """The coordinates [b, n] that are kept, all of a member whose S is not 0 to rounding beyond them."""
    image = torch.matmul(S, unit_probe(S.shape[1], S.dtype, "cpu"))
    beyond, whole = image.masked_fill(kept, 0.0).norm(dim=1), image.norm(dim=1)
    return kept | ~(beyond <= 200 * torch.finfo(S.dtype).eps * whole).unsqueeze(1)
