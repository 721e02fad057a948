"""Checks that layer rules give what torch gives: of every new program once, and of one operator on request.

Both make a *twin* to compare with, take the *reference* from double backward, and *compare* what both say.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..base.guards import refuse_edits
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.tensors import all_finite
from ..base.torch_internals import entered, with_grad
from ..base.traces import untouched
from ..base.twice import Accurate
from ..errors import ChaosExtError
from ..graph.program import Program
from ..rules.automatic import AutoRule
from ..rules.losses import rule_for
from ..rules.rule import NotLayerwise
from ..rules.table import is_registered
from .differences import Derivative
from .examination import silent
from .functional import FunctionalEngine
from .inspection import nodes_of
from .layerwise import LayerwiseEngine
from .scalar import ForwardError, forward_failed
from .trust import DOUBLE_BACKWARD

# What a program that does not fit its model may raise: a rule of the user's own can be wrong in any of these ways.
_FAILURES = (NotLayerwise, ChaosExtError, RuntimeError, TypeError, ValueError, IndexError, AssertionError)

_ROUNDING = 1e-13  # of derivatives in float64, of a loss near 1


@torch.inference_mode(False)
def validate(program: Program, model: nn.Module, x: Tensor, block: tuple[str, ...] | None = None) -> str | None:
    """Why a new program must not be used, or None: output, gradient and one H v against torch in float64.

    ``block``: the names of the parameters that the program differentiates, None: all that require a gradient.

    This catches what torch.fx does not record, such as ``torch.no_grad`` inside forward.

    Raises:
        ChaosExtError: the program is wrong, and it uses rules that the user has registered.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as e:  # whatever the user's module raises
        return f"it cannot be copied for validation ({type(e).__name__}: {e})"
    twin.double()
    silent.add(twin)
    x = x.detach().double().clone() if x.is_floating_point() else x.detach().clone()
    tree = ModuleTree(twin, block)
    theirs = _theirs(program, tree, x)
    problem = theirs if isinstance(theirs, str) else _compare(program, x, theirs)
    if problem and not isinstance(theirs, str) and _is_torchs_rounding(program, tree, x):
        problem = None
    own = sorted({type(m).__name__ for m in model.modules() if is_registered(type(m))})
    if problem and own:
        raise ChaosExtError(f"model: {problem}; check the rule registered for {', '.join(own)}")
    return problem


@dataclass
class _Theirs:
    """What torch gives: results by name, of a mean squared error with the targets y."""

    space: ParameterSpace
    y: Tensor
    results: dict[str, Tensor]


def _theirs(program: Program, tree: ModuleTree, x: Tensor) -> _Theirs | str:
    """Of the twin, or why torch's results are no witness."""
    try:
        with refuse_edits(tree.named_parameters):  # of a copy
            output = forward(tree, x.clone())
    except ForwardError as e:  # or it names float32
        return f"it cannot be run in float64 for validation ({e.__cause__})"
    if not isinstance(output, Tensor):
        return "its output is not a tensor"
    # Random targets: on the batch itself a fitted model leaves only rounding to compare. The loss rules need no check.
    y = output + _normal(output.shape, seed=1).to(x.device)
    # Rules share nothing with double backward: two witnesses. Layers that torch differentiates would be one.
    alone = any(isinstance(n.rule, AutoRule) for n in program.nodes)
    space = ParameterSpace.of(tree)
    reference = FunctionalEngine(tree.model, nn.MSELoss(), space, x, y, path=DOUBLE_BACKWARD, check=alone)
    if alone and reference.seen is not None and reference.seen.fragile:
        return f"torch's second derivatives of it may be wrong on some batches: {', '.join(reference.seen.fragile)}"
    if alone and reference.custom is not None:
        return f"its gradients have to be checked on every batch: {reference.custom}"
    try:
        if alone and reference.apart is not None:
            return f"its forward takes out of the graph what its gradient changes with: {reference.apart}"
        product = reference.hvp(_direction(space))
    except ChaosExtError as e:
        return str(e)
    return _Theirs(space, y, {"output": output, "gradient": reference.gradient, "H v": product})


def _is_torchs_rounding(program: Program, tree: ModuleTree, x: Tensor) -> bool:
    """Whether the program is what torch computes with activations that round less, as in the tail of GELU."""
    mode = entered(Accurate())
    try:
        with mode, mode:
            theirs = _theirs(program, tree, x)
    except ChaosExtError:
        return False
    return not isinstance(theirs, str) and _compare(program, x, theirs) is None


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")


def _direction(space: ParameterSpace) -> Tensor:
    return _normal((space.size, 1), seed=0).to(space.device)


def _compare(program: Program, x: Tensor, theirs: _Theirs) -> str | None:
    """What the program does differently with the mean squared error, or None."""
    rule = rule_for(nn.MSELoss())
    assert rule is not None
    space = theirs.space
    try:
        engine = LayerwiseEngine(program, space, [p.detach() for p in space.params], x, theirs.y, rule)
        ours = {"output": engine.output, "gradient": engine.gradient, "H v": engine.hvp(_direction(space))}
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as e:
        return f"a rule failed on it ({type(e).__name__}: {e})"
    # Of parameters that normalisation makes ineffective, such as a bias before it, there is rounding only.
    floor = {"output": 0.0, "gradient": _ROUNDING * float(engine.loss), "H v": _ROUNDING * float(engine.loss)}
    wrong = [name for name in ours if not close(ours[name], theirs.results[name], floor[name])]
    return f"its {wrong[0]} differs from torch's" if wrong else None


