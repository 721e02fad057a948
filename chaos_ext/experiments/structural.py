"""Directions in which no loss of a data set curves, whatever the parameters: in the kernel of every Hessian.

- A softmax does not see what all logits have in common: (inputs of the last layer + 1) directions.
- The first layer is only seen through its inputs (patches of them, of a convolution). Where these and a constant span
  less than their space, as where pixels are the same in every image, each output has directions that nothing reaches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LAYERS = (nn.Linear, nn.Conv2d)
_CHUNK = 512
_ROUNDING = 1e-6  # of images that were computed in float32; its square is the zero tolerance of eigenvalues


def structural_zeros(model: nn.Module, x: Tensor) -> int:
    """How many there are for a classifier with cross entropy.

    Args:
        model: whose first and last layers with weights are Linear or Conv2d with bias; other ones between.
        x: all inputs [n, ...].
    """
    layers = [m for m in model.modules() if isinstance(m, _LAYERS)]
    first, last = layers[0], layers[-1]
    unseen = first.weight[0].numel() + 1 - _rank(first, x)
    return int(first.weight.shape[0] * unseen + last.weight[0].numel() + 1)


def _rank(layer: nn.Module, x: Tensor) -> int:
    """Of the inputs that a layer sees, each with a constant 1 beside it."""
    factor = None
    for part in x.double().split(_CHUNK):
        seen = _seen(layer, part)
        stacked = seen if factor is None else torch.cat([factor, seen])
        factor = torch.linalg.qr(stacked, mode="r").R  # of all until here: no digit is lost as in a Gram matrix
    assert factor is not None
    return int(torch.linalg.matrix_rank(factor, rtol=_ROUNDING))


def _seen(layer: nn.Module, x: Tensor) -> Tensor:
    """Rows [n, inputs + 1]."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        flat = patches.transpose(1, 2).reshape(-1, patches.shape[1])
    else:
        flat = x.flatten(1)
    return torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
