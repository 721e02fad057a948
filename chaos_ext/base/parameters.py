"""The flat parameter vector theta [P]: its order and its slices.

theta concatenates the parameters that require a gradient (or a block: those chosen among them), in
``model.parameters()`` order, each row-major, exactly as ``torch.nn.utils.parameters_to_vector`` does. All others are
constants, a tied parameter appears once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .blocks import Chosen, chosen_names
from .overlap import refuse_overlap
from .torch_internals import own_buffers, own_children, own_parameters
from .traces import is_quiet
from .wrappers import refuse_sharded, refuse_wrappers, unwrapped

FLOAT_DTYPES = (torch.float32, torch.float64)
_Named = tuple[str, Tensor]
Group = dict[str, Any]  # options of one parameter group of an optimizer


class ModuleTree:
    """The modules of a model and their parameters, from one walk that everything which looks at a model shares.

    Args:
        model: the model.
        params: names, glob patterns or parameters: to all derivatives the others are constants. None: no others.

    Attributes:
        model: as given, or what ``DistributedDataParallel`` holds.
        block: the names that ``params`` stands for, in the model's order, or None.
        modules: as in ``model.modules()``.
        watched: those whose forward may leave traces: none if all are torch's own, else all.
        buffered: those with buffers, and these by name.
        named_parameters: as in ``model.named_parameters()``.
        theta, constants: those that are differentiated, and those that are frozen or outside of the block.
    """

    def __init__(self, model: nn.Module, params: Chosen | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        self.model = model = unwrapped(model)
        named_modules = _named_modules(model)
        self.modules: list[nn.Module] = [m for _, m in named_modules]
        self.watched = [] if all(map(is_quiet, self.modules)) else self.modules
        self.buffered = [(m, own) for m in self.modules if (own := own_buffers(m))]
        if type(model).named_parameters is nn.Module.named_parameters:
            self.named_parameters = _own_parameters(named_modules)
        else:
            self.named_parameters = list(model.named_parameters())
        self.block = None if params is None else chosen_names(model, self.named_parameters, params)
        self.theta, self.constants = _divided(self.named_parameters, self.block)

    def may_edit_input(self) -> bool:
        """Whether a call may write to the model's input: torch's own modules do where they are told to."""
        return bool(self.watched) or any(getattr(m, "inplace", False) for m in self.modules)

    def frozen(self) -> list[tuple[str, Tensor]]:
        """Parameters that are no part of theta and that a forward may write to: none where all modules are torch's."""
        return [(n, p) for n, p in self.constants if not p.is_meta] if self.watched else []


def _named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """``model.named_modules()``, without a generator a level."""
    named: dict[nn.Module, str] = {}
    todo: list[tuple[str, nn.Module]] = [("", model)]
    while todo:
        name, m = todo.pop()
        if m in named:
            continue
        if type(m).named_modules is not nn.Module.named_modules:
            return list(model.named_modules())
        named[m] = name
        children = own_children(m)
        if children:
            dot = f"{name}." if name else ""
            todo.extend([(dot + k, child) for k, child in reversed(children.items()) if child is not None])
    return [(name, m) for m, name in named.items()]


def _own_parameters(named_modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Parameter]]:
    named: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, m in named_modules:
        for name, p in own_parameters(m).items():
            if p is not None and id(p) not in named:
                named[id(p)] = f"{prefix}.{name}" if prefix else name, p
    return list(named.values())


def _divided(named: Sequence[_Named], block: tuple[str, ...] | None) -> tuple[list[_Named], list[_Named]]:
    """Parameters by whether they require a gradient and are in the block; None: all are."""
    inside = [(n, p) for n, p in named if p.requires_grad and (block is None or n in block)]
    if len(inside) == len(named):
        return inside, []
    names = {n for n, _ in inside}
    return inside, [(n, p) for n, p in named if n not in names]


def _constants(tree: ModuleTree) -> list[tuple[str, Tensor]]:
    """Parameters that are no part of theta, and buffers, with their own names for messages."""
    buffers = {id(b): (k, b) for _, own in tree.buffered for k, b in own.items() if b is not None}
    constants = [*tree.constants, *buffers.values()]
    return [(n, t) for n, t in constants if t.layout == torch.strided] if constants else constants


