"""From a torch.nn.Module to a program of layer rules, through torch.fx.

A layer without a rule of its own gets one from torch's derivatives of it alone; so does a submodule that torch.fx
cannot trace. A model whose behaviour torch.fx cannot see at all (hooks, patched forwards, a second input) is not
captured: ``capture`` then says why, and the functional engine takes over.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..base.guards import refuse_edits
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.randomness import without_randomness
from ..base.torch_internals import has_global_hooks, has_hooks, has_own_functions
from ..base.traces import untouched
from ..errors import ChaosExtError
from ..rules.rule import NotLayerwise
from .builder import Builder
from .program import Program
from .signature import Signature
from .tracing import enclosed, trace


def _refuse_invisible(model: nn.Module) -> None:
    for name, m in model.named_modules():
        where = name or "the model"
        if has_hooks(m):
            raise NotLayerwise(f"{where} has hooks")
        if "forward" in vars(m):
            raise NotLayerwise(f"{where} has a patched forward")
    if has_global_hooks():
        raise NotLayerwise("global module hooks are registered")
    for name, p in model.named_parameters():
        if has_own_functions(p):
            raise NotLayerwise(f"{name} is a {type(p).__name__}, which has functions of its own")


@dataclass(frozen=True)
class Capture:
    """A program, or the reason why there is none.

    Attributes:
        program, reason: these.
        edits_input: whether the model may write to its input.
        stays: whether the output of a model with the same signature is what it was, and needs no comparison.
    """

    program: Program | None
    reason: str
    edits_input: bool = True
    stays: bool = False


_MOST = 256  # blocks of one model that are remembered
_Known = dict[tuple[str, ...] | None, tuple[Signature, Capture]]  # by the block of theta
_cache: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def capture(tree: ModuleTree, space: ParameterSpace, x: Tensor, validate: Callable[[Program], str | None]) -> Capture:
    """The model's program; ``validate`` sees each new program once and returns why it must not be used, or None."""
    model = tree.model
    blocks = _cache.setdefault(model, {})
    known = blocks.get(tree.block)
    if known is not None and known[0].holds_for(tree, space, x):
        return known[1]
    signature = Signature(tree, space, x)
    same, refused = untouched(tree.watched), refuse_edits(tree.named_parameters)
    with same, same, refused, refused:
        result = _program(model, space, x, signature)
    if result.program is not None:
        problem = validate(result.program)
        result = Capture(None, problem) if problem else result
    result = replace(result, edits_input=tree.may_edit_input(), stays=signature.is_complete)
    if len(blocks) >= _MOST:
        blocks.clear()
    blocks[tree.block] = (signature, result)
    return result


def _program(model: nn.Module, space: ParameterSpace, x: Tensor, signature: Signature) -> Capture:
    try:
        _refuse_invisible(model)
        if signature.replaced:
            raise NotLayerwise(f"another function is in the place of {signature.replaced}")
        root = enclosed(model)
        graph = without_randomness(lambda: trace(root), model, x.device)
        program = Builder(root, space, graph, x).build()
    except NotLayerwise as e:
        return Capture(None, str(e))
    except ChaosExtError:
        raise
    except Exception as e:  # torch.fx raises whatever the user's forward does with a symbolic value
        return Capture(None, f"torch.fx cannot trace it ({type(e).__name__}: {e})")
    return Capture(program, "")
