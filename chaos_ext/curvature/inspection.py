"""What can be seen of a loss before it is differentiated twice: the nodes of its graph, and gradients that it stops."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function as autograd_function
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from ..base.torch_internals import function_class
from ..errors import UnsupportedError

# Functions with points where torch's second derivatives are wrong or NaN although the exact ones exist: a norm at 0, a
# product with zeros, equal eigenvalues. A batch that meets such a point may come at any time.
_FRAGILE = (
    *("Norm", "Std", "Dist", "Cdist", "Pdist", "Renorm", "Prod", "Cumprod", "Reduce", "Sqrt", "Rsqrt", "Abs", "Hypot"),
    *("Angle", "Sgn", "Atan2", "Sinc", "Xlogy", "Xlog1Py", "Logcumsumexp", "Det", "Svd", "Eig", "Qr", "Entr"),
    *("PowBackward1", "WeightNormInterface"),
)
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
    nodes = list(_nodes(loss))
    functions = {n: function_class(n) for n in nodes}
    custom = tuple(dict.fromkeys(f for f in functions.values() if f is not None))
    kinds = tuple(functions[n] or n.name() for n in nodes)
    names = dict.fromkeys(k for k in kinds if isinstance(k, str))
    return Seen(kinds, custom, tuple(k for k in names if _is_fragile(k)))


def _nodes(loss: Tensor) -> Iterator[Any]:
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
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


class Watch(TorchFunctionMode):
    """Notices tensors of the graph that code inside takes out of it: ``detach``, ``.data``, ``no_grad``, ``item``.

    Args:
        functions: custom autograd Functions, whose forward sees no graph anyway.

    Attributes:
        stops: the name of the first of them, or None.
        reentrant: whether a re-entrant checkpoint ran.
    """

    def __init__(self, functions: Iterable[type]) -> None:
        super().__init__()
        self._forwards = {getattr(getattr(f, "forward", None), "__code__", None) for f in functions}
        self.stops: str | None = None
        self.reentrant = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.reentrant:
            self._notice(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _notice(self, func: Any, args: Any, kwargs: Any) -> None:
        how = _how(func, kwargs) if torch.is_grad_enabled() else "torch.no_grad"
        if how is None or getattr(func, "__name__", "") in _HARMLESS or not _any_tracked((args, kwargs)):
            return
        above = set(_codes_above(inspect.currentframe()))
        self.reentrant = _REENTRANT in above
        if self.stops is None and not self._forwards & above:
            self.stops = how


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
    Tensor.register_hook: "register_hook",
}
_HARMLESS = ("size", "dim", "numel", "is_floating_point", "is_complex", "stride")


def _how(func: Any, kwargs: Any) -> str | None:
    """What of the gradient ``func`` leaves out by design, or None."""
    if func is functional.embedding:
        return next((k for k in ("padding_idx", "scale_grad_by_freq") if kwargs.get(k) not in (None, False)), None)
    return "fake_quantize" if getattr(func, "__name__", "").startswith("fake_quantize") else _TAKES_OUT.get(func)


def _any_tracked(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return any(map(_any_tracked, items))


def _codes_above(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def watched(run: Callable[[], object], functions: Iterable[type]) -> Watch:
    """What is noticed while ``run`` runs; its Functions are given."""
    with Watch(functions) as watch:
        run()
    return watch


def reentrant_checkpoint() -> UnsupportedError:
    return UnsupportedError(
        "model: its forward runs torch.utils.checkpoint with use_reentrant=True, which loses gradients or refuses "
        "torch.autograd.grad; pass use_reentrant=False"
    )
