"""From a torch.nn.Module to a program of layer rules, through torch.fx.

A layer without a rule of its own gets one from torch's derivatives of it alone; so does a submodule that torch.fx
cannot trace. A model whose behaviour torch.fx cannot see at all (hooks, patched forwards, a second input) is not
captured: ``capture`` then says why, and the functional engine takes over.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..base.parameters import ModuleTree, ParameterSpace
from ..base.torch_internals import has_global_hooks, has_hooks, own_children, own_parameters
from ..errors import ChaosExtError
from ..rules.rule import NotLayerwise
from ..rules.table import MODULES
from .builder import Builder
from .program import Program
from .tracing import is_leaf, trace, without_constants


def _refuse_invisible(model: nn.Module) -> None:
    for name, m in model.named_modules():
        where = name or "the model"
        if has_hooks(m):
            raise NotLayerwise(f"{where} has hooks")
        if "forward" in vars(m):
            raise NotLayerwise(f"{where} has a patched forward")
    if has_global_hooks():
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
        parts += (id(m), type(m), MODULES.get(type(m)), has_hooks(m), "forward" in own)
        for k, v in own.items():
            if k[0] != "_":
                if type(v) in _SCALARS:
                    parts += (k, type(v), v)
                elif _is_plain(v):
                    parts += (k, repr(v))
        children = own_children(m)
        if children:  # the walk lists a module once, wherever else it is used
            parts.append(tuple([(k, id(child)) for k, child in children.items()]))
        for p in own_parameters(m).values():
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


def _program(model: nn.Module, space: ParameterSpace, x: Tensor) -> Capture:
    try:
        _refuse_invisible(model)
        # torch.fx never treats the root as a leaf: a model that is itself one layer goes into a container.
        root = nn.Sequential(model) if is_leaf(model) else model
        with without_constants(root):
            program = Builder(root, space, trace(root), x).build()
    except NotLayerwise as e:
        return Capture(None, str(e))
    except ChaosExtError:
        raise
    except Exception as e:  # torch.fx raises whatever the user's forward does with a symbolic value
        return Capture(None, f"torch.fx cannot trace it ({type(e).__name__}: {e})")
    return Capture(program, "")
