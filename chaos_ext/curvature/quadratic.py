"""e^T H e along many directions at once, by tangents that go forward only.

The second derivative of the loss along a direction is a sum over the nodes f of the program, with the tangents (da,
dtheta) that the direction gives their inputs and parameters, and over the loss:

    e^T H e = sum_f <delta_f, d2 f [(da, dtheta), (da, dtheta)]>  +  dz^T C dz

A node that is linear in what has a tangent adds nothing; an activation adds phi''(z) delta da^2; of any other node
``tangent_backward`` without d(delta) is one of the two contractions with d2 f.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..rules.constants import Choice, Constant
from ..rules.conv import Convolution
from ..rules.elementwise import Elementwise, PReLU
from ..rules.embedding import Embedding
from ..rules.joints import Add, Affine, Cat, LinearMap, Parameter, Reshape
from ..rules.linear import Linear
from ..rules.norm import FixedNorm, GroupStatistics, RowStatistics
from ..rules.padding import Pad
from ..rules.pooling import Select
from ..rules.rms import RmsNorm
from ..rules.rule import Rule, Tangent
from ..rules.views import Broadcast, Permutation, Slice
from .owned import Owned
from .sweep import Pushed, pushing
from .tape import Tape

# Linear in their inputs while their parameters have no tangent, and in their parameters while their inputs have none.
_IN_INPUTS = (
    *(Linear, Convolution, FixedNorm, PReLU, Embedding, Parameter),
    *(Add, Affine, Cat, LinearMap, Reshape, Pad, Select, Permutation, Slice, Broadcast, Choice, Constant),
)
_IN_PARAMETERS = (
    *(Linear, Convolution, FixedNorm, GroupStatistics, RowStatistics, RmsNorm, PReLU, Embedding, Parameter),
)


def is_linear_in_inputs(rule: Rule, saved: object) -> bool:
    """Whether the node, its parameters held fixed, has no second derivative here."""
    return type(rule) in _IN_INPUTS or (type(rule) is Elementwise and saved[1] is None)  # type: ignore[index]


def is_linear_in_parameters(rule: Rule) -> bool:
    """Whether the node, its inputs held fixed, has no second derivative."""
    return type(rule) in _IN_PARAMETERS


def second_derivatives(
    tape: Tape, dvalues: list[Tangent], dtheta: Mapping[int, Tensor], first: int, by_sample: bool = False
) -> Tensor:
    """e^T H e [k] of k directions, or the part of each sample [N, k].

    Args:
        tape: the point at which H is taken.
        dvalues: tangents of values that enter, overwritten.
        dtheta: tangents of slots that enter.
        first: the first node that they reach.
        by_sample: for directions that enter where samples do not interact up to the loss: each sample's own.
    """
    program, owned = tape.program, Owned()
    total: Tangent = None
    for push in pushing(tape, dvalues, dtheta, first):
        total = _added(total, _of_node(tape, push, by_sample))
        inputs = program.nodes[push.node].inputs
        last = len(inputs) > 0 and program.readers[inputs[0]] == 1
        dvalues[push.node + 1] = owned.push(push.rule, push.saved, push.dinputs, push.dslots, last)
    dz = dvalues[program.output]
    if dz is not None:
        total = _added(total, _contracted(dz, tape.loss.tangent(dz), by_sample))
    if total is not None:
        return total
    k = next(t.shape[-1] for t in (*dtheta.values(), *dvalues) if t is not None)
    return tape.output.new_zeros((len(tape.output), k) if by_sample else k)


def _of_node(tape: Tape, push: Pushed, by_sample: bool) -> Tangent:
    delta, rule = tape.deltas[push.node], push.rule
    inside, own = any(d is not None for d in push.dinputs), any(d is not None for d in push.dslots)
    if delta is None or (not inside and is_linear_in_parameters(rule)):
        return None
    if not own and is_linear_in_inputs(rule, push.saved):
        return None
    if type(rule) is Elementwise:
        da = push.dinputs[0]
        assert da is not None
        return _contracted((push.saved[1] * delta).unsqueeze(-1) * da, da, by_sample)  # type: ignore[index]
    d_inputs, d_slots = rule.tangent_backward(push.saved, delta, push.dinputs, push.dslots, None)
    total: Tangent = None
    for d, curved in zip((*push.dinputs, *push.dslots), (*d_inputs, *d_slots), strict=True):
        if d is not None and curved is not None:
            total = _added(total, _contracted(d, curved, by_sample))
    return total


def _contracted(a: Tensor, b: Tensor, by_sample: bool) -> Tensor:
    """<a, b> for each column, of all [k] or of each sample [N, k]."""
    product = a * b
    return product.reshape(len(a), -1, a.shape[-1]).sum(1) if by_sample else product.reshape(-1, a.shape[-1]).sum(0)


def _added(a: Tangent, b: Tangent) -> Tangent:
    return b if a is None else a if b is None else a + b
