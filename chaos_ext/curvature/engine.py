"""The choice of engine: layer rules where they provably give what torch gives, torch itself elsewhere."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..base.guards import borrowed_buffers, without_running_stats
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.snapshot import Snapshot
from ..base.tensors import all_finite
from ..errors import ChaosExtError
from ..graph.capture import capture
from ..graph.program import Program
from ..rules.losses import LossRule, rule_for
from ..rules.rule import NotLayerwise
from ..rules.table import is_registered
from .functional import ForwardError, FunctionalEngine, describe
from .layerwise import LayerwiseEngine

log = logging.getLogger("chaos_ext")

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
    if not _close(engine.output, expected):
        # A flag that forward reads changed since the capture, say.
        return None, "forward no longer computes what was captured"
    return engine, ""


def _captured(tree: ModuleTree, space: ParameterSpace, x: Tensor) -> tuple[Program | None, object, str]:
    """The model's program and its output now, or the reason why there is no program."""

    def run() -> tuple[Program | None, object, str]:
        found = capture(tree, space, x, lambda program: _validate(program, tree.model, x))
        # On a copy: a forward may edit its input in place.
        return found.program, None if found.program is None else _forward(tree.model, x.clone()), found.reason

    if not any(m._buffers for m in tree.modules):
        return run()
    with borrowed_buffers(tree.modules) as written:
        with without_running_stats(tree.modules):
            result = run()
        return (None, None, "forward writes to a buffer") if written() else result


_warned: set[tuple[str, str]] = set()


def _warn_once(model: nn.Module, why: str) -> None:
    key = (type(model).__name__, why)
    if key not in _warned:
        _warned.add(key)
        log.warning("%s: no layer rules here (%s); differentiating with torch, exact but slower", *key)


def _forward(model: nn.Module, x: Tensor) -> object:
    try:
        with torch.no_grad():
            return model(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as e:
        raise ForwardError(f"x: the model's forward failed on a batch of {describe(x)}: {e}") from e


def _close(ours: Tensor, torchs: object) -> bool:
    if not isinstance(torchs, Tensor) or torchs.shape != ours.shape:
        return False
    # Semantics differ by far more; torch itself is off by 1e-8 in places (it rounds 1/alpha of CELU to float32).
    limit = 1e-4 if ours.dtype == torch.float32 else 1e-7
    if ours.is_cpu and torch.equal(ours, torchs) and all_finite(ours):
        return True  # the usual case, the same kernels; a GPU would have to be waited for
    torchs = torchs.to(ours.dtype)
    # The largest number of each, in one pass. A NaN, or an infinity in either, is not close.
    return bool(torch.dist(ours, torchs, math.inf) <= limit * torch.linalg.vector_norm(torchs, math.inf))


@torch.inference_mode(False)
def _validate(program: Program, model: nn.Module, x: Tensor) -> str | None:
    """Compares a new program with torch on a float64 copy: output, gradient and one H v by double backward.

    This catches what torch.fx does not record, such as ``torch.no_grad`` inside forward.
    """
    try:
        double = copy.deepcopy(model)
    except Exception as e:  # whatever the user's module raises
        return f"it cannot be copied for validation ({type(e).__name__}: {e})"
    double.double()
    x = x.detach().double().clone() if x.is_floating_point() else x.detach().clone()
    space = ParameterSpace.of(double)
    expected = _forward(double, x.clone())
    # Random targets: on the batch itself a fitted model leaves only rounding to compare. The loss rules need no check.
    if not isinstance(expected, Tensor):
        return "its output is not a tensor"
    noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x.device)
    loss = nn.MSELoss()
    y, rule = expected + noise, rule_for(loss)
    assert rule is not None
    reference = FunctionalEngine(double, loss, space, x, y)
    reference.path = "double backward"
    v = torch.randn(space.size, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
    try:
        expected_product = reference.hvp(v)
    except ChaosExtError as e:
        return str(e)
    try:
        engine = LayerwiseEngine(program, space, [p.detach() for p in space.params], x, y, rule)
        ours = {"output": engine.output, "gradient": engine.gradient, "H v": engine.hvp(v)}
    except torch.OutOfMemoryError:
        raise
    except (NotLayerwise, ChaosExtError, RuntimeError, TypeError, ValueError, IndexError, AssertionError) as e:
        problem = f"a rule failed on it ({type(e).__name__}: {e})"
    else:
        theirs = {"output": expected, "gradient": reference.gradient, "H v": expected_product}
        wrong = [name for name in ours if not _close(ours[name], theirs[name])]
        problem = f"its {wrong[0]} differs from torch's" if wrong else ""
    own = sorted({type(m).__name__ for m in model.modules() if is_registered(type(m))})
    if problem and own:
        raise ChaosExtError(f"model: {problem}; check the rule registered for {', '.join(own)}")
    return problem or None
