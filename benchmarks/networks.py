"""Networks that are timed: the paper's CNN, one of P about 1e4, a residual one with BatchNorm, and torchvision's."""

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
    """A model and a batch of images with mean cross-entropy.

    Attributes:
        name: in tables.
        make: the model.
        batch: N.
        image: shape of one.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: int
    image: tuple[int, int, int] = (1, 16, 16)

    def build(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        model = self.make()
        x, y = torch.randn(self.batch, *self.image), torch.randint(10, (self.batch,))
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


def _vision(name: str, **options: object) -> nn.Module:
    """A network of torchvision's in eval mode, whose forward torch's ways can differentiate too."""
    from torchvision import models

    return getattr(models, name)(num_classes=10, **options).eval()


def _small_vit() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    from torchvision.models import VisionTransformer

    return VisionTransformer(**sizes, num_classes=10).eval()


_PHOTO = (3, 32, 32)
VISION = [
    Network("resnet18", lambda: _vision("resnet18"), 8, _PHOTO),
    Network("MobileNetV3-small", lambda: _vision("mobilenet_v3_small"), 8, _PHOTO),
    Network("ConvNeXt-tiny", lambda: _vision("convnext_tiny"), 8, _PHOTO),
    Network("ViT, 3 blocks of 64", _small_vit, 8, _PHOTO),
    Network("Swin-tiny", lambda: _vision("swin_t"), 8, _PHOTO),
]


def reference_products(network: Network, v: Tensor) -> Tensor:
    """H v by double backward in float64, column by column."""
    model, loss_fn, x, y = network.build(torch.float64)
    params = list(model.parameters())
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_fn(model(x), y), params, create_graph=True)])
    columns = [torch.autograd.grad(flat, params, c, retain_graph=True) for c in v.double().T]
    return torch.stack([torch.cat([p.reshape(-1) for p in c]) for c in columns], 1)
