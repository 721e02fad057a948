"""Losses as functions of the logits: value, gradient and Hessian-vector product with respect to z [N, C].

Cross-entropy is sum_nc t_nc (logsumexp(z_n) - z_nc) with target weights t that already hold class weights, smoothing
and the normaliser; its Hessian is s_n (diag p_n - p_n p_n^T), s_n = sum_c t_nc, for every option of torch's loss.

Sums of one function of each output have a diagonal Hessian: the squared error (z - y)^2 has 2, and binary cross-entropy
w (q y softplus(-z) + (1 - y) softplus(z)), with weight w, pos_weight q and p = sigmoid(z), w (q y + 1 - y) p (1 - p).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _ops
from ..base.code import Code
from ..base.torch_internals import has_hooks
from ..errors import NonFiniteError
from .rule import NotLayerwise


class Evaluated(Protocol):
    """A loss at one z: ``loss`` [], ``delta`` = dloss/dz, and d(delta) = (d2 loss/dz2) dz for dz [*z.shape, k]."""

    loss: Tensor
    delta: Tensor

    def tangent(self, dz: Tensor) -> Tensor: ...


@runtime_checkable
class ThirdDerivative(Protocol):
    """An evaluated loss that has (d3 loss/dz3)[dz, dz, .] for dz [*z.shape], or None where it is not known."""

    def third(self, dz: Tensor) -> Tensor | None: ...


class Labels(NamedTuple):
    """Target weights t [rows, C] of class indices y [rows]: ``own`` at the row's class and ``others`` elsewhere."""

    y: Tensor
    own: float
    others: float


class SoftmaxLoss:
    """Cross-entropy at z [N, C, ...] with target weights t [rows, C], one row for each sample and position."""

    def __init__(self, z: Tensor, t: Tensor | Labels) -> None:
        rows = class_last(z)
        flat = (z if z.dim() == 2 else rows.reshape(-1, z.shape[1])).contiguous()
        if isinstance(t, Labels):
            self.loss, delta, self.p = _ops.cross_entropy_labels(flat, *t)
        else:
            self.loss, delta, self.p = _ops.cross_entropy(flat, t)
        self.delta = delta if z.dim() == 2 else delta.view(rows.shape).movedim(-1, 1)
        self._t = t

    @functools.cached_property
    def s(self) -> Tensor:
        """Sums of the target weights of each row."""
        if isinstance(self._t, Tensor):
            return self._t.sum(1)
        n, classes = self.p.shape
        return self.p.new_full((n,), self._t.own + (classes - 1) * self._t.others)

    def tangent(self, dz: Tensor) -> Tensor:
        rows = dz.movedim(1, -2)
        flat = rows.reshape(*self.p.shape, dz.shape[-1]).contiguous()
        return _ops.cross_entropy_tangent(self.p, self.s, flat).view(rows.shape).movedim(-2, 1)

    def third(self, dz: Tensor) -> Tensor:
        """s_n p_c (q_c^2 - mean q^2), q = dz - mean dz, means over p; at the largest p minus the sum of the others."""
        rows, p = class_last(dz), self.p
        u, top = rows.reshape(p.shape), p.argmax(1, keepdim=True)
        u = u - u.gather(1, top)
        q = (u - (p * u).sum(1, keepdim=True)).square()
        found = (p * (q - (p * q).sum(1, keepdim=True))).scatter(1, top, 0.0)
        found = found.scatter(1, top, -found.sum(1, keepdim=True)) * self.s.unsqueeze(1)
        return found.view(rows.shape) if dz.dim() == 2 else found.view(rows.shape).movedim(-1, 1)


def class_last(z: Tensor) -> Tensor:
    """[N, C, ...] as [N, ..., C]."""
    return z if z.dim() == 2 else z.movedim(1, -1)


