"""A model as a program of layer rules in topological order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..rules.rule import Rule, SparesConstants


@dataclass(frozen=True)
class Node:
    """One step of the program; ``inputs`` index earlier values, value 0 is x, value i + 1 is node i's output."""

    name: str
    rule: Rule
    inputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """The model as rules in topological order.

    Attributes:
        nodes: the steps.
        output: index of the value that the model returns.
        depends: for each value, the set of nodes with parameters that it depends on.
        uses: for each slot of theta, the nodes that read it.
        readers: for each value, how many nodes read it, the caller counted as one of the output's.
        seen: numbers of samples with which its output was found to be the model's.
        graphs: what torch has recorded of the model's forward, and why the program does not have the derivatives of
            that (None: it has).
        shaped: what was found out about it for given shapes of values.
    """

    nodes: tuple[Node, ...]
    output: int
    depends: tuple[frozenset[int], ...]
    uses: dict[int, tuple[int, ...]]
    readers: tuple[int, ...]
    seen: set[int] = field(default_factory=set)
    graphs: dict[object, str | None] = field(default_factory=dict)
    shaped: dict[object, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Sequence[Node], output: int) -> Program:
        depends: list[frozenset[int]] = [frozenset()]
        uses: dict[int, tuple[int, ...]] = {}
        for i, n in enumerate(nodes):
            own = {i} if any(s is not None for s in n.rule.slots) else set()
            inherited = frozenset[int]().union(*(depends[j] for j in n.inputs))
            if isinstance(n.rule, SparesConstants):
                n.rule.constant_input = not inherited
            depends.append(inherited | own)
            for s in n.rule.slots:
                if s is not None and i not in uses.get(s, ()):
                    uses[s] = (*uses.get(s, ()), i)
        readers = [int(value == output) for value in range(len(nodes) + 1)]
        for j in (j for n in nodes for j in n.inputs):
            readers[j] += 1
        return cls(tuple(nodes), output, tuple(depends), uses, tuple(readers))

    @cached_property
    def parametrised(self) -> list[int]:
        """Indices of the nodes that own differentiated parameters."""
        return [i for i, n in enumerate(self.nodes) if any(s is not None for s in n.rule.slots)]
