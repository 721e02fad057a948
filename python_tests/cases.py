"""The declarative table of models, losses and batches that feeds the tests of the engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "elu": lambda: nn.ELU(1.3),
    "selu": nn.SELU,
    "celu": lambda: nn.CELU(0.5),  # 1/alpha exact in float32, to which torch's own derivative rounds it
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": lambda: nn.Softplus(1.5, 2.0),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "hardtanh": lambda: nn.Hardtanh(-0.4, 0.6),
    "relu6": nn.ReLU6,
    "identity": nn.Identity,
}

CLASSES = 3


def _labels(n: int, gen: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (n,), generator=gen)


def _some_ignored(n: int, gen: torch.Generator) -> Tensor:
    y = _labels(n, gen)
    y[1::2] = 1
    return y if n == 1 else torch.where(torch.arange(n) % 3 == 1, torch.tensor(-7), y)


def _probabilities(n: int, gen: torch.Generator) -> Tensor:
    return torch.rand(n, CLASSES, generator=gen, dtype=torch.float64).softmax(1)


def _real(n: int, gen: torch.Generator) -> Tensor:
    return torch.randn(n, CLASSES, generator=gen, dtype=torch.float64)


def _binary(n: int, gen: torch.Generator) -> Tensor:
    return torch.rand(n, CLASSES, generator=gen, dtype=torch.float64).round()


_W = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)

LOSSES = {
    "ce": (lambda: nn.CrossEntropyLoss(), _labels),
    "ce_sum": (lambda: nn.CrossEntropyLoss(reduction="sum"), _labels),
    "ce_weight_ignore_smooth": (
        lambda: nn.CrossEntropyLoss(weight=_W, ignore_index=-7, label_smoothing=0.2),
        _some_ignored,
    ),
    "ce_sum_weight_smooth": (lambda: nn.CrossEntropyLoss(weight=_W, reduction="sum", label_smoothing=0.1), _labels),
    "ce_probabilities": (lambda: nn.CrossEntropyLoss(weight=_W, label_smoothing=0.3), _probabilities),
    "ce_probabilities_sum": (lambda: nn.CrossEntropyLoss(reduction="sum"), _probabilities),
    "mse": (lambda: nn.MSELoss(), _real),
    "mse_sum": (lambda: nn.MSELoss(reduction="sum"), _real),
    "bce": (lambda: nn.BCEWithLogitsLoss(), _binary),
    "bce_weights": (
        lambda: nn.BCEWithLogitsLoss(weight=_W, pos_weight=torch.tensor([3.0, 0.5, 1.0], dtype=torch.float64)),
        _binary,
    ),
    "bce_sum_soft": (lambda: nn.BCEWithLogitsLoss(reduction="sum"), _probabilities),
}

BATCHES = (1, 3, 8, 64)


def mlp(depth: int, activation: str = "relu", bias: bool = True, seed: int = 0, width: int = 4) -> nn.Sequential:
    """``depth`` Linear layers on inputs of shape [N, 1, 2, 3]."""
    torch.manual_seed(seed)
    sizes = [6, *[width] * (depth - 1), CLASSES]
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        layers.append(nn.Linear(sizes[i], sizes[i + 1], bias=bias))
        if i < depth - 1:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers).double()


def batch(n: int, target, seed: int = 1) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 2, 3, generator=gen, dtype=torch.float64), target(n, gen)