class ElementwiseLoss:
    """A sum over outputs of one function of each: the Hessian with respect to z is diagonal.

    Args:
        loss, delta: as of ``Evaluated``.
        curvature: the second derivative of each output's function.
        bend: gives the third one, when asked; None: not known.
    """

    def __init__(
        self, loss: Tensor, delta: Tensor, curvature: Tensor | float, bend: Callable[[], Tensor | float] | None = None
    ) -> None:
        self.loss, self.delta, self.curvature, self._bend = loss, delta, curvature, bend

    def tangent(self, dz: Tensor) -> Tensor:
        return dz * (self.curvature if isinstance(self.curvature, float) else self.curvature.unsqueeze(-1))

    def third(self, dz: Tensor) -> Tensor | None:
        """As of ``ThirdDerivative``; None where it is not known."""
        return None if self._bend is None else dz.square() * self._bend()


LossRule = Callable[[Tensor, Tensor], Evaluated]

_FUNCTIONAL: dict[object, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}


def as_module(loss_fn: Any, modules: Mapping[object, type[nn.Module]] = _FUNCTIONAL) -> Any:
    """torch.nn.functional losses (also in functools.partial with keywords) as the module they equal."""
    function, keywords = loss_fn, {}
    if isinstance(loss_fn, functools.partial) and not loss_fn.args:
        function, keywords = loss_fn.func, loss_fn.keywords
    cls = next((module for known, module in modules.items() if known is function), None)
    if cls is None or not set(keywords) <= set(cls.__init__.__annotations__) - {"return"}:
        return loss_fn
    return cls(**keywords)


def rule_for(loss_fn: Any) -> LossRule | None:
    """The rule of a loss that we know, or None; a known loss that is not a scalar is refused."""
    if type(loss_fn) not in _RULES:
        loss_fn = as_module(loss_fn)
    rule = _RULES.get(type(loss_fn))
    if rule is None or has_hooks(loss_fn) or "forward" in vars(loss_fn) or _is_replaced(type(loss_fn)):
        return None
    if loss_fn.reduction not in ("mean", "sum"):
        raise ValueError(f"loss_fn: expected reduction 'mean' or 'sum', got {loss_fn.reduction!r}; H needs a scalar")
    return functools.partial(rule, loss_fn)


def _need_shape(y: Tensor, expected: torch.Size, what: str) -> None:
    if y.shape != expected:
        raise ValueError(f"y: expected {what} of shape {tuple(expected)}, got {tuple(y.shape)}")


def _cross_entropy(loss_fn: nn.CrossEntropyLoss, z: Tensor, y: Tensor) -> Evaluated:
    if not isinstance(y, Tensor):
        raise TypeError(f"y: expected a tensor of class indices or probabilities, got {type(y).__name__}")
    if z.dim() < 2:
        raise NotLayerwise("cross-entropy of one sample without a batch axis")
    classes = z.shape[1]
    w = None if loss_fn.weight is None else loss_fn.weight.detach().to(z)
    if w is not None and w.shape != (classes,):
        raise ValueError(f"loss_fn.weight: expected shape ({classes},), got {tuple(w.shape)}")
    make = _probability_targets if y.is_floating_point() else _index_targets
    return SoftmaxLoss(z, make(loss_fn, z, y, w))


def _index_targets(loss_fn: nn.CrossEntropyLoss, z: Tensor, y: Tensor, w: Tensor | None) -> Tensor | Labels:
    """t = ((1 - eps) w_y onehot + (eps / C) w) / sum_n w_{y_n}; zero rows where y is ignored."""
    shape, classes = class_last(z).shape[:-1], z.shape[1]
    _need_shape(y, shape, "class indices")
    if y.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"y: expected class indices of dtype int64, got {y.dtype}")
    y = y.long() if y.dim() == 1 else y.long().reshape(-1)
    low, high = _range(y)
    if w is not None or not 0 <= low <= high < classes or low <= loss_fn.ignore_index <= high:
        return _masked_targets(loss_fn, z, y, z.new_ones(classes) if w is None else w)
    scale = 1 / y.numel() if loss_fn.reduction == "mean" else 1.0
    others = loss_fn.label_smoothing / classes
    return Labels(y.contiguous(), (1 - loss_fn.label_smoothing + others) * scale, others * scale)


