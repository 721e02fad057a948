"""How the members lie in memory: one row each, every parameter at a multiple of 64 bytes.

The kernels of a matrix product depend on how their operands are aligned, and so do its last bits. Rows and parameters
that are all aligned alike let equal members stay equal, whatever the number of parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.parameters import ParameterSpace

ALIGNED_BYTES = 64
_PARAMETER, _ROW = 16, 64  # elements that a parameter and a row are filled up to: at least ALIGNED_BYTES in float32


def filled(n: int, unit: int = _ROW) -> int:
    """The next multiple of ``unit``."""
    return -(-n // unit) * unit


class Layout:
    """Where each parameter of theta [P] lies in a member's row [S], S >= P; what is between them is zero at first.

    Attributes:
        space: names, shapes and order of the parameters.
        starts: of each parameter in the row, and of what comes after the last.
        width: S.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self.space, self.starts = space, [0]
        for size in space.sizes:
            self.starts.append(self.starts[-1] + filled(size, _PARAMETER))
        self.width = self.starts[-1] = filled(self.starts[-1])

    def zeros(self, members: int) -> Tensor:
        """Fresh rows [members, S]."""
        with torch.inference_mode(False):  # they are written in place for ever
            return torch.zeros(members, self.width, dtype=self.space.dtype, device=self.space.device)

    def views(self, rows: Tensor) -> list[Tensor]:
        """Of rows [b, S], each parameter as [b, *shape]."""
        parts = zip(self.starts, self.space.sizes, self.space.shapes, strict=False)
        return [rows[:, a : a + n].view(len(rows), *shape) for a, n, shape in parts]

    def pack_(self, rows: Tensor, thetas: Tensor) -> None:
        """Rows [b, S] <- thetas [b, P]."""
        for a, p, n in zip(self.starts, self.space.offsets, self.space.sizes, strict=False):
            rows[:, a : a + n] = thetas[:, p : p + n]

    def unpack(self, rows: Tensor) -> Tensor:
        """Rows [b, S] as a fresh [b, P]."""
        return torch.cat([rows[:, a : a + n] for a, n in zip(self.starts, self.space.sizes, strict=False)], 1)

    def padding(self) -> Tensor:
        """The columns that belong to no parameter."""
        used = torch.zeros(self.width, dtype=torch.bool, device="cpu")
        for a, n in zip(self.starts, self.space.sizes, strict=False):
            used[a : a + n] = True
        return (~used).nonzero().squeeze(1).to(self.space.device)