class ParameterSpace:
    """Names, shapes and offsets of the parameters that span theta [P].

    Args:
        named: parameters by name; those that require a gradient are taken.
        constants: other tensors of the model, which must not share their memory.

    Attributes:
        names: qualified name of each parameter.
        params: the parameters themselves.
        sizes, offsets: length and start of each parameter in theta.
        size: P.
        block: the names, where theta is a choice among those that require a gradient; else None.
    """

    block: tuple[str, ...] | None = None

    def __init__(self, named: Iterable[tuple[str, Tensor]], constants: Sequence[tuple[str, Tensor]] = ()) -> None:
        pairs = [(n, p) for n, p in named if p.requires_grad]
        if not pairs:
            raise ValueError("model: expected at least one parameter with requires_grad=True, got none; unfreeze one")
        self.names: tuple[str, ...]
        self.params: tuple[Tensor, ...]
        self.names, self.params = zip(*pairs, strict=True)
        self.dtype, self.device = self.params[0].dtype, self.params[0].device
        self._check()
        refuse_overlap(pairs, constants)
        self.shapes: tuple[torch.Size, ...] = tuple([p.shape for p in self.params])
        self.sizes: tuple[int, ...] = tuple([p.numel() for p in self.params])
        *offsets, self.size = accumulate(self.sizes, initial=0)
        self.offsets: tuple[int, ...] = tuple(offsets)

    @cached_property
    def index(self) -> dict[int, int]:
        """The place of each parameter, by its id."""
        return {id(p): i for i, p in enumerate(self.params)}

    @classmethod
    def of(cls, model: nn.Module | ModuleTree) -> ParameterSpace:
        tree = model if isinstance(model, ModuleTree) else ModuleTree(model)
        refuse_wrappers(tree.watched)
        for name, p in tree.named_parameters:
            if type(p) is nn.Parameter:
                continue
            refuse_sharded(name, p)
            if isinstance(p, nn.parameter.UninitializedParameter):
                raise TypeError(
                    f"parameter {name!r}: expected an initialised parameter; run the lazy module once first"
                )
        for m in tree.watched:
            if isinstance(m, torch.jit.ScriptModule) and (own_parameters(m) or own_buffers(m)):
                raise UnsupportedError(
                    f"model: its {m.original_name} was scripted or traced, so that nothing can take its parameters' "
                    "places; pass the module that torch.jit was given"
                )
        space = cls(tree.theta, _constants(tree))
        space.block = tree.block
        return space

    def _check(self) -> None:
        dtype, device = self.dtype, self.device
        for name, p in zip(self.names, self.params, strict=True):
            if p.dtype not in FLOAT_DTYPES:
                raise TypeError(
                    f"parameter {name!r}: expected float32 or float64, got {p.dtype}; convert the model with "
                    ".float() or .double()"
                )
            if p.layout != torch.strided:
                raise TypeError(f"parameter {name!r}: expected a dense (strided) tensor, got layout {p.layout}")
            if p.dtype != dtype or p.device != device:
                raise TypeError(
                    f"parameter {name!r}: expected {dtype} on {device} like the first parameter, "
                    f"got {p.dtype} on {p.device}; move the model to one dtype and device"
                )

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenates one tensor per parameter into [P]."""
        return torch.cat([t if t.dim() == 1 else t.flatten() for t in parts])

    def split(self, v: Tensor) -> list[Tensor]:
        """Cuts v [P, k] into one [*shape, k] block per parameter."""
        return [b.reshape(*s, -1) for b, s in zip(v.split(self.sizes), self.shapes, strict=True)]

    def views(self, theta: Tensor) -> list[Tensor]:
        """Views of theta [P] with the shape of each parameter."""
        parts = theta.split_with_sizes(self.sizes)
        return [t if p.dim() == 1 else t.view_as(p) for t, p in zip(parts, self.params, strict=True)]

    def write_(self, theta: Tensor) -> None:
        """Parameters <- theta [P], through ``.data``: torch's version counters stay, and what relies on them."""
        for p, t in zip(self.params, self.views(theta), strict=True):
            p.data.copy_(t)

    def slice(self, i: int) -> slice:
        return slice(self.offsets[i], self.offsets[i] + self.sizes[i])
