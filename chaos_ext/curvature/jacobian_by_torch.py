"""J and C of any module and any loss, by torch's own transformations, held against what shares no formula with them.

    J v     jvp of the output, or where torch has none (or a wrong one) twice reverse: d/dw <J^T w, v>
    J^T u   vjp of the output
    C u     double backward of the loss at the output, or a loss's rule

J^T dloss/dz has to be the gradient, and theta not in the graph of the loss at a given output, else theta enters the
loss elsewhere and J^T C J is not what is asked for. The rest is held against differences by ``jacobian_trust``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from ..base.guards import twice_differentiable
from ..base.held import held_by, unmoved
from ..base.parameters import ParameterSpace
from ..base.torch_internals import forward_mode_is_active, tree_leaves, tree_map
from ..errors import ChaosExtError, StaleOperatorError, UnsupportedError
from ..rules.losses import Evaluated, rule_for
from ..rules.rule import NotLayerwise
from .inspection import nodes_of
from .jacobian import gram_of, unit_columns
from .products import double_backward, uncut
from .roots import MatrixRoot, Root, root_of
from .scalar import Scalar, T, first_line
from .substitution import Substituted, backward

log = logging.getLogger("chaos_ext")

_CHUNK = 64  # columns at a time
_MOST_OUTPUTS = 8192  # of a loss without a known form, whose curvature is a matrix


class TorchJacobian:
    """J at the parameters that the model holds.

    Attributes:
        forward: whether J v is taken by jvp.
        space: the order of theta.

    Args:
        model, loss_fn, space, x, y: as of an operator.
        gradient: [P] of the loss, from elsewhere.

    Raises:
        UnsupportedError: an output without tensors, or a loss that depends on theta past the output.
    """

    lasting = False  # it reads the live model

    def __init__(
        self, model: nn.Module, loss_fn: Callable[..., Tensor], space: ParameterSpace, x: object, y: object,
        gradient: Tensor,
    ) -> None:  # fmt: skip
        x, y = tree_map(lambda t: t.clone() if isinstance(t, Tensor) and t.is_inference() else t, (x, y))
        self._substituted, self.space = Substituted(Scalar(model, _no_loss), space, x, None), space
        self._loss_fn, self._y, self._gradient, self._held = loss_fn, y, gradient, held_by(loss_fn)
        self.size, self.dtype, self.device, self.forward = space.size, space.dtype, space.device, True
        self._output = self._substituted(self._copies(), lambda _, output: _detached(output))
        self._leaves = [t for t in tree_leaves(self._output) if _counts(t)]
        if not self._leaves:
            raise UnsupportedError("model: expected an output with floating-point tensors, to take the curvature at")
        self.outputs = sum(t.numel() for t in self._leaves)
        self._delta = self.loss_gradient(self.output)
        self.require_same()

    @property
    def output(self) -> Tensor:
        """z [M]: all tensors of the output in a row."""
        return _flat(self._leaves)

    def _copies(self) -> list[Tensor]:
        return [p.detach().clone().requires_grad_() for p in self.space.params]

    def _at(self, theta: Tensor) -> list[Tensor]:
        return [t.clone().requires_grad_() for t in self.space.views(theta)]

    @twice_differentiable
    def output_at(self, theta: Tensor) -> Tensor:
        """z [M] at theta [P]."""
        return self._substituted(self._at(theta), lambda _, output: _flat_of(output).detach())

    def _with_loss(self, z: Tensor, run: Callable[[Tensor], T]) -> T:
        """What ``run`` makes of the loss as a function of the flat output; what the loss writes to is put back."""
        parts = zip(z.split([t.numel() for t in self._leaves]), [t.shape for t in self._leaves], strict=True)
        views = iter([part.view(shape).clone() for part, shape in parts])  # a loss may edit its arguments
        output = tree_map(lambda t: next(views) if _counts(t) else t, _detached(self._output))
        y = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, self._y)
        if not self._held:
            return run(self._loss_fn(output, y).reshape(()))
        own = unmoved(self._held)
        with own, own:
            return run(self._loss_fn(output, y).reshape(()))

    @twice_differentiable
    def loss_gradient(self, z: Tensor) -> Tensor:
        at = z.detach().clone().requires_grad_()
        (delta,) = self._with_loss(at, lambda loss: backward(loss, [at]) if loss.requires_grad else (None,))
        return torch.zeros_like(at) if delta is None else delta.detach()

    def require_same(self) -> None:
        """Raises UnsupportedError unless the gradient comes through the output alone."""
        through = self._all_pulled(self._delta.unsqueeze(1)).squeeze(1)
        if not _same(through, self._gradient) or self._loss_reads_theta():
            raise UnsupportedError(
                "loss_fn: it depends on the parameters other than through the model's output (a penalty, a parameter "
                "that it holds), so J^T C J at the output is not the curvature of this loss; return what it reads as "
                "part of the output, or use HessianOperator"
            )

    @twice_differentiable
    def _loss_reads_theta(self) -> bool:
        """A penalty may have no gradient here: that of parameters that are zero."""
        own = self.space.index
        return self._with_loss(self.output, lambda t: any(id(getattr(n, "variable", 0)) in own for n in nodes_of(t)))

    def pull(self, u: Tensor) -> Tensor:
        """J^T u, after a look whether the model still has the gradient that it had."""
        both = self._all_pulled(torch.cat([u, self._delta.unsqueeze(1)], 1))
        _require_unchanged(both[:, -1], self._gradient)
        return both[:, :-1].contiguous()

    @twice_differentiable
    def _all_pulled(self, u: Tensor) -> Tensor:
        params = self._copies()

        def pulled(_: Tensor, output: object) -> Tensor:
            z = _flat_of(output)
            if not z.requires_grad:
                return u.new_zeros(self.size, u.shape[1])
            return torch.cat([_pulled(z, params, rows) for rows in u.T.contiguous().split(_CHUNK)]).T

        return self._substituted(params, pulled).contiguous()

    @twice_differentiable
    def push(self, v: Tensor) -> Tensor:
        return self._columns(v, self._pushed)

    @twice_differentiable
    def push_in_reverse(self, v: Tensor) -> Tensor:
        """J v without jvp, as ``push`` is where ``forward`` is False."""
        return self._columns(v, self._twice_reverse)

    def _columns(self, v: Tensor, of: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        found = []
        for rows in v.T.contiguous().split(_CHUNK):
            pairs = zip(rows.split(self.space.sizes, 1), self.space.shapes, strict=True)
            found.append(of([t.reshape(len(rows), *s) for t, s in pairs]))
        return torch.cat(found).T.contiguous()

    def _pushed(self, tangents: Sequence[Tensor]) -> Tensor:
        if self.forward and not forward_mode_is_active():
            found = self._by_jvp(tangents)
            if found is not None:
                return found
        return self._twice_reverse(tangents)

    def _by_jvp(self, tangents: Sequence[Tensor]) -> Tensor | None:
        """None, and twice reverse from now on, where torch cannot."""
        at = tuple(p.detach() for p in self.space.params)

        def outputs(*params: Tensor) -> Tensor:
            return self._substituted(params, lambda _, output: _flat_of(output))

        try:
            with uncut():
                return vmap(lambda *t: jvp(outputs, at, t)[1], randomness="error")(*tangents).detach()
        except (torch.OutOfMemoryError, ChaosExtError):
            raise
        except Exception as e:  # torch raises many kinds where a transformation is not implemented
            log.warning("jvp of the output failed (%s: %s); going twice in reverse", type(e).__name__, first_line(e))
            self.forward = False
            return None

    def _twice_reverse(self, tangents: Sequence[Tensor]) -> Tensor:
        params = self._copies()

        def pushed(_: Tensor, output: object) -> Tensor:
            z = _flat_of(output)
            w = torch.zeros_like(z).requires_grad_()
            zero = z.new_zeros(len(tangents[0]), len(z))
            if not z.requires_grad:
                return zero
            parts = torch.autograd.grad(z, params, w, create_graph=True, allow_unused=True)
            pairs = [(g, t) for g, t in zip(parts, tangents, strict=True) if g is not None and g.requires_grad]
            each = [_grad_of(pairs, w, i) for i in range(len(zero))]
            return torch.stack([z.new_zeros(len(z)) if g is None else g for g in each])

        return self._substituted(params, pushed).detach()

    @cached_property
    def evaluated(self) -> Evaluated | None:
        """The loss by its rule, if it has one that fits the output."""
        rule, z, y = rule_for(self._loss_fn), self._output, self._y
        if rule is None or not isinstance(z, Tensor) or not isinstance(y, Tensor):
            return None
        try:
            return rule(z, y)
        except (NotLayerwise, TypeError, ValueError):
            return None

    @twice_differentiable
    def curve(self, u: Tensor) -> Tensor:
        if self.evaluated is not None:
            return self.evaluated.tangent(u.reshape(*self._leaves[0].shape, -1).contiguous()).reshape(u.shape)
        at = self.output.clone().requires_grad_()
        rows = (u.T.contiguous(),)
        (delta,), (found,) = self._with_loss(at, lambda loss: double_backward(loss, [at], rows))
        _require_unchanged(delta, self._delta)
        return found.T.contiguous()

    @property
    def has_root(self) -> bool:
        return self.evaluated is not None or self.outputs <= _MOST_OUTPUTS

    @cached_property
    def root(self) -> Root:
        found = None if self.evaluated is None else root_of(self.evaluated, self._leaves[0])
        if found is not None:
            return found
        if not self.has_root:
            raise UnsupportedError(
                f"loss_fn: it has no rule, and its curvature at {self.outputs} outputs is no matrix of at most "
                f"{_MOST_OUTPUTS}; use ggn @ v or spectrum(ggn, k=...)"
            )
        return MatrixRoot(torch.cat([self.curve(c) for c in unit_columns(self.outputs, self._delta, _CHUNK)], 1))

    def gram(self) -> Tensor:
        return gram_of(self, _CHUNK)


def _same(found: Tensor, gradient: Tensor) -> bool:
    eps = torch.finfo(gradient.dtype).eps
    return float((found - gradient).norm()) <= eps**0.5 * float(gradient.norm()) + eps * len(gradient) ** 0.5


def _require_unchanged(found: Tensor, gradient: Tensor) -> None:
    if not _same(found, gradient):
        raise StaleOperatorError(
            "operator: something that the model's forward or the loss reads changed after it was made: its gradient is "
            "another one now; make a new operator"
        )


def _no_loss(output: object, y: object) -> Tensor:
    """In the loss's place: it might edit the output."""
    return torch.zeros((), dtype=torch.float64, device="cpu")


