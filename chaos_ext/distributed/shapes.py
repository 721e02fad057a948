"""What ranks tell each other about tensors, as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool, torch.int16, torch.int8)
AXES = 8
LENGTH = AXES + 2


def described(t: Tensor | None) -> list[int]:
    """Dtype, number of axes and their lengths; of None nothing."""
    return [0] * LENGTH if t is None else [DTYPES.index(t.dtype), t.dim(), *t.shape, *([0] * (AXES - t.dim()))]


def read(numbers: Sequence[int]) -> tuple[torch.dtype, torch.Size]:
    """What ``described`` has written."""
    return DTYPES[numbers[0]], torch.Size(numbers[2 : 2 + numbers[1]])


def require_sendable(name: str, t: object) -> None:
    """Raises ValueError unless t is a tensor that ``described`` can describe."""
    if not isinstance(t, Tensor) or t.dtype not in DTYPES or t.dim() > AXES or t.layout != torch.strided:
        got = f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(f"{name}: expected a dense tensor of numbers of at most {AXES} axes, got {got}")


def require_pieces(pieces: Sequence[Tensor], size: int) -> None:
    """Raises ValueError unless these are tensors for so many ranks, alike in dtype and device."""
    if len(pieces) != size:
        raise ValueError(f"pieces: expected one for each of {size} ranks, got {len(pieces)}")
    for r, t in enumerate(pieces):
        require_sendable(f"pieces[{r}]", t)
        if (t.dtype, t.device) != (pieces[0].dtype, pieces[0].device):
            expected = f"{pieces[0].dtype} on {pieces[0].device}"
            raise ValueError(f"pieces[{r}]: expected {expected} as the first, got {t.dtype} on {t.device}")


def signature(t: Tensor) -> str:
    """What of a tensor has to be the same on all ranks, in words."""
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)} on {t.device.type}"


def in_order(rows: Tensor) -> Tensor:
    """The sum of rows [ranks, n], one after the other: a library's sum may take another order for another n."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


def equal(a: object, b: object) -> bool:
    """Whether two plain values are the same; NaN is NaN."""
    return bool(a == b) or repr(a) == repr(b)