def _range(y: Tensor) -> tuple[int, int]:
    """The smallest and largest label; (0, -1) of none."""
    if y.numel() <= 256:
        labels = y.tolist()
        return min(labels, default=0), max(labels, default=-1)
    low, high = torch.aminmax(y)
    return int(low), int(high)


def _masked_targets(loss_fn: nn.CrossEntropyLoss, z: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """With class weights w [C], rows that may be ignored, and indices that may be wrong."""
    n, classes = len(y), z.shape[1]
    kept = y != loss_fn.ignore_index
    if not bool(((y >= 0) & (y < classes) | ~kept).all()):
        raise ValueError(f"y: expected class indices in [0, {classes}), got {int(y.min())} to {int(y.max())}")
    safe = torch.where(kept, y, 0)
    row_weight = w[safe] * kept
    eps = loss_fn.label_smoothing
    t = z.new_zeros(n, classes).scatter_(1, safe.unsqueeze(1), ((1 - eps) * row_weight).unsqueeze(1))
    if eps:
        t += (eps / classes) * w * kept.unsqueeze(1)
    if loss_fn.reduction == "mean":
        norm = row_weight.sum()
        if not bool(norm > 0):
            raise NonFiniteError("loss: the mean over rows is 0/0, every row is ignored or has weight 0")
        t /= norm
    return t


def _probability_targets(loss_fn: nn.CrossEntropyLoss, z: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    """t = w q / N, q = (1 - eps) y + eps / C."""
    _need_shape(y, z.shape, "class probabilities")
    if loss_fn.ignore_index >= 0:
        raise ValueError("loss_fn.ignore_index: not defined for class probabilities; expected the default")
    classes, eps = z.shape[1], loss_fn.label_smoothing
    q = class_last(y.detach().to(z.dtype)).reshape(-1, classes)
    if eps:
        q = (1 - eps) * q + eps / classes
    t = q if w is None else q * w
    return (t / len(t) if loss_fn.reduction == "mean" else t).contiguous()


def _check_floating_target(z: Tensor, y: Tensor) -> None:
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise TypeError(f"y: expected a floating point tensor, got {getattr(y, 'dtype', type(y).__name__)}")
    _need_shape(y, z.shape, "targets")


def _mse(loss_fn: nn.MSELoss, z: Tensor, y: Tensor) -> Evaluated:
    _check_floating_target(z, y)
    scale = 1.0 / z.numel() if loss_fn.reduction == "mean" else 1.0
    loss, delta = _ops.mse(z.contiguous(), y.detach().to(z.dtype).contiguous(), scale)
    return ElementwiseLoss(loss, delta, 2 * scale, lambda: 0.0)


def _bce(loss_fn: nn.BCEWithLogitsLoss, z: Tensor, y: Tensor) -> Evaluated:
    _check_floating_target(z, y)
    empty = z.new_empty(0)

    def expanded(name: str) -> Tensor:
        w = getattr(loss_fn, name)
        if w is None:
            return empty
        try:
            return w.detach().to(z).expand_as(z).contiguous()
        except RuntimeError:
            raise ValueError(
                f"loss_fn.{name}: expected a shape that broadcasts to {tuple(z.shape)}, got {tuple(w.shape)}"
            ) from None

    scale = 1.0 / z.numel() if loss_fn.reduction == "mean" else 1.0
    target = y.detach().to(z.dtype).contiguous()
    weights = expanded("weight"), expanded("pos_weight")
    loss, delta, curvature = _ops.bce_with_logits(z.contiguous(), target, *weights, scale)
    return ElementwiseLoss(loss, delta, curvature, lambda: -torch.tanh(z / 2) * curvature)


_RULES: dict[type, Callable[..., Evaluated]] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.MSELoss: _mse,
    nn.BCEWithLogitsLoss: _bce,
}
_CODE = {cls: Code([cls]) for cls in _RULES}


def _is_replaced(cls: type) -> bool:
    """Whether somebody has replaced a function that torch's loss runs."""
    code = _CODE[cls]
    return code.replaced is not None or not code.is_same()
