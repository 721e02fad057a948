"""Convolutional networks that are timed: the paper's, one of P about 1e4, a residual one with BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chaos_ext.models import paper_cnn


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm in training mode, and a residual connection."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            # Without running statistics: the other methods cannot differentiate a forward that updates them.
            nn.BatchNorm2d(after, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after, track_running_stats=False),
        )
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 40, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 10),
    )


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 20, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@dataclass(frozen=True)
class Network:
    """A model and a batch of 16 x 16 images with mean cross-entropy.

    Attributes:
        name: in tables.
        make: the model.
        batch: N.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: int

    def build(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        model = self.make()
        x, y = torch.randn(self.batch, 1, 16, 16), torch.randint(10, (self.batch,))
        return model.to(dtype), nn.CrossEntropyLoss(), x.to(dtype), y

    @property
    def P(self) -> int:
        return sum(p.numel() for p in self.make().parameters())

    @property
    def title(self) -> str:
        return f"{self.name}, N = {self.batch}, P = {self.P}"


DENSE = {
    "c": Network("paper's CNN", lambda: paper_cnn(seed=0), 8),
    "d": Network("CNN 12-20-32", conv_net, 8),
}
BLOCK = {"e": Network("residual net with BatchNorm", resnet, 8)}
COLUMNS = 64


def reference_products(network: Network, v: Tensor) -> Tensor:
    """H v by double backward in float64, column by column."""
    model, loss_fn, x, y = network.build(torch.float64)
    params = list(model.parameters())
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_fn(model(x), y), params, create_graph=True)])
    columns = [torch.autograd.grad(flat, params, c, retain_graph=True) for c in v.double().T]
    return torch.stack([torch.cat([p.reshape(-1) for p in c]) for c in columns], 1)
