"""Handlers of functions that read a tensor at places which other tensors name: indices, gather, index_select."""

from __future__ import annotations

from typing import Any

import torch

from ..rules.rule import NotLayerwise
from ..rules.views import Reading
from .arguments import Call
from .site import Handler, Operation, Site, is_discrete


def read(site: Site, call: Call, name: str = "input") -> Operation:
    """Where all but the tensor itself are integers, booleans or numbers."""
    source: Any = call[name]
    own, region = site.input(source), site.region(call.node)
    others = [n for n in call.node.all_input_nodes if n is not source and n in site.shape]
    known = all(is_discrete(site, n) for n in others)
    if not known or any(leaf.slot is not None for leaf in region.leaves) or own not in region.inputs:
        raise NotLayerwise("it reads more than one tensor of numbers")
    return [Reading(region, region.inputs.index(own), region.leaves)], list(region.inputs)


def _of(name: str) -> Handler:
    return lambda site, call: read(site, call, name)


_TABLE = ("relative_position_bias_table", "relative_position_index", "window_size")
TARGETS: list[tuple[Handler, tuple[str, ...], tuple[object, ...]]] = [
    (read, ("input", "dim", "index"), (torch.gather, "gather", torch.index_select, "index_select")),
    (read, ("input", "indices", "dim"), (torch.take_along_dim, "take_along_dim")),
    (read, ("input", "repeats", "dim"), (torch.repeat_interleave, "repeat_interleave")),
    (_of(_TABLE[0]), _TABLE, ("torchvision.models.swin_transformer._get_relative_position_bias",)),
]
