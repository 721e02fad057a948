"""The tangent map of a training step: how a small deviation of the optimizer's whole state is carried on.

theta(t + 1) = F(theta(t)) for plain SGD, (theta, v) -> (theta, v) with momentum, (theta, m, v) for Adam. The Jacobian J
of exactly the optimizer that trains acts on deviation columns Y [S, k] in place, at one block Hessian-vector product a
step. See ``optimizers`` for the formulas.

Where the native sweep knows the whole model (``native_sweep``), sweep and update are one: Y is never multiplied by a
matrix, and H Y never goes to memory. Other models are swept in blocks of columns, each followed by its update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from .. import _ops
from ..base.optimizers import refuse_gradient_hooks
from ..base.parameters import ParameterSpace
from ..base.signals import Deferred
from ..base.tensors import fresh, rows_contiguous
from ..base.torch_internals import without_grad
from ..curvature.hessian import HessianOperator
from ..errors import NonFiniteError
from .custom import Custom, registered
from .layout import Layout, check_deviations, require_same
from .optimizers import UNTOUCHED, Rule, Slot, UpdateLists, required_rule
from .projected import Projected, differences

STATES = ("auto", "theta", "full")
JACOBIANS = ("frozen", "true")
Units = list[tuple[float, ...]]


class TangentMap:
    """J of the next step of this optimizer instance: torch.optim.SGD with every option, CGD, Adam, AdamW.

    Example:
        >>> tm = ce.TangentMap(opt)
        >>> Y = tm.start(op, k=3)  # [S, 3]
        >>> Y is tm.apply_(op, Y)  # before opt.step
        True

    Everything is read from the optimizer at each call: group options, so that schedules need nothing, step counts, and
    whether a momentum buffer exists yet. Call ``apply_`` *before* the optimizer's step, with the operator of the batch
    that it steps on. Rows of Y are theta in ``op.space`` order, then the buffers in the same order: (theta, v) of
    momentum, where groups without momentum have no rows of v, or (theta, m, v) of Adam. Parameters that the operator's
    loss does not depend on (``op.unused``) count as left alone, as torch's optimizers leave those whose ``.grad`` is
    None: use ``zero_grad(set_to_none=True)``, torch's default.

    Args:
        opt: the optimizer. Other classes: see ``register_tangent``.
        state: "auto" or "full", the optimizer's whole state; "theta", for optimizers with buffers, declares that only
            the theta block is of interest: [S, k] from (I; 0), see ``start`` (Eq. (8) of the paper).
        jacobian: of CGD. "frozen", I - lr P H with the projector P held fixed (the paper's); "true", P moves with
            theta: central differences of the projected gradient, two spectra a column, float64 only.

    Attributes:
        gap: with ``jacobian="true"``, ||(J_true - J_frozen) Y|| / ||lr P H Y|| of the last call: how much of the
            curvature term the frozen projector misses; else None.

    Raises:
        UnsupportedError: an optimizer without a known tangent, amsgrad. ValueError: an unknown ``state``.
    """

    def __init__(self, opt: Optimizer, state: str = "auto", jacobian: str = "frozen") -> None:
        if not isinstance(opt, Optimizer):
            raise TypeError(f"opt: expected a torch.optim.Optimizer, got {type(opt).__name__}")
        if state not in STATES:
            raise ValueError(f"state: expected one of {STATES}, got {state!r}")
        if jacobian not in JACOBIANS:
            raise ValueError(f"jacobian: expected one of {JACOBIANS}, got {jacobian!r}")
        self.opt, self.state, self.jacobian = opt, state, jacobian
        self.gap: float | None = None
        self._custom = registered(type(opt))
        self._rule = required_rule(opt) if self._custom is None else None
        self._projected = opt if isinstance(opt, Projected) else None
        if jacobian == "true" and self._projected is None:
            raise ValueError(f"jacobian='true': only for optimizers that project, got {type(opt).__name__}")
        self._layout: Layout | None = None
        # The parameters themselves, not their ids: another parameter may get the id of one that is gone.
        self._counts = {p: self._count(g) for g in opt.param_groups for p in g["params"]}
        self._params = tuple(self._trained())

    def _count(self, group: dict[str, Any]) -> int:
        return self._custom[1] if self._custom is not None else cast(Rule, self._rule).buffers(group)

    @property
    def parameters(self) -> int:
        """P."""
        return sum(p.numel() for p in self._params)

    @property
    def size(self) -> int:
        """S, the rows of Y."""
        return sum(p.numel() * (1 + self._counts[p]) for p in self._params)

    @property
    def is_cocycle(self) -> bool:
        """Whether products of these maps are the map of several steps: not for theta alone beside buffers."""
        return self.state != "theta" or self.size == self.parameters

    def start(self, op: HessianOperator, k: int | None = None) -> Tensor:
        """The first k unit deviations of theta, buffers undisturbed: (I; 0).

        Args:
            op: an operator of the optimizer's model, for dtype, device and order.
            k: number of columns; None: all P.

        Returns:
            Y [S, k], in theta's dtype.

        Raises:
            ValueError: k outside 0..P.
        """
        P = op.space.size
        if k is not None and not 0 <= k <= P:
            raise ValueError(f"k: expected 0 <= k <= P = {P}, got {k}")
        Y = fresh((self.size, P if k is None else k), op.dtype, op.device).zero_()
        Y.diagonal()[:P] = 1
        return Y

    @without_grad
    def apply_(self, op: HessianOperator, Y: Tensor, units: Units | None = None) -> Tensor:
        """Y <- J Y in place, before the optimizer's step.

        Args:
            op: of the batch that the step uses.
            Y: [S, k] in the dtype and on the device of the parameters.
            units: what ``units(op)`` returned once: Y then holds buffers in these constant units; default their own.

        Returns:
            Y.

        Raises:
            ValueError, TypeError: Y of another shape, dtype or device; an operator of another model.
            StaleOperatorError: the step was already done. NonFiniteError: H Y has NaN or infinity.
            UnsupportedError: gradient hooks on parameters, options without a tangent.

        After a NonFiniteError Y is lost; after any other exception it is as it was.
        """
        squares = self.advance_(op, Y, units)
        if squares is not None and not bool(torch.isfinite(squares).all() or torch.isfinite(Y).all()):
            raise NonFiniteError("TangentMap: the deviations have NaN or infinity")
        return Y

    @without_grad
    def advance_(self, op: HessianOperator, Y: Tensor, units: Units | None = None) -> Tensor | None:
        """``apply_(op, Y, units)`` without its last check, for callers that look at the columns anyway.

        Returns:
            The sums of squares of Y's new columns [k], which are not finite if Y is not; None if unknown.
        """
        write_ = self.prepared(op, Y, units)
        with Deferred():
            return write_()

    @without_grad
    def prepared(self, op: HessianOperator, Y: Tensor, units: Units | None = None) -> Callable[[], Tensor | None]:
        """``advance_(op, Y, units)`` up to the point where it writes to Y; what it returns goes on from there.

        All that runs code of the model or the optimizer, or may fail, is in the first part. The second is to be called
        with signals put off (``base.signals``), and without recording if Y requires a gradient.
        """
        layout = self._layout_for(op)
        check_deviations(Y, op, layout.size)
        if self._custom is not None:
            return self._prepared_custom(self._custom[0], op, Y)
        lists = self._updates(op, self._slots(op, layout, units))
        rows = rows_contiguous(Y)
        update_ = self._prepared_rows(op, rows, lists)

        def write_() -> Tensor | None:
            increment_version(Y)  # the native update does not
            squares = update_()
            if rows is not Y:
                Y.copy_(rows)
            # A buffer that this step leaves alone is not in the sums.
            return squares if lists.rows == len(Y) else None

        return write_

    def _prepared_custom(self, apply_: Custom, op: HessianOperator, Y: Tensor) -> Callable[[], None]:
        """On a copy: whatever happens to code that is not ours, Y is as it was."""
        op.snapshot.require_fresh()
        advanced = Y.clone()
        apply_(self.opt, op, advanced)

        def write_() -> None:
            Y.copy_(advanced)

        return write_

    def _updates(self, op: HessianOperator, slots: list[Slot]) -> UpdateLists:
        rule = cast(Rule, self._rule)
        self._require_numbers()
        refuse_gradient_hooks(op.space)
        for slot in slots:
            rule.check(slot.group, len(slot.buffers))
        unused, gradient = op.unused, op.gradient
        updates = [UNTOUCHED if i in unused else rule.update(s, gradient) for i, s in enumerate(slots)]
        return UpdateLists.of(slots, updates)

    def _prepared_rows(self, op: HessianOperator, Y: Tensor, lists: UpdateLists) -> Callable[[], Tensor]:
        """All products first, then all updates: the products of other columns do not see what is written."""
        updates = lists.vectors, lists.slots, lists.coefficients
        project_ = self._projection(op)
        sweep = op.native_sweep() if project_ is None else None
        if sweep is not None:
            return lambda: _ops.tangent_update_(Y, None, *sweep.args, *updates).sum(0)
        moves = project_ is not None and self.jacobian == "true"
        width = max(Y.shape[1], 1) if moves else op.block_columns()
        products: list[tuple[Tensor, Tensor]] = []
        for i in range(0, Y.shape[1], width):
            block = Y[:, i : i + width]
            HY = op @ block[: op.space.size]
            if project_ is not None:
                project_(HY)
            HY = self._moving(op, block[: op.space.size], HY) if moves else HY
            products.append((block, HY))

        def update_() -> Tensor:
            squares = [_ops.tangent_update_(block, HY, [], [], [], [], *updates).sum(0) for block, HY in products]
            return torch.cat([Y.new_zeros(0), *squares])

        return update_

    def _projection(self, op: HessianOperator) -> Callable[[Tensor], None] | None:
        if self._projected is None:
            return None
        project_ = self._projected.tangent_projection(op)
        if self.jacobian == "true" and project_ is None:
            self.gap = 0.0
        return project_

    def _moving(self, op: HessianOperator, Y: Tensor, frozen: Tensor) -> Tensor:
        """The derivative of the projected gradient along Y with the projector's own, for that without."""
        true = differences(cast(Projected, self._projected), op, Y)
        scale = float(frozen.norm())
        self.gap = float((true - frozen).norm()) / scale if scale else 0.0
        return true

    def check(self, space: ParameterSpace) -> None:
        """Raises ValueError unless theta is made of exactly the parameters that this optimizer trains, and did."""
        require_same(space, self._trained(), self._params, self._counts)

    def units(self, op: HessianOperator) -> Units:
        """Constants c, per parameter in theta order, that keep the map well conditioned: (theta, lr v) for momentum.

        For Adam (theta, lr m / r, lr v / r^2), with r the root mean square of the gradient.

        Args:
            op: of the run's first batch.

        Returns:
            For each parameter the c of each of its buffers: a deviation y in Y stands for y / c in the buffer's units.

        Raises:
            ValueError: an operator of another model, options out of range.
        """
        self.check(op.space)
        self._require_numbers()
        if self._rule is None:
            return [(1.0,) * self._counts[p] for p in op.space.params]
        rms = float(op.gradient.double().square().mean().sqrt())
        groups = self._groups()
        return [self._rule.units(groups[id(p)], rms)[: self._counts[p]] for p in op.space.params]

    def _require_numbers(self) -> None:
        if self._rule is not None:
            for group in self.opt.param_groups:
                self._rule.require_numbers(group)

    def _trained(self) -> list[Tensor]:
        return [p for g in self.opt.param_groups for p in g["params"] if p.requires_grad]

    def _groups(self) -> dict[int, dict[str, Any]]:
        return {id(p): g for g in self.opt.param_groups for p in g["params"]}

    def _layout_for(self, op: HessianOperator) -> Layout:
        """Where each parameter's rows are: made once for the operators of one model, and checked against it."""
        if not isinstance(op, HessianOperator):
            raise TypeError(f"op: expected a HessianOperator, got {type(op).__name__}")
        known = self._layout
        if known is None or not known.fits(op.space) or len(self._counts) != len(self._groups()):
            self.check(op.space)
            known = self._layout = Layout.of(op.space, self._counts)
        return known

    def _slots(self, op: HessianOperator, layout: Layout, units: Units | None) -> list[Slot]:
        groups, state = self._groups(), self.opt.state
        if units is None:
            units = [(1.0,) * len(own) for own in layout.buffers]
        places = zip(op.space.params, layout.theta, layout.buffers, units, strict=True)
        return [Slot(p, groups[id(p)], state.get(p, {}), theta, own, c) for p, theta, own, c in places]
