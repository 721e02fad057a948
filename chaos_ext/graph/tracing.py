"""torch.fx as it is used here: which modules are nodes of the graph, and how tracing leaves no trace."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn

from ..base.signals import Deferred
from ..rules.table import is_registered

log = logging.getLogger("chaos_ext")


def is_leaf(m: nn.Module) -> bool:
    """Whether a module is a node: torch's own layers, and those with a registered rule."""
    if is_registered(type(m)):
        return True
    return type(m) is not nn.Sequential and m.__module__.startswith("torch.nn")


_tracing = threading.RLock()  # torch.fx patches nn.Module for the whole process while it traces


class _Tracer(fx.Tracer):
    """Other threads that run modules meanwhile see torch's own behaviour."""

    def __init__(self, opaque: set[str]) -> None:
        super().__init__()
        self._owner, self._opaque = threading.get_ident(), opaque
        self.inside: list[str] = []  # submodules whose forward is being traced; after an error, where it happened

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._owner:
            return forward(*args, **kwargs)
        if type(m) is nn.DataParallel:  # what it does on one device
            return m.module(*args, **kwargs)
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._owner:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return is_leaf(m) or qualified_name in self._opaque


def _len(value: Any) -> Any:
    """The builtin, which Python lets return nothing but an int, also of what torch.fx traces with."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", len, (value,), {})
    return len(value)


@contextlib.contextmanager
def _traceable_len(root: nn.Module) -> Iterator[None]:
    """Lets the files that define the model's forwards see ``_len`` as len."""
    traced = [type(m).forward for m in root.modules() if not is_leaf(m)]
    scopes = {id(f.__globals__): f.__globals__ for f in traced if hasattr(f, "__globals__")}
    patched = [scope for scope in scopes.values() if "len" not in scope]
    for scope in patched:
        scope["len"] = _len
    try:
        yield
    finally:
        for scope in patched:
            del scope["len"]


def enclosed(model: nn.Module) -> nn.Sequential:
    """A container with the model as its only entry: what torch.fx is given instead of the model.

    torch.fx never treats its root as a layer, passes arguments that have a default to its forward, and hangs tensors
    that forward makes on it: none of this is to be the user's model.
    """
    return nn.Sequential(model)


def own_name(target: object) -> str:
    """The name that the user knows of a module of the enclosed model."""
    return str(target).partition(".")[2] or "0"


def trace(root: nn.Sequential) -> fx.Graph:
    """The graph of an enclosed model's forward, with submodules that torch.fx cannot trace as single nodes."""
    opaque: set[str] = set()
    # Ctrl-C between patching and putting back would leave nn.Module patched; whoever insists gets through.
    with _tracing, Deferred(insist=True), _traceable_len(root):
        while True:
            tracer = _Tracer(opaque)
            try:
                return tracer.trace(root)
            except Exception as e:
                where = next((name for name in reversed(tracer.inside) if name not in opaque), "0")
                if where == "0":  # the model's own forward
                    raise
                log.info("%s: torch.fx cannot trace it (%s: %s)", own_name(where), type(e).__name__, e)
                opaque.add(where)
