"""Hessians of any nn.Module and any scalar loss: chunked forward-over-reverse, double backward where that fails.

Reverse mode is never the outer transform's inner jacobian: ``vmap`` of ``jvp`` of ``grad`` only.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from ..base import memory
from ..base.guards import AutocastInside, refuse_edits, twice_differentiable
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.randomness import without_randomness
from ..base.restoring import Restoring
from ..base.tensors import all_finite, asymmetry, symmetrize_
from ..base.torch_internals import entered, forward_mode_is_active, tree_leaves, tree_map
from ..errors import ChaosExtError, NonFiniteError
from .dense import not_finite
from .differences import Derivative
from .examination import program_of
from .inspection import PADDING, Constants, Seen, Watch, look, reentrant_checkpoint, watched
from .products import Parts, double_backward, forward_over_reverse, require_same_gradient, uncut
from .scalar import Scalar, first_line, in_double
from .substitution import Substituted, backward
from .trust import DOUBLE_BACKWARD, JVP_OF_GRAD, choose_path, differences, moves_held_rows

log = logging.getLogger("chaos_ext")
_MAX_CHUNK = 1024
_CHUNK_BYTES = 1 << 29


class FunctionalEngine:
    """Loss, gradient and Hessian of loss_fn(model(x), y) with respect to theta, without rules for its layers.

    Args:
        path: JVP_OF_GRAD or DOUBLE_BACKWARD; default: the first, unless the loss holds on to parameters.
        check: hold torch's derivatives against differences; without, the caller does.

    Attributes:
        path: the way that products take now: DOUBLE_BACKWARD once the other has failed.
        seen: the graph of the loss, or None if it depends on no parameter.
        loss: detached scalar.
        gradient: [P].
        unused: places of the parameters that the loss does not depend on.
        output: what the model returned, detached.
        loss_writes: whether calling the loss leaves something behind, which was put back.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        space: ParameterSpace,
        x: object,
        y: object,
        path: str | None = None,
        check: bool = True,
    ) -> None:
        # Tensors made in inference mode cannot be saved for backward; their copies can.
        x, y = tree_map(lambda t: t.clone() if isinstance(t, Tensor) and t.is_inference() else t, (x, y))
        self.space, self._x, self._y, self.model = space, x, y, model
        self.seen: Seen | None = None
        self._substituted = Substituted(Scalar(model, loss_fn), space, x, y)
        self.loss, self.output, self.gradient, captured = self._first_pass()
        self.loss_writes = self._substituted.loss_writes
        if not (torch.isfinite(self.loss) and torch.isfinite(self.gradient).all()):
            raise NonFiniteError("loss: the loss or its gradient is NaN or inf on this batch")
        self._forced = path
        self.path = path or (DOUBLE_BACKWARD if captured else JVP_OF_GRAD)
        self._probed, self._captured = False, captured
        self._program = program_of(self) if check else None

    @twice_differentiable
    def _first_pass(self) -> tuple[Tensor, object, Tensor, bool]:
        """Loss, output and gradient; and whether the loss reads the Parameter objects past the substitution.

        Under ``torch.no_grad`` or ``inference_mode`` too: the caller's mode must not turn the gradient into zero.
        """
        copies = [p.detach().clone().requires_grad_() for p in self.space.params]

        def look_first(loss: Tensor, output: object) -> tuple[Tensor, object, Tensor, bool]:
            self.seen = look(loss) if loss.requires_grad else None
            if self.seen is not None and self.seen.reentrant:
                raise reentrant_checkpoint()
            shown = output.detach() if isinstance(output, Tensor) else output
            return loss.detach(), shown, *self._gradient(loss, copies)

        def run() -> tuple[Tensor, object, Tensor, bool]:
            mode = entered(AutocastInside(self.space.device))
            constants = ModuleTree(self.model, self.space.block).frozen()
            refused = refuse_edits([*zip(self.space.names, copies, strict=True), *constants])
            with mode, mode, refused, refused:
                found = self._substituted(copies, look_first)
                return self._substituted(copies, look_first) if self._substituted.replaces(self.seen) else found

        return without_randomness(run, self.model, self.space.device)

    def _gradient(self, loss: Tensor, copies: Sequence[Tensor]) -> tuple[Tensor, bool]:
        """The gradient [P] at the copies, and whether the loss reads the Parameter objects past the substitution."""
        self.unused = frozenset(range(len(copies)))
        if not loss.requires_grad:
            return torch.zeros_like(self.theta()), False
        parts = backward(loss, [*copies, *self.space.params])
        parts = tuple(g.to_dense() if g is not None and g.layout != torch.strided else g for g in parts)
        inner, outer = parts[: len(copies)], parts[len(copies) :]
        self.unused = frozenset(i for i in self.unused if inner[i] is None and outer[i] is None)
        total = [
            sum((t for t in (a, b) if t is not None), torch.zeros_like(p))
            for a, b, p in zip(inner, outer, self.space.params, strict=True)
        ]
        return self.space.flatten(total).detach(), any(g is not None for g in outer)

    def theta(self) -> Tensor:
        return self.space.flatten([p.detach() for p in self.space.params])

    def _loss_at(self, *params: Tensor) -> Tensor:
        return self._substituted(params, lambda loss, _: loss)

    def hvp(self, v: Tensor) -> Tensor:
        """H v for v [P, k], in chunks that respect the memory budget."""
        self._probe()
        out = torch.empty_like(v)
        chunk = self._chunk()
        for i in range(0, v.shape[1], chunk):
            out[:, i : i + chunk] = self._rows(v[:, i : i + chunk].T.contiguous()).T
        return out

    def block_columns(self, dtype: torch.dtype) -> int:
        """Columns that are differentiated at a time."""
        return self._chunk()

    @twice_differentiable
    def _probe(self) -> None:
        """Chooses the path that is right: some of torch's second derivatives are not."""
        if self._program is not None and not self._probed:
            self.path = choose_path(self, self._program)
        self._probed = True

    @property
    def apart(self) -> str | None:
        """How forward cuts what the gradient changes with, so that H is not its derivative; see ``Program``."""
        self._probe()
        if self._program is not None and self._program.stops == PADDING and moves_held_rows(self.twin()):
            return PADDING
        return None if self._program is None else self._program.apart

    @property
    def custom(self) -> str | None:
        """What may give it gradients that are not derivatives on another batch, by name."""
        return None if self._program is None else self._program.custom

    @property
    def key(self) -> Hashable:
        """What engines of one program have in common, beside their graph."""
        tensors = [t for t in tree_leaves((self._x, self._y)) if isinstance(t, Tensor)]
        modes = tuple(m.training for m in self.model.modules())
        like = [(t.shape, t.dtype) for t in (*self.space.params, *tensors)]
        return self._forced, self.space.block, self.space.device, modes, *like

    def twin(self) -> FunctionalEngine:
        """The same on copies in float64, which leave room for differences; itself where there is no such copy."""
        if self.space.dtype == torch.float64 or self._captured:
            return self
        try:
            model, loss, x, y = copy.deepcopy((self.model, self._substituted.scalar.loss_fn, self._x, self._y))
            loss = loss.double() if isinstance(loss, nn.Module) else loss
            space = ParameterSpace.of(ModuleTree(model.double(), self.space.block))
            twin = type(self)(model, loss, space, in_double(x), in_double(y), self.path, check=False)
        except Exception:  # whatever the user's modules raise on being copied, or in float64
            return self
        return twin if torch.allclose(twin.gradient.float(), self.gradient, 1e-2, 1e-4) else self

    @twice_differentiable
    def watched(self) -> Watch:
        """What one run of the loss does to the graph."""
        copies = [p.detach().clone().requires_grad_() for p in self.space.params]
        return watched(lambda: self._loss_at(*copies), () if self.seen is None else self.seen.functions)

    def _displaced(self, theta: Tensor) -> Restoring[None]:
        """The parameters themselves hold theta, for a loss that holds on to them."""
        if not self._captured:
            return Restoring(lambda: None, lambda: None)
        before = self.theta()
        return Restoring(lambda: self.space.write_(theta), lambda: self.space.write_(before))

    @twice_differentiable
    def loss_at(self, theta: Tensor, run: Callable[[Callable[[], Tensor]], Tensor] | None = None) -> Tensor:
        """The loss, detached; of a forward that takes derivatives itself too, which needs a graph."""
        at = self._displaced(theta)
        with at, at:
            params = [t.requires_grad_() for t in self._at(theta)]
            return (self._loss_at(*params) if run is None else run(lambda: self._loss_at(*params))).detach()

    @twice_differentiable
    def own_loss(self) -> Tensor:
        """The loss with the parameters themselves in their places."""
        return self._loss_at(*self.space.params).detach()

    def with_constants(self) -> Callable[[Tensor], Tensor]:
        """The loss as a function of theta to which what forward takes out of the graph is constant."""
        constants = Constants(() if self.seen is None else self.seen.functions)
        self.loss_at(self.theta(), constants.run)
        return lambda theta: self.loss_at(theta, constants.run)

    @twice_differentiable
    def gradient_at(self, theta: Tensor) -> Tensor:
        """Its gradient [P]."""
        at, copies = self._displaced(theta), [t.requires_grad_() for t in self._at(theta)]
        with at, at:
            return self._substituted(copies, lambda loss, _: self._gradient(loss, copies)[0])

    def change_of_gradient(self, v: Tensor) -> Derivative | None:
        """The derivative of the gradient along v [P] by differences, or None where these would mislead."""
        program = self._program
        misleads = program is None or (program.stops is not None and program.doubt is None)
        return None if misleads else differences(self.twin(), v)

    def product(self, v: Tensor, path: str, theta: Tensor | None = None) -> Tensor | None:
        """H v for v [k, P], one tangent a row, or None where torch has no such path."""
        before, self.path = self.path, path
        try:
            found = self._rows(v, theta)
            return found if self.path == path else None
        finally:
            self.path = before

    def dense_(self, out: Tensor) -> None:
        """Fills out [P, P] with H, exactly symmetric."""
        self._probe()
        self._fill(out)
        if asymmetry(out) > _asymmetry_limit(out.dtype) and self.path != DOUBLE_BACKWARD:
            log.warning("forward-over-reverse gave an asymmetric Hessian; computing it by double backward instead")
            self.path = DOUBLE_BACKWARD
            self._fill(out)
        symmetrize_(out)  # what is left after the comparison of the first products is rounding

    def _fill(self, out: Tensor) -> None:
        chunk = self._chunk()
        for i in range(0, len(out), chunk):
            rows = min(chunk, len(out) - i)
            eye = torch.zeros(rows, len(out), dtype=out.dtype, device=out.device)
            eye[:, i : i + rows].fill_diagonal_(1)
            out[i : i + rows] = self._rows(eye)
            if not all_finite(out[i : i + rows]):
                raise NonFiniteError(not_finite("H"))

    def _chunk(self) -> int:
        """Columns at once: parameters, and the activations of the pass, are held a few times per column."""
        size = self.space.size * self.space.dtype.itemsize
        batch = sum(t.numel() * t.element_size() for t in (self._x, self.output) if isinstance(t, Tensor))
        fit = min(_CHUNK_BYTES, memory.available_bytes(self.space.device) // 4) // (4 * size + 32 * batch + 1)
        return max(1, min(_MAX_CHUNK, self.space.size, fit))

    @twice_differentiable  # CGD.step, for one, runs under no_grad
    def _rows(self, v: Tensor, theta: Tensor | None = None) -> Tensor:
        """H v for v [k, P], one tangent a row, at theta (default: the parameters)."""
        tangents = tuple(self._separate(v))
        at = self.space.params if theta is None else self._at(theta)
        forward = self.path == JVP_OF_GRAD and not forward_mode_is_active()
        found = self._forward_over_reverse(at, tangents) if forward else None
        if found is None:
            # The parameters themselves, not copies: a loss may hold on to them.
            params = [p if p.is_leaf and theta is None else p.detach().requires_grad_() for p in at]
            with uncut():
                found = self._substituted(params, lambda loss, _: double_backward(loss, params, tangents))
        products = torch.cat([t.detach().reshape(len(v), -1) for t in found[1]], 1)
        if theta is None:
            now = self.space.flatten([g.detach() for g in found[0]])
            require_same_gradient(now, self.gradient, v, products, self.loss)
        return products

    def _separate(self, v: Tensor) -> list[Tensor]:
        """Rows v [k, P] as tensors [k, *shape] with memory of their own."""
        parts = v.split_with_sizes(self.space.sizes, 1)
        return [t.clone().view(len(v), *s) for t, s in zip(parts, self.space.shapes, strict=True)]

    def _at(self, theta: Tensor) -> list[Tensor]:
        """theta [P] as one tensor a parameter."""
        return [t[0] for t in self._separate(theta.unsqueeze(0))]

    def _forward_over_reverse(self, at: Sequence[Tensor], tangents: Parts) -> tuple[Parts, Parts] | None:
        """None, and double backward from now on, where torch cannot."""
        try:
            with uncut():
                return forward_over_reverse(self._loss_at, tuple(p.detach() for p in at), tangents)
        except (torch.OutOfMemoryError, ChaosExtError):
            raise
        except Exception as e:  # torch and compilers raise many kinds where a transformation is not implemented
            log.warning("forward-over-reverse failed (%s: %s); using double backward", type(e).__name__, first_line(e))
            self.path = DOUBLE_BACKWARD
            return None


def _asymmetry_limit(dtype: torch.dtype) -> float:
    return 1e-3 if dtype == torch.float32 else 1e-8
