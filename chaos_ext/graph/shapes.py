"""Handlers of functions and methods that take the numbers of one tensor to other places."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..rules.constants import Constant
from ..rules.joints import Add, Cat, LinearMap, Reshape
from ..rules.rule import NotLayerwise, Rule
from ..rules.views import Broadcast, Permutation, Slice
from .arguments import Call, has_node, has_tensor
from .reading import read
from .site import Handler, Operation, Site, axes_of, axis, is_discrete, linear_map, no_rule, sizes_only


def _order(call: Call, *given: Any) -> list[int]:
    """The axes that a permutation names, in a tuple or one by one."""
    order: list[Any] = [d for a in given for d in (a if isinstance(a, (tuple, list)) else (a,))]
    if not order or not all(isinstance(d, int) for d in order):
        raise no_rule(call.node)
    return order


def _permutation(site: Site, call: Call) -> Operation:
    axes = axes_of(site, call)
    return [Permutation([d % axes for d in _order(call, call["dims"], *call.further)])], [call["input"]]


def _swapped(site: Site, call: Call, first: int, second: int) -> Operation:
    axes = axes_of(site, call)
    order = list(range(axes))
    order[first % axes], order[second % axes] = order[second % axes], order[first % axes]
    return [Permutation(order)] if axes else [], [call["input"]]


def _transposition(site: Site, call: Call, names: tuple[str, str]) -> Operation:
    return _swapped(site, call, *_order(call, *(call[name] for name in names)))


def _moved_axes(site: Site, call: Call) -> Operation:
    axes = axes_of(site, call)
    source, target = _order(call, call["source"]), _order(call, call["destination"])
    places = dict(zip([d % axes for d in target], [d % axes for d in source], strict=True))
    rest = iter([d for d in range(axes) if d not in places.values()])
    return [Permutation([places[i] if i in places else next(rest) for i in range(axes)])], [call["input"]]


def _matrix_transposed(site: Site, call: Call) -> Operation:
    axes = axes_of(site, call)
    return _swapped(site, call, 0, 1) if axes == 2 else ([], [call["input"]])


def _attribute(site: Site, call: Call) -> Operation:
    """``x.T`` and ``x.mT``."""
    axes, name = axes_of(site, call), call["name"]
    if name == "mT" or (name == "T" and axes == 2):
        return _swapped(site, call, -2, -1)
    raise NotLayerwise(f"the attribute {name} has no layer rule")


def _index(site: Site, call: Call) -> Operation:
    source, index = call["input"], call["index"]
    if isinstance(source, fx.Node) and source in site.parts:
        return _part(site.parts[source], index)
    if isinstance(source, fx.Node) and source.target in _PIECES and isinstance(index, int):
        return _piece(site, source, index)
    axes = axes_of(site, call)
    given = list(index) if isinstance(index, tuple) else [index]
    if has_node(index) or has_tensor(index) or not all(map(_is_basic, given)):
        return read(site, call)
    if Ellipsis in given:
        at = given.index(Ellipsis)
        missing = axes - sum(i is not None for i in given) + 1
        given[at : at + 1] = [slice(None)] * missing
    return [Slice(tuple(given))], [source]


def _is_basic(index: object) -> bool:
    kinds = isinstance(index, (int, slice)) and not isinstance(index, bool)
    return kinds or index is None or index is Ellipsis


def _part(parts: Sequence[Any], index: object) -> Operation:
    part = parts[index] if isinstance(index, int) and -len(parts) <= index < len(parts) else None
    if not isinstance(part, int):
        raise NotLayerwise("this result has no layer rule")
    return [], [part]


def _piece(site: Site, node: fx.Node, index: int) -> Operation:
    """One of the tensors that a tensor is cut into: along the samples by torch, since another batch has others."""
    call = Call(node, _PIECES[node.target])
    axes = axes_of(site, call)
    dim = axis(call, axes, default=0)
    if has_node(node.args[1:]) or any(map(has_node, node.kwargs.values())) or dim == 0:
        raise NotLayerwise("it is cut along the samples, or at computed places")
    pieces = _cut(site, node)
    if not -len(pieces) <= index < len(pieces):
        raise no_rule(node)
    before = [p.shape[dim] if p.dim() == axes else 1 for p in pieces[: index % len(pieces)]]
    start, own = sum(before), pieces[index]
    at: Any = slice(start, start + own.shape[dim]) if own.dim() == axes else start
    return [Slice((slice(None),) * dim + (at,))], [call["input"]]


def _cut(site: Site, node: fx.Node) -> Sequence[Tensor]:
    """The pieces without their numbers."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: torch.empty(site.shape[n], device="meta"))
    target: Any = node.target
    return getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)


def _selected(site: Site, call: Call) -> Operation:
    dim, index = axis(call, axes_of(site, call)), call.plain("index")
    if not isinstance(index, int):
        raise no_rule(call.node)
    return [Slice((slice(None),) * dim + (index,))], [call["input"]]


def _narrowed(site: Site, call: Call) -> Operation:
    dim, start, length = axis(call, axes_of(site, call)), call.plain("start"), call.plain("length")
    if dim == 0 or not isinstance(start, int) or not isinstance(length, int):
        raise no_rule(call.node)
    start %= site.shape[call["input"]][dim]
    return [Slice((slice(None),) * dim + (slice(start, start + length),))], [call["input"]]


