"""All members' gradients of any model that torch can vectorise: vmap of the gradient of one member's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from ..base.restoring import together
from ..base.torch_internals import grad_mode
from ..base.traces import untouched
from ..curvature.scalar import first_line
from ..errors import ChaosExtError, UnsupportedError
from .twin import Buffers, Twin


class Functional:
    """Losses, gradients and buffers of members, by torch.

    Attributes:
        interleaved: whether members may be stepped one part after the other. Not here: code of the user's may raise.
    """

    interleaved = False

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self._one = grad_and_value(lambda params, buffers, x, y: twin.run(params, buffers, x, y), has_aux=True)

    def gradients(
        self, theta: Sequence[Tensor], buffers: Buffers, x: object, y: object, own: bool, out: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [b] of members, each parameter [b, *shape], and their buffers after this step; gradients go to out."""
        dim = 0 if own else None
        copies = {n: b.clone() for n, b in buffers.items()}  # forward writes to them
        run = vmap(self._one, in_dims=(0, 0, dim, dim), randomness="error")
        inside = together(grad_mode(True), untouched(self.twin.tree.watched))
        with inside, inside:
            grads, (losses, after) = self._vectorised(lambda: run(list(theta), copies, x, y))
        for view, g in zip(out, grads, strict=True):
            view.copy_(g)
        return losses.detach(), {n: b.detach() for n, b in after.items()}

    def _vectorised(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except (torch.OutOfMemoryError, ChaosExtError):
            raise
        except Exception as e:  # torch raises many kinds where it has no batching rule
            cause = e.__cause__ if isinstance(e.__cause__, Exception) else e
            raise UnsupportedError(
                f"model: {_culprit(self.twin.model, run)} cannot be run for many members at once: {first_line(cause)}"
            ) from e


def _culprit(model: nn.Module, run: Callable[[], Any]) -> str:
    """The innermost module of the (private) model in whose forward it fails."""
    entered: list[str] = []
    named = [(n or "its own forward", m) for n, m in model.named_modules()]
    handles = []
    for name, m in named:
        handles.append(m.register_forward_pre_hook(lambda m, args, name=name: entered.append(name)))
        handles.append(m.register_forward_hook(lambda m, args, out: entered.pop() and None))
    try:
        run()
    except Exception:
        pass
    finally:
        for h in handles:
            h.remove()
    if not entered:
        return "the loss, or the gradient through it,"
    inner = entered[-1]
    kind = next(type(m).__name__ for n, m in named if n == inner)
    return f"{inner} ({kind})"
