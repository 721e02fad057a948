"""What can go wrong with an argument: one place of a call, of its type or of any, is changed."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

from .calls import Arguments
from .tensor_changes import EXTREMES, WRONG, changed_tensor, without_memory

EDGES = [2**31, 2**32, 2**40, 2**53, 2**62, 2**63]
INTEGERS = [0, 1, 2, 3, -1, -2, 63, 64, 65, 2**64, -(2**70)]
INTEGERS += [*EDGES[:-1], *(e - 1 for e in EDGES), *(-e for e in EDGES)]
FLOATS = [*EXTREMES, 5, True, 1j, None, "x"]


# ---- numbers and lists ----------------------------------------------------------------------------------------------


def changed_number(x: Any, rng: Random) -> Any:
    if rng.random() < 0.03:
        return rng.choice(WRONG)
    if isinstance(x, bool):
        return rng.choice([not x, 2, None, "yes"])
    if isinstance(x, float):
        return rng.choice([*FLOATS, -x, 2 * x])
    if not isinstance(x, int):  # what an earlier change has made
        return rng.choice(WRONG)
    largest = [2**63 - 1 - rng.randint(0, 70), -(2**63) + rng.randint(0, 70)]
    return rng.choice([*INTEGERS, *largest, x + 1, x - 1, -x, x + 2**32, x + 2**63])


def changed_list(items: list[Any], rng: Random) -> Any:
    own = list(items)
    at = rng.randrange(len(own)) if own else 0
    chance = rng.random()
    if not own or chance < 0.08:
        return rng.choice([[], [0] * 7, [rng.choice(INTEGERS)], own * 2, own * 40, [None]])
    if chance < 0.16:
        del own[at]
    elif chance < 0.24:
        own.insert(at, own[rng.randrange(len(own))])
    elif chance < 0.42:  # a plausible value in the wrong place
        own[at] = own[rng.randrange(len(own))]
    elif chance < 0.47:
        rng.shuffle(own)
    else:
        own[at] = changed(own[at], rng)
    return own


def changed(x: Any, rng: Random) -> Any:
    if isinstance(x, Tensor):
        return changed_tensor(x, rng)
    if isinstance(x, list):
        return changed_list(x, rng)
    if x is None:
        return rng.choice([torch.zeros(3), torch.zeros(0), *WRONG])
    return changed_number(x, rng)


# ---- calls ----------------------------------------------------------------------------------------------------------


def _tensors(arguments: Arguments) -> list[tuple[int, int | None, Tensor]]:
    found: list[tuple[int, int | None, Tensor]] = []
    for i, x in enumerate(arguments):
        inner = enumerate(x) if isinstance(x, list) else [(None, x)]
        found += [(i, j, t) for j, t in inner if isinstance(t, Tensor) and t.device.type == "cpu"]
    return found


def _replace(arguments: Arguments, i: int, j: int | None, t: Any) -> None:
    if j is None:
        arguments[i] = t
    else:
        arguments[i][j] = t


def withdraw(arguments: Arguments, rng: Random) -> None:
    """The memory of one operand."""
    tensors = _tensors(arguments)
    if tensors:
        i, j, t = rng.choice(tensors)
        _replace(arguments, i, j, without_memory(t, rng))


def shared(arguments: Arguments, rng: Random) -> None:
    """One operand lies, whole or in part, in the memory of another."""
    tensors = _tensors(arguments)
    if len(tensors) < 2:
        return
    (i, j, t), (_, _, other) = rng.sample(tensors, 2)
    view: Any = other
    lazy = torch._is_zerotensor(t) or torch._is_zerotensor(other)
    if rng.random() < 0.8 and not lazy and t.dtype == other.dtype and t.layout == other.layout == torch.strided:
        spare = other.untyped_storage().nbytes() // other.element_size() - t.numel()
        if spare < 0:
            return
        view = t.new_empty(0).set_(other.untyped_storage(), rng.randint(0, spare), t.shape)
    _replace(arguments, i, j, view)


def mutated(arguments: Arguments, rng: Random) -> Arguments:
    """The call with one change, at times with several."""
    own = [list(x) if isinstance(x, list) else x for x in arguments]
    if rng.random() < 0.04:  # alone: where anything else is wrong, torch reads the tensor for its message
        withdraw(own, rng)
        return own
    for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3])):
        if rng.random() < 0.12:
            shared(own, rng)
            continue
        chance, at = rng.random(), rng.randrange(len(own)) if own else 0
        if chance < 0.01:
            del own[at]
        elif chance < 0.02:
            own.append(rng.choice(WRONG))
        elif own:
            own[at] = changed(own[at], rng)
    return own
