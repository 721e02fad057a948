"""What can be seen of a loss before it is differentiated twice: the nodes of its graph, and gradients that it stops."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function as autograd_function
from torch.nn import functional
from torch.utils import checkpoint

from ..base.torch_internals import Mode, entered, function_class, grad_mode, tree_map
from ..errors import UnsupportedError

# Functions with points where torch's second derivatives are wrong or NaN although the exact ones exist: a norm at 0, a
# product with zeros, equal eigenvalues. A batch that meets such a point may come at any time.
_FRAGILE = (
    *("Norm", "Std", "Dist", "Cdist", "Pdist", "Renorm", "Prod", "Cumprod", "Reduce", "Sqrt", "Rsqrt", "Abs", "Hypot"),
    *("Angle", "Sgn", "Atan2", "Sinc", "Xlogy", "Xlog1Py", "Logcumsumexp", "Det", "Svd", "Eig", "Qr", "Entr"),
    *("PowBackward1", "WeightNormInterface"),
)
PADDING = "padding_idx"
_SAFE = ("LayerNorm", "BatchNorm", "GroupNorm", "RmsNorm", "RMSNorm")


@dataclass(frozen=True)
class Seen:
    """The graph of one loss.

    Attributes:
        nodes: the kind of every node, in the order of a walk: the same program has the same nodes.
        functions: the custom autograd Functions among them.
        fragile: kinds with points at which torch's second derivatives are wrong.
    """

    nodes: tuple[object, ...]
    functions: tuple[type, ...]
    fragile: tuple[str, ...]

    @property
    def once_differentiable(self) -> list[str]:
        """Names of the Functions that refuse a second derivative."""
        return [f.__name__ for f in self.functions if _is_once_differentiable(f)]

    @property
    def reentrant(self) -> bool:
        """Whether a re-entrant checkpoint is among them."""
        return checkpoint.CheckpointFunction in self.functions

    @property
    def names(self) -> str:
        """The Functions by name, for messages."""
        return ", ".join(dict.fromkeys(f.__name__ for f in self.functions))


def look(loss: Tensor) -> Seen:
    """Walks the graph of a loss once."""
    nodes = list(nodes_of(loss))
    functions = {n: function_class(n) for n in nodes}
    custom = tuple(dict.fromkeys(f for f in functions.values() if f is not None))
    kinds = tuple(functions[n] or n.name() for n in nodes)
    names = dict.fromkeys(k for k in kinds if isinstance(k, str))
    return Seen(kinds, custom, tuple(k for k in names if _is_fragile(k)))


def nodes_of(loss: Tensor) -> Iterator[Any]:
    """Those of its graph, once each."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo.extend(n for n, _ in node.next_functions)


def _is_fragile(name: str) -> bool:
    return any(k in name for k in _FRAGILE) and not any(k in name for k in _SAFE)


def _is_once_differentiable(cls: type) -> bool:
    """Whether backward is what ``torch.autograd.function.once_differentiable`` wraps around the user's."""
    backward = getattr(cls, "backward", None)
    code = getattr(backward, "__code__", None)
    return code is not None and hasattr(backward, "__wrapped__") and code.co_filename == autograd_function.__file__


class Watch(Mode):
    """Notices tensors of the graph that code inside takes out of it: ``detach``, ``.data``, ``no_grad``, ``item``.

    Args:
        functions: custom autograd Functions, whose forward sees no graph anyway.

    Attributes:
        stops: the name of the first of them, or else ``PADDING`` for the row of an embedding, or None.
        surrogates: names of what gives gradients that need not be derivatives.
        forgets: whether a derivative was taken without a graph of its own.
        reentrant: whether a re-entrant checkpoint ran.
    """

    def __init__(self, functions: Iterable[type]) -> None:
        super().__init__()
        self._functions = _Functions(functions)
        self.stops: str | None = None
        self.surrogates: list[str] = []
        self.forgets = self.reentrant = False

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = _by_position(func, args, kwargs)
        if not self.reentrant:
            self._notice(func, args, kwargs)
        return func(*args, **kwargs)

    def _notice(self, func: Any, args: Any, kwargs: Any) -> None:
        self.forgets = self.forgets or (func is torch.autograd.grad and not kwargs.get("create_graph"))
        how = _taken_out(func, args) or (None if _padded(func, args, kwargs) is None else PADDING)
        surrogate = _surrogate(func, kwargs) if torch.is_grad_enabled() else None
        if (how or surrogate) is None or not _any_tracked((args, kwargs)):
            return
        self.reentrant = _REENTRANT in _codes_above()
        if surrogate is not None:
            self.surrogates.append(surrogate)
        elif self.stops in (None, PADDING) and not self._functions.run():
            self.stops = how


