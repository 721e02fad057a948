"""The generalised Gauss-Newton matrix J^T C J of one scalar loss on one batch, as an operator or a matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
from ..base.tensors import all_finite, fresh, symmetrize_
from ..base.torch_internals import tree_map, without_grad
from ..errors import ChaosExtError, NonFiniteError, UnsupportedError
from .arguments import refuse_group, require_columns, require_directions, require_matrix
from .dense import not_finite
from .diagonal import add_squares, has_sample_gradients
from .eigenvalue_gradient import WithEigenvalueGradient
from .engine import engine_for
from .jacobian import Jacobian, TapeJacobian, columns_of, unit_columns
from .jacobian_by_torch import TorchJacobian
from .jacobian_trust import require_right
from .layerwise import LayerwiseEngine
from .plan import Explained, LayerReport
from .tape import Tape
from .third import jets_are_right, lacks_jets, mean_of_thirds
from .third_trust import wrong
from .validation import probes

_BLOCK, _FEW = 256, 16  # columns of the unit matrix at a time; where they are of length P


class GGNOperator(WithEigenvalueGradient):
    r"""The generalised Gauss-Newton matrix G [P, P] of ``loss_fn(model(x), y)`` with respect to theta, exact.

    With the output z = model(x), its Jacobian J = dz/dtheta and the loss's curvature C = d^2 loss / dz^2 there,

        G = J^T C J,        H = G + sum_m (dloss/dz_m) d^2 z_m / dtheta^2,

    so that H - G (``op - ggn``, the functional part) is what the model's own curvature adds. G is positive
    semidefinite wherever the loss is convex in the output, and its rank is at most the number of outputs N C. It
    depends on where the loss begins: here at what the model returns.

    The same theta, losses, layers and freshness as of ``HessianOperator``.

    Example:
        >>> ggn = ce.GGNOperator(model, loss_fn, x, y)
        >>> G, v = ggn.dense(), torch.ones(ggn.shape[0])
        >>> bool(torch.allclose(G @ v, ggn @ v, atol=1e-5)), (op - ggn).shape == ggn.shape
        (True, True)

    Args:
        model: any module whose forward takes ``x``.
        loss_fn: ``loss_fn(output, y)``, a scalar that depends on theta through the output alone.
        x, y: batch [N, ...] and targets, or whatever the model's forward and the loss take.
        verify: compare G v with torch's own products of the model for two random vectors, at construction.
        params: as of ``HessianOperator``: that diagonal block of G.
        memory_budget: bytes that a dense result may take; default: the memory that is available.
        group: refused: of batches on several ranks there is ``DatasetHessian`` only.

    Attributes:
        space: the order of theta: names, shapes and offsets of the parameters that span it.
        snapshot, origin: theta [P] as it was at construction (``snapshot.theta``), with the model and the batch x.
        memory_budget: as given.

    Raises:
        ValueError, TypeError, NonFiniteError: as of ``HessianOperator``.
        UnsupportedError: a forward that draws random numbers, a loss that depends on theta past the output.
        ChaosExtError: torch's derivatives of the model or of the loss, where they are needed, are wrong.
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
        group: object = None,
    ) -> None:
        refuse_group(type(self).__name__, group)
        tree = ModuleTree(model, params)
        self.space = ParameterSpace.of(tree)
        refuse_autocast(self.space.device)
        memory.check_budget(memory_budget)
        self.memory_budget = memory_budget
        self.snapshot = Snapshot(self.space, Batch(x, y), tree)
        self._engine, self._why = engine_for(tree, loss_fn, self.snapshot, x, y)
        loss = (loss_fn, y) if self._engine.loss_writes else None
        self.origin = Origin(model, x, self.snapshot, self._engine.unused, loss)
        self.results = Results()
        self._by_torch = partial(TorchJacobian, tree.model, loss_fn, self.space, x, y, self._engine.gradient)
        if not isinstance(self._engine, LayerwiseEngine):
            jacobian = self._by_torch()
            require_right(jacobian, self._engine.watched().stops)
            self.results.once(("jacobian", self.dtype), lambda: jacobian)
        if verify:
            self._verify()

    def __reduce__(self) -> str:
        raise TypeError(  # a copy would speak of parameters that nobody trains
            f"{type(self).__name__}: it belongs to live parameters and can be neither copied nor pickled; make another "
            "one from the model and the batch, or keep its ce.spectrum or dense()"
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
        """Places in ``space.params`` of the parameters that the loss does not depend on."""
        return self.origin.unused

    def require_fresh(self) -> None:
        """Raises StaleOperatorError if the parameters or the batch changed since construction."""
        self.snapshot.require_fresh()

    def jacobian(self, dtype: torch.dtype | None = None) -> Jacobian:
        """J and C as products, for whoever makes more of them than G.

        Args:
            dtype: compute in this dtype from the parameters' values; default: the model's.

        Raises:
            UnsupportedError: another dtype, of a model or loss that torch differentiates as a whole.
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        wanted = dtype or self.dtype
        self.require_fresh()
        return self.results.once(("jacobian", wanted), lambda: self._jacobian(wanted))

    def _jacobian(self, dtype: torch.dtype) -> Jacobian:
        if not isinstance(self._engine, LayerwiseEngine):
            raise UnsupportedError(
                f"spectrum_dtype: {dtype} for {self.dtype} parameters needs layer rules, and {self._why}; convert the "
                "model and the batch with .double()"
            )
        return self._of_tape(self._engine.tape(dtype))

    def _of_tape(self, tape: Tape) -> Jacobian:
        return TapeJacobian(tape, self.space)

    def widest(self) -> torch.dtype:
        """float64 where J is to be had in it, else the model's dtype."""
        return torch.float64 if isinstance(self._engine, LayerwiseEngine) else self.dtype

    def __matmul__(self, v: Tensor) -> Tensor:
        """G v for v [P] or [P, k], of the same shape.

        Raises:
            ValueError, TypeError: v of another shape, dtype or device.
            NonFiniteError: NaN or infinity in a derivative.
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        require_columns("v", v, self.space)
        self.require_fresh()
        columns = v.detach().unsqueeze(1) if v.dim() == 1 else v.detach()
        if not columns.shape[1]:
            return torch.empty_like(v)
        products = _products(self.jacobian(), columns)
        if not all_finite(products) and all_finite(columns):
            raise NonFiniteError(not_finite("G v"))
        return products.reshape(v.shape)

    def dense(self, out: Tensor | None = None) -> Tensor:
        """G as a [P, P] matrix, bit for bit symmetric.

        Args:
            out: a contiguous [P, P] tensor to write to.

        Raises:
            ValueError, TypeError: ``out`` of another shape, dtype or device.
            MemoryBudgetError: P * P numbers do not fit.
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        if out is None:
            return self.dense_in(self.dtype)
        require_matrix("out", out, self.space)
        self.require_fresh()
        increment_version(out)
        return self._fill(out)

    def dense_in(self, dtype: torch.dtype) -> Tensor:
        """``dense()`` computed in the given dtype from the parameters' values."""
        self.require_fresh()
        need = self.space.size**2 * dtype.itemsize
        memory.require(need, self.device, "dense GGN", "use ggn @ v or spectrum(ggn, k=...)", self.memory_budget)
        return self._fill(fresh(self.shape, dtype, self.device))

    def _fill(self, out: Tensor) -> Tensor:
        J, size = self.jacobian(out.dtype), self.space.size
        if columns_of(J) < size and self.fits(2 * columns_of(J) * size * out.dtype.itemsize):
            B = explicit(J)
            torch.matmul(B * J.root.signs, B.T, out=out)
        else:
            for i in range(0, size, _BLOCK):
                eye = out.new_zeros(size, min(_BLOCK, size - i))
                eye[i : i + _BLOCK].fill_diagonal_(1)
                out[:, i : i + _BLOCK] = _products(J, eye)
        symmetrize_(_finite(out, "G"))
        return out

    @without_grad
    def diagonal(self) -> Tensor:
        """The diagonal of G [P], exact, without P x P numbers: sums of squared gradients of single outputs.

        Raises:
            NonFiniteError: NaN or infinity in it.
            StaleOperatorError: the parameters or the batch changed since construction.
        """
        return _finite(self._diagonal(), "the diagonal of G")

    def _diagonal(self) -> Tensor:
        J, out = self.jacobian(), torch.zeros(self.space.size, dtype=self.dtype, device=self.device)
        if isinstance(J, TapeJacobian) and has_sample_gradients(J.tape):
            add_squares(out, J.tape, self.space, set(J.tape.program.parametrised))
            return out
        if columns_of(J) > self.space.size:
            return super().diagonal()
        columns = unit_columns(columns_of(J), out, _FEW)
        for c, signs in zip(columns, J.root.signs.split(_FEW), strict=True):
            out += J.pull(J.root.apply(c)).square() @ signs
        return out

    def curvature_along(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """G V [P, m], and the gradient [P] of the mean of v^T G(theta) v over the columns of V [P, m], held fixed."""
        require_directions(V, self.space)
        self.require_fresh()
        engine = self._engine
        why = lacks_jets(engine.tape(V.dtype)) if isinstance(engine, LayerwiseEngine) else self._why
        if why is not None or not isinstance(engine, LayerwiseEngine):
            raise UnsupportedError(f"eigenvalue_gradient: of G it needs layer rules, and {why}; take HessianOperator")
        if not jets_are_right(engine.program, self.space, self.snapshot.theta, engine.tape(self.dtype).values[0]):
            raise wrong("")
        return _products(self.jacobian(V.dtype), V), mean_of_thirds(engine.tape(V.dtype), self.space, V, True)

    def fits(self, need: int) -> bool:
        """Whether so many bytes are within the budget."""
        return need <= (memory.available_bytes(self.device) if self.memory_budget is None else self.memory_budget)

    def gradient_in(self, dtype: torch.dtype) -> Tensor:
        """The gradient [P] computed in the given dtype from the parameters' values."""
        if dtype == self.dtype:
            return self.gradient
        self.require_fresh()
        if not isinstance(self._engine, LayerwiseEngine):
            self._jacobian(dtype)  # which says why not
            raise AssertionError
        return self._engine.flat_gradient(dtype)

    def explain(self) -> list[LayerReport]:
        """How the Jacobian of the output is computed, and why."""
        path = "layer rules" if isinstance(self._engine, LayerwiseEngine) else "jvp and vjp of the output by torch"
        return Explained([LayerReport("(model)", path, 0, self.space.size**2 * self.dtype.itemsize, self._why)])

    def _verify(self) -> None:
        v = probes(self.space)
        ours, theirs = self @ v, _products(self._by_torch(), v)
        limit, error = 1e-3 if self.dtype == torch.float32 else 1e-7, float((ours - theirs).norm())
        if error > limit * float(theirs.norm()):
            raise ChaosExtError(f"verify: G v differs from torch's by {error:.2g} of {float(theirs.norm()):.2g}")


def _finite(found: Tensor, what: str) -> Tensor:
    if not all_finite(found):
        raise NonFiniteError(not_finite(what))
    return found


def _products(J: Jacobian, v: Tensor) -> Tensor:
    """J^T C J v."""
    return J.pull(J.curve(J.push(v)))


def explicit(J: Jacobian) -> Tensor:
    """B = J^T L [P, R] with G = B diag(signs) B^T."""
    like = torch.empty(0, dtype=J.dtype, device=J.device)
    return torch.cat([J.pull(J.root.apply(c)) for c in unit_columns(columns_of(J), like, _BLOCK)], 1)
