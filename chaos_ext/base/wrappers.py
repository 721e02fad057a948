"""Models that torch.distributed has wrapped: what holds all of theta is taken out, what holds a shard is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import Tensor, nn

from ..errors import UnsupportedError

_DDP = getattr(nn.parallel, "DistributedDataParallel", ())
_FSDP, _TENSOR = "torch.distributed.fsdp", "torch.distributed.tensor"


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of ``DistributedDataParallel``, whose own forward meets other ranks and arms its hooks."""
    while isinstance(model, _DDP):
        model = model.module
    return model


def _of(module: str, *names: str) -> tuple[type, ...]:
    """Classes of a module of torch's, where anybody has imported it."""
    found = sys.modules.get(module)
    return tuple([kind for n in names if isinstance(kind := getattr(found, n, None), type)])


def refuse_wrappers(modules: Iterable[nn.Module]) -> None:
    """Raises UnsupportedError for modules whose forward fetches parameters from other ranks, or meets them."""
    sharding = _of(_FSDP, "FullyShardedDataParallel", "FSDPModule")
    for m in modules:
        if isinstance(m, sharding):
            raise UnsupportedError(
                f"model: its {type(m).__name__} is sharded by FSDP, so that no rank has all of theta; build the model "
                "without it, and give each rank its batches with group="
            )
        if isinstance(m, _DDP):
            raise UnsupportedError(
                "model: it has a DistributedDataParallel inside, whose forward meets other ranks; wrap the whole "
                "model, or none of it: group= sums over the ranks"
            )


def refuse_sharded(name: str, p: Tensor) -> None:
    """Raises UnsupportedError for a parameter of which this rank may have a part only."""
    if isinstance(p, _of(_TENSOR, "DTensor")):
        raise UnsupportedError(
            f"parameter {name!r}: a DTensor, of which each rank may hold a part only; build the model of plain "
            "parameters, and give each rank its batches with group="
        )
