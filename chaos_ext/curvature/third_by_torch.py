"""D3 L[v, v, .] of any loss by torch: backward three times, through normalisation as plain arithmetic."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from ..base.guards import twice_differentiable
from ..base.torch_internals import entered
from ..errors import ChaosExtError, NonFiniteError, UnsupportedError
from .composed_norms import ComposedNorms
from .functional import FunctionalEngine
from .products import require_same_gradient
from .scalar import first_line
from .third_trust import agrees, unchecked, wrong

Product = Callable[[Tensor, Tensor], Tensor]  # H(theta) v of theta [P] and v [P]


class ThirdByTorch(FunctionalEngine):
    """A loss with third derivatives.

    ``path`` has to be the way that gives its products rightly.
    """

    @property
    def holds_parameters(self) -> bool:
        """Whether the loss reads the Parameter objects themselves, which copies cannot replace."""
        return self._captured

    @twice_differentiable
    def third(self, v: Tensor, theta: Tensor | None = None) -> Tensor:
        """D3 L[v, v, .] [P] for v [P], at theta (default: the parameters); not checked.

        Raises:
            UnsupportedError: autograd cannot differentiate the loss three times.
        """
        if self.holds_parameters and theta is not None:
            raise UnsupportedError("eigenvalue_gradient: the loss holds parameters itself; it cannot be moved")
        parts = [t.clone() for t in self.space.views(v)]
        at = self.space.params if theta is None else [t.clone() for t in self.space.views(theta)]
        params = [p if p.is_leaf and theta is None else p.detach() for p in at]
        params = [p if p.requires_grad else p.requires_grad_() for p in params]
        mode = entered(ComposedNorms())
        with mode, mode:
            gradient, product, found = self._substituted(params, lambda loss, _: _derivatives(loss, params, parts))
        if theta is None:
            require_same_gradient(
                self.space.flatten(gradient), self.gradient, v[None], self.space.flatten(product)[None], self.loss
            )
        return self.space.flatten(found)

    def in_double(self) -> ThirdByTorch:
        """The same in float64; itself where that cannot be."""
        twin = self.twin()
        assert isinstance(twin, ThirdByTorch)
        return twin

    def require_right(self, v: Tensor, displaced: Product | None = None) -> None:
        """Holds third derivatives against differences of products H v: of every new program once.

        Args:
            v: the direction [P].
            displaced: H(theta) v where the parameters themselves have to be moved for it.

        Raises:
            UnsupportedError: they are not the derivative of H, or differences do not settle.
        """
        known = _checked.setdefault(self.model, set())
        key = (self.key, self.path, self.seen)
        lasting = self.seen is None or not (self.seen.functions or self.seen.fragile)
        if lasting and key in known:
            return
        right = self._judged(v, displaced)
        if right is None:
            raise unchecked("the differences do not settle")
        if not right:
            raise wrong("a detach, a backward of somebody's own, a function whose third derivative torch gets wrong")
        if lasting:
            known.add(key)

    def _judged(self, v: Tensor, displaced: Product | None) -> bool | None:
        if self.holds_parameters:
            if displaced is None:
                raise unchecked("the loss holds parameters itself")
            return agrees(lambda theta: self._only_here(v, theta), lambda t: displaced(t, v), self.theta(), v)
        judge = self.in_double()
        theta = judge.theta()
        u = v.to(theta)

        def product(at: Tensor) -> Tensor:
            found = judge.product(u.unsqueeze(0), self.path, at)
            if found is None:
                raise unchecked(f"torch has no products by {self.path} in {theta.dtype}")
            return found[0]

        return agrees(lambda at: judge.third(u, at), product, theta, u)

    def _only_here(self, v: Tensor, theta: Tensor) -> Tensor:
        if not torch.equal(theta, self.theta()):
            raise unchecked("the differences do not settle, and the loss holds parameters itself")
        return self.third(v)


_checked: weakref.WeakKeyDictionary[nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()


def _derivatives(
    loss: Tensor, params: Sequence[Tensor], v: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The gradient, H v and D3 L[v, v, .], one tensor a parameter."""
    gradient = _backward(loss, params, create_graph=True)
    product = _backward(_along(gradient, v), params, create_graph=True)
    found = _backward(_along(product, v), params, create_graph=False)
    return [t.detach() for t in gradient], [t.detach() for t in product], found


def _along(parts: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    return torch.stack([(p * t).sum() for p, t in zip(parts, v, strict=True)]).sum()


def _backward(scalar: Tensor, params: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
    zeros = [torch.zeros_like(p, requires_grad=False) for p in params]
    if not scalar.requires_grad:
        return zeros
    try:
        parts = torch.autograd.grad(scalar, params, create_graph=create_graph, allow_unused=True)
    except (torch.OutOfMemoryError, ChaosExtError):
        raise
    except RuntimeError as e:
        raise UnsupportedError(
            f"eigenvalue_gradient: autograd cannot differentiate the loss three times: {first_line(e)}"
        ) from e
    if any(p is not None and not bool(torch.isfinite(p).all()) for p in parts):
        raise NonFiniteError("eigenvalue_gradient: torch's derivatives are NaN or inf on this batch")
    return [z if p is None else p for z, p in zip(zeros, parts, strict=True)]