@with_grad
def forward(tree: ModuleTree, x: Tensor) -> object:
    """model(x) as the loss sees it, detached, and without a trace on its modules.

    Under ``no_grad`` torch's encoders take another way in eval mode, which leaves zeros at padded places.

    Raises:
        ForwardError: the model raised.
    """
    output = _run(tree, x)
    return output.detach() if isinstance(output, Tensor) else output


@with_grad
def forward_with_graph(tree: ModuleTree, x: Tensor) -> tuple[object, object]:
    """``forward``, and what stands for the graph that torch records of it: its functions, and which parameters.

    Equal graphs of one program have equal derivatives where outputs are equal: what forward detaches is not in them.
    """
    output = _run(tree, x)
    if not isinstance(output, Tensor):
        return output, None
    numbers = {id(p): i for i, (_, p) in enumerate(tree.named_parameters)}
    graph = (n.name() if not hasattr(n, "variable") else numbers.get(id(n.variable)) for n in nodes_of(output))
    return output.detach(), tuple(graph)


def _run(tree: ModuleTree, x: Tensor) -> object:
    try:
        if not tree.watched:
            return tree.model(x)
        same = untouched(tree.watched)
        with same, same:
            return tree.model(x)
    except ChaosExtError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as e:
        raise ForwardError(forward_failed(x, e)) from e


def close(ours: Tensor, torchs: object, floor: float = 0.0) -> bool:
    """Whether two results are the same up to rounding; one with a NaN or an infinity is close to nothing."""
    if not isinstance(torchs, Tensor) or torchs.shape != ours.shape:
        return False
    # Semantics differ by far more; torch itself is off by 1e-8 in places (it rounds 1/alpha of CELU to float32).
    limit = 1e-4 if ours.dtype == torch.float32 else 1e-7
    if ours.is_cpu and torch.equal(ours, torchs) and all_finite(ours):
        return True  # the usual case, the same kernels; a GPU would have to be waited for
    torchs = torchs.to(ours.dtype)
    floor += torch.finfo(ours.dtype).tiny / torch.finfo(ours.dtype).eps  # what underflows has no digits
    # The largest number of each, in one pass.
    return bool(torch.dist(ours, torchs, math.inf) <= limit * torch.linalg.vector_norm(torchs, math.inf) + floor)


def only_rounding(engine: LayerwiseEngine, tree: ModuleTree, x: Tensor) -> bool:
    """Whether a program and its model, whose outputs differ, compute the same in float64.

    Normalisation by the statistics of a few nearly equal numbers can make any difference of rounding, and torch's
    activations round more than they have to.
    """
    try:
        twin = copy.deepcopy(tree.model).double()
        wide = x.detach().double() if x.is_floating_point() else x.detach().clone()
        silent.add(twin)
        ours, mode = engine.tape(torch.float64).output, entered(Accurate())
        if close(ours, forward(ModuleTree(twin), wide.clone())):
            return True
        with mode, mode:
            return close(ours, forward(ModuleTree(twin), wide))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a user's module raises when it is copied
        return False


def verify(products: Tensor, reference: FunctionalEngine, v: Tensor) -> None:
    """Checks H v [P, 2] of an operator: symmetric, and the change of the gradient along v.

    Where differences of gradients do not settle, or see what forward stops on purpose, double backward has to do.

    Raises:
        ChaosExtError: it is not.
    """
    dtype, tiny = v.dtype, torch.finfo(v.dtype).tiny
    limit = 1e-3 if dtype == torch.float32 else 1e-7
    scale = (v[:, 0].norm() * products.norm()).clamp_min(tiny)
    gap = float((v[:, 0] @ products[:, 1] - v[:, 1] @ products[:, 0]).abs() / scale)
    if not gap <= limit:
        raise ChaosExtError(f"verify: u^T H v and v^T H u differ by {gap:.2g} of their scale (limit {limit:g})")
    for product, direction in zip(products.T, v.T, strict=True):
        _verify_one(product, reference, direction, limit)


def _verify_one(product: Tensor, reference: FunctionalEngine, v: Tensor, limit: float) -> None:
    found, name = reference.change_of_gradient(v), "differences of gradients"
    if found is None:
        found, name = Derivative(reference.hvp(v.unsqueeze(1)).squeeze(1), 0.0), "double backward"
    theirs = found.value.to(v.dtype)
    if not found.agrees(product.to(found.value), limit):
        error = float((product - theirs).norm() / theirs.norm().clamp_min(torch.finfo(v.dtype).tiny))
        raise ChaosExtError(f"verify: H v differs from {name} by {error:.2g} (limit {limit:g})")


def probes(space: ParameterSpace) -> Tensor:
    """Two fixed random vectors [P, 2] for ``verify``."""
    return _normal((space.size, 2), seed=0).to(space.device, space.dtype)
