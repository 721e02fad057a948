"""The saved state of a LyapunovAnalyzer: what it holds, and whether it belongs to this run."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from ..base.parameters import ParameterSpace
from ..errors import CheckpointError
from .benettin import Benettin
from .tangent_map import TangentMap, Units

_FORMAT = "chaos_ext.LyapunovAnalyzer/1"


def fingerprint(space: ParameterSpace, tangent: TangentMap, run: Benettin, method: str) -> dict[str, Any]:
    """What a state must have been made with to fit."""
    return {
        "format": _FORMAT,
        "parameters": [[n, *s] for n, s in zip(space.names, space.shapes, strict=True)],
        "optimizer": type(tangent.opt).__name__,
        "S": tangent.size,
        "k": run.Y.shape[1],
        "dtype": str(space.dtype),
        "method": method,
        "state": tangent.state,
        "jacobian": tangent.jacobian,
        "qr_every": run.every,
        "transient": run.transient,
        "gali": run.gali is not None,
    }


def pack(own: dict[str, Any], run: Benettin, units: Units | None, space: ParameterSpace) -> dict[str, Any]:
    """The state of a run with this fingerprint, plain values and tensors only."""
    return {
        "fingerprint": own,
        "run": run.state_dict(),
        "units": None if units is None else [list(u) for u in units],
        "theta": _digest(space.flatten([p.detach() for p in space.params])),
    }


def require_fit(state: Any, own: dict[str, Any], run: Benettin) -> None:
    """Raises CheckpointError unless the state is whole, and that of a run with this fingerprint."""
    if not isinstance(state, dict) or not {"fingerprint", "run", "units", "theta"} <= set(state):
        raise CheckpointError("state: expected the state_dict of a LyapunovAnalyzer, got something else")
    theirs = state["fingerprint"]
    for name, ours in own.items():
        got = theirs.get(name) if isinstance(theirs, dict) else None
        if got != ours:
            raise CheckpointError(f"state: it belongs to another run: expected {name} = {ours!r}, got {got!r}")
    _check_run(state["run"], run.state_dict())


def _check_run(state: Any, own: dict[str, Any]) -> None:
    """Every part has to be there, in the run's shapes and dtypes."""
    if not isinstance(state, dict) or set(state) != set(own):
        raise CheckpointError("state: parts of it are missing; it is damaged or of another version")
    for name in ("Y", "growth"):
        got = state[name]
        if not isinstance(got, Tensor) or got.shape != own[name].shape or got.dtype != own[name].dtype:
            raise CheckpointError(f"state: expected {name} of shape {tuple(own[name].shape)}, {own[name].dtype}")
    if len(state["ends"]) != len(state["blocks"]):
        raise CheckpointError("state: its history is damaged")


def require_theta(theta: Tensor, expected: str) -> None:
    """Raises CheckpointError unless these are the parameters with which the state was saved."""
    if _digest(theta) != expected:
        raise CheckpointError(
            "load_state_dict: the model's parameters are not those with which this state was saved; load the model's "
            "and the optimizer's checkpoints of the same step"
        )


def _digest(theta: Tensor) -> str:
    return hashlib.sha256(theta.contiguous().cpu().numpy().tobytes()).hexdigest()
