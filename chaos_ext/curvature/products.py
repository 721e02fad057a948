"""H v of a scalar function of several tensors, by torch's own transformations: the two ways there are.

Parameters and tangents stay tensors of their own: views of one flat vector begin at odd offsets, where a complex view,
for one, cannot. Tangents carry their k columns first, as torch's batched derivatives want them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from ..base.signals import Deferred
from ..errors import StaleOperatorError, UnsupportedError
from .scalar import first_line

Parts = tuple[Tensor, ...]


def forward_over_reverse(loss_at: Callable[..., Tensor], params: Parts, tangents: Parts) -> tuple[Parts, Parts]:
    """vmap of jvp of grad: the gradient that it is the derivative of, and the products.

    Args:
        loss_at: of all parameters, a scalar.
        params: the point.
        tangents: [k, *shape] for each parameter.

    Returns:
        [*shape] and [k, *shape] for each parameter.
    """
    gradient = grad(loss_at, argnums=tuple(range(len(params))))
    both = vmap(lambda *t: jvp(gradient, params, t), randomness="error")(*tangents)
    return tuple(g[0] for g in both[0]), both[1]


def double_backward(loss: Tensor, params: Sequence[Tensor], cotangents: Parts) -> tuple[Parts, Parts]:
    """Reverse over reverse, all columns at once, or one by one where torch cannot batch them; the gradient first.

    Args:
        loss: a scalar with its graph.
        params: the leaves that it was computed from.
        cotangents, returns: as in ``forward_over_reverse``.

    Raises:
        UnsupportedError: autograd cannot differentiate it twice.
    """
    k = len(cotangents[0])
    zero, flat = tuple(p.new_zeros(k, *p.shape) for p in params), tuple(torch.zeros_like(p) for p in params)
    if not loss.requires_grad:
        return flat, zero
    gradient = _grad([loss], params, None, create_graph=True)
    found = tuple(z if g is None else g.detach() for z, g in zip(flat, gradient, strict=True))
    places = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
    if not places:
        return found, zero
    outputs, own = [gradient[i] for i in places], [cotangents[i] for i in places]
    parts = _batched(outputs, params, own)
    return found, tuple(z if t is None else t for z, t in zip(zero, parts, strict=True))


def _batched(outputs: Sequence[Tensor | None], params: Sequence[Tensor], seeds: Sequence[Tensor]) -> Sequence[Tensor]:
    try:
        return _grad(outputs, params, seeds, retain_graph=True, is_grads_batched=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        each = [_grad(outputs, params, [s[i] for s in seeds], retain_graph=True) for i in range(len(seeds[0]))]
        return [None if ts[0] is None else torch.stack(ts) for ts in zip(*each, strict=True)]  # type: ignore[misc]


def _grad(
    outputs: Sequence[Tensor | None], params: Sequence[Tensor], seeds: Sequence[Tensor] | None, **options: bool
) -> Sequence[Tensor]:
    try:
        parts = torch.autograd.grad(outputs, params, seeds, allow_unused=True, **options)  # type: ignore[arg-type]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as e:
        raise UnsupportedError(f"model, loss_fn: autograd cannot differentiate the loss twice: {first_line(e)}") from e
    return [t.to_dense() if t is not None and t.layout != torch.strided else t for t in parts]


def require_same_gradient(now: Tensor, then: Tensor, tangents: Tensor, products: Tensor, loss: Tensor) -> None:
    """Whether H is still that of the function whose gradient an operator has; it costs no pass of its own.

    Args:
        now, then: gradients [P].
        tangents, products: v and H v [k, P], whose sizes say how large rounding may be at a minimum.
        loss: that of parameters that normalisation makes ineffective, whose gradient is nothing but rounding.

    Raises:
        StaleOperatorError: something that forward or the loss reads has changed.
    """
    eps, size = torch.finfo(then.dtype).eps, tangents.norm(dim=1).clamp_min(torch.finfo(then.dtype).tiny)
    curvature = float((products.norm(dim=1) / size).nan_to_num(posinf=0.0).amax()) if len(products) else 0.0
    limit = eps**0.5 * float(then.norm()) + 1e4 * eps * curvature + 1e2 * eps * float(loss.abs())
    if float((now - then).norm()) > limit:
        raise StaleOperatorError(
            "operator: something that the model's forward or the loss reads (an attribute, a global, a hook) changed "
            "after it was made: its gradient is another one now; make a new HessianOperator"
        )


def uncut() -> Deferred:
    """Around vmap and jvp, which Ctrl-C leaves open: the process would stay inside. A second one comes through."""
    return Deferred(insist=True)
