"""nn.RNNCell, nn.GRUCell and nn.LSTMCell as steps of rules: two Linears, and what the gates do with their sums.

RNN    h' = phi(u + q)
GRU    r, z = sigma(u + q),  n = tanh(u_n + r q_n),  h' = n + z (h - n)
LSTM   i, f, g, o = gates of u + q,  c' = f c + i g,  h' = o tanh(c')
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from .. import _ops
from ..rules.constants import Constant
from ..rules.elementwise import native
from ..rules.joints import Add, Multiply
from ..rules.linear import Linear
from ..rules.rule import NotLayerwise, Rule
from ..rules.views import Slice
from .arguments import Call
from .site import Operation, Parts, Site


def _zeros(m: Any) -> Constant:
    """The first state of a batch."""

    def function(inputs: Sequence[Tensor], leaves: object) -> Tensor:
        return inputs[0].new_zeros(len(inputs[0]), m)

    return Constant(function)


class _Step:
    """One call of a cell."""

    def __init__(self, site: Site, call: Call, m: Any, states: int) -> None:
        self.site, self.m = site, m
        self.x: Any = call["input"]
        if len(site.shape.get(self.x, ())) != 2:
            raise NotLayerwise("an input without a batch axis")
        self.states = self._given(call.get("hx"), states)

    def _given(self, hx: Any, states: int) -> list[Any]:
        if hx is None:
            return [self.site.step([_zeros(self.m.hidden_size)], [self.x])] * states
        parts = self.site.parts.get(hx) if isinstance(hx, fx.Node) else None
        found = list(hx if parts is None else parts) if parts is not None or isinstance(hx, (tuple, list)) else [hx]
        axes = [len(self.site.shape.get(s, ())) for s in found if not isinstance(s, int)]
        if len(found) != states or any(n != 2 for n in axes):
            raise NotLayerwise("a state of another form")
        return found

    def linear(self, suffix: str, value: Any) -> int:
        leaf = self.site.leaf
        return self.site.step([Linear(leaf(self.m, f"weight_{suffix}"), leaf(self.m, f"bias_{suffix}"))], [value])

    def both(self) -> tuple[int, int]:
        """u and q."""
        return self.linear("ih", self.x), self.linear("hh", self.states[0])

    def add(self, a: Any, b: int, sign: float = 1.0) -> int:
        return self.site.step([Add(1.0, sign)], [a, b])

    def times(self, a: int, b: Any) -> int:
        return self.site.step([Multiply()], [a, b])

    def gate(self, value: int, i: int, kind: int | None = None) -> int:
        """One of the parts of the pre-activations, through an activation."""
        size = self.m.hidden_size
        rules: list[Rule] = [Slice((slice(None), slice(i * size, (i + 1) * size)))]
        return self.site.step(rules if kind is None else [*rules, native(kind)], [value])

    def act(self, kind: int, value: int) -> int:
        return self.site.step([native(kind)], [value])


def rnn_cell(site: Site, call: Call, m: nn.RNNCell) -> Operation:
    step = _Step(site, call, m, 1)
    kind = _ops.RELU if m.nonlinearity == "relu" else _ops.TANH
    return [], [step.act(kind, step.add(*step.both()))]


def gru_cell(site: Site, call: Call, m: nn.GRUCell) -> Operation:
    step = _Step(site, call, m, 1)
    u, q = step.both()
    total = step.add(u, q)
    r, z = step.gate(total, 0, _ops.SIGMOID), step.gate(total, 1, _ops.SIGMOID)
    n = step.act(_ops.TANH, step.add(step.gate(u, 2), step.times(r, step.gate(q, 2))))
    return [], [step.add(n, step.times(z, step.add(step.states[0], n, -1.0)))]


def lstm_cell(site: Site, call: Call, m: nn.LSTMCell) -> Parts:
    step = _Step(site, call, m, 2)
    total = step.add(*step.both())
    kinds = (_ops.SIGMOID, _ops.SIGMOID, _ops.TANH, _ops.SIGMOID)
    i, f, g, o = (step.gate(total, place, kind) for place, kind in enumerate(kinds))
    c = step.add(step.times(f, step.states[1]), step.times(i, g))
    return step.times(o, step.act(_ops.TANH, c)), c
