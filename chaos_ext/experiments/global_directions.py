"""The directions that the first steps of a training stretch and shrink.

The right singular vectors of Y_T, the tangent map of the first T steps from theta(0), belong to its finite-time
exponents ln sigma / T. They are the eigenvectors of Y_T^T Y_T - I, whose eigenvalues sigma^2 - 1 have the exponents'
signs and small ones are good to rounding, whatever sigma is elsewhere: the signs need no more than that. Those within
``NEUTRAL`` of zero count as neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import chaos_ext as ce

from ..data import BatchOrder, Dataset
from ..spectra.decompose import spectrum_of_matrix
from .settings import Settings
from .training import build_model

NEUTRAL = 1e-8  # of sigma^2 - 1, at most
SIGNS = {"stretched": "positive", "shrunk": "negative"}  # of exponents -> of eigenvalues


@dataclass(frozen=True, kw_only=True)
class GlobalPruneSettings(Settings):
    """Settings of ``chaos-ext reproduce global-prune``.

    Attributes:
        first: steps whose finite-time directions are pruned.
        hidden: hidden units of the MLP; None: the paper's network.
    """

    first: int
    hidden: int | None

    @property
    def model_options(self) -> dict[str, int]:
        """The width, where it is not the paper's."""
        return {} if self.hidden is None else {"hidden": self.hidden}


class Directions(NamedTuple):
    """Of the first steps.

    Attributes:
        spectrum: eigenpairs of Y^T Y - I.
        counts, shares: of stretched and shrunk directions: how many, and their mean share of the squared gradient.
    """

    spectrum: ce.Spectrum
    counts: dict[str, int]
    shares: dict[str, float]


def first_directions(settings: GlobalPruneSettings, seed: int, data: Dataset) -> Directions:
    """Trains the first steps with all deviations of theta."""
    d = data.to(getattr(torch, settings.dtype), settings.device)
    model, order = build_model(settings, seed), BatchOrder(len(data.y_train), settings.batch_size, seed)
    opt = ce.CGD(model.parameters(), lr=settings.lr, momentum=settings.momentum, prune=None)
    tangent, loss_fn = ce.TangentMap(opt, state="theta" if settings.momentum else "auto"), torch.nn.CrossEntropyLoss()
    gradients, Y = [], None
    for t in range(settings.first):
        epoch, position = divmod(t, order.steps_per_epoch)
        index = order.epoch(epoch)[position].to(settings.device)
        op = ce.HessianOperator(model, loss_fn, d.x_train[index], d.y_train[index])
        Y = tangent.start(op) if Y is None else Y
        tangent.apply_(op, Y)
        gradients.append(op.gradient)
        opt.step(op)
    assert Y is not None
    return _decomposed(Y[: Y.shape[1]].double(), torch.stack(gradients, 1).double())


def _decomposed(Y: Tensor, gradients: Tensor) -> Directions:
    C = Y.T @ Y
    C.diagonal().sub_(1)
    C = (C + C.T) / 2
    # ||C||_inf is at least max|lambda|: nothing beyond NEUTRAL is left out.
    spec = spectrum_of_matrix(C, zero_tol=NEUTRAL / max(float(C.abs().sum(1).max()), NEUTRAL * 2))
    whole, parts = gradients.square().sum(0), spec.coefficients(gradients).square()
    masks = {"stretched": spec.eigenvalues > 0, "shrunk": spec.eigenvalues < 0}
    shares = {name: float((parts[mask].sum(0) / whole).mean()) for name, mask in masks.items()}
    return Directions(spec, {name: int(mask.sum()) for name, mask in masks.items()}, shares)


_latest: dict[tuple[GlobalPruneSettings, int], Directions] = {}


def directions_of(settings: GlobalPruneSettings, seed: int, data: Dataset) -> Directions:
    """As ``first_directions``, once for the runs of a seed, which come one after the other."""
    key = settings, seed
    if key not in _latest:
        _latest.clear()  # large
        _latest[key] = first_directions(settings, seed, data)
    return _latest[key]
