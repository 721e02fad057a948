"""What is asked of an optimizer: options that are real, finite and in range, gradients as autograd gives them."""

from __future__ import annotations

from numbers import Real

from torch import Tensor

from ..errors import UnsupportedError
from .parameters import Group, ParameterSpace
from .torch_internals import has_gradient_hooks

_INF = float("inf")


def number(name: str, value: object, below: float = _INF) -> float:
    """The value as a float; a tensor of one real element counts as a number, as in torch.optim.

    Args:
        name: of the option.
        value: as it was given.
        below: what it has to be smaller than.

    Raises:
        ValueError: NaN, infinite, negative, or not below. TypeError: no real number.
    """
    x = value if type(value) is float else _real(name, value)
    if not 0 <= x < below:
        most = "a finite value >= 0" if below == _INF else f"0 <= {name} < {below}"
        raise ValueError(f"{name}: expected {most}, got {value!r}; set it in the optimizer's param_groups")
    return x


def _real(name: str, value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value)
    if isinstance(value, Real):
        return float(value)
    got = f"a tensor of shape {tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
    raise TypeError(f"{name}: expected a real number or a tensor of one real element, got {got}")


def require_numbers(group: Group, names: tuple[str, ...]) -> None:
    """Refuses a parameter group with options of these names that are not finite, or negative.

    Raises:
        ValueError, TypeError: see ``number``.
    """
    for name in names:
        number(name, group[name])


SGD_NUMBERS = ("lr", "momentum", "dampening", "weight_decay")
ADAM_NUMBERS = ("lr", "weight_decay", "eps")


def refuse_gradient_hooks(space: ParameterSpace) -> None:
    """Refuses parameters whose ``.grad`` is not the loss's gradient: hooks may mask, clip or consume it.

    Raises:
        UnsupportedError: names the parameter.
    """
    for name, p in zip(space.names, space.params, strict=True):
        if has_gradient_hooks(p):
            raise UnsupportedError(
                f"parameter {name!r}: it has gradient hooks (register_hook, register_post_accumulate_grad_hook), which "
                "an operator's gradient and Hessian do not go through; remove them, or put what they do into the loss"
            )
