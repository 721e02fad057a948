"""D3 L[v, v, .] by one more tangent level on the tape: second derivatives along a line, and one way back through them.

Along theta + eps v the program's values are jets (``rules.jet``), with z, z., z.. at the output, and

    v^T H v = <delta, z..> + z.^T C z.,        v^T G v = z.^T C z.

where delta and C are the first two derivatives of the loss. Their gradient with respect to theta, v held fixed, comes
from the cotangents of the jet at the output

    of z    D3 l[z., z., .]  (+ C z..)        of z.    2 C z.        of z..    (delta)

pulled back by torch's first derivatives of the jets' arithmetic. In brackets what G has not.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..base.guards import twice_differentiable
from ..base.parameters import ParameterSpace
from ..base.torch_internals import without_grad
from ..errors import UnsupportedError
from ..graph.program import Program
from ..rules.jet import Jet
from ..rules.jets import has_jet, jet_of
from ..rules.losses import Evaluated, ThirdDerivative, rule_for
from ..rules.rule import Leaf
from .differences import directions
from .layerwise import LayerwiseEngine
from .tape import Tape
from .third_trust import agrees, unchecked


def lacks_jets(tape: Tape) -> str | None:
    """What keeps a tape from having third derivatives of its own, or None."""
    without = [n for n in tape.program.nodes if not has_jet(n.rule)]
    if without:
        return f"{without[0].name} has no rule for third derivatives"
    return None if _bend(tape.loss, torch.zeros_like(tape.output)) is not None else "the loss has none"


def _bend(loss: Evaluated, dz: Tensor) -> Tensor | None:
    """D3 l[dz, dz, .], None where it is not known."""
    return loss.third(dz) if isinstance(loss, ThirdDerivative) else None


@twice_differentiable
def third_derivative(tape: Tape, v: Sequence[Tensor], gauss_newton: bool = False) -> list[Tensor | None]:
    """The gradient of v^T H v, or of v^T G v, with v held fixed: for each slot a tensor (None: zero).

    Args:
        tape: one without anything that ``lacks_jets``.
        v: a tensor for each slot.
        gauss_newton: of G instead of H.
    """
    theta = [t.detach().clone().requires_grad_() for t in tape.theta]
    z = _output_jet(tape, theta, [t.detach().clone() for t in v])
    pairs = [(t, c) for t, c in zip(z, _cotangents(tape.loss, z, gauss_newton), strict=True) if t is not None]
    pairs = [(t, c) for t, c in pairs if t.requires_grad and c is not None]
    if not pairs:
        return [None] * len(theta)
    outputs, cotangents = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, theta, cotangents, allow_unused=True))


def _output_jet(tape: Tape, theta: Sequence[Tensor], v: Sequence[Tensor]) -> Jet:
    def of_leaf(leaf: Leaf) -> Jet | None:
        if leaf.slot is not None:
            return Jet(theta[leaf.slot], v[leaf.slot])
        value = leaf(theta)
        return None if value is None else Jet(value.detach().clone())  # of inference mode, perhaps

    values = [Jet(tape.values[0].clone())]
    for node, saved in zip(tape.program.nodes, tape.saved, strict=True):
        values.append(jet_of(node.rule, saved, [values[i] for i in node.inputs], of_leaf))
    return values[tape.program.output]


@without_grad
def _cotangents(loss: Evaluated, z: Jet, gauss_newton: bool) -> list[Tensor | None]:
    """Of z, z. and z.. at the output."""
    of_value: Tensor | None = None
    of_first: Tensor | None = None
    if z.first is not None:
        of_value, of_first = _bend(loss, z.first.detach()), 2 * _curved(loss, z.first)
    if gauss_newton:
        return [of_value, of_first, None]
    if z.second is not None:
        curved = _curved(loss, z.second)
        of_value = curved if of_value is None else of_value + curved
    return [of_value, of_first, loss.delta.clone()]


def _curved(loss: Evaluated, dz: Tensor) -> Tensor:
    """C dz."""
    return loss.tangent(dz.detach().unsqueeze(-1)).squeeze(-1)


_known: weakref.WeakKeyDictionary[Program, bool] = weakref.WeakKeyDictionary()


def jets_are_right(program: Program, space: ParameterSpace, theta: Tensor, x: Tensor) -> bool:
    """Whether a program's third derivatives are the derivative of its H: held once against differences, in float64.

    The targets are random ones of a squared error: of a fitted batch there would be only rounding to compare.

    Args:
        program: all of whose nodes have jets.
        space: of its parameters.
        theta: their values [P], in any dtype.
        x: the batch.

    Raises:
        UnsupportedError: differences do not settle.
    """
    if program not in _known:
        _known[program] = _judged(program, space, theta, x)
    return _known[program]


def _judged(program: Program, space: ParameterSpace, theta: Tensor, x: Tensor) -> bool:
    probe = _Probe(program, space, theta.double(), x.double() if x.is_floating_point() else x)
    right = agrees(probe.third, probe.product, theta.double(), probe.v)
    if right is None:
        raise unchecked("the differences do not settle")
    return right


class _Probe:
    """Products and third derivatives of a program along one fixed direction v, as functions of theta [P].

    What is a constant to H although it is part of theta, as an embedding's row ``padding_idx``, does not move.
    """

    def __init__(self, program: Program, space: ParameterSpace, theta: Tensor, x: Tensor) -> None:
        self._program, self._space, self._x = program, space, x.detach()
        self.v = directions(space.size, theta, 1)[0]
        rule = rule_for(nn.MSELoss())
        assert rule is not None
        self._rule, self._y = rule, self._x
        output = program_output(program, space.views(theta), self._x)
        self._y = output + directions(output.numel(), output, 1)[0].view(output.shape)
        moves = (self._engine(theta).gradient != 0) | (self.product(theta) != 0)
        self.v = self.v * moves

    def _engine(self, theta: Tensor) -> LayerwiseEngine:
        return LayerwiseEngine(self._program, self._space, self._space.views(theta), self._x, self._y, self._rule)

    def product(self, theta: Tensor) -> Tensor:
        return self._engine(theta).hvp(self.v.unsqueeze(1)).squeeze(1)

    def third(self, theta: Tensor) -> Tensor:
        return flat_third(self._engine(theta).tape(torch.float64), self._space, self.v)


@without_grad
def program_output(program: Program, theta: Sequence[Tensor], x: Tensor) -> Tensor:
    """What the program computes."""
    values = [x]
    for node in program.nodes:
        values.append(node.rule.forward([values[i] for i in node.inputs], theta)[0])
    return values[program.output]


def flat_third(tape: Tape, space: ParameterSpace, v: Tensor, gauss_newton: bool = False) -> Tensor:
    """``third_derivative`` along v [P], as [P]."""
    parts = third_derivative(tape, space.views(v), gauss_newton)
    return space.flatten([torch.zeros_like(t) if p is None else p for p, t in zip(parts, tape.theta, strict=True)])


def mean_of_thirds(tape: Tape, space: ParameterSpace, V: Tensor, gauss_newton: bool = False) -> Tensor:
    """The mean over the columns of V [P, m], as [P]; not checked.

    Raises:
        UnsupportedError: the tape lacks jets.
    """
    missing = lacks_jets(tape)
    if missing:
        raise UnsupportedError(f"eigenvalue_gradient: {missing}")
    total = V.new_zeros(len(V))
    for v in V.unbind(1):
        total += flat_third(tape, space, v.contiguous(), gauss_newton)
    return total / V.shape[1]
