"""The exact Hessian of one scalar loss on one batch: as an operator, a matrix or a compressed matrix."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ..base import memory
from ..base.batch import Batch
from ..base.blocks import Chosen
from ..base.guards import refuse_autocast
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.results import Results
from ..base.snapshot import Origin, Snapshot
from ..base.tensors import all_finite, fresh
from ..base.torch_internals import tree_map
from ..errors import NonFiniteError, UnsupportedError
from . import validation
from .arguments import require_columns, require_matrix, require_vector
from .basis import Columns, Coordinates
from .by_layers import WithDiagonal
from .compressed import CompressedHessian
from .dense import not_finite
from .engine import engine_for
from .functional import FunctionalEngine
from .layerwise import LayerwiseEngine
from .native_sweep import Native
from .plan import Explained, LayerReport, block_reports, whole_report
from .trust import DOUBLE_BACKWARD

COMPRESSED_SIZE = 0.95  # of P: with less to gain the dense form is cheaper


class HessianOperator(WithDiagonal):
    """The Hessian H [P, P] of ``loss_fn(model(x), y)`` with respect to theta, exact, on one batch.

    theta [P] is the concatenation of the parameters with ``requires_grad``, in ``model.parameters()`` order, each
    row-major (``torch.nn.utils.parameters_to_vector``). H is the second derivative of exactly the scalar that
    ``loss_fn`` returns. The forward and backward pass run at construction; H is computed when asked.

    Layers with a rule of their own (docs/support.md) are swept natively; a layer without one is differentiated by torch
    alone, a model that torch.fx cannot follow, or another loss, by torch as a whole. The results are the same.
    ``explain()`` says which, and why.

    The model's mode, buffers and ``.grad`` are never changed.

    Example:
        >>> op = ce.HessianOperator(model, loss_fn, x, y)
        >>> H, v = op.dense(), torch.ones(op.shape[0])
        >>> bool((H == H.T).all()), bool(torch.allclose(H @ v, op @ v, atol=1e-5))
        (True, True)

    Args:
        model: any module whose forward takes ``x``.
        loss_fn: ``loss_fn(output, y)``, a scalar.
        x: batch [N, ...] (or whatever the model's forward takes).
        y: targets (or whatever the loss takes).
        verify: compare H v with differences of gradients for two random vectors, at construction.
        params: names, glob patterns or parameters (one or several) whose diagonal block of H this is: theta is made of
            these, everything else is constant, and ``requires_grad`` stays as it is. None: all parameters.
        memory_budget: bytes that a dense result may take; default: the memory that is available.
        group: a process group of torch.distributed, or ``Ranks``, of which each rank has a batch: the loss is that on
            all of them together (see ``DatasetHessian``), ``output`` this rank's.

    Attributes:
        space: the order of theta: names, shapes and offsets of the parameters that span it.
        snapshot, origin: theta [P] as it was at construction (``snapshot.theta``), with the model and the batch x.

    Raises:
        ValueError: an empty batch, shapes or labels that do not fit, a loss that is not a scalar, ``params`` that the
            model does not have.
        TypeError: parameters or targets of a wrong dtype.
        NonFiniteError: NaN or infinity in the batch, the parameters, the loss or the gradient.
        UnsupportedError: a forward that draws random numbers, or that cannot be differentiated twice.
        RanksDisagreeError, RankFailedError: as of ``DatasetHessian``.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        x: object,
        y: object,
        verify: bool = False,
        *,
        params: Chosen | None = None,
        memory_budget: int | None = None,
        group: Any = None,
    ) -> None:
        if group is not None:
            self._become_shared((model, loss_fn, x, y, verify), params, memory_budget, group)
            return
        tree = ModuleTree(model, params)
        self.space = ParameterSpace.of(tree)
        refuse_autocast(self.space.device)
        self._loss_fn, self._y, self._budget = loss_fn, y, memory_budget
        self.snapshot = Snapshot(self.space, Batch(x, y), tree)
        self._engine, self._why = engine_for(tree, loss_fn, self.snapshot, x, y)
        loss = (loss_fn, y) if self._engine.loss_writes else None
        self.origin = Origin(model, x, self.snapshot, self._engine.unused, loss)
        self.results = Results()
        if verify:
            v = validation.probes(self.space)
            double = FunctionalEngine(tree.model, loss_fn, self.space, x, y, path=DOUBLE_BACKWARD)
            validation.verify(self @ v, double, v)

    def _become_shared(self, args: tuple[Any, ...], params: Chosen | None, budget: int | None, group: Any) -> None:
        """What this is from here on, is made of such operators: it cannot be imported above."""
        self.__class__ = importlib.import_module(f"{__package__}.shared").SharedHessian
        self.__init__(*args, params=params, memory_budget=budget, group=group)  # type: ignore[misc]

    def __reduce__(self) -> str:
        raise TypeError(  # a copy would speak of parameters that nobody trains
            "HessianOperator: it belongs to live parameters and can be neither copied nor pickled; make another one "
            "from the model and the batch, or keep ce.spectrum(op), op.dense() or op.gradient"
        )

    @property
    def loss(self) -> Tensor:
        """The loss, a detached scalar; like gradient and output a copy, free to be edited."""
        return self._engine.loss.clone()

    @property
    def gradient(self) -> Tensor:
        """dloss/dtheta [P]."""
        return self._engine.gradient.clone()

    @property
    def output(self) -> object:
        """What the model returned on this batch, detached."""
        return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, self._engine.output)

    @property
    def unused(self) -> frozenset[int]:
        """Places in ``space.params`` of the parameters that the loss does not depend on: autograd gives None there.

        Optimizers leave these alone: no weight decay, no momentum.
        """
        return self.origin.unused

    def __matmul__(self, v: Tensor) -> Tensor:
        """H v for v [P] or [P, k], of the same shape.

        Raises:
            ValueError, TypeError: v of another shape, dtype or device.
            NonFiniteError: NaN or infinity in a second derivative.
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        require_columns("v", v, self.space)
        self.snapshot.require_fresh()
        columns = v.detach().unsqueeze(1) if v.dim() == 1 else v.detach()
        if not columns.shape[1]:
            return torch.empty_like(v)
        products = self._engine.hvp(columns)
        if not all_finite(products) and all_finite(columns):
            raise NonFiniteError(not_finite("H v"))
        return products.view(v.shape)

    def native_sweep(self) -> Native | None:
        """The arguments of a native sweep at this theta, or None where the model is swept layer by layer.

        Raises:
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        self.snapshot.require_fresh()
        return self._engine.native(self.dtype) if isinstance(self._engine, LayerwiseEngine) else None

    def block_columns(self) -> int:
        """How many columns ``op @ v`` takes at a time: blocks of this width are swept without waste."""
        return self._engine.block_columns(self.dtype)

    def dense(self, out: Tensor | None = None) -> Tensor:
        """H as a [P, P] matrix, bit for bit symmetric.

        Args:
            out: a contiguous [P, P] tensor to write to; reusing one saves the page faults of a fresh one.

        Raises:
            ValueError, TypeError: ``out`` of another shape, dtype or device.
            MemoryBudgetError: P * P numbers do not fit.
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        self.snapshot.require_fresh()
        if out is None:
            self._require_memory(self.space.size, self.dtype, "dense Hessian")
            out = fresh(self.shape, self.dtype, self.device)
        else:
            require_matrix("out", out, self.space)
            increment_version(out)  # the native contraction does not
        self._engine.dense_(out)
        return out

    def dense_in(self, dtype: torch.dtype) -> Tensor:
        """``dense()`` computed in the given dtype from the parameters' values."""
        if dtype == self.dtype:
            return self.dense()
        self._require_layer_rules(dtype)
        self.snapshot.require_fresh()
        self._require_memory(self.space.size, dtype, "dense Hessian")
        out = fresh(self.shape, dtype, self.device)
        self._engine.dense_(out)
        return out

    @contextlib.contextmanager
    def displaced(self, theta: Tensor) -> Iterator[HessianOperator]:
        """The operator of the same loss and batch at another theta [P], valid inside the ``with`` block.

        The model itself holds ``theta`` meanwhile, since a loss may read its parameters; afterwards they are back bit
        for bit, and this operator is as fresh as it was. Raises as ``op @ v``.
        """
        require_vector("theta", theta, self.space)
        self.snapshot.require_fresh()
        try:
            try:
                self.space.write_(theta)
                yield self._made_again()
            finally:
                self.space.write_(self.snapshot.theta)
        finally:  # again: Ctrl-C may have come in the line above
            self.space.write_(self.snapshot.theta)

    def _made_again(self) -> HessianOperator:
        args = self.origin.model, self._loss_fn, self.origin.x, self._y
        return HessianOperator(*args, params=self.space.block, memory_budget=self._budget)

    def compressed(self, dtype: torch.dtype | None = None) -> CompressedHessian:
        """H = Q S Q^T exactly, with S of the size of what the batch can see (see ``CompressedHessian``).

        Args:
            dtype: compute it in this dtype from the parameters' values; default: the model's.

        Raises:
            UnsupportedError: a model or loss that torch differentiates as a whole.
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        dtype = dtype or self.dtype
        return self.results.once(("compressed", dtype), lambda: self._compressed(dtype))

    def _compressed(self, dtype: torch.dtype) -> CompressedHessian:
        self.snapshot.require_fresh()
        if not isinstance(self._engine, LayerwiseEngine):
            raise UnsupportedError(f"compressed: needs layer rules, and {self._why}; use dense() or spectrum()")
        self._require_memory(self._engine.compressible(dtype) or 0, dtype, "compressed Hessian")
        return self._engine.compressed(dtype)

    def smallest_form(self, dtype: torch.dtype, entry_bytes: int) -> tuple[Columns, Tensor]:
        """Q and S with H = Q S Q^T in the given dtype: the compressed form where that pays, else Q = I and S = H.

        Args:
            dtype: to compute it in.
            entry_bytes: what each entry of a dense form costs with its decomposition: a MemoryBudgetError is raised
                where that does not fit, and there is no compressed form.
        """
        bound = self.compressed_bound(dtype)
        if bound is not None and bound < COMPRESSED_SIZE * self.space.size:
            return self._require_layer_rules(dtype).narrowed(self.compressed(dtype))
        need, remedy = entry_bytes * self.space.size**2, "use spectrum(op, k=...)"
        memory.require(need, self.device, "dense eigendecomposition", remedy, self._budget)
        return Coordinates(self.space.size), self.dense_in(dtype)

    def compressed_bound(self, dtype: torch.dtype) -> int | None:
        """An upper bound of the size of S, or None where there is no compressed form."""
        return self._engine.compressible(dtype) if isinstance(self._engine, LayerwiseEngine) else None

    def gradient_in(self, dtype: torch.dtype) -> Tensor:
        """The gradient [P] computed in the given dtype from the parameters' values."""
        if dtype == self.dtype:
            return self.gradient
        self.snapshot.require_fresh()
        return self._require_layer_rules(dtype).flat_gradient(dtype)

    def _require_layer_rules(self, dtype: torch.dtype) -> LayerwiseEngine:
        if not isinstance(self._engine, LayerwiseEngine):
            raise UnsupportedError(
                f"spectrum_dtype: {dtype} for {self.dtype} parameters needs layer rules, and {self._why}; convert the "
                "model and the batch with .double()"
            )
        return self._engine

    def _require_memory(self, size: int, dtype: torch.dtype, what: str) -> None:
        need = size**2 * dtype.itemsize
        memory.require(need, self.device, what, "use op @ v or spectrum(op, k=...)", self._budget)

    @property
    def held_constant(self) -> str | None:
        """How forward cuts (``detach``) what the gradient changes with, so that H is not its derivative; or None."""
        return self._engine.apart

    def explain(self) -> list[LayerReport]:
        """The path that each layer takes, its cost and the reason."""
        engine, block = self._engine, block_reports(self.space)
        if isinstance(engine, FunctionalEngine):
            return Explained([*block, whole_report(self.space, engine.path, self._why)])
        return Explained([*block, *engine.explain()])
