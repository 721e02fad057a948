"""What the package takes from torch.distributed beyond its documented interface; see ``torch_internals``."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any


def group_store(group: Any) -> Any:
    """Where the processes of a group leave notes for each other (torch/distributed/distributed_c10d.py)."""
    return sys.modules["torch.distributed.distributed_c10d"]._get_process_group_store(group)


def collective_options(kind: str, seconds: float | None) -> Any:
    """Of a method of a process group, with a time limit of its own: ``dist.all_gather`` and the others have none."""
    options = getattr(sys.modules["torch.distributed.distributed_c10d"], kind)()
    options.asyncOp = True
    if seconds is not None:
        options.timeout = timedelta(seconds=seconds)
    return options
