"""The networks and batches that are timed, and the reference that every method must match before it is timed."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ALL_ROWS = 6000  # up to this P every row of H is compared, beyond it this many random ones:
_SOME_ROWS = 512
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class Problem:
    """Mean cross-entropy of a ReLU MLP with the given layer sizes on a random batch.

    Attributes:
        sizes: inputs, hidden units..., classes.
        batch: N.
    """

    sizes: tuple[int, ...]
    batch: int

    @property
    def P(self) -> int:
        return sum((i + 1) * o for i, o in zip(self.sizes, self.sizes[1:], strict=False))

    @property
    def title(self) -> str:
        return f"{'-'.join(map(str, self.sizes))}, N = {self.batch}, P = {self.P}"

    def build(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
        """Model, loss, x and y. Values are drawn in float32, so that both dtypes start from the same point."""
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for i, o in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(i, o), nn.ReLU()]
        x, y = torch.randn(self.batch, self.sizes[0]), torch.randint(self.sizes[-1], (self.batch,))
        return nn.Sequential(*layers[:-1]).to(dtype), nn.CrossEntropyLoss(), x.to(dtype), y


CASES = {
    "a": Problem((256, 20, 10), 8),
    "b": Problem((256, 20, 10), 128),
    "784 inputs": Problem((784, 20, 10), 8),
    "100 hidden": Problem((256, 100, 10), 8),
    "three layers": Problem((256, 20, 20, 10), 8),
}


@functools.lru_cache(maxsize=1)
def reference_rows(problem: Problem) -> tuple[Tensor, Tensor]:
    """Rows of H in float64, by torch's double backward, and their indices."""
    model, loss_fn, x, y = problem.build(torch.float64)
    params, P = list(model.parameters()), problem.P
    rows = torch.arange(P) if P <= _ALL_ROWS else torch.randperm(P)[:_SOME_ROWS].sort().values
    gradient = torch.autograd.grad(loss_fn(model(x), y), params, create_graph=True)
    flat, blocks = torch.cat([g.reshape(-1) for g in gradient]), []
    for some in rows.split(256):
        one_hot = torch.zeros(len(some), P, dtype=torch.float64)
        one_hot[torch.arange(len(some)), some] = 1
        parts = torch.autograd.grad(flat, params, one_hot, retain_graph=True, is_grads_batched=True)
        blocks.append(torch.cat([p.reshape(len(some), -1) for p in parts], 1))
    return rows, torch.cat(blocks)


def check(H: Tensor, problem: Problem) -> None:
    """Raises unless H [P, P] agrees with the reference to rounding, relative to its largest entry."""
    rows, expected = reference_rows(problem)
    if tuple(H.shape) != (problem.P, problem.P):
        raise AssertionError(f"H has shape {tuple(H.shape)}, P is {problem.P}")
    error = max(
        float((H[i].double() - e).abs().max()) for i, e in zip(rows.split(256), expected.split(256), strict=True)
    )
    scale = float(expected.abs().max())
    if math.isnan(error) or error > TOLERANCE[H.dtype] * scale:
        raise AssertionError(f"H differs from float64 double backward by {error / scale:.2g} of its largest entry")
