"""What a callable may write to when it is called: modules, cells of its closure, attributes, containers."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from .guards import borrowed_buffers
from .restoring import Restoring
from .traces import holds_something, is_filled, is_quiet, untouched


class Held(NamedTuple):
    """What there is to look after.

    Attributes:
        modules: all modules of those that are not torch's own.
        objects: the function itself, if it leads to anything that can be written to; for ``traces.untouched``.
    """

    modules: list[nn.Module]
    objects: list[Any]

    def __bool__(self) -> bool:
        return bool(self.modules or self.objects)


NOTHING = Held([], [])


def held_by(function: object) -> Held:
    """Of a loss: a module, a function, a bound method, a ``functools.partial``, any object with ``__call__``."""
    modules: list[nn.Module] = []
    todo, seen = [function], set[int]()
    for value in todo:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            own = list(value.modules())
            modules.extend([] if all(map(is_quiet, own)) else own)
        elif isinstance(value, functools.partial):
            todo.extend([value.func, *value.args, *value.keywords.values()])
        elif isinstance(value, types.MethodType):
            todo.append(value.__self__)
        elif isinstance(value, types.FunctionType):
            todo.extend([c.cell_contents for c in value.__closure__ or () if is_filled(c)])
    quiet = isinstance(function, nn.Module) and not modules
    return Held(modules, [function] if not quiet and holds_something(function) else [])


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
