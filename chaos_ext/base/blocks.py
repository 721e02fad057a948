"""A choice among a model's parameters, by name, glob pattern or object: the block of H that they span."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

Chosen = str | Tensor | Iterable[str | Tensor]
_PATTERN = frozenset("*?[")


def chosen_names(model: nn.Module, named: Sequence[tuple[str, Tensor]], params: Chosen) -> tuple[str, ...]:
    """Names of the chosen parameters, in the model's order, each once.

    Args:
        model: its parameters may be called by any of their names where they are tied.
        named: its parameters, each once.
        params: names, glob patterns (``*`` matches dots too) or parameters, one or several.

    Raises:
        TypeError: something else.
        ValueError: nothing chosen, a name or pattern that matches nothing, a parameter of another model, a frozen one.
    """
    names = {id(p): n for n, p in named}
    called = dict(_aliases(model, names)) | dict(named)
    chosen = {id(p) for part in _parts(params) for p in _matching(part, called, names)}
    if not chosen:
        raise ValueError("params: expected names, glob patterns or parameters, got none; None is all of them")
    return tuple([n for n, p in named if id(p) in chosen])


def _aliases(model: nn.Module, names: Mapping[int, str]) -> list[tuple[str, Tensor]]:
    """Parameters by every name: a tied one has several. A model with names of its own may not tell."""
    if type(model).named_parameters is not nn.Module.named_parameters:
        return []
    return [(n, p) for n, p in model.named_parameters(remove_duplicate=False) if id(p) in names]


def _parts(params: object) -> Iterable[object]:
    if isinstance(params, (str, Tensor)):
        return [params]
    if not isinstance(params, Iterable) or isinstance(params, (bytes, nn.Module)):
        raise TypeError(f"params: expected names, glob patterns or parameters, got {type(params).__name__}")
    return params


def _matching(part: object, called: Mapping[str, Tensor], names: Mapping[int, str]) -> list[Tensor]:
    if isinstance(part, Tensor):
        if id(part) not in names:
            raise ValueError(
                f"params: a tensor of shape {tuple(part.shape)} is no parameter of this model (another model's, a view "
                "or a copy?); take it from model.named_parameters(), or give its name"
            )
        return _trainable([part], f"the parameter {names[id(part)]!r}")
    if not isinstance(part, str):
        raise TypeError(f"params: expected names, glob patterns or parameters, got {type(part).__name__} among them")
    if part in called:
        return _trainable([called[part]], f"the parameter {part!r}")
    if not _PATTERN & set(part):
        raise ValueError(f"params: the model has no parameter {part!r}{_hint(part, called)}")
    found = [p for n, p in called.items() if fnmatchcase(n, part)]
    if not found:
        raise ValueError(f"params: no parameter matches {part!r}; the model has {listed(list(called))}")
    return _trainable(found, f"every parameter that matches {part!r}")


def _trainable(found: list[Tensor], what: str) -> list[Tensor]:
    """Without frozen ones, which are constants to every derivative."""
    trainable = [p for p in found if p.requires_grad]
    if not trainable:
        raise ValueError(f"params: {what} has requires_grad=False, so that it is a constant; unfreeze it")
    return trainable


def _hint(name: str, called: Mapping[str, Tensor]) -> str:
    if any(n.startswith(f"{name}.") for n in called):
        return f"; for all of this module's give {name + '.*'!r}"
    near = difflib.get_close_matches(name, called, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {listed(list(called))}"


def listed(names: Sequence[str]) -> str:
    """The first of them, for messages."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
