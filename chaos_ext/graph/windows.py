"""Torchvision's shifted window attention (Swin) as steps of rules.

Windows stay an axis of their own beside the samples: [N, windows, heads, places, E / heads].
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..rules.constants import Constant
from ..rules.joints import Add, LinearMap, Reshape
from ..rules.linear import Linear
from ..rules.rule import NotLayerwise
from ..rules.views import Permutation, Slice
from .arguments import Call
from .contractions import attend
from .site import Handler, Operation, Site, linear_map


class _Windows:
    """How an image of [H, W] places is cut into windows."""

    def __init__(self, size: tuple[int, int], window: list[int], shift: list[int]) -> None:
        self.size, self.window = size, window
        self.padded = [math.ceil(s / w) * w for s, w in zip(size, window, strict=True)]
        self.counts = [p // w for p, w in zip(self.padded, window, strict=True)]
        self.shift = [0 if w >= p else s for s, w, p in zip(shift, window, self.padded, strict=True)]

    def cut(self, x: Tensor) -> Tensor:
        """[N, H, W, E] -> [N, windows, places, E]."""
        below, right = (p - s for p, s in zip(self.padded, self.size, strict=True))
        x = F.pad(x, (0, 0, 0, right, 0, below)).roll([-s for s in self.shift], (1, 2))
        (a, b), (h, w) = self.counts, self.window
        return x.unflatten(2, (b, w)).unflatten(1, (a, h)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def joined(self, x: Tensor) -> Tensor:
        """Back, without what was padded."""
        (a, b), (h, w) = self.counts, self.window
        x = x.unflatten(2, (h, w)).unflatten(1, (a, b)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x.roll(self.shift, (1, 2))[:, : self.size[0], : self.size[1]]

    def apart(self, like: Tensor) -> Tensor:
        """What is added to scores [windows, 1, places, places]: -100 between places that the shift has joined."""
        region = like.new_zeros(1, *self.padded, 1)
        cuts = [(0, -w, -s, None) for w, s in zip(self.window, self.shift, strict=True)]
        for i, h in enumerate(zip(cuts[0], cuts[0][1:], strict=False)):
            for j, w in enumerate(zip(cuts[1], cuts[1][1:], strict=False)):
                region[:, slice(*h), slice(*w)] = 3 * i + j
        whole = _Windows((self.padded[0], self.padded[1]), self.window, [0, 0])
        own = whole.cut(region)[0, :, :, 0]
        return -100.0 * (own.unsqueeze(1) != own.unsqueeze(2)).to(like.dtype).unsqueeze(1)


def _shifted_window_attention(site: Site, call: Call) -> Operation:
    """Projected, cut into windows, attention with a bias of relative positions, projected, joined."""
    if call.get("logit_scale") is not None:
        raise NotLayerwise("attention by cosines has no layer rule")
    drops = call.plain("attention_dropout", 0.0), call.plain("dropout", 0.0)
    if call.plain("training", True) and any(drops):
        raise NotLayerwise("dropout in training mode draws random numbers")
    source, heads = call["input"], call.plain("num_heads")
    size = site.shape[source][1:3]
    windows = _Windows((size[0], size[1]), call.plain("window_size"), call.plain("shift_size"))
    bias, names = call["relative_position_bias"], (("qkv_weight", "qkv_bias"), ("proj_weight", "proj_bias"))
    first, second = (Linear(site.attribute(call[w]), site.attribute(call[b])) for w, b in names)
    cut = site.step([LinearMap(windows.cut, True), first], [source])
    parts = Reshape(lambda inputs: inputs[0].unflatten(-1, (3, heads, -1)))
    qkv = site.step([parts, Permutation((0, 3, 1, 4, 2, 5))], [cut])  # [N, 3, windows, heads, places, E / heads]
    scale = (site.shape[source][3] // heads) ** -0.5
    mask: Any = site.step([Reshape(lambda inputs: inputs[0].unsqueeze(0))], [bias])
    if any(windows.shift):
        mask = site.step([Add()], [mask, site.step([Constant(lambda inputs, leaves: windows.apart(inputs[0]))], [cut])])
    operands = [site.step([Slice((slice(None), i))], [qkv]) for i in range(3)]
    rules, given = attend(site, operands, 5, scale, mask)
    together = Reshape(lambda inputs: inputs[0].flatten(3))
    rules = [*rules, Permutation((0, 1, 3, 2, 4)), together, second, LinearMap(windows.joined, True)]
    return rules, given


def _merged(site: Site, call: Call) -> Operation:
    """Four neighbours side by side, with zeros where there are none."""
    return linear_map(site, call, rowwise=True)


_NAMES = (
    *("input", "qkv_weight", "proj_weight", "relative_position_bias", "window_size", "num_heads", "shift_size"),
    *("attention_dropout", "dropout", "qkv_bias", "proj_bias", "logit_scale", "training"),
)
_WHERE = "torchvision.models.swin_transformer"
TARGETS: list[tuple[Handler, tuple[str, ...], tuple[object, ...]]] = [
    (_shifted_window_attention, _NAMES, (f"{_WHERE}.shifted_window_attention",)),
    (_merged, ("input",), (f"{_WHERE}._patch_merging_pad",)),
]
