"""How the losses of several batches make up the loss of all their samples at once.

A mean is a sum over its terms divided by a normaliser n: the number of outputs, of rows, of rows that are not ignored,
the sum of their class weights. The mean over the union is sum_b n_b L_b / sum_b n_b, a sum over it sum_b L_b.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.torch_internals import has_hooks, tree_leaves
from ..errors import UnsupportedError
from ..rules.losses import as_module

Weight = Callable[[Any, Any], Any] | str


def _elements(loss_fn: Any, output: Tensor, y: Tensor) -> float:
    """Of a loss of each output: as many as output and target have together."""
    return float(torch.broadcast_shapes(output.shape, y.shape).numel())


def _outputs(loss_fn: Any, output: Tensor, y: Tensor) -> float:
    return float(output.numel())


def _rows(loss_fn: Any, output: Tensor, y: Tensor) -> float:
    """Of a loss of each row of classes, which are the last axis."""
    return float(output.shape[:-1].numel())


def _divergence(loss_fn: nn.KLDivLoss, output: Tensor, y: Tensor) -> float:
    """Of "batchmean": "mean" is not the same in every version of torch (``_known``)."""
    return float(len(output))


def _classes(loss_fn: Any, output: Tensor, y: Tensor) -> float:
    """Of rows of classes (the second axis): those that are not ignored by their class weights, or all."""
    if y.is_floating_point():
        return float(output.numel() // output.shape[min(1, output.dim() - 1)])
    labels = y.long()  # of bytes, -100 is 156
    kept = labels[labels != loss_fn.ignore_index]
    if loss_fn.weight is None:
        return float(kept.numel())
    return float(loss_fn.weight.detach().to(y.device)[kept].double().sum())


_NORMALISERS: dict[type, Callable[[Any, Tensor, Tensor], float]] = {
    nn.CrossEntropyLoss: _classes,
    nn.NLLLoss: _classes,
    nn.MSELoss: _elements,
    nn.L1Loss: _elements,
    nn.SmoothL1Loss: _elements,
    nn.HuberLoss: _elements,
    nn.BCELoss: _elements,
    nn.BCEWithLogitsLoss: _elements,
    nn.PoissonNLLLoss: _elements,
    nn.KLDivLoss: _divergence,
    nn.SoftMarginLoss: _outputs,
    nn.MultiMarginLoss: _rows,
    nn.MultiLabelMarginLoss: _rows,
    nn.MultiLabelSoftMarginLoss: _rows,
}
_FUNCTIONAL: dict[object, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.kl_div: nn.KLDivLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.multilabel_margin_loss: nn.MultiLabelMarginLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
}


class Weighting:
    """The normalisers of one loss.

    Args:
        loss_fn: whose reduction counts.
        weight: None where the loss is known; "mean" over the samples of a batch, "sum", or ``weight(output, y)``, the
            normaliser of a batch.

    Attributes:
        is_sum: whether the losses of batches are added.

    Raises:
        UnsupportedError: a loss that is not known, and no weight.
        ValueError, TypeError: a weight that is none of these, or that contradicts the loss's reduction.
    """

    def __init__(self, loss_fn: Any, weight: Weight | None) -> None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn: expected a callable loss_fn(output, y), got {type(loss_fn).__name__}")
        known = _known(loss_fn)
        reduction = None if known is None else str(known.reduction)
        if reduction == "none":
            raise ValueError("loss_fn: expected reduction 'mean' or 'sum', got 'none'; H needs a scalar")
        _check(weight, loss_fn, reduction)
        self.is_sum = weight == "sum" or (weight is None and reduction == "sum")
        self._loss, self._weight = known, weight if callable(weight) else None

    def normaliser(self, x: object, output: object, y: object) -> float:
        """n of one batch; of a sum 1.

        Raises:
            ValueError: it is no finite number >= 0. TypeError: no tensors to count in.
        """
        if self.is_sum:
            return 1.0
        if self._weight is not None:
            return _number(self._weight(output, y))
        if self._loss is None:
            return _samples(x)
        if not isinstance(output, Tensor) or not isinstance(y, Tensor):
            raise TypeError("weight: expected an output and a y that are tensors, to count the terms of the mean")
        return _NORMALISERS[type(self._loss)](self._loss, output, y)

    def adds_something(self, y: object) -> bool:
        """Whether a batch with n = 0 adds to the loss of the union: smoothed labels of classes of weight 0 do."""
        smoothing = isinstance(self._loss, nn.CrossEntropyLoss) and self._loss.label_smoothing > 0
        return smoothing and isinstance(y, Tensor) and bool((y.long() != self._loss.ignore_index).any())

    def of_targets(self, y: object) -> float | None:
        """n of a batch, where y alone tells; else None."""
        alone = isinstance(y, Tensor) and not y.is_floating_point() and isinstance(self._loss, _OF_CLASSES)
        if self.is_sum or self._weight is not None or not alone:
            return None
        assert isinstance(y, Tensor)
        return _classes(self._loss, y, y)


_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)


def _known(loss_fn: Any) -> Any:
    """The loss as a module of torch's whose normaliser is known, or None."""
    module = loss_fn if type(loss_fn) in _NORMALISERS else as_module(loss_fn, _FUNCTIONAL)
    if type(module) not in _NORMALISERS or has_hooks(module) or "forward" in vars(module):
        return None
    return None if isinstance(module, nn.KLDivLoss) and module.reduction == "mean" else module


def _check(weight: Weight | None, loss_fn: Any, reduction: str | None) -> None:
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    if weight is None and reduction is None:
        raise UnsupportedError(
            f"loss_fn: whether {name} is a sum over samples or a mean, and of what, cannot be seen; pass weight='sum', "
            "weight='mean' (over the samples of a batch), or weight=f with f(output, y) the number that it divides by"
        )
    if weight is None:
        return
    if callable(weight):
        if reduction == "sum":
            raise ValueError("weight: a callable contradicts the loss, whose reduction is 'sum'; leave it out")
    elif weight not in ("mean", "sum"):
        got = repr(weight) if isinstance(weight, str) else type(weight).__name__
        raise ValueError(f"weight: expected 'mean', 'sum', a callable weight(output, y) or None, got {got}")
    elif reduction is not None and (weight == "sum") != (reduction == "sum"):
        raise ValueError(f"weight: {weight!r} contradicts the loss, whose reduction is {reduction!r}; leave it out")


def _number(value: Any) -> float:
    scalar = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(scalar, bool) or not isinstance(scalar, (int, float)) or not (0 <= scalar < math.inf):
        raise ValueError(f"weight: expected weight(output, y) to be a finite number >= 0, got {value!r}")
    return float(scalar)


def _samples(x: object) -> float:
    """How many samples a batch has: the length of the first axis of its first tensor."""
    first = next((t for t in tree_leaves(x) if isinstance(t, Tensor) and t.dim()), None)
    if first is None:
        raise TypeError("weight: 'mean' needs a tensor in x whose first axis are the samples; pass a callable")
    return float(len(first))
