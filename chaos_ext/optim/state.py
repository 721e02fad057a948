"""What CGD's ``state_dict`` holds beyond torch.optim.SGD's: the step count, the generator, and what is ``Kept``.

They are under "chaos_ext", and again in every parameter group: torch.distributed.checkpoint keeps nothing else than
"state" and "param_groups", and of a group only what the live one has, too (there None). A generator's state is text
there: a tensor would have to be on the parameters' device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base.contents import is_int
from ..errors import CheckpointError
from .kept import PART

KEY = "chaos_ext"


def joined(
    state: dict[str, Any], steps: int, generator: Tensor | None, kept: str, parts: dict[int, Tensor]
) -> dict[str, Any]:
    """The ``state_dict`` of torch with what is CGD's own; ``parts`` go to the states of parameters, by their index."""
    text = None if generator is None else bytes(generator.tolist()).hex()
    groups = [{**g, KEY: {"steps": steps, "generator": text, "kept": kept}} for g in state["param_groups"]]
    own = {i: {**state["state"].get(i, {}), PART: part} for i, part in parts.items()}
    return {
        **state,
        "state": {**state["state"], **own},
        "param_groups": groups,
        KEY: {"steps": steps, "generator": generator, "kept": kept},
    }


def split(state: dict[str, Any]) -> tuple[dict[str, Any], int, Tensor | None, str | None]:
    """The state for torch, the step count, the generator's state and what is kept; 0 and None of a torch.optim.SGD.

    Raises:
        CheckpointError: parts are missing or of a wrong type, or parameter groups are of different steps.
    """
    if not {"state", "param_groups"} <= set(state):
        raise CheckpointError(f"state_dict: expected 'state' and 'param_groups', got {sorted(state)}")
    rest = {k: v for k, v in state.items() if k != KEY}
    own = _of_groups(rest["param_groups"])
    own = state.get(KEY, own)
    steps, generator = _read(own)
    rest["param_groups"] = [{**g, KEY: None} for g in rest["param_groups"]]
    return rest, steps, generator, own.get("kept")


def _of_groups(groups: Any) -> Any:
    if not isinstance(groups, list) or not all(isinstance(g, dict) for g in groups):
        raise CheckpointError(f"state_dict: expected a list of parameter groups, got {type(groups).__name__}")
    found = [g.get(KEY) for g in groups]
    if any(own != found[0] for own in found):
        raise CheckpointError(f"state_dict: the parameter groups are of different states of CGD: {found!r:.200}")
    return (found[0] if found else None) or {"steps": 0}


def _read(own: Any) -> tuple[int, Tensor | None]:
    steps: Any = own.get("steps") if isinstance(own, dict) else own
    if not is_int(steps) or steps < 0:
        raise CheckpointError(f"state_dict: expected a step count >= 0, got {steps!r}")
    generator: Any = own.get("generator")
    if isinstance(generator, str):
        try:
            generator = torch.tensor(list(bytes.fromhex(generator)), dtype=torch.uint8, device="cpu")
        except ValueError:
            raise CheckpointError(f"state_dict: expected a generator's state, got {generator[:40]!r}") from None
    return steps, generator
