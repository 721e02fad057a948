"""The arguments of a traced call by name, whichever way they were given: in order, by keyword, as numpy names them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from ..rules.rule import NotLayerwise

# What torch's own functions also take (torch/csrc/utils/python_arg_parser.cpp, numpy_compatibility_arg_names).
_NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}


class Call:
    """A call of a function or a method.

    Args:
        node: of the torch.fx graph.
        names: of the function's arguments that may be given in order, as far as they matter; of a method ``self`` is
            called "input", as it is in the function of the same name.

    Attributes:
        node: as given.
        further: what was given in order beyond ``names``.
    """

    def __init__(self, node: fx.Node, names: Sequence[str]) -> None:
        self.node = node
        self._given: dict[str, Any] = dict(zip(names, node.args, strict=False))
        self._given.update((_own_name(k, names), v) for k, v in node.kwargs.items())
        self.further = node.args[len(names) :]

    def __getitem__(self, name: str) -> Any:
        """An argument that has to be there, of whatever kind."""
        if name not in self._given:
            raise NotLayerwise(f"called without {name}")
        return self._given[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument or its default, of whatever kind."""
        return self._given.get(name, default)

    def plain(self, name: str, default: Any = None) -> Any:
        """An argument that the forward does not compute, or its default."""
        value = self.get(name, default)
        if has_node(value):
            raise NotLayerwise(f"its argument {name} is computed")
        return value

    def without_others(self, names: Iterable[str], why: str) -> Call:
        """The call itself, if nothing but these arguments were given; raises NotLayerwise with the reason."""
        others = set(self._given) - set(names)
        if self.further or any(self._given[k] is not None for k in others):
            raise NotLayerwise(why)
        return self


def _own_name(keyword: str, names: Sequence[str]) -> str:
    return keyword if keyword in names else _NUMPY.get(keyword, keyword)


def only_argument(node: fx.Node, module: nn.Module) -> Any:
    """What a module is called with, in order or by the name of its forward's first argument.

    Raises:
        NotLayerwise: anything else is given, too.
    """
    given = [*node.args, *node.kwargs.values()]
    if len(given) != 1 or (node.kwargs and next(iter(inspect.signature(module.forward).parameters)) not in node.kwargs):
        raise NotLayerwise("called with other than one argument")
    return given[0]


def has_node(arg: object) -> bool:
    """Whether an argument, or a part of it, is computed by the forward."""
    if isinstance(arg, slice):
        return any(isinstance(a, fx.Node) for a in (arg.start, arg.stop, arg.step))
    return isinstance(arg, fx.Node) or (isinstance(arg, (tuple, list)) and any(map(has_node, arg)))


def has_tensor(arg: object) -> bool:
    """Whether an index selects by a tensor or a list."""
    return isinstance(arg, (Tensor, list)) or (isinstance(arg, tuple) and any(map(has_tensor, arg)))
