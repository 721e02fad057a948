"""Malformed calls of the native operators, one argument changed, and how they have to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_ops import _packet
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def refused(name: str, args: tuple[Any, ...], match: str) -> None:
    """By the operator, which leaves all operands as they are."""
    kept = tree_map_only(Tensor, lambda t: t.clone(), list(args))
    with pytest.raises(RuntimeError, match=rf"{name}: expected {match}"):
        _packet(name)(*args)
    for t, before in zip(tree_leaves(list(args)), tree_leaves(kept), strict=True):
        assert not isinstance(t, Tensor) or t.device.type == "meta" or torch.equal(t, before)


def refused_by_the_fake(name: str, args: tuple[Any, ...], match: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{name}: expected {match}"):
        _packet(name)(*tree_map_only(Tensor, lambda t: t.to("meta"), list(args)))


def changed(args: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return tuple(value if i == index else x for i, x in enumerate(args))


def entry(args: tuple[Any, ...], index: int, at: int, value: int) -> tuple[Any, ...]:
    return changed(args, index, [value if i == at else x for i, x in enumerate(args[index])])


def tensor_places(args: tuple[Any, ...]) -> list[tuple[int, int | None]]:
    places: list[tuple[int, int | None]] = []
    for i, x in enumerate(args):
        if isinstance(x, Tensor):
            places.append((i, None))
        elif isinstance(x, list):
            places += [(i, j) for j, t in enumerate(x) if isinstance(t, Tensor)]
    return places
