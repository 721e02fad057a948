"""The exact Hessian of the loss on a whole data set, batch by batch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..base import memory
from ..base.batch import Batch
from ..base.blocks import Chosen
from ..base.guards import refuse_autocast
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.results import Results
from ..base.snapshot import Origin, Snapshot
from ..base.tensors import WideSum, all_finite, fresh
from ..distributed.shares import shares
from ..errors import NonFiniteError
from .agreement import state_of
from .arguments import require_columns, require_directions, require_matrix
from .basis import Columns, Coordinates
from .dense import not_finite
from .eigenvalue_gradient import WithEigenvalueGradient
from .hessian import HessianOperator
from .plan import Explained, LayerReport
from .recorded import Recorded, sum_of_all
from .walks import Walks
from .weighting import Weight, Weighting


class DatasetHessian(WithEigenvalueGradient):
    """The Hessian H [P, P] of the loss on all samples of all batches, exact, from one batch at a time.

    The loss is what ``loss_fn`` would give on the union: with ``reduction="mean"`` L = sum_b n_b L_b / sum_b n_b, where
    n_b is what the mean of batch b is divided by (outputs, rows, rows that are not ignored, the sum of their class
    weights), with "sum" the sum of the L_b; H and the gradient are combined alike. A batch with n_b = 0, whose samples
    are all ignored, adds nothing. Batches may differ in size.

    A model whose samples interact within a batch (BatchNorm in training mode) has no loss of the union that is the sum
    of those of batches: there, this is the mean of the batches' own functions, each with its own statistics.

    Batches are walked at construction, once for the loss and the gradient and once more to see that the same batches
    come again. What the passes of batches have recorded is kept for later products up to ``keep`` bytes; if that holds
    all of them, ``batches`` are not walked again, else once for each product, and compared each time.

    A step of ``CGD`` with a spectrum of this is one of the whole gradient, and leaves no running statistics behind.

    The model's mode, buffers and ``.grad``, the global random states and a DataLoader's generators are never changed.

    Example:
        >>> op = ce.DatasetHessian(model, loss_fn, loader)
        >>> spec = ce.spectrum(op, k=4, which="largest")
        >>> V = spec.eigenvectors()
        >>> bool(torch.allclose(op @ V, V * spec.eigenvalues, atol=1e-4))
        True

    Args:
        model, verify, params, memory_budget: as of ``HessianOperator``.
        loss_fn: one of torch's losses, whose reduction counts, or any other with ``weight``.
        batches: pairs (x, y): a DataLoader without shuffling, a list, or any iterable that can be walked again.
        weight: how the losses of batches combine where ``loss_fn`` does not say: "sum", "mean" over the samples of a
            batch, or ``weight(output, y)``, the normaliser n_b.
        keep: bytes of recorded passes that are kept between products; 0: one batch at a time.
        progress: a bar that counts batches, on a terminal.
        group: a process group of torch.distributed, or ``Ranks``, of which each rank gives batches of its own, or none:
            the union is that of all ranks', whose results are the same bits on all. All ranks make the same calls, with
            equal model, loss and v. None: this process alone.

    Attributes:
        space: the order of theta: names, shapes and offsets of the parameters that span it.
        snapshot, origin: theta [P] as it was at construction (``snapshot.theta``), with the model.
        normalisers: n_b of each batch (of a sum 1); of a group's, this rank's.

    Raises:
        ValueError: no batches, or others when walked again; what ``HessianOperator`` refuses, with the batch; ``keep``.
        TypeError: an iterator, which cannot be walked again; batches that are no (x, y), or differ in dtype or device.
        NonFiniteError: as ``HessianOperator``; all samples of all batches are ignored.
        UnsupportedError: as ``HessianOperator``; a loss that does not say how batches combine, and no ``weight``.
        RanksDisagreeError: the ranks of a group have different models, losses, v or versions of a library.
        RankFailedError: another rank of the group raised, was lost or did not come; here and in every method.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        batches: Iterable[Any],
        params: Chosen | None = None,
        *,
        weight: Weight | None = None,
        keep: int = 1 << 28,
        verify: bool = False,
        progress: bool = False,
        memory_budget: int | None = None,
        group: Any = None,
    ) -> None:
        self._share, self._budget = shares(group), memory_budget
        with self._share.together("the making of a DatasetHessian", meets=True):
            if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
                raise ValueError(f"keep: expected a number of bytes >= 0, got {keep!r}")
            tree = ModuleTree(model, params)
            self.space = space = ParameterSpace.of(tree)
            refuse_autocast(space.device)
            weighting, walks = Weighting(loss_fn, weight), Walks(batches, space.device)
            self.snapshot = Snapshot(space, Batch((), ()), tree)
            memory.check_budget(memory_budget)
            if group is not None:
                self._share.agree("model and loss", state_of(space, tree, loss_fn, weight))

            def make(x: Any, y: Any, *, first: bool = False, output_only: bool = False) -> HessianOperator:
                loss, check = sum_of_all if output_only else loss_fn, verify and first
                return HessianOperator(model, loss, x, y, check, params=space.block, memory_budget=memory_budget)

            self._recorded = Recorded(make, walks, weighting, space, keep, progress, self._share)
        self.normalisers = tuple(self._recorded.normalisers)
        self.origin = Origin(model, None, self.snapshot, self._recorded.unused, one_batch=False)
        self.results = Results()

    def __reduce__(self) -> str:
        raise TypeError(  # a copy would speak of parameters that nobody trains
            "DatasetHessian: it belongs to live parameters and can be neither copied nor pickled; make another one, or "
            "keep ce.spectrum(op), op.dense() or op.gradient"
        )

    def _each(self, visit: Callable[[HessianOperator, float], object]) -> None:
        """Visits the operators of all batches at theta."""
        self.snapshot.require_fresh()
        self._recorded.each(visit)
        self.snapshot.require_fresh()

    def _sum(
        self,
        what: str,
        shape: torch.Size,
        each: Callable[[HessianOperator], Tensor],
        dtype: torch.dtype,
        of: Tensor | None = None,
    ) -> Tensor:
        """What each operator says, with its share, of all ranks, summed in float64."""
        total = WideSum(shape, self.device)
        self._each(lambda op, c: total.add(each(op), c))
        if self._share.ranks is None:
            return total.to(dtype)
        return self._share.sum(total.to(torch.float64), what, of).to(dtype)

    @property
    def is_shared(self) -> bool:
        """Whether it is of the batches of several ranks."""
        return self._share.ranks is not None

    @property
    def loss(self) -> Tensor:
        """The loss on the union, a detached scalar."""
        return self._recorded.loss.to(self.space.dtype, copy=True)

    @property
    def gradient(self) -> Tensor:
        """dloss/dtheta [P]."""
        return self._recorded.gradient.to(self.space.dtype, copy=True)

    @property
    def unused(self) -> frozenset[int]:
        """Places in ``space.params`` of the parameters that no batch's loss depends on."""
        return self._recorded.unused

    def block_columns(self) -> int:
        """How many columns ``op @ v`` takes at a time: blocks of this width are swept without waste."""
        return self._recorded.columns

    def __matmul__(self, v: Tensor) -> Tensor:
        """H v for v [P] or [P, k], of the same shape, in one walk.

        Raises:
            ValueError, TypeError: v of another shape, dtype or device.
            NonFiniteError: NaN or infinity in a second derivative.
            StaleOperatorError: the parameters changed since construction, or a batch, which is named.
        """
        with self._share.together("H v", meets=True):
            require_columns("v", v, self.space)
            found = self._sum("H v", v.shape, lambda op: op @ v, self.dtype, v)
        if not all_finite(found) and all_finite(v):
            raise NonFiniteError(not_finite("H v"))
        return found

    def curvature_along(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """H V [P, m], and the mean of D^3 L(v, v, .), [P], over the columns of V [P, m], in one walk.

        Args:
            V: of the parameters' dtype, or float64 with layer rules.

        Raises:
            UnsupportedError: as of ``HessianOperator``, of any batch.
            StaleOperatorError: as of ``op @ v``.
        """
        with self._share.together("the curvature along V", meets=True):
            require_directions(V, self.space)
            shape = torch.Size((len(V), V.shape[1] + 1))

            def both(op: HessianOperator) -> Tensor:
                product, third = op.curvature_along(V)
                return torch.cat([product, third.unsqueeze(1)], 1)

            total = self._sum("the curvature along V", shape, both, V.dtype, V)
        return total[:, :-1].contiguous(), total[:, -1].contiguous()

    def diagonal(self) -> Tensor:
        """The diagonal of H [P], exact, without P x P numbers, in one walk; see ``HessianOperator.diagonal``.

        Raises:
            NonFiniteError, StaleOperatorError: as of ``op @ v``.
        """
        with self._share.together("the diagonal", meets=True):
            size = torch.Size((self.space.size,))
            return self._sum("the diagonal", size, HessianOperator.diagonal, self.dtype)

    def dense(self, out: Tensor | None = None) -> Tensor:
        """H as a [P, P] matrix, bit for bit symmetric; a second one holds that of a batch meanwhile.

        Args:
            out: a contiguous [P, P] tensor to write to.

        Raises:
            ValueError, TypeError: ``out`` of another shape, dtype or device.
            MemoryBudgetError: P * P numbers do not fit, twice if there are several batches.
            StaleOperatorError: as of ``op @ v``.
        """
        return self._dense(self.dtype, out)

    def dense_in(self, dtype: torch.dtype) -> Tensor:
        """``dense()`` computed in the given dtype from the parameters' values."""
        return self._dense(dtype, None)

    def _dense(self, dtype: torch.dtype, out: Tensor | None) -> Tensor:
        with self._share.together("the dense Hessian", meets=True):
            if out is not None:
                require_matrix("out", out, self.space)
            return self._share.sum(self._own_dense(dtype, out), "the dense Hessian", out=True)

    def _own_dense(self, dtype: torch.dtype, out: Tensor | None) -> Tensor:
        """Of this rank's batches."""
        matrices = (out is None) + (self._recorded.count > 1)
        need, remedy = matrices * self.space.size**2 * dtype.itemsize, "use op @ v or spectrum(op, k=...)"
        memory.require(need, self.device, "dense Hessian", remedy, self._budget)
        parts: list[Tensor] = []  # the sum, and the last batch's

        def add(op: HessianOperator, c: float) -> None:
            place = out if not parts else parts[-1] if len(parts) > 1 else None
            part = op.dense(place) if dtype == self.dtype else op.dense_in(dtype)
            if parts:
                parts[0].add_(part, alpha=c)
                parts[1:] = [part]
            else:
                parts.append(part.mul_(c))

        self._each(add)
        if not parts:  # a rank without batches
            parts = [fresh(self.shape, dtype, self.device) if out is None else out]
            parts[0].zero_()
        return parts[0]

    def gradient_in(self, dtype: torch.dtype) -> Tensor:
        """The gradient [P] computed in the given dtype from the parameters' values."""
        if dtype == self.dtype:
            return self.gradient
        with self._share.together("the gradient", meets=True):
            size = torch.Size((self.space.size,))
            return self._sum("the gradient", size, lambda op: op.gradient_in(dtype), dtype)

    def smallest_form(self, dtype: torch.dtype, entry_bytes: int) -> tuple[Columns, Tensor]:
        """Q = I and S = H in the given dtype; as of ``HessianOperator``.

        Args:
            dtype: to compute it in.
            entry_bytes: what each entry costs with its decomposition.
        """
        with self._share.together("the dense eigendecomposition", meets=True):
            need, remedy = entry_bytes * self.space.size**2, "use spectrum(op, k=...)"
            memory.require(need, self.device, "dense eigendecomposition", remedy, self._budget)
            return Coordinates(self.space.size), self.dense_in(dtype)

    def explain(self) -> list[LayerReport]:
        """The path that each layer takes, its cost in all batches together, and the reason; a row for each path."""
        found: list[LayerReport] = []
        with self._share.together("explain", meets=True):
            self._each(lambda op, c: found.extend(op.explain()))
            reports = self._share.gather_objects(found, "explain")
        rows: dict[tuple[str, str, str], LayerReport] = {}
        for r in itertools.chain.from_iterable(reports):
            known = rows.get((r.name, r.path, r.why))
            rows[r.name, r.path, r.why] = r if known is None else dataclasses.replace(r, flops=r.flops + known.flops)
        return Explained(rows.values())
