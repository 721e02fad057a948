"""The scalar that is differentiated: loss_fn(model(x), y), with the user's mistakes told apart from ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from ..base.torch_internals import tree_map
from ..errors import ChaosExtError

T = TypeVar("T")


class Scalar(nn.Module):
    """loss_fn(model(x), y) as one module, so that a loss that reads parameters sees the substituted ones."""

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = (loss_fn,)  # in a tuple: parameters of a loss module are constants, not part of theta

    @property
    def loss_fn(self) -> Callable[..., Tensor]:
        return self._loss[0]

    def forward(self, x: object, y: object, then: Callable[[Tensor, object], T]) -> T:
        """What ``then`` makes of the loss and of the model's output.

        Here, and not of what is returned: a checkpoint runs again in the backward, and has to see the substituted
        parameters and buffers, too.
        """
        try:
            output = self.model(x)
        except ChaosExtError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ForwardError(forward_failed(x, e)) from e
        try:
            loss = self._loss[0](output, y)
        except ChaosExtError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ForwardError(f"y: loss_fn failed on output {describe(output)} and y {describe(y)}: {e}") from e
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise ForwardError(f"loss_fn: expected a real scalar tensor, got {describe(loss)}; set a reduction")
        return then(loss.reshape(()), output)


class ForwardError(ValueError):
    """The user's forward or loss raised: a mistake in an argument."""


def forward_failed(x: object, error: Exception) -> str:
    """What to say of a model that raised on x."""
    hint = "; x is passed whole, model(x): give a model of several inputs a forward that takes one tuple or dict"
    hint = hint if isinstance(error, TypeError) and "argument" in str(error) else ""
    return f"x: the model's forward failed on a batch of {describe(x)}: {error}{hint}"


def describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)} {value.dtype}"
    return type(value).__name__


def first_line(error: Exception) -> str:
    """Of its message; torch's go on for pages."""
    return next(iter(str(error).splitlines()), "")


def in_double(value: object) -> object:
    """A batch with its floating-point tensors in float64."""
    return tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, value)