class Constants(Mode):
    """What the first run takes out of the graph stays, in all later ones, the constant that it was.

    Args:
        functions: custom autograd Functions, whose forward sees no graph anyway.
    """

    def __init__(self, functions: Iterable[type]) -> None:
        super().__init__()
        self._functions = _Functions(functions)
        self._kept: list[Any] = []
        self._first, self._place, self._is_edited = True, 0, False
        self._views: list[Tensor] = []

    def run(self, run: Callable[[], Tensor]) -> Tensor:
        """``run()``; NaN where it takes out something else than the first one did, or writes to the graph so."""
        self._place, self._views = 0, []
        mode = entered(self)
        with mode, mode:
            found = run()
        self._first = False
        return torch.full_like(found, math.nan) if self._is_edited or self._place != len(self._kept) else found

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = _by_position(func, args, kwargs)
        written = _written(func, args, kwargs)
        edits = _any_tracked(written) or any(written is v for v in self._views)
        self._is_edited = self._is_edited or edits
        args = self._with_constant_row(func, args, kwargs)
        if _taken_out(func, args) is None or not _any_tracked((args, kwargs)) or self._functions.run():
            return func(*args, **kwargs)
        found = func(*args, **kwargs)
        kept = self._kept_instead(found if written is None else written)
        if written is not None:
            mode = grad_mode(False)
            with mode, mode:
                written.copy_(kept)
            return found
        if func in _VIEWS:
            self._views.append(kept)
        return kept

    def _with_constant_row(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The arguments of an embedding, whose row without a gradient is what it was at the first run."""
        padded = _padded(func, args, kwargs) if _any_tracked((args, kwargs)) and not self._functions.run() else None
        if padded is None:
            return args
        place, row = padded
        weight = args[place]
        held = weight.clone()
        held[row] = self._kept_instead(weight[row])
        return (*args[:place], held, *args[place + 1 :])

    def _kept_instead(self, value: Any) -> Any:
        """The value here at the first run."""
        if self._first:
            self._kept.append(_copy(value))
        self._place += 1
        return _copy(self._kept[self._place - 1]) if self._place <= len(self._kept) else value


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """What ``func`` writes to, or None."""
    name = getattr(func, "__name__", "")
    if name == "requires_grad_":
        return None
    in_place = name.endswith("_") and not name.startswith("__")
    in_place = in_place or name in ("__setitem__", "__set__") or name.startswith("__i")
    return args[0] if in_place and args else kwargs.get("out")


def _copy(value: Any) -> Any:
    return tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else copy.copy(t), value)


class _Functions:
    """Custom autograd Functions, by the code of their forwards."""

    def __init__(self, functions: Iterable[type]) -> None:
        self._codes = {getattr(getattr(f, "forward", None), "__code__", None) for f in functions}

    def run(self) -> bool:
        """Whether the caller was called by one of them."""
        return bool(self._codes & _codes_above())


_REENTRANT = checkpoint.CheckpointFunction.forward.__code__
_TAKES_OUT: dict[Any, str] = {
    Tensor.detach: "detach",
    Tensor.detach_: "detach_",
    torch.detach: "detach",
    Tensor.data.__get__: ".data",  # type: ignore[attr-defined]
    Tensor.item: "item",
    Tensor.tolist: "tolist",
    Tensor.numpy: "numpy",
    Tensor.__float__: "float()",
}
_VIEWS = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
_HARMLESS = ("size", "dim", "numel", "is_floating_point", "is_complex", "stride")


def _taken_out(func: Any, args: Any) -> str | None:
    """How ``func`` makes a constant of what it is given, or None."""
    if torch.is_grad_enabled():
        return _TAKES_OUT.get(func)
    # t.view_as(t): what torch itself calls for an autograd Function that returns its input.
    itself = func is Tensor.view_as and len(args) == 2 and args[0] is args[1]
    harmless = itself or getattr(func, "__name__", "") in _HARMLESS
    return None if harmless else "torch.no_grad"


def _by_position(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The tensors of ``torch.embedding`` as its first arguments, however they were given."""
    if func is not torch.embedding or len(args) > 1:
        return args, kwargs
    rest = dict(kwargs)
    return (*args, *[rest.pop(n) for n in ("weight", "indices")[len(args) :]]), rest


def _padded(func: Any, args: Any, kwargs: Any) -> tuple[int, int] | None:
    """Which argument of ``func`` is an embedding's weight, and which row of it counts as a constant, or None."""
    if func is functional.embedding and kwargs.get("padding_idx") is not None:
        return 1, kwargs["padding_idx"]
    row = (*args[2:3], kwargs.get("padding_idx", -1))[0] if func is torch.embedding else -1
    return (0, row) if row >= 0 and len(args) > 1 else None


def _surrogate(func: Any, kwargs: Any) -> str | None:
    """What of the gradients that pass ``func`` need not be derivatives by design, or None."""
    name = getattr(func, "__name__", "")
    if func is Tensor.register_hook:
        return "a hook of register_hook"
    if func is functional.embedding and kwargs.get("scale_grad_by_freq"):
        return "scale_grad_by_freq"
    return "fake_quantize" if name.startswith("fake_quantize") else None


def _any_tracked(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return any(map(_any_tracked, items))


def _codes_above() -> set[CodeType]:
    """Of all functions that are running."""
    found, frame = set(), inspect.currentframe()
    while frame is not None:
        found.add(frame.f_code)
        frame = frame.f_back
    return found


def watched(run: Callable[[], object], functions: Iterable[type]) -> Watch:
    """What is noticed while ``run`` runs; its Functions are given."""
    watch = Watch(functions)
    mode = entered(watch)
    with mode, mode:
        run()
    return watch


def reentrant_checkpoint() -> UnsupportedError:
    return UnsupportedError(
        "model: its forward runs torch.utils.checkpoint with use_reentrant=True, which loses gradients or refuses "
        "torch.autograd.grad; pass use_reentrant=False"
    )
