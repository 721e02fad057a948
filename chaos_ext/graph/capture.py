"""From a torch.nn.Module to a program of layer rules, through torch.fx.

A layer without a rule of its own gets one from torch's derivatives of it alone; so does a submodule that torch.fx
cannot trace. A model whose behaviour torch.fx cannot see at all (hooks, patched forwards, a second input) is not
captured: ``capture`` then says why, and the functional engine takes over.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from ..base.parameters import ModuleTree, ParameterSpace
from ..errors import ChaosExtError
from ..rules.rule import CONSTANT, NotLayerwise
from ..rules.table import MODULES, is_registered
from .builder import Builder
from .program import Program

log = logging.getLogger("chaos_ext")


def _is_leaf(m: nn.Module) -> bool:
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
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._owner:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return _is_leaf(m) or qualified_name in self._opaque


def _has_hooks(m: nn.Module) -> bool:
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def _refuse_invisible(model: nn.Module) -> None:
    for name, m in model.named_modules():
        where = name or "the model"
        if _has_hooks(m):
            raise NotLayerwise(f"{where} has hooks")
        if "forward" in vars(m):
            raise NotLayerwise(f"{where} has a patched forward")
    module = nn.modules.module
    if module._global_forward_hooks or module._global_forward_pre_hooks or module._global_backward_hooks:
        raise NotLayerwise("global module hooks are registered")


@dataclass(frozen=True)
class Capture:
    """A program, or the reason why there is none."""

    program: Program | None
    reason: str


def _is_plain(v: object) -> bool:
    """A number, a string, None, or a small container of these: what a forward may branch on."""
    if isinstance(v, dict):
        return len(v) <= 32 and all(_is_plain(u) for u in v.values())
    if isinstance(v, (list, tuple, set, frozenset)):
        return len(v) <= 32 and all(_is_plain(u) for u in v)
    return v is None or isinstance(v, (int, float, str))


_SCALARS = frozenset((bool, int, str, type(None)))  # equal values of one of these types are written alike


def _signature(modules: Sequence[nn.Module]) -> tuple[object, ...]:
    """What decides the program besides the code of forward: modules, their modes and scalar settings, parameters."""
    parts: list[object] = []
    for m in modules:
        own = vars(m)
        parts += (id(m), type(m), MODULES.get(type(m)), _has_hooks(m), "forward" in own)
        for k, v in own.items():
            if k[0] != "_":
                if type(v) in _SCALARS:
                    parts += (k, type(v), v)
                elif _is_plain(v):
                    parts += (k, repr(v))
        if m._modules:  # the walk lists a module once, wherever else it is used
            parts.append(tuple([(k, id(child)) for k, child in m._modules.items()]))
        for p in m._parameters.values():
            if p is not None:
                parts += (id(p), p.requires_grad)
    return tuple(parts)


_cache: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Capture]] = weakref.WeakKeyDictionary()


def capture(tree: ModuleTree, space: ParameterSpace, x: Tensor, validate: Callable[[Program], str | None]) -> Capture:
    """The model's program; ``validate`` sees each new program once and returns why it must not be used, or None."""
    model, signature = tree.model, (*_signature(tree.modules), x.shape[1:], x.dtype)
    known = _cache.get(model)
    if known is not None and known[0] == signature:
        return known[1]
    result = _program(model, space, x)
    if result.program is not None:
        problem = validate(result.program)
        result = Capture(None, problem) if problem else result
    _cache[model] = (signature, result)
    return result


@contextlib.contextmanager
def _without_constants(root: nn.Module) -> Iterator[None]:
    """torch.fx hangs tensors that forward makes on the model: takes them off again."""
    with _tracing:
        before = set(vars(root))
        try:
            yield
        finally:
            for name in [n for n in vars(root) if n.startswith(CONSTANT) and n not in before]:
                delattr(root, name)


def _program(model: nn.Module, space: ParameterSpace, x: Tensor) -> Capture:
    try:
        _refuse_invisible(model)
        # torch.fx never treats the root as a leaf: a model that is itself one layer goes into a container.
        root = nn.Sequential(model) if _is_leaf(model) else model
        with _without_constants(root):
            program = Builder(root, space, _trace(root), x).build()
    except NotLayerwise as e:
        return Capture(None, str(e))
    except ChaosExtError:
        raise
    except Exception as e:  # torch.fx raises whatever the user's forward does with a symbolic value
        return Capture(None, f"torch.fx cannot trace it ({type(e).__name__}: {e})")
    return Capture(program, "")


def _len(value: Any) -> Any:
    """The builtin, which Python lets return nothing but an int, also of what torch.fx traces with."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", len, (value,), {})
    return len(value)


@contextlib.contextmanager
def _traceable_len(root: nn.Module) -> Iterator[None]:
    """Lets the files that define the model's forwards see ``_len`` as len."""
    traced = [type(m).forward for m in root.modules() if not _is_leaf(m)]
    scopes = {id(f.__globals__): f.__globals__ for f in traced if hasattr(f, "__globals__")}
    patched = [scope for scope in scopes.values() if "len" not in scope]
    for scope in patched:
        scope["len"] = _len
    try:
        yield
    finally:
        for scope in patched:
            del scope["len"]


def _trace(root: nn.Module) -> fx.Graph:
    """The graph of forward, with submodules that torch.fx cannot trace as single nodes."""
    opaque: set[str] = set()
    with _tracing, _traceable_len(root):
        while True:
            tracer = _Tracer(opaque)
            try:
                return tracer.trace(root)
            except Exception as e:
                where = next((name for name in reversed(tracer.inside) if name not in opaque), None)
                if where is None:
                    raise
                log.info("%s: torch.fx cannot trace it (%s: %s)", where, type(e).__name__, e)
                opaque.add(where)
