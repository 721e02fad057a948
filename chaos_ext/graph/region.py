"""A part of a model's torch.fx graph as a function of tensors and leaves, to be run by torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.func import functional_call

from ..base.guards import dense_embeddings, own_tensors, without_running_stats
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.restoring import together
from ..base.torch_internals import own_buffers, own_parameters
from ..base.traces import untouched
from ..rules.rule import Leaf


class Region:
    """One node, and everything it needs that is not itself a value of the program (sizes, tuples, parameters).

    Attributes:
        inputs: the values that it reads.
        leaves: the parameters and buffers that it reads.
    """

    def __init__(self, node: fx.Node, values: Mapping[fx.Node, int], model: nn.Module, space: ParameterSpace) -> None:
        self._values, self._model, self._space = values, model, space
        self.inputs: list[int] = []
        self.leaves: list[Leaf] = []
        self._steps: list[tuple[fx.Node, Callable[..., Any]]] = []
        self._places: dict[fx.Node, int] = {}
        self._include(node, last=True)
        self._node = node
        del self._values, self._model, self._space

    def _include(self, node: fx.Node, last: bool = False) -> None:
        if any(node is known for known, _ in self._steps) or node in self._places:
            return
        if node in self._values and not last:
            self._places[node] = len(self.inputs)
            self.inputs.append(self._values[node])
            return
        for parent in node.all_input_nodes:
            self._include(parent)
        self._steps.append((node, self._step(node)))

    def _leaf(self, module: nn.Module, name: str) -> int:
        slot = self._space.index.get(id(getattr(module, name)))
        self.leaves.append(Leaf(module, name, slot))
        return len(self.leaves) - 1

    def _step(self, node: fx.Node) -> Callable[..., Any]:
        """What the node computes from (args, kwargs, leaf values)."""
        target: Any = node.target
        if node.op == "get_attr":
            owner, _, name = target.rpartition(".")
            place = self._leaf(self._model.get_submodule(owner), name)
            return lambda args, kwargs, leaves: leaves[place]
        if node.op == "call_module":
            return self._module_step(self._model.get_submodule(target))
        if node.op == "call_method":
            return lambda args, kwargs, leaves: getattr(args[0], target)(*args[1:], **kwargs)
        return lambda args, kwargs, leaves: target(*args, **kwargs)

    def _module_step(self, module: nn.Module) -> Callable[..., Any]:
        places = {}
        for prefix, m in module.named_modules():
            for name, p in (*own_parameters(m).items(), *own_buffers(m).items()):
                if p is not None:
                    places[f"{prefix}.{name}" if prefix else name] = self._leaf(m, name)
        reference = weakref.ref(module)

        def call(args: Any, kwargs: Any, leaves: Sequence[Tensor | None]) -> Any:
            own = reference()
            assert own is not None
            tensors = {name: leaves[i] for name, i in places.items()}
            watched = untouched(ModuleTree(own).watched)
            same = together(own_tensors(own), watched, without_running_stats(own), dense_embeddings(own))
            with same, same:
                present = {n: t for n, t in tensors.items() if t is not None and _has(own, n)}
                return functional_call(own, present, args, kwargs)

        return call

    def __call__(self, inputs: Sequence[Tensor], leaves: Sequence[Tensor | None]) -> Any:
        env: dict[fx.Node, Any] = {node: inputs[i] for node, i in self._places.items()}
        for node, step in self._steps:
            args = fx.map_arg(node.args, lambda n: env[n])
            kwargs = fx.map_arg(node.kwargs, lambda n: env[n])
            env[node] = step(args, kwargs, leaves)
        return env[self._node]


def _has(module: nn.Module, name: str) -> bool:
    """Whether the buffer or parameter is there now: running statistics are taken away while they must not change."""
    owner, _, own = name.rpartition(".")
    m = module.get_submodule(owner)
    return own_parameters(m).get(own) is not None or own_buffers(m).get(own) is not None
