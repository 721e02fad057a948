"""Numbers among the options of an optimizer, which anybody may set at any time: real, finite, and in range."""

from __future__ import annotations

from numbers import Real

from torch import Tensor

from .parameters import Group

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
