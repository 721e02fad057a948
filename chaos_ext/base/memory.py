"""How much memory a result may take, decided before anything is allocated."""

from __future__ import annotations

import os

import torch

from ..errors import MemoryBudgetError
from .arguments import require_number
from .torch_internals import stored_parts


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on the device (host: MemAvailable, or all physical memory where unknown)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


def require(bytes_needed: int, device: torch.device, what: str, remedy: str, budget: int | None = None) -> None:
    """Raises MemoryBudgetError unless ``bytes_needed`` fit into the budget (default: what is available)."""
    limit = available_bytes(device) if budget is None else budget
    if bytes_needed > limit:
        raise MemoryBudgetError(
            f"{what}: needs {bytes_needed / 2**30:.3g} GiB, the budget on {device} is {limit / 2**30:.3g} GiB; {remedy}"
        )


def check_budget(budget: int | None) -> int | None:
    """The ``memory_budget`` itself, if it is a number of bytes or None.

    Raises:
        TypeError, ValueError: no real number, or a negative one.
    """
    if budget is not None:
        require_number("memory_budget", budget, finite=False)
        if budget < 0:
            raise ValueError(f"memory_budget: expected a number of bytes >= 0, got {budget!r}")
    return budget


def held_bytes(value: object) -> int:
    """Bytes of the tensors within reach of an object's attributes and containers, modules and parameters left out."""
    sizes: dict[int, tuple[int, int]] = {}  # of each storage, and of the tensors in it together
    seen: set[int] = set()
    todo = [value]
    while todo:
        part = todo.pop()
        if id(part) in seen or isinstance(part, (torch.nn.Module, torch.nn.Parameter, type)):
            continue
        seen.add(id(part))
        if isinstance(part, torch.Tensor):
            for t in [part] if part.layout == torch.strided else stored_parts(part):
                storage = t.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes(), sizes.get(storage.data_ptr(), (0, 0))[1] + t.nbytes
        elif isinstance(part, dict):
            todo.extend(part.values())
        elif isinstance(part, (list, tuple, set, frozenset)):
            todo.extend(part)
        else:
            todo.extend(vars(part).values() if hasattr(part, "__dict__") else ())
    return sum(map(min, sizes.values()))
