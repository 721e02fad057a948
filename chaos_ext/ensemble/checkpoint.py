"""The saved state of an ensemble: what it holds, and whether it belongs to this run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..base.contents import count, parts, refusing, require, same_run
from ..base.signals import Deferred
from ..errors import CheckpointError
from .layout import Layout
from .members import Members
from .options import Group, Number
from .recurrence import Recurrence

_FORMAT = "chaos_ext.Ensemble/1"
_PARTS = ("fingerprint", "steps", "diverged", "theta", "buffers", "state", "options", "parameter_steps", "started")
_OF_MEMBERS = ("diverged", "theta", "buffers", "state", "options")
_DAMAGED = "state: damaged, or of another version"


def fingerprint(members: Members, optimizer: str) -> dict[str, Any]:
    """What a state must have been made with to fit."""
    space, recurrence, pruner = members.layout.space, members.recurrence, members.pruner
    return {
        "format": _FORMAT,
        "parameters": [[n, *s] for n, s in zip(space.names, space.shapes, strict=True)],
        "buffers": [[n, str(b.dtype), *b.shape[1:]] for n, b in members.buffers.items()],
        "members": len(members),
        "optimizer": optimizer,
        "flags": [dict(g.flags) for g in recurrence.groups],
        "dtype": str(space.dtype),
        **({} if pruner is None else {"pruning": pruner.fingerprint()}),
    }


def pack(members: Members, own: dict[str, Any]) -> dict[str, Any]:
    """The state of a run with this fingerprint: plain values and tensors only, in theta's order."""
    recurrence = members.recurrence
    return {
        "fingerprint": own,
        "steps": members.steps,
        "diverged": members.diverged.clone(),
        "theta": members.layout.unpack(members.theta),
        "buffers": {n: b.clone() for n, b in members.buffers.items()},
        "state": recurrence.each(members.layout.unpack),
        "options": [{n: _plain(v) for n, v in g.numbers.items()} for g in recurrence.groups],
        "parameter_steps": list(recurrence.steps),
        "started": list(recurrence.started),
        **({} if members.pruner is None else {"pruning": members.pruner.state()}),
    }


def _plain(value: Number) -> float | Tensor:
    return value.clone() if isinstance(value, Tensor) else value


