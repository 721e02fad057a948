"""Which process group is meant, whether it is still there, and on which device its collectives run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ..errors import RankFailedError, UnsupportedError


def require_group(group: Any) -> Any:
    """The process group that was given, or the default one.

    Raises:
        UnsupportedError: a torch without torch.distributed.
        ValueError: not initialised, destroyed, or without this process. TypeError: no process group.
    """
    if not dist.is_available():
        raise UnsupportedError("group: this torch was built without torch.distributed")
    if group is not None and group is not dist.GroupMember.NON_GROUP_MEMBER and not _is_group(group):
        raise TypeError(
            f"group: expected a torch.distributed process group or None, got {type(group).__name__}; of a DeviceMesh "
            "take mesh.get_group()"
        )
    if not dist.is_initialized():
        raise ValueError(
            "group: torch.distributed is not initialised, or was destroyed; call "
            "torch.distributed.init_process_group, for which torchrun sets the environment"
        )
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group: this process is not in it; call this in its members only")
    group = dist.group.WORLD if group is None else group
    if not is_alive(group):
        raise ValueError("group: it was destroyed (destroy_process_group), or this process is not in it")
    return group


def _is_group(group: object) -> bool:
    return isinstance(group, dist.ProcessGroup)


def is_alive(group: Any) -> bool:
    """Whether the group has not been destroyed, and holds this process."""
    try:
        return dist.is_initialized() and dist.get_rank(group) >= 0
    except (ValueError, RuntimeError):
        return False


def require_alive(group: Any, what: str) -> None:
    """Raises RankFailedError where the group was destroyed."""
    if not is_alive(group):
        raise RankFailedError(f"{what}: the process group was destroyed (destroy_process_group); make a new one")


def backends_of(group: Any) -> dict[str, str]:
    """By type of device: what moves its memory."""
    return dict(part.split(":") for part in dist.get_backend_config(group).split(",") if ":" in part)


def place_of(backends: dict[str, str], device: torch.device) -> torch.device:
    """Where a tensor on this device takes part in a collective: gloo moves memory of the CPU, NCCL that of its GPU."""
    if device.type in backends and (device.type == "cpu" or backends[device.type] not in ("gloo", "mpi")):
        return device
    if "cpu" in backends or not backends:
        return torch.device("cpu")
    kind = next(iter(backends))
    return torch.device(kind, torch.get_device_module(kind).current_device())
