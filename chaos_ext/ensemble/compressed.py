"""Pruned gradients and spectra of all members at once, of networks of Linear layers: by batched compressed Hessians.

Everything that grows with the network is batched, on the members' device. The eigenproblems, of n up to a few hundred
rows, are solved one after the other on the host, which a step meets once: on a GPU that is faster than its own solvers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.tensors import unit_probe
from ..curvature.basis import Coordinates
from ..curvature.hessian import COMPRESSED_SIZE
from ..errors import ChaosExtError
from ..optim.pruning import Pruning
from ..rules.rule import NotLayerwise
from ..spectra.decompose import decomposed
from ..spectra.options import check_options
from ..spectra.spectrum import Spectrum
from .forms import Form, Place, Rooms, places_of
from .layered import Layered
from .parts import Host, One, Part, Seen
from .pruner import FAILURES, Along, Pruner, raise_together
from .single import Single, State

_MOST = 2048  # rows of S: beyond, CGD(k=...) takes Lanczos, and a batch of them much memory
_PART_BYTES = {"cpu": 1 << 22, "cuda": 1 << 30}  # of S, for members at a time


class Compressed:
    """The batched way of an ensemble.

    Raises:
        NotLayerwise: a layer, or a shape of batches, for which there is none.
    """

    def __init__(self, layered: Layered, single: Single, samples: int) -> None:
        self.layered, self.single, self.space = layered, single, single.twin.space
        self.places, self._rooms = places_of(layered), Rooms()
        self._seen: Seen | None = None
        self.size = sum(_bound(self.space.shapes[p.slots[0]], p, samples) for p in self.places)
        if not self.size < min(COMPRESSED_SIZE * self.space.size, _MOST):
            raise NotLayerwise(f"a compressed form of {self.size} rows at most, of P = {self.space.size}, does not pay")
        row = self.size**2 * self.space.dtype.itemsize
        self.at_once = max(1, _PART_BYTES.get(self.space.device.type, 1 << 30) // row)

    def serves(self, options: Pruning) -> bool:
        """Whether members are CGD's own: noise goes with the signs of eigenvectors, which are another solver's here."""
        same = options.spectrum_dtype in (None, self.space.dtype)
        return same and options.noise is None and options.spectrum is None

    def pruned(
        self, members: State, pruner: Pruner, parts: Sequence[slice], x: Any, y: Any, own: bool, out: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As of ``Single``."""
        losses, failed = members.theta.new_empty(len(members)), dict[int, ChaosExtError]()
        tolerance = check_options(self.space.dtype, pruner.options.zero_tol)
        try:
            for part in self._seen_parts(members, tolerance, x, y, own, out) or self._parts(
                members, parts, x, y, own, out
            ):
                losses[part.rows] = part.losses
                self._subtract_(part, members, pruner, tolerance, failed)
        except NotLayerwise:  # a loss that is not simple on this batch
            return self.single.pruned(members, pruner, parts, x, y, own, out)
        raise_together(failed)
        self._seen = None
        return losses, {}

    def _seen_parts(
        self, members: State, tolerance: float, x: Any, y: Any, own: bool, out: Sequence[Tensor]
    ) -> list[Part] | None:
        """What ``directions`` has found for this very step, with gradients where they are wanted."""
        seen = self._seen
        if seen is None or not seen.is_of(members.steps, tolerance, x, y, own):
            return None
        return [part.copied_to([view[part.rows] for view in out]) for part in seen.parts]

    def _subtract_(
        self, part: Part, members: State, pruner: Pruner, tolerance: float, failed: dict[int, ChaosExtError]
    ) -> None:
        removed = torch.zeros_like(part.host.gradient)
        for i in members.alive():
            j = i - part.rows.start
            if part.rows.start <= i < part.rows.stop:
                try:
                    one, spec = part.found.get(j) or self._decomposed(part.host.of(j), tolerance)
                    self._remove(i, j, one, spec, members.steps, pruner, removed)
                except FAILURES as e:
                    failed[i] = e
        if pruner.options.how.keeps:
            for view in part.out:
                view.mul_(1 - pruner.options.mix)
        part.form.subtract_(removed.to(part.losses), part.out)

    def _decomposed(self, one: One, tolerance: float) -> tuple[One, Spectrum]:
        return one, decomposed(one.S, Coordinates(len(one.S)), self.space.size, tolerance, None, form=False)

    def _remove(self, i: int, j: int, one: One, spec: Spectrum, steps: int, pruner: Pruner, removed: Tensor) -> None:
        Z, _ = spec.parts()
        inside = Z.T @ one.gradient.to(Z.device)  # which is the host's, but of what ``directions`` has found
        along = Along(one.norm_squared.view(1), inside, one.norm_squared, one.loss)
        c = (Z @ pruner.pruned(i, steps, spec, along).coefficients).to(removed.device)
        if one.kept is None:
            removed[j].copy_(c)
        else:
            removed[j].index_copy_(0, one.kept, c)

    def spectra(
        self, members: State, x: Any, y: Any, own: bool, form: bool, options: Mapping[str, Any]
    ) -> list[Spectrum | None]:
        """As of ``Single``."""
        dtype = options["spectrum_dtype"]
        if dtype not in (None, self.space.dtype):
            return self.single.spectra(members, x, y, own, form, options)
        tolerance = check_options(self.space.dtype, options["zero_tol"])
        found: list[Spectrum | None] = [None] * len(members)
        failed: dict[int, ChaosExtError] = {}
        alive, out, parts = set(members.alive()), _room(members), []
        try:
            for part in self._parts(members, [slice(0, len(members))], x, y, own, out):
                parts.append(part)
                for i in sorted(alive & {*range(part.rows.start, part.rows.stop)}):
                    try:
                        found[i] = self._spectrum(part, i - part.rows.start, form, tolerance)
                    except FAILURES as e:
                        failed[i] = e
        except NotLayerwise:
            return self.single.spectra(members, x, y, own, form, options)
        raise_together(failed)
        if not form:
            self._seen = Seen(members.steps, tolerance, x.clone(), y.clone(), own, parts)
        return found

    def _spectrum(self, part: Part, j: int, form: bool, tolerance: float) -> Spectrum:
        one, space = part.host.of(j), self.space
        basis = part.form.basis(j, space, part.host.mask(j))
        gradient = torch.cat([view[j].flatten() for view in part.out])
        spec = decomposed(one.S.to(gradient.device), basis, space.size, tolerance, gradient, form)
        spec.loss, spec.gradient, spec.shapes = part.losses[j].clone(), gradient, [tuple(s) for s in space.shapes]
        if not form:
            part.found[j] = one, spec
        return spec

    def _parts(
        self, members: State, parts: Sequence[slice], x: Any, y: Any, own: bool, out: Sequence[Tensor]
    ) -> Iterator[Part]:
        shared = () if own else self.layered.prepared(x, members.theta[0])
        for rows in _finer(parts, self.at_once):
            theta, grads = members.views(rows), [view[rows] for view in out]
            record = self.layered.record(theta, *((x[rows], y[rows]) if own else (x, y)), own, shared, grads)
            form = Form(self.layered, record, self.places, self._rooms, narrow=True)
            squares = torch.stack([g.flatten(1).double().square().sum(1) for g in grads]).sum(0)
            finite = members.theta[rows].sum(1)
            losses = record.result.losses
            host = Host(form.S.cpu(), form.gradient.cpu(), form.kept(), losses.cpu(), squares.cpu(), finite.cpu())
            yield Part(rows, losses, grads, form, host, {})

    def defect(self, members: State, i: int, x: Any, y: Any, own: bool) -> str | None:
        """Where Q S Q^T of member i is not its Hessian, by one product with it; or None."""
        alone = _Alone(members, i)
        batch = (x[i : i + 1], y[i : i + 1]) if own else (x, y)
        part = next(self._parts(alone, [slice(0, 1)], *batch, own, _room(alone)))
        one, basis = part.host.of(0), part.form.basis(0, self.space, part.host.mask(0))
        op = self.single.operator(members, i, *((x[i], y[i]) if own else (x, y)))
        v = unit_probe(self.space.size, self.space.dtype, self.space.device).unsqueeze(1)
        pairs = {
            "H v": (op @ v, basis.lift(one.S.to(v.device) @ basis.coordinates(v))),
            "gradient": (op.gradient.unsqueeze(1), basis.lift(one.gradient.to(v.device).unsqueeze(1))),
        }
        limit = 1e-9 if self.space.dtype == torch.float64 else 1e-3
        for name, (expected, got) in pairs.items():
            if not float((expected - got).norm()) <= limit * float(expected.norm()):
                return f"{name} differs by {float((expected - got).norm()):.2g} of {float(expected.norm()):.2g}"
        return None


class _Alone:
    """One of the members as if there were no others."""

    def __init__(self, members: State, i: int) -> None:
        self.theta, self.steps = members.theta[i : i + 1], members.steps
        self.buffers: dict[str, Tensor] = {}
        self._members, self._rows = members, slice(i, i + 1)

    def __len__(self) -> int:
        return 1

    def alive(self) -> list[int]:
        return [0]

    def views(self, rows: slice) -> list[Tensor]:
        return self._members.views(self._rows)


def _bound(shape: torch.Size, place: Place, samples: int) -> int:
    """Rows of S that a layer takes."""
    units, inputs = shape[0], shape[1] + (place.slots[1] is not None)
    r = min(samples, inputs)
    return units * r + (0 if place.first else min(samples, units) * (inputs - r))


def _room(members: State) -> list[Tensor]:
    """Memory for gradients."""
    return [torch.zeros_like(v) for v in members.views(slice(0, len(members)))]


def _finer(parts: Sequence[slice], most: int) -> Iterator[slice]:
    for rows in parts:
        count = math.ceil((rows.stop - rows.start) / most)
        size = math.ceil((rows.stop - rows.start) / count)
        yield from (slice(a, min(a + size, rows.stop)) for a in range(rows.start, rows.stop, size))
