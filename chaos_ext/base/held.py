"""What a callable may write to when it is called: modules, cells of its closure, attributes, containers."""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .guards import borrowed_buffers
from .restoring import Restoring
from .traces import has_attributes, is_quiet, untouched


class Held(NamedTuple):
    """What there is to look after.

    Attributes:
        modules: all modules of those that are not torch's own.
        objects: closure cells, dicts of attributes, containers, generators; for ``traces.untouched``.
    """

    modules: list[nn.Module]
    objects: list[Any]

    def __bool__(self) -> bool:
        return bool(self.modules or self.objects)


def held_by(function: object) -> Held:
    """Of a loss: a module, a function, a bound method, a ``functools.partial``, any object with ``__call__``."""
    held, todo = Held([], []), [function]
    for value in todo:
        if isinstance(value, nn.Module):
            modules = list(value.modules())
            held.modules.extend([] if all(map(is_quiet, modules)) else modules)
        elif isinstance(value, functools.partial):
            todo.extend([value.func, *value.args, *value.keywords.values()])
        elif isinstance(value, types.MethodType):
            todo.append(value.__self__)
        elif isinstance(value, types.FunctionType):
            cells = [c for c in value.__closure__ or () if _is_filled(c)]
            held.objects.extend([*cells, vars(value)] if vars(value) else cells)
            todo.extend([c.cell_contents for c in cells if _leads_on(c.cell_contents)])
        elif isinstance(value, (list, dict, set, deque, torch.Generator, random.Random)):
            held.objects.append(value)
        elif has_attributes(value):
            held.objects.append(vars(value))
    return held


def unmoved(held: Held) -> Restoring[Callable[[], list[str]]]:
    """Puts back what the code inside writes to it; gives a function that names what it wrote."""
    borrowed, kept = borrowed_buffers(held.modules), list[Restoring[Callable[[], list[str]]]]()

    def change() -> Callable[[], list[str]]:
        moved = borrowed.change()
        if not kept:  # not before: to borrow buffers is to write to their modules
            kept.append(untouched(held.modules, held.objects))
        written = kept[0].change()
        return lambda: written() + (["a buffer"] if moved() else [])

    def restore() -> None:
        for k in kept:
            k.restore()
        borrowed.restore()

    return Restoring(change, restore)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises where there is nothing
    except ValueError:
        return False
    return True


def _leads_on(value: object) -> bool:
    return isinstance(value, (nn.Module, functools.partial, types.MethodType, types.FunctionType))
