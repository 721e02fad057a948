"""The choice of engine: layer rules where they provably give what torch gives, torch itself elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..base.guards import borrowed_buffers, without_running_stats
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.snapshot import Snapshot
from ..base.torch_internals import has_own_functions, is_intercepted
from ..base.traces import shared_buffers
from ..errors import ChaosExtError
from ..graph.capture import capture
from ..graph.program import Program
from ..rules.losses import LossRule, rule_for
from ..rules.rule import NotLayerwise
from .functional import FunctionalEngine
from .layerwise import LayerwiseEngine
from .validation import close, forward, forward_with_graph, only_rounding, validate

log = logging.getLogger("chaos_ext")
T = TypeVar("T")

Engine = LayerwiseEngine | FunctionalEngine


def engine_for(
    tree: ModuleTree, loss_fn: Callable[..., Tensor], snapshot: Snapshot, x: object, y: object
) -> tuple[Engine, str]:
    """Layer rules where they provably give what torch gives, torch itself elsewhere; and why."""
    if not callable(loss_fn):
        raise TypeError(f"loss_fn: expected a callable loss_fn(output, y), got {type(loss_fn).__name__}")
    space, rule = snapshot.space, rule_for(loss_fn)
    if rule is None:
        why = f"the loss {getattr(loss_fn, '__name__', type(loss_fn).__name__)} has no rule"
    elif not isinstance(x, Tensor) or not isinstance(y, Tensor):
        why = "x and y are not tensors"
    elif has_own_functions(x):
        why = f"x is a {type(x).__name__}, which has functions of its own"
    elif x.layout != torch.strided:
        why = f"x has the layout {x.layout}"
    elif (x.is_floating_point() and x.dtype != space.dtype) or x.device != space.device or y.device != space.device:
        why = f"x is {x.dtype} on {x.device}, y on {y.device}, the parameters are {space.dtype} on {space.device}"
    else:
        engine, why = _layerwise(tree, rule, snapshot, x, y)
        if engine is not None:
            return engine, "every layer has a rule"
    _warn_once(tree.model, why)
    return FunctionalEngine(tree.model, loss_fn, space, x, y), why


def _layerwise(
    tree: ModuleTree, rule: LossRule, snapshot: Snapshot, x: Tensor, y: Tensor
) -> tuple[LayerwiseEngine | None, str]:
    found, expected, why = _captured(tree, snapshot.space, x)
    if found is None:
        return None, why
    try:
        engine = LayerwiseEngine(found, snapshot.space, snapshot.parts, x, y, rule)
    except NotLayerwise as e:
        return None, str(e)
    except (ChaosExtError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError) as e:
        output, _ = _on_copies(tree, lambda: forward(tree, x.clone()))  # says so, if the fault is in x
        if not _fits(rule, output, y):
            raise
        return None, f"a rule fails on this batch ({type(e).__name__}: {e})"
    if expected is None:
        return engine, ""
    if not close(engine.output, expected) and not only_rounding(engine, tree, x):
        # A flag that forward reads changed since the capture, say.
        return None, "forward no longer computes what was captured"
    found.seen.add(len(x))
    return engine, ""


def _fits(rule: LossRule, output: object, y: Tensor) -> bool:
    """Whether the loss is defined of this output and these targets."""
    try:
        if isinstance(output, Tensor):
            rule(output, y)
            return True
    except (RuntimeError, ValueError, IndexError):
        pass
    return False


def _captured(tree: ModuleTree, space: ParameterSpace, x: Tensor) -> tuple[Program | None, object, str]:
    """The model's program and its output now, or the reason why there is no program.

    There is no output where nothing can have changed since the program was last compared with the model: all modules
    and functions are torch's own, whose settings are what they were, and so is the shape of x.
    """

    def run() -> tuple[Program | None, object, str]:
        found = capture(tree, space, x, lambda program: validate(program, tree.model, x, tree.block))
        if found.program is None:
            return None, None, found.reason
        if found.stays and len(x) in found.program.seen and not is_intercepted():
            return found.program, None, found.reason
        output, graph = forward_with_graph(tree, x.clone() if found.edits_input or x.is_inference() else x)
        known = found.program.graphs
        if graph not in known:  # forward has another way now, or takes another one for this x
            known[graph] = validate(found.program, tree.model, x, tree.block) if known else None
        if (why := known[graph]) is not None:
            return None, None, why
        return found.program, output, found.reason

    if torch.is_inference_mode_enabled():  # the copies of buffers made there have no place in a graph
        with torch.inference_mode(False):
            return _captured(tree, space, x)
    if tree.buffered and shared_buffers(tree.model, tree.watched):
        return None, None, "buffers share memory with each other or with attributes"
    result, wrote = _on_copies(tree, run)
    return (None, None, "forward writes to a buffer") if wrote else result


def _on_copies(tree: ModuleTree, run: Callable[[], T]) -> tuple[T, bool]:
    """``run()`` with the model on copies of its buffers, and whether it has written to them."""
    if not tree.buffered:
        return run(), False
    borrowed = borrowed_buffers(tree.modules)
    with borrowed, borrowed as written:
        quiet = without_running_stats(tree.modules)  # puts back what it finds: the copies
        with quiet, quiet:
            result = run()
        return result, written()


_warned: set[tuple[str, str]] = set()


def _warn_once(model: nn.Module, why: str) -> None:
    key = (type(model).__name__, why)
    if key not in _warned:
        _warned.add(key)
        log.warning("%s: no layer rules here (%s); differentiating with torch, exact but slower", *key)
