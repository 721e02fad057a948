"""The flat parameter vector theta [P]: its order, its slices, and whether it still has the values it had.

theta concatenates the parameters that require a gradient, in ``model.parameters()`` order, each row-major, exactly as
``torch.nn.utils.parameters_to_vector`` does. Frozen parameters are constants, a tied parameter appears once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import NonFiniteError, StaleOperatorError, UnsupportedError
from .tensors import all_finite

FLOAT_DTYPES = (torch.float32, torch.float64)


class ModuleTree:
    """The modules of a model and their parameters, from one walk that everything which looks at a model shares.

    Attributes:
        model: the model.
        modules: as in ``model.modules()``.
        named_parameters: as in ``model.named_parameters()``.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        named_modules = list(model.named_modules())
        self.model = model
        self.modules: list[nn.Module] = [m for _, m in named_modules]
        if type(model).named_parameters is nn.Module.named_parameters:
            self.named_parameters = _own_parameters(named_modules)
        else:
            self.named_parameters = list(model.named_parameters())


def _own_parameters(named_modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Parameter]]:
    named: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, m in named_modules:
        for name, p in m._parameters.items():
            if p is not None and id(p) not in named:
                named[id(p)] = f"{prefix}.{name}" if prefix else name, p
    return list(named.values())


class ParameterSpace:
    """Names, shapes and offsets of the parameters that span theta [P].

    Attributes:
        names: qualified name of each parameter.
        params: the parameters themselves.
        sizes, offsets: length and start of each parameter in theta.
        size: P.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        pairs = [(n, p) for n, p in named if p.requires_grad]
        if not pairs:
            raise ValueError("model: expected at least one parameter with requires_grad=True, got none; unfreeze one")
        self.names: tuple[str, ...]
        self.params: tuple[Tensor, ...]
        self.names, self.params = zip(*pairs, strict=True)
        self.dtype, self.device = self.params[0].dtype, self.params[0].device
        self._check()
        self.shapes: tuple[torch.Size, ...] = tuple([p.shape for p in self.params])
        self.sizes: tuple[int, ...] = tuple([p.numel() for p in self.params])
        *offsets, self.size = accumulate(self.sizes, initial=0)
        self.offsets: tuple[int, ...] = tuple(offsets)

    @cached_property
    def index(self) -> dict[int, int]:
        """The place of each parameter, by its id."""
        return {id(p): i for i, p in enumerate(self.params)}

    @classmethod
    def of(cls, model: nn.Module | ModuleTree) -> ParameterSpace:
        tree = model if isinstance(model, ModuleTree) else ModuleTree(model)
        for name, p in tree.named_parameters:
            if type(p) is not nn.Parameter and isinstance(p, nn.parameter.UninitializedParameter):
                raise TypeError(
                    f"parameter {name!r}: expected an initialised parameter; run the lazy module once first"
                )
        return cls(tree.named_parameters)

    def _check(self) -> None:
        dtype, device = self.dtype, self.device
        for name, p in zip(self.names, self.params, strict=True):
            if p.dtype not in FLOAT_DTYPES:
                raise TypeError(
                    f"parameter {name!r}: expected float32 or float64, got {p.dtype}; convert the model with "
                    ".float() or .double()"
                )
            if p.layout != torch.strided:
                raise TypeError(f"parameter {name!r}: expected a dense (strided) tensor, got layout {p.layout}")
            if p.dtype != dtype or p.device != device:
                raise TypeError(
                    f"parameter {name!r}: expected {dtype} on {device} like the first parameter, "
                    f"got {p.dtype} on {p.device}; move the model to one dtype and device"
                )

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenates one tensor per parameter into [P]."""
        return torch.cat([t.flatten() for t in parts])

    def split(self, v: Tensor) -> list[Tensor]:
        """Cuts v [P, k] into one [*shape, k] block per parameter."""
        return [b.reshape(*s, -1) for b, s in zip(v.split(self.sizes), self.shapes, strict=True)]

    def views(self, theta: Tensor) -> list[Tensor]:
        """Views of theta [P] with the shape of each parameter."""
        parts = theta.split_with_sizes(self.sizes)
        return [t.view_as(p) for t, p in zip(parts, self.params, strict=True)]

    def slice(self, i: int) -> slice:
        return slice(self.offsets[i], self.offsets[i] + self.sizes[i])


def batch_tensors(name: str, value: object) -> list[Tensor]:
    """The tensors of x or y: not empty, and finite."""
    tensors = [value] if isinstance(value, Tensor) else [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    for t in tensors:
        if t.dim() > 0 and len(t) == 0:
            raise ValueError(f"{name}: expected a batch of at least one sample, got shape {tuple(t.shape)}")
        if t.is_floating_point() and not all_finite(t):
            raise NonFiniteError(f"{name}: expected finite values, got NaN or inf")
    return tensors


def _marks(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def updates_running_stats(m: nn.Module) -> bool:
    """Whether a forward of m updates running statistics that it does not use."""
    norm = isinstance(m, nn.modules.batchnorm._NormBase)
    return norm and m.training and bool(m.track_running_stats) and m._buffers.get("running_mean") is not None


def refuse_autocast(device: torch.device) -> None:
    """Mixed precision would round inside an exact computation."""
    if torch.is_autocast_enabled(device.type):
        raise UnsupportedError("autocast: H is computed in the parameters' dtype; leave the torch.autocast context")


def _surroundings(tree: ModuleTree) -> tuple[object, ...]:
    """Modes of the modules; identity and version of buffers and frozen parameters."""
    modules = tree.modules
    others: list[Tensor] = []
    for m in modules:
        if m._buffers and not updates_running_stats(m):
            others.extend(b for b in m._buffers.values() if b is not None)
    others.extend(p for _, p in tree.named_parameters if not p.requires_grad)
    return (*[m.training for m in modules], *_marks(others))


class Snapshot:
    """What theta and the batch were when an operator was made.

    torch's version counters do not see in-place edits through ``.data``, so the values are compared as well.

    Attributes:
        theta: a copy of the parameters [P].
        parts: views of it with the shape of each parameter.
    """

    def __init__(self, space: ParameterSpace, batch: Iterable[Tensor], tree: ModuleTree) -> None:
        self.space = space
        self.theta = space.flatten([p.detach() for p in space.params])
        if not all_finite(self.theta):
            raise NonFiniteError("model: expected finite parameters, got NaN or inf")
        self.parts = space.views(self.theta)
        self._model, self._batch = tree.model, tuple(batch)
        self._surroundings = _surroundings(tree)
        self._marks = self._read_marks()

    def _read_marks(self) -> list[tuple[int, int]]:
        return _marks((*self.space.params, *self._batch))

    def is_fresh(self) -> bool:
        # Values last: only where all else is unchanged are the shapes and dtypes sure to be.
        return (
            self._read_marks() == self._marks
            and _surroundings(ModuleTree(self._model)) == self._surroundings
            and all(map(torch.equal, self.space.params, self.parts))
        )

    def require_fresh(self) -> None:
        """Raises StaleOperatorError if parameters, batch, buffers or modes changed; refuses autocast."""
        refuse_autocast(self.space.device)
        if not self.is_fresh():
            raise StaleOperatorError(
                "operator: the parameters, the batch, buffers or modes of the model changed after it was made; make a "
                "new HessianOperator (results obtained before the change stay valid)"
            )


@dataclass(frozen=True)
class Origin:
    """Which model, batch and theta a result belongs to."""

    model: nn.Module
    x: object
    snapshot: Snapshot