def each_of_members(state: dict[str, Any], take: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The state with what ``take`` makes of each tensor [B, ...] that has something of every member."""
    found = {**state, **{name: _each(state.get(name), take) for name in _OF_MEMBERS}}
    pruning = state.get("pruning")
    if isinstance(pruning, dict) and pruning.get("generators"):
        found["pruning"] = {**pruning, "generators": [g.clone() for g in take(_stacked(pruning["generators"]))]}
    return found


def _each(value: Any, take: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return take(value)
    if isinstance(value, dict):
        return {k: _each(v, take) for k, v in value.items()}
    return [_each(v, take) for v in value] if isinstance(value, list) else value


def _stacked(states: Any) -> Tensor:
    whole = isinstance(states, list) and all(isinstance(t, Tensor) and t.shape == states[0].shape for t in states)
    require(whole, "pruning.generators", "tensors of one shape", states)
    return torch.stack(states)


def part_of(state: Any, rows: slice, own: dict[str, Any]) -> dict[str, Any]:
    """Of the state of a run with this fingerprint what belongs to some of its members; errors as of ``require_fit``."""
    _require_state(state)
    same_run(state["fingerprint"], own)
    b = own["members"]

    def cut(t: Tensor) -> Tensor:
        require(t.dim() and len(t) == b, "state", f"something of each of {b} members", t)
        return t[rows]

    with refusing(_DAMAGED):
        part = each_of_members(parts(state, _PARTS), cut)
    return {**part, "fingerprint": {**own, "members": rows.stop - rows.start}}


def require_fit(state: Any, members: Members, own: dict[str, Any]) -> None:
    """Raises CheckpointError unless the state is whole, consistent, and that of a run with this fingerprint."""
    _require_state(state)
    same_run(state["fingerprint"], own)
    with refusing(_DAMAGED):
        _check(parts(state, _PARTS), members)


def _require_state(state: Any) -> None:
    if not isinstance(state, dict) or "fingerprint" not in state:
        raise CheckpointError("state: expected the state_dict of an Ensemble, got something else")


def _check(state: dict[str, Any], members: Members) -> None:
    b, space = len(members), members.layout.space
    count("steps", state["steps"])
    _like("theta", state["theta"], (b, space.size), space.dtype)
    _like("diverged", state["diverged"], (b,), torch.int64)
    low, high = int(state["diverged"].min()), int(state["diverged"].max())
    require(low >= -1 and high <= state["steps"], "diverged", f"steps in -1..{state['steps']}", [low, high])
    _same_names("buffers", state["buffers"], members.buffers)
    for n, own in members.buffers.items():
        _like(n, state["buffers"][n], own.shape, own.dtype)
    _check_recurrence(state, members.recurrence, b, space.size)
    if members.pruner is not None:
        members.pruner.check(state.get("pruning"))


def _check_recurrence(state: dict[str, Any], recurrence: Recurrence, b: int, size: int) -> None:
    dtype, n = recurrence.layout.space.dtype, len(recurrence.steps)
    known = set(recurrence.buffers) | ({"momentum_buffer"} if not recurrence.adam else set())
    found = state["state"]
    require(isinstance(found, dict) and set(found) <= known, "state", f"some of {sorted(known)}", found)
    require(not recurrence.adam or set(found) == known, "state", f"all of {sorted(known)}", list(found))
    for name, t in found.items():
        _like(name, t, (b, size), dtype)
    for name, kind in (("parameter_steps", int), ("started", bool)):
        whole = isinstance(state[name], list) and len(state[name]) == n
        require(whole and all(type(v) is kind for v in state[name]), name, f"{n} of {kind.__name__}", state[name])
    require(not any(state["started"]) or "momentum_buffer" in found, "state", "a momentum_buffer", list(found))
    options = state["options"]
    require(isinstance(options, list) and len(options) == len(recurrence.groups), "options", "a list", options)
    for own, given in zip(recurrence.groups, options, strict=True):
        _same_names("options", given, own.numbers)
        for name, value in given.items():
            _check_number(name, value, b)


def _check_number(name: str, value: Any, members: int) -> None:
    fits = type(value) is float or (isinstance(value, Tensor) and tuple(value.shape) == (members, 1))
    require(fits, name, f"a float or a tensor [{members}, 1]", value)
    whole = torch.as_tensor(value)
    require(bool((torch.isfinite(whole) & (whole >= 0)).all()), name, "finite numbers >= 0", value)


def _same_names(name: str, given: Any, own: Any) -> None:
    require(isinstance(given, dict) and set(given) == set(own), name, f"{sorted(own)}", given)


def _like(name: str, t: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    whole = isinstance(t, Tensor) and tuple(t.shape) == tuple(shape) and t.dtype == dtype
    require(whole, name, f"{dtype} {list(shape)}", t)


def restore(state: dict[str, Any], members: Members) -> None:
    """Takes over a state that fits."""
    layout, recurrence = members.layout, members.recurrence
    device = layout.space.device
    groups = [
        Group({n: v.to(device) if isinstance(v, Tensor) else v for n, v in given.items()}, own.flags)
        for own, given in zip(recurrence.groups, state["options"], strict=True)
    ]
    theta = _rows(state["theta"], layout)
    buffers = {name: _rows(t, layout) for name, t in state["state"].items()}
    with Deferred():
        members.torn = True
        members.theta.copy_(theta)
        for n, b in members.buffers.items():
            b.copy_(state["buffers"][n])
        recurrence.restore(groups, buffers, state["parameter_steps"], state["started"])
        members.steps = state["steps"]
        members.diverged.copy_(state["diverged"])
        if members.pruner is not None:
            members.pruner.restore(state["pruning"])
        members.torn = False


def _rows(t: Tensor, layout: Layout) -> Tensor:
    rows = layout.zeros(len(t))
    layout.pack_(rows, t.to(layout.space.device))
    return rows
