"""The saved state of a LyapunovAnalyzer: what it holds, and whether it belongs to this run."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from ..base.contents import array, count, number, parts, refusing, require, same_run
from ..base.parameters import ParameterSpace
from ..distributed.ranks import Ranks
from ..errors import CheckpointError
from .factors import check_record
from .finite_time.run import FiniteTime
from .finite_time.storage import check, packed, restore
from .methods import Run
from .tangent_map import TangentMap, Units

_FORMAT = "chaos_ext.LyapunovAnalyzer/1"


def fingerprint(space: ParameterSpace, tangent: TangentMap, run: Run, ranks: Ranks | None = None) -> dict[str, Any]:
    """What a state must have been made with to fit; ``ranks``: over which its columns are spread."""
    return {
        "format": _FORMAT if ranks is None else f"{_FORMAT}, columns of rank {ranks.rank} of {ranks.size}",
        "parameters": [[n, *s] for n, s in zip(space.names, space.shapes, strict=True)],
        "optimizer": type(tangent.opt).__name__,
        "S": tangent.size,
        "dtype": str(space.dtype),
        "method": run.method,
        "state": tangent.state,
        "jacobian": tangent.jacobian,
        **run.options(),
    }


def pack(
    own: dict[str, Any], run: Run, units: Units | None, space: ParameterSpace, copy: bool = True
) -> dict[str, Any]:
    """The state of a run with this fingerprint, plain values and tensors only; ``copy=False``: for a file."""
    return {
        "fingerprint": own,
        "run": packed(run, copy) if isinstance(run, FiniteTime) else run.state_dict(),
        "units": None if units is None else [list(u) for u in units],
        "theta": _digest(space.flatten([p.detach() for p in space.params])),
    }


def load(run: Run, state: dict[str, Any], copy: bool = True) -> None:
    """Restores what ``pack`` has of a run; ``copy=False``: the tensors of a state that nobody else has."""
    if isinstance(run, FiniteTime):
        restore(run, state, copy)
    else:
        run.load_state_dict(state)


def require_fit(state: Any, own: dict[str, Any], run: Run) -> None:
    """Raises CheckpointError unless the state is whole, consistent, and that of a run with this fingerprint."""
    if not isinstance(state, dict) or not {"fingerprint", "run", "units", "theta"} <= set(state):
        raise CheckpointError("state: expected the state_dict of a LyapunovAnalyzer, got something else")
    same_run(state["fingerprint"], own)
    with refusing("state: damaged, or of another version"):
        if isinstance(run, FiniteTime):
            check(run, state["run"])
        else:
            _check_run(state["run"], run.state_dict(), run.transient)
        _check_units(state["units"], len(own["parameters"]))
        theta = state["theta"]
        require(isinstance(theta, str) and len(theta) == 64, "theta", "64 hex digits", theta)


def moment(state: dict[str, Any]) -> list[Any]:
    """What the states of all ranks have in common."""
    return [state["run"]["steps"], state["theta"], _digest(state["run"]["growth"])]


def _check_run(state: Any, own: dict[str, Any], transient: int) -> None:
    """Every part has to be there, in the run's shapes and dtypes, and to fit the others."""
    parts(state, own)
    for name, least in (("steps", 0), ("pending", 0), ("_merged", 1), ("_open", 0), ("_allowed", 1)):
        count(name, state[name], least)
    number("_rate", state["_rate"])
    require(state["pending"] <= state["steps"], "pending", f"at most {state['steps']}", state["pending"])
    require(state["_open"] < state["_merged"], "_open", f"below {state['_merged']}", state["_open"])
    if state["stopped"] is None:  # else the deviations have NaN or infinity: that is why it stopped
        array("Y", state["Y"], own["Y"].shape, (own["Y"].dtype,))
    else:
        count("stopped", state["stopped"])
        _like("Y", state["Y"], own["Y"])
    _check_history(state, own["growth"], transient)
    _check_gali(state["gali"], own["gali"])
    if "record" in own:
        check_record(state["record"], own["Y"], state["steps"] - state["pending"])


def _check_history(state: dict[str, Any], growth: Tensor, transient: int) -> None:
    ends, blocks, last = state["ends"], state["blocks"], state["last"]
    _growth("growth", state["growth"], growth)
    require(isinstance(ends, list), "ends", "a list of ints", ends)
    for before, end in itertools.pairwise([transient, *ends]):
        count("ends", end, before + 1, state["steps"])
    closed = state["steps"] - state["pending"]
    require(not ends or ends[-1] == closed, "ends", f"a last block up to step {closed}", ends[-1:])
    _growth("blocks", blocks, growth.expand(len(ends), -1))
    require((last is None) == (not ends), "last", "a block, if there is a history", last)
    if last is not None:
        require(isinstance(last, (list, tuple)) and len(last) == 2, "last", "growth and length of a block", last)
        _growth("last", last[0], growth)
        count("last", last[1], 1, state["steps"])
    # Both are sums of the same numbers; rounding is far below.
    whole = torch.allclose(state["growth"], blocks.sum(0), rtol=1e-6, atol=1e-6)
    require(whole, "growth", "the sum of its blocks", state["growth"].tolist())


def _growth(name: str, t: Any, like: Tensor) -> None:
    """Logarithms of lengths: -inf where a direction was lost, never NaN or +inf."""
    _like(name, t, like)
    require(bool((t < math.inf).all()), name, "numbers below infinity", "NaN or infinity")


def _like(name: str, t: Any, like: Tensor) -> None:
    whole = isinstance(t, Tensor) and t.shape == like.shape and t.dtype == like.dtype
    require(whole, name, f"{like.dtype} {list(like.shape)}", t)


def _check_gali(gali: Any, own: Any) -> None:
    require((gali is None) == (own is None), "gali", "volumes exactly where they are followed", gali)
    if own is not None:
        require(isinstance(gali, (list, tuple)) and len(gali) == len(own), "gali", f"{len(own)} tensors", gali)
        for t, like in zip(gali, own, strict=True):
            _like("gali", t, like)


def _check_units(units: Any, parameters: int) -> None:
    if units is None:
        return
    require(isinstance(units, list) and len(units) == parameters, "units", f"a list of {parameters} lists", units)
    for of_one in units:
        require(isinstance(of_one, (list, tuple)), "units", "lists of numbers", of_one)
        for value in of_one:
            number("units", value)


def require_theta(theta: Tensor, expected: str) -> None:
    """Raises CheckpointError unless these are the parameters with which the state was saved."""
    if _digest(theta) != expected:
        raise CheckpointError(
            "load_state_dict: the model's parameters are not those with which this state was saved; load the model's "
            "and the optimizer's checkpoints of the same step"
        )


def _digest(t: Tensor) -> str:
    return hashlib.sha256(t.contiguous().cpu().numpy().tobytes()).hexdigest()