def _counts(t: Any) -> bool:
    """Whether it is a part of z."""
    return isinstance(t, Tensor) and t.is_floating_point()


def _detached(output: object) -> object:
    return tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, output)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in parts])


def _flat_of(output: object) -> Tensor:
    return _flat([t for t in tree_leaves(output) if _counts(t)])


def _pulled(z: Tensor, params: Sequence[Tensor], rows: Tensor) -> Tensor:
    """u^T J [k, P] for cotangents [k, M]; one by one where torch cannot batch them."""

    def gradients(u: Tensor, batched: bool) -> Sequence[Tensor | None]:
        return torch.autograd.grad(z, params, u, retain_graph=True, allow_unused=True, is_grads_batched=batched)

    try:
        parts = gradients(rows, True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        each = [gradients(u, False) for u in rows]
        parts = [None if ts[0] is None else torch.stack(list(ts)) for ts in zip(*each, strict=True)]
    k = len(rows)
    full = [rows.new_zeros(k, p.numel()) if g is None else g for g, p in zip(parts, params, strict=True)]
    return torch.cat([g.reshape(k, -1) for g in full], 1).detach()


def _grad_of(pairs: Sequence[tuple[Tensor, Tensor]], w: Tensor, i: int) -> Tensor | None:
    """d/dw of the sum of <g, t_i> over the pairs."""
    if not pairs:
        return None
    outputs, seeds = [g for g, _ in pairs], [t[i] for _, t in pairs]
    return torch.autograd.grad(outputs, w, seeds, retain_graph=True, allow_unused=True)[0]
