"""Short training runs of a small network, with or without a LyapunovAnalyzer beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cases
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import chaos_ext as ce

Batch = tuple[Tensor, Tensor]
CE = nn.CrossEntropyLoss()

# Optimizers of every kind that has a tangent map, with options that leave no term of it out.
RUNS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.3, "weight_decay": 0.05}),
    "sgd_maximize": (SGD, {"lr": 0.1, "maximize": True}),
    "heavy_ball": (SGD, {"lr": 0.2, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    "nesterov": (SGD, {"lr": 0.2, "momentum": 0.8, "nesterov": True}),
    "adam": (Adam, {"lr": 0.01, "eps": 1e-3, "betas": (0.7, 0.9), "weight_decay": 0.1}),
    "adamw": (AdamW, {"lr": 0.1, "eps": 1e-3, "betas": (0.7, 0.9), "weight_decay": 0.5}),
    "cgd": (ce.CGD, {"lr": 0.3, "prune": "negative", "mix": 0.5}),
}


def small_model(dtype: torch.dtype = torch.float64, width: int = 3) -> nn.Sequential:
    """Two layers with tanh, the same at every call."""
    return cases.mlp(2, "tanh", seed=3, width=width).to(dtype)


def batches(n: int, seed: int = 10) -> list[Batch]:
    """n batches of 5 samples, float64, for ``small_model`` and ``CE``."""
    return [cases.batch(5, cases.LOSSES["ce"][1], seed=seed + i) for i in range(n)]


def setting(dtype: torch.dtype = torch.float64, width: int = 3) -> tuple[nn.Sequential, list[Batch]]:
    """The model and 4 batches, both of this dtype."""
    return small_model(dtype, width), [(x.to(dtype), y) for x, y in batches(4, seed=0)]


def take_step(model: nn.Module, opt: Optimizer, x: Tensor, y: Tensor, op: ce.HessianOperator | None = None) -> None:
    """One step of the optimizer on the cross-entropy of a batch; CGD takes it with ``op``, by default a new one."""
    if isinstance(opt, ce.CGD):
        opt.step(op or ce.HessianOperator(model, CE, x, y))
    else:
        opt.zero_grad()
        CE(model(x), y).backward()
        opt.step()


def train(
    model: nn.Module,
    opt: Optimizer,
    data: Iterable[Batch],
    schedule: Callable[[Optimizer], None] | None = None,
    watch: Callable[[ce.HessianOperator], object] | None = None,
) -> None:
    """One step a batch; ``watch`` sees the operator before the step, ``schedule`` the optimizer after it."""
    for x, y in data:
        op = None
        if watch is not None:
            op = ce.HessianOperator(model, CE, x, y)
            watch(op)
        take_step(model, opt, x, y, op)
        if schedule is not None:
            schedule(opt)


def analyse(
    model: nn.Module, opt: Optimizer, data: Sequence[Batch], steps: int, analyzer: ce.LyapunovAnalyzer, first: int = 0
) -> None:
    """Trains from step ``first`` on, batch by batch in turn, and updates the analyzer before each step."""
    train(model, opt, [data[t % len(data)] for t in range(first, first + steps)], watch=analyzer.update)