def _broadcast(site: Site, call: Call) -> Operation:
    function, operands = sizes_only(site, call)
    return [Broadcast(function, axes_of(site, call) == len(site.shape[call.node]))], operands


def _stack(site: Site, call: Call) -> Operation:
    parts, axes = call["tensors"], len(site.shape[call.node])
    if not isinstance(parts, (list, tuple)):
        raise NotLayerwise("a stack of computed length")
    dim = axis(call, axes, default=0)
    rule = Reshape(lambda inputs: inputs[0].unsqueeze(dim))
    return [Cat(dim)], [site.step([rule], [p]) for p in parts]


def _moved(site: Site, call: Call) -> Operation:
    """A linear function of one tensor that may mix samples."""
    axes_of(site, call)
    return linear_map(site, call, rowwise=False)


def _turned(site: Site, call: Call) -> Operation:
    """Rolled or flipped along axes: whether samples are among them."""
    axes, dims = axes_of(site, call), call.plain("dims")
    dims = [dims] if isinstance(dims, int) else dims
    return linear_map(site, call, rowwise=bool(dims) and all(d % axes != 0 for d in dims))


def _padding(site: Site, call: Call) -> Operation:
    """Zeros by a linear map, any other number by what it puts around zeros."""
    axes, pad = axes_of(site, call), call.plain("pad")
    mode, value = call.plain("mode", "constant"), call.plain("value")
    if not isinstance(pad, (list, tuple)):
        raise NotLayerwise("a padding of computed width")
    apart, pads = len(pad) < 2 * axes, tuple(pad)
    if mode != "constant":
        return [LinearMap(partial(F.pad, pad=pads, mode=mode), apart)], [call["input"]]
    padded: list[Rule] = [LinearMap(partial(F.pad, pad=pads), apart)]
    if not value:
        return padded, [call["input"]]

    def around(inputs: Sequence[Tensor], leaves: object) -> Tensor:
        return F.pad(torch.zeros_like(inputs[0]), pads, value=value)

    own = site.input(call["input"])
    return [Add()], [site.step(padded, [own]), site.step([Constant(around)], [own])]


def _cast(site: Site, call: Call) -> Operation:
    """To the dtype that a tensor has, or of what has no derivative."""
    source = call["input"]
    if not isinstance(source, fx.Node) or source not in site.dtype:
        raise no_rule(call.node)
    if is_discrete(site, source):
        region = site.region(call.node)
        return [Constant(region, region.leaves)], list(region.inputs)
    if site.dtype[source] != site.dtype[call.node]:
        raise NotLayerwise("a cast to another dtype")
    return [], [source]


_ONE, _DIMS = ("input",), ("input", "dims")
_SWAP, _SWAP_AXES = ("dim0", "dim1"), ("axis0", "axis1")

# Those that cut a tensor into several, of which forward takes one or all, and the names of their arguments.
_PIECES: dict[object, tuple[str, ...]] = {
    torch.chunk: ("input", "chunks", "dim"),
    "chunk": ("input", "chunks", "dim"),
    torch.split: ("input", "split_size_or_sections", "dim"),
    "split": ("input", "split_size", "dim"),
    "split_with_sizes": ("input", "split_sizes", "dim"),
    torch.tensor_split: ("input", "indices_or_sections", "dim"),
    "tensor_split": ("input", "indices_or_sections", "dim"),
    torch.unbind: ("input", "dim"),
    "unbind": ("input", "dim"),
}

# Handler, names of the arguments that may be given in order, functions and names of methods that it handles.
TARGETS: list[tuple[Handler, tuple[str, ...], tuple[object, ...]]] = [
    (_permutation, _DIMS, (torch.permute, "permute")),
    (partial(_transposition, names=_SWAP), ("input", *_SWAP), (torch.transpose, "transpose")),
    (partial(_transposition, names=_SWAP), ("input", *_SWAP), (torch.swapdims, "swapdims")),
    (partial(_transposition, names=_SWAP_AXES), ("input", *_SWAP_AXES), (torch.swapaxes, "swapaxes")),
    (_moved_axes, ("input", "source", "destination"), (torch.movedim, "movedim", torch.moveaxis, "moveaxis")),
    (_matrix_transposed, _ONE, (torch.t, "t")),
    (_attribute, ("input", "name"), (getattr,)),
    (_index, ("input", "index"), (operator.getitem,)),
    (_selected, ("input", "dim", "index"), (torch.select, "select")),
    (_narrowed, ("input", "dim", "start", "length"), (torch.narrow, "narrow")),
    (_broadcast, _ONE, ("expand", "expand_as", torch.broadcast_to, "broadcast_to")),
    (_stack, ("tensors", "dim"), (torch.stack,)),
    (_cast, _ONE, ("to", "type_as", "float", "double")),
    (_moved, _ONE, ("repeat", torch.tile, "tile", torch.cumsum, "cumsum", torch.tril, "tril", torch.triu, "triu")),
    (_moved, _ONE, (torch.diagonal, "diagonal", torch.rot90, "rot90", F.unfold, F.fold)),
    (_turned, ("input", "shifts", "dims"), (torch.roll, "roll")),
    (_turned, _DIMS, (torch.flip, "flip")),
    (_padding, ("input", "pad", "mode", "value"), (F.pad,)),
]
