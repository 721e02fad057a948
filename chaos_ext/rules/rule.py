"""The protocol of a layer: forward, backward, and the tangents of both.

A layer z = f(a, theta) takes part in second-order backpropagation through four rules. With the cotangent ``delta`` at
its output, a leading d for tangents, and f_a the Jacobian of f with respect to a:

    forward            z = f(a, theta)
    backward           delta_a = f_a^T delta,                 g_theta = f_theta^T delta
    tangent_forward    dz = f_a da + f_theta dtheta
    tangent_backward   d(delta_a) = d(f_a^T) delta + f_a^T d(delta),   d(g_theta) likewise

The last two act on k tangents at once: a tangent has the shape of its value and **one more axis of length k, the
last**. None stands for a zero tangent.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

Tangent = Tensor | None
CONSTANT = "_tensor_constant"  # torch.fx's name for tensors made in forward


class NotLayerwise(Exception):  # noqa: N818 - a signal between engines, never seen by users
    """The graph, at these shapes, is outside the layer rules; another way takes over."""


class Rule(Protocol):
    """The calculus of one node of the graph.

    Attributes:
        slots: indices into theta of the parameters that the node differentiates (None: frozen or absent).
        rowwise: whether sample n of the output (axis 0) depends on sample n of the inputs only.
        path: how ``explain()`` names it.

    Optional are ``fresh``: whether the tangents that it returns share memory with nothing, unless they are arguments
    themselves; and ``tangent_forward_``, ``tangent_backward_``: the same for arguments (dinputs[0], ddelta) that may be
    overwritten.
    """

    slots: tuple[int | None, ...]
    rowwise: bool
    path: str

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        """z = f(a, theta).

        Args:
            inputs: the values a that the node reads, for a layer one [N, ...].
            theta: all parameters of the model, for ``Leaf`` to look up its own.

        Returns:
            The output z, and whatever the other three methods need, which they get as ``saved``.
        """

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        """delta_a = f_a^T delta and g_theta = f_theta^T delta.

        Args:
            saved: from ``forward``.
            delta: [*z.shape], the cotangent at the output; not to be written to, like all arguments here and below.

        Returns:
            A cotangent [*a.shape] for each input, and a gradient of the parameter's shape for each slot. None is zero,
            and stands for what is not differentiated: inputs that are indices, slots that are None.
        """

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        """dz = f_a da + f_theta dtheta.

        Args:
            saved: from ``forward``.
            dinputs: for each input its tangent [*a.shape, k].
            dtheta: for each slot (not for all of theta) its tangent, the parameter's shape with a last axis k.

        Returns:
            The tangent [*z.shape, k] of the output (None: zero).
        """

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        """The tangents of ``backward``'s results: d(f_a^T) delta + f_a^T d(delta), and likewise for theta.

        Args:
            saved: from ``forward``.
            delta: [*z.shape], the cotangent that ``backward`` got.
            dinputs: for each input its tangent [*a.shape, k].
            dtheta: for each slot its tangent, the parameter's shape with a last axis k.
            ddelta: [*z.shape, k], the tangent of delta.

        Returns:
            A tangent [*a.shape, k] for each input, and for each slot one of the parameter's shape with a last axis k,
            this node's part of H v; None as in ``backward``.
        """


@runtime_checkable
class SparesConstants(Protocol):
    """A rule that leaves out the cotangent of a constant input: half of the work of a network's first layer.

    Attributes:
        constant_input: whether no input depends on a parameter. The program says so; the rule then returns None.
    """

    constant_input: bool


class Leaf:
    """A parameter or buffer that a rule reads: a slot of theta, or a constant looked up in its module each time.

    The module is referenced weakly: a program must not keep its model alive. What torch.fx calls ``_tensor_constant``
    was made in forward while it was traced: it is kept here, and taken off the model again.

    Args:
        module: whose parameter or buffer it is; None: there is none, as of a layer without bias.
        name: its name in the module.
        slot: its place among theta's tensors; None: it is not differentiated.
    """

    def __init__(self, module: nn.Module | None, name: str, slot: int | None) -> None:
        self._module, self.name, self.slot = None if module is None else weakref.ref(module), name, slot
        self._constant: Tensor | None = (
            vars(module).get(name) if module is not None and name.startswith(CONSTANT) else None
        )

    def __call__(self, theta: Sequence[Tensor]) -> Tensor | None:
        """Its value, in theta's dtype."""
        if self.slot is not None:
            return theta[self.slot]
        value = self._constant
        if value is None and self._module is not None:
            value = getattr(self._module(), self.name)
        if value is None:
            return None
        return value.detach().to(theta[0]) if value.is_floating_point() else value.detach()


def add(a: Tangent, b: Tangent) -> Tangent:
    """Sum of two tangents where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def times(a: Tangent, b: Tensor) -> Tangent:
    """a * b where None is zero."""
    return None if a is None else a * b


def column(t: Tensor) -> Tensor:
    """A value with a tangent axis of length 1: broadcasts against tangents."""
    return t.unsqueeze(-1)


def as_rows(t: Tensor) -> Tensor:
    """[..., I] as a matrix [R, I] of rows."""
    return t if t.dim() == 2 else t.reshape(-1, t.shape[-1])


def sum_to(t: Tensor, shape: Sequence[int], columns: bool = False) -> Tensor:
    """Sums over the axes along which a value of ``shape`` was broadcast; with ``columns`` t has a last axis k."""
    return t.sum_to_size(*shape, t.shape[-1]) if columns else t.sum_to_size(tuple(shape))
