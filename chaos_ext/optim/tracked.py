"""Directions that are kept for some steps and followed from refresh to refresh, and what a state_dict holds of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..base.contents import array, count, number, require
from ..base.contents import parts as parts_of
from ..base.parameters import ParameterSpace
from ..curvature.basis import Coordinates
from ..spectra.decompose import Operator
from ..spectra.extreme import needed
from ..spectra.lanczos import lanczos
from ..spectra.options import check_options
from ..spectra.partial import ends_of, unseen_of
from ..spectra.products import products_of
from ..spectra.spectrum import Spectrum
from ..spectra.warm import refine
from .pruning import Pruning

TOL = 1e-2  # of a refresh: residuals over max|lambda|
_GUARDS = 5  # wanted directions for each guard at an end
_NAMES = ("values", "width", "which", "order", "step", "residual", "products")


@dataclass(frozen=True, eq=False)
class Tracked:
    """Directions as a refresh left them.

    Attributes:
        vectors: orthonormal [P, m], the wanted ones and then guards.
        values: Ritz values of the wanted ones, ascending, float64 on the host.
        which: which pairs these are, as of ``lanczos``.
        order: for each parameter of theta its place among the optimizer's trained ones.
        step: of the refresh.
        residual: the longest residual of a wanted pair, over max|lambda|.
        products: vectors that the refresh multiplied.
    """

    vectors: Tensor
    values: Tensor
    which: str
    order: tuple[int, ...]
    step: int
    residual: float
    products: int

    @property
    def count(self) -> int:
        """How many are wanted."""
        return len(self.values)

    def is_of(self, options: Pruning, order: tuple[int, ...], space: ParameterSpace) -> bool:
        """Whether these are the directions that the options ask for, of these parameters."""
        V = self.vectors
        like = (len(V), V.dtype, V.device) == (space.size, space.dtype, space.device)
        return like and (self.count, self.which) == _asked(options, space.size) and self.order == order

    def spectrum(self, zero_tol: float | None) -> Spectrum:
        """The wanted pairs."""
        values, V = self.values.to(self.vectors), self.vectors[:, : self.count]
        tolerance, scale = check_options(V.dtype, zero_tol), float(values.abs().max())
        basis, ends = Coordinates(len(V)), ends_of(values, self.which)
        spec = Spectrum(values, V, basis, len(V), complete=False, zero_tol=tolerance, scale=scale, ends=ends)
        spec.unseen = unseen_of(values.tolist(), len(V), self.which)
        return spec


def order_among(trained: Sequence[Tensor], space: ParameterSpace) -> tuple[int, ...]:
    """For each parameter of theta its place among the trained ones."""
    places = {id(p): i for i, p in enumerate(trained)}
    return tuple(places[id(p)] for p in space.params)


def refreshed(known: Tracked | None, op: Operator, options: Pruning, step: int, order: tuple[int, ...]) -> Tracked:
    """The directions of an operator, from the known ones on where these are of the same kind.

    Raises:
        NotConvergedError, NonFiniteError, MemoryBudgetError, StaleOperatorError: as of ``spectrum(op, k)``.
    """
    tol = TOL if options.refresh_tol is None else options.refresh_tol
    if known is not None and not known.is_of(options, order, op.space):
        known = None

    def make() -> Tracked:
        found = _cold(op, options, tol) if known is None else _followed(known, op, tol)
        return replace(found, step=step, order=order)

    return op.results.once(("tracked", known, options.prune, options.k, tol, step, order), make)


def _followed(known: Tracked, op: Operator, tol: float) -> Tracked:
    """By block products, from the known ones on."""
    limit = 100 * known.count + 20 * len(known.vectors)
    found = refine(products_of(op).apply, known.vectors, known.count, known.which, tol, limit)
    return replace(known, vectors=found.vectors, values=found.values, residual=found.residual, products=found.products)


def _cold(op: Operator, options: Pruning, tol: float) -> Tracked:
    """By Lanczos, with random guards; what they are worth a block product tells."""
    known, multiplied = products_of(op), 0

    def apply(X: Tensor) -> Tensor:
        nonlocal multiplied
        multiplied += X.shape[1]
        return known.apply(X)

    size, (wanted, which) = known.size, _asked(options, known.size)
    _, V = lanczos(apply, size, wanted, which, dtype=known.dtype, device=known.device, tol=tol / 2)
    guards = width(options, size) - wanted
    drawn = torch.randn(size, guards, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    start = torch.linalg.qr(torch.cat([V, drawn.to(V)], 1)).Q
    found = refine(apply, start, wanted, which, tol, 100 * wanted + 20 * size)
    return Tracked(found.vectors, found.values, which, (), 0, found.residual, multiplied)


def width(options: Pruning, size: int) -> int:
    """How many directions are followed, with the guards."""
    wanted, which = _asked(options, size)
    ends = 1 if which == "largest" else 2
    return min(size, wanted + ends * max(1, (options.k or 0) // _GUARDS))


def _asked(options: Pruning, size: int) -> tuple[int, str]:
    """How many pairs the options ask for of P = size, and which."""
    wanted, which = needed(options.prune, options.k or 0)
    return min(wanted, size), which


def told(tracked: Tracked) -> str:
    """All but the vectors, as text: floats come back bit for bit."""
    own = {"values": tracked.values.tolist(), "width": tracked.vectors.shape[1]}
    return json.dumps({name: own[name] if name in own else getattr(tracked, name) for name in _NAMES})


def parts_in(tracked: Tracked | None, trained: Sequence[Tensor], options: Pruning) -> list[Tensor]:
    """For each trained parameter its part of the vectors [m, *shape], that shares memory with nothing; zeros where
    there are no directions yet, for checkpoints that are read into what is there."""
    if tracked is None:
        m = width(options, sum(p.numel() for p in trained))
        return [p.detach().new_zeros(m, *p.shape) for p in trained]
    parts, start = [torch.empty(0, device="cpu")] * len(trained), 0
    for i in tracked.order:
        p = trained[i]
        parts[i] = tracked.vectors[start : start + p.numel()].T.reshape(-1, *p.shape).clone()
        start += p.numel()
    return parts


def restored(text: str, parts: Sequence[Any], trained: Sequence[Tensor]) -> Tracked:
    """What ``told`` and ``parts_in`` gave, looked at part by part.

    Raises:
        UnfitError: it cannot be that.
    """
    n = parts_of(_parsed(text), _NAMES, "directions")
    order, m = n["order"], n["width"]
    finite = (
        isinstance(n["values"], list)
        and n["values"]
        and all(isinstance(v, float) and math.isfinite(v) for v in n["values"])
    )
    require(finite, "directions.values", "a list of finite numbers", n["values"])
    require(isinstance(order, list) and sorted(order) == [*range(len(trained))], "directions.order", "places", order)
    require(n["which"] in ("largest", "both_ends"), "directions.which", "'largest' or 'both_ends'", n["which"])
    count("directions.width", m, len(n["values"]))
    count("directions.step", n["step"])
    count("directions.products", n["products"])
    number("directions.residual", n["residual"])
    values = torch.tensor(n["values"], dtype=torch.float64, device="cpu")
    require(bool((values.diff() >= 0).all()), "directions.values", "ascending numbers", n["values"])
    for i in order:
        array(f"directions of parameter {i}", parts[i], (m, *trained[i].shape), (trained[i].dtype,))
    V = torch.cat([parts[i].reshape(m, -1).T for i in order])
    defect = float((V.T @ V - torch.eye(m, dtype=V.dtype, device=V.device)).abs().max())
    require(defect < 1e-3, "directions", "orthonormal vectors", V)
    return Tracked(V, values, n["which"], tuple(order), n["step"], float(n["residual"]), n["products"])


def _parsed(text: object) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
