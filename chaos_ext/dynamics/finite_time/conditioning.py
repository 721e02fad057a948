"""How far rounding may have moved the singular values of a long product: 40 eps times the sum of three things.

- Over blocks, their steps over sigma_min(B_b), B_b being the block with columns of length one: rounding in a block
  multiplies the product from the left by I + E, ||E|| about eps / sigma_min(B_b) a step. A step that nearly loses a
  direction (1 - lr lambda near 0) has a large 1 / sigma_min, for which one singular value at the bottom pays: the j-th
  from the bottom pays for no more than the j-th worst direction of all.
- Regrowth: E also leaks from a direction of scale e^L_m to one that has shrunk far below. If that one grows again, the
  leak grows with it, to e^c_i, and is as large as rounding errors of scale e^min(c_i - L_m, c_i - L_i), at the end. No
  algorithm escapes this, since rounding the matrices themselves does the same; products whose contracted directions
  stay contracted have none of it. c is followed in the logarithms of sizes, c_i <- max_j (ln|R_ij| + c_j).
- cond U.

The 40 is for the operations that a step is made of, for the sum over blocks that the leaks leave out, and for what
first order leaves out: of some thousand exact products none was off by more than 7 times as much with 4 in its place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .factors import BLOCK

WORST = 4  # directions of a block whose conditioning is kept
SAFETY = 40.0
_ALL = 32  # up to this k leaks from every rank are followed, beyond from ranks 1, 2, 4, 8, ...


class Conditioning:
    """What is remembered of the blocks of a product of k directions."""

    def __init__(self, k: int, device: torch.device) -> None:
        ranks = range(k) if k <= _ALL else [2**i - 1 for i in range(k.bit_length())]
        self._ranks = torch.tensor(list(ranks), device=device)
        self._leaks = torch.full((len(self._ranks), k), -torch.inf, dtype=torch.float64, device=device)
        self._steps: list[int] = []
        self._losses: list[Tensor] = []

    @property
    def blocks(self) -> int:
        """How many there were."""
        return len(self._steps)

    def multiply(self, steps: int, losses: Tensor, order: Tensor, R: Tensor) -> None:
        """A block of so many steps has ended in R; call ``leak`` once the scales after it are known.

        Args:
            steps: of the block.
            losses: the largest singular values of B_b^-1, descending, of at most 4 directions.
            order: how the directions were permuted before it.
            R: upper triangular [k, k].
        """
        worst = losses.cpu()
        self._steps.append(steps)
        self._losses.append(torch.cat([worst, worst.new_ones(WORST - len(worst))]))
        c = self._leaks[:, order]
        new = torch.empty_like(c)
        for i in range(0, len(R), BLOCK):
            logs = R[i : i + BLOCK, i:].abs().log()
            for own, before in zip(new, c[:, i:], strict=True):
                torch.amax(logs + before, 1, out=own[i : i + BLOCK])
        self._leaks = new

    def leak(self, l: Tensor) -> None:
        """Rounding of the block that has just ended, from directions of each rank into all."""
        # From k directions at random; the worst one of the block conditions a single value.
        size = (self._losses[-1][1] * self._steps[-1] * len(l) ** 0.5).log().to(l.device)
        sources = l.sort(descending=True).values[self._ranks] + size
        self._leaks = torch.maximum(self._leaks, sources.unsqueeze(1))

    def errors(self, l: Tensor, eps: float) -> Tensor:
        """About how far each ln sigma, in descending order, may be off but for cond U, float64 [k]; without the 40.

        Args:
            l: the scales now.
            eps: rounding of the dtype in which the blocks advance.
        """
        if not self._steps:
            return torch.zeros_like(l)
        k, losses = len(l), torch.stack(self._losses)
        steps = torch.tensor(self._steps, dtype=torch.float64, device="cpu")
        # A block's last value stands for all further directions of it.
        pool = torch.cat([losses.flatten(), losses[:, -1].repeat_interleave(max(k - WORST, 0))])
        limits = pool.sort(descending=True).values[:k].unsqueeze(1)
        sums = torch.cat([(steps * torch.minimum(losses[:, 0], c)).sum(1) for c in limits.split(256)])
        own = eps * sums.flip(0).to(l.device)
        own = torch.where(SAFETY * own < 1, own, torch.inf)  # to first order, which says nothing of more
        return own + eps * self._regrown(l)

    def _regrown(self, l: Tensor) -> float:
        """exp of the largest min(c_i - L_m, c_i - L_i)."""
        sources = l.sort(descending=True).values[self._ranks].unsqueeze(1)
        relative = self._leaks - torch.maximum(sources, l)  # a lost direction has -inf - (-inf)
        return float(torch.nan_to_num(relative, nan=-torch.inf).max().exp())

    def state_dict(self) -> dict[str, Any]:
        """The leaks, and of each block its steps and losses [blocks, 1 + 4]."""
        steps = torch.tensor(self._steps, dtype=torch.float64, device="cpu").view(-1, 1)
        losses = torch.stack(self._losses) if self._losses else torch.zeros(0, WORST, dtype=torch.float64, device="cpu")
        return {"leaks": self._leaks.clone(), "blocks": torch.cat([steps, losses], 1)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict()``."""
        self._leaks = state["leaks"].to(self._leaks.device, copy=True)
        self._steps = [int(s) for s in state["blocks"][:, 0].tolist()]
        self._losses = list(state["blocks"][:, 1:].clone())
