"""The ensemble's own copy of the user's model and loss: what the members are run with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..base.guards import refuse_edits
from ..base.held import held_by, unmoved
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.randomness import without_randomness
from ..base.restoring import together
from ..base.torch_internals import grad_mode, tree_map
from ..base.traces import untouched
from ..base.wrappers import unwrapped
from ..curvature.scalar import Scalar
from ..errors import UnsupportedError

Buffers = Mapping[str, Tensor]


class Reference(NamedTuple):
    """What torch's autograd says of one member.

    Attributes:
        loss: a scalar.
        gradient: one tensor a parameter.
        unused: the parameters that the loss does not depend on.
    """

    loss: Tensor
    gradient: list[Tensor]
    unused: frozenset[int]


class Twin:
    """Model and loss, copied together, in the mode that the model was in.

    Attributes:
        tree, space: of the copy.
        scalar: loss_fn(model(x), y) of the copies.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Tensor]) -> None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn: expected a callable loss_fn(output, y), got {type(loss_fn).__name__}")
        theirs = ParameterSpace.of(model).params  # refuses what has no theta before anything is copied
        try:
            own, loss = copy.deepcopy((unwrapped(model), loss_fn))
        except Exception as e:  # whatever the user's modules raise
            raise UnsupportedError(
                f"model, loss_fn: an ensemble works on copies, which could not be made ({type(e).__name__}: {e})"
            ) from e
        for m in own.modules():
            if isinstance(m, (nn.Embedding, nn.EmbeddingBag)):
                m.sparse = False
        for p in own.parameters():
            p.grad = None
        self.tree = ModuleTree(own)
        self.space = ParameterSpace.of(self.tree)
        self.scalar = Scalar(own, loss)
        losses = loss.parameters() if isinstance(loss, nn.Module) else ()
        self._outside = [*theirs, *self.space.params, *[p for p in losses if p.requires_grad]]
        self._names = ["model." + n for n in self.space.names]

    @property
    def model(self) -> nn.Module:
        return self.tree.model

    def buffers(self) -> dict[str, Tensor]:
        """Those of the copy, by name."""
        return {n: b.detach() for n, b in self.scalar.named_buffers()}

    def run(self, params: Sequence[Tensor], buffers: Buffers, x: object, y: object) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with these parameters and buffers, and the buffers as forward left them."""
        named = {**dict(zip(self._names, params, strict=True)), **buffers}
        x = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, x)  # a forward may edit its input
        then = lambda loss, _: (loss, dict(self.scalar.named_buffers()))  # noqa: E731
        loss, after = functional_call(self.scalar, named, (x, y, then))
        return loss, after

    def output(self, params: Sequence[Tensor], buffers: Buffers, x: object, y: object) -> tuple[Tensor, object]:
        """The loss and what the model returns."""
        named = {**dict(zip(self._names, params, strict=True)), **buffers}
        x = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, x)
        with untouched(self.tree.watched):
            loss, output = functional_call(self.scalar, named, (x, y, lambda loss, output: (loss, output)))
        return loss, output

    def reference(self, params: Sequence[Tensor], buffers: Buffers, x: object, y: object) -> Reference:
        """Loss and gradient of one member, by autograd.

        Raises:
            UnsupportedError: what members cannot have of their own: random numbers, attributes that forward writes,
            parameters read past those of the member. ValueError: a forward or loss that fails, or a constant loss.
        """
        copies = [p.detach().clone().requires_grad_() for p in params]
        named = list(zip(self._names, copies, strict=True))
        # Torch's recurrences make the list of their weights anew whenever these are substituted.
        watched = [m for m in self.tree.watched if not isinstance(m, nn.RNNBase)]
        inside = together(grad_mode(True), untouched(self.tree.watched))
        with (
            inside,
            inside,
            untouched(watched) as written,
            refuse_edits(named),
            unmoved(held_by(self.scalar.loss_fn)) as by_loss,
        ):
            loss = self._one_run(copies, buffers, x, y)
            _refuse_written("model: its forward writes to attributes", written())
            _refuse_written("loss_fn: it writes to what it holds", by_loss())
        if not loss.requires_grad:
            raise ValueError("loss_fn: expected a loss that depends on the model's parameters, got a constant")
        parts = torch.autograd.grad(loss, [*copies, *self._outside], allow_unused=True)
        own = parts[: len(copies)]
        if any(g is not None for g in parts[len(copies) :]):
            raise UnsupportedError(
                "loss_fn: it depends on trained parameters that it does not get from the model's output (a penalty on "
                "model.parameters(), a parameter of its own), which would be the same for all members; use the "
                "optimizer's weight_decay, or let the model return what the loss needs"
            )
        gradient = [torch.zeros_like(p) if g is None else g for g, p in zip(own, copies, strict=True)]
        return Reference(loss.detach(), gradient, frozenset(i for i, g in enumerate(own) if g is None))

    def _one_run(self, copies: Sequence[Tensor], buffers: Buffers, x: object, y: object) -> Tensor:
        def run() -> Tensor:
            return self.run(copies, {n: b.clone() for n, b in buffers.items()}, x, y)[0]

        try:
            return without_randomness(run, self.model, self.space.device)
        except UnsupportedError as e:
            if "draws random numbers" not in str(e):
                raise
            named = [n for n, m in self.model.named_modules() if "Dropout" in type(m).__name__ and m.training]
            where = ", ".join(named) or "no Dropout module; see its forward"
            raise UnsupportedError(
                f"model: its forward draws random numbers ({where}), "
                "of which members could have neither the same nor their own as a model alone has them; call .eval() on "
                "these modules before the ensemble is made"
            ) from None


def _refuse_written(what: str, names: Sequence[str]) -> None:
    if names:
        where = ", ".join(sorted(set(names)))
        raise UnsupportedError(
            f"{what} ({where}), of which members would have only one together; register what the model keeps as a "
            "buffer, which every member has of its own"
        )
