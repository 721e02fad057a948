"""nn.RNN, nn.GRU and nn.LSTM as steps of rules: of each layer and direction a Linear, and the recurrence."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from ..rules.cells import Cell, Gru, Lstm, Plain
from ..rules.joints import Cat, Reshape
from ..rules.linear import Linear
from ..rules.recurrence import Recurrence
from ..rules.rule import Leaf, NotLayerwise, Rule
from ..rules.views import Slice
from .arguments import Call
from .site import Parts, Site


def recurrent(site: Site, call: Call, m: Any) -> Parts:
    """The output, and the last h of all layers where forward takes it; the last c has no rule."""
    source = call["input"]
    if len(site.shape.get(source, ())) != 3:
        raise NotLayerwise("an input without a batch axis")
    if m.training and m.dropout > 0 and m.num_layers > 1:
        raise NotLayerwise("dropout in training mode draws random numbers")
    states = _states(site, call.get("hx"))
    value, last = source, []
    directions = ("", "_reverse") if m.bidirectional else ("",)
    for layer in range(m.num_layers):
        outs = []
        for i, suffix in enumerate(directions):
            own = [site.step([Slice((layer * len(directions) + i,))], [s]) for s in states]
            outs.append(_direction(site, m, value, f"_l{layer}{suffix}", own))
            last.append(outs[-1:] if _takes(call.node, 1) else [])
        value = site.step([Cat(2)], outs) if len(outs) > 1 else outs[0]
    h = _last(site, m, [o for outs in last for o in outs]) if _takes(call.node, 1) else None
    return value, (h, None) if isinstance(m, nn.LSTM) else h


def _states(site: Site, given: Any) -> list[Any]:
    """Operands of the first h, and c, of all layers."""
    states = [] if given is None else list(given) if isinstance(given, (tuple, list)) else [given]
    if any(len(site.shape.get(s, ())) != 3 for s in states):
        raise NotLayerwise("a first state of another form")
    return states


def _takes(node: fx.Node, index: int) -> bool:
    """Whether forward reads that entry of the tuple, or the tuple as a whole."""
    return any(u.target is not operator.getitem or u.args[1] == index for u in node.users)


def _direction(site: Site, m: Any, value: Any, suffix: str, states: Sequence[Any]) -> int:
    def leaf(name: str) -> Leaf:
        return site.leaf(m, name + suffix) if hasattr(m, name + suffix) else Leaf(None, name, None)

    inner = Recurrence(
        _cell(m), leaf("weight_hh"), leaf("bias_hh"), leaf("weight_hr"), m.batch_first, suffix.endswith("_reverse")
    )
    return site.step([inner], [site.step([Linear(leaf("weight_ih"), leaf("bias_ih"))], [value]), *states])


def _cell(m: Any) -> Cell:
    if isinstance(m, nn.LSTM):
        return Lstm()
    return Gru() if isinstance(m, nn.GRU) else Plain(m.nonlinearity == "relu")


def _last(site: Site, m: Any, outs: Sequence[int]) -> int:
    """[layers and directions, N, H]; time that runs backward ends at the first place."""
    rules: list[list[Rule]] = []
    for i in range(len(outs)):
        place = 0 if m.bidirectional and i % 2 else -1
        index = (slice(None), place) if m.batch_first else (place,)
        rules.append([Slice(index), Reshape(_in_front)])
    parts = [site.step(r, [o]) for r, o in zip(rules, outs, strict=True)]
    return site.step([Cat(0)], parts) if len(parts) > 1 else parts[0]


def _in_front(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return inputs[0].unsqueeze(0)
