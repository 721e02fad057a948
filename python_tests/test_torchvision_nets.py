"""Torchvision's networks at 32 x 32: H v by layer rules alone, against double backward and differences of gradients.

Slim variants of the same classes where the published ones have tens of millions of parameters: every kind of layer and
every stage is there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import chaos_ext as ce

models = pytest.importorskip("torchvision.models")
convnext = pytest.importorskip("torchvision.models.convnext")
CE, CLASSES = nn.CrossEntropyLoss(), 5


def _convnext(channels=(16, 24, 32, 48), blocks=(2, 2, 3, 2)) -> nn.Module:
    """ConvNeXt-tiny has 96, 192, 384, 768 channels and 3, 3, 9, 3 blocks."""
    stages = zip(channels, [*channels[1:], None], blocks, strict=True)
    return models.ConvNeXt([convnext.CNBlockConfig(*s) for s in stages], num_classes=CLASSES)


def _swin() -> nn.Module:
    """Swin-t has 96 features, 2, 2, 6, 2 blocks and windows of 7."""
    return models.SwinTransformer([4, 4], 16, [2, 2, 3, 2], [2, 2, 4, 4], [3, 3], num_classes=CLASSES)


NETS = {
    "resnet18": lambda: models.resnet18(num_classes=CLASSES),
    "ViT": lambda: models.VisionTransformer(32, 8, 2, 4, 16, 32, num_classes=CLASSES),
    "MobileNetV3-small": lambda: models.mobilenet_v3_small(num_classes=CLASSES),
    "EfficientNet-b0": lambda: models.efficientnet_b0(num_classes=CLASSES),
    "ConvNeXt": _convnext,
    "Swin": _swin,
}


def _net(name: str, train: bool, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """In training mode without what draws: dropout and stochastic depth."""
    torch.manual_seed(0)
    model = NETS[name]().double().train(train)
    for m in model.modules():
        if isinstance(m, nn.Dropout) or type(m).__name__ == "StochasticDepth":
            m.p = 0.0
        if isinstance(m, nn.MultiheadAttention):
            m.dropout = 0.0
        if hasattr(m, "relative_position_bias_table"):
            m.dropout = m.attention_dropout = 0.0
            nn.init.normal_(m.relative_position_bias_table)
        if type(m).__name__ == "CNBlock":
            nn.init.normal_(m.layer_scale)  # 1e-6 hides the block
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and not train:
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    if name == "ViT":
        nn.init.normal_(model.heads.head.weight)  # zeros, behind which there is no curvature
    return model, torch.randn(n, 3, 32, 32, dtype=torch.float64), torch.arange(n) % CLASSES


def _direction(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter moves by its own size, so that all layers take part."""
    generator = torch.Generator().manual_seed(1)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().square().mean().sqrt().clamp_min(1e-2)
        for n, p in model.named_parameters()
    }


def _gradient(model: nn.Module, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """[P], running statistics aside."""
    leaves = {n: p.detach().requires_grad_() for n, p in params.items()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    loss = CE(functional_call(model, {**leaves, **buffers}, (x,)), y)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [*leaves.values()])])


def _by_double_backward(model: nn.Module, v: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """H v by torch: reverse over reverse, which is right for these layers."""
    leaves = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that torch can differentiate twice
        loss = CE(functional_call(model, {**leaves, **buffers}, (x,)), y)
    params = [*leaves.values()]
    gradient = torch.autograd.grad(loss, params, create_graph=True)
    along = sum((g * v[n]).sum() for g, n in zip(gradient, leaves, strict=True))
    parts = torch.autograd.grad(along, params, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(parts, params, strict=True)]
    )


def _by_differences(model: nn.Module, v: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """H v by central differences of gradients, extrapolated."""
    own = {n: p.detach() for n, p in model.named_parameters()}

    def central(h: float) -> Tensor:
        ends = [_gradient(model, {n: p + s * h * v[n] for n, p in own.items()}, x, y) for s in (1, -1)]
        return (ends[0] - ends[1]) / (2 * h)

    return (4 * central(5e-6) - central(1e-5)) / 3


class Composed(nn.Module):
    """Hardsigmoid of functions that torch differentiates twice."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


SMOOTH = {
    nn.MaxPool2d: lambda: nn.AvgPool2d(3, 2, 1),
    nn.ReLU: nn.Softplus,
    nn.Hardswish: nn.SiLU,
    nn.Hardsigmoid: nn.Sigmoid,
}


def _replaced(model: nn.Module, others: dict[type, Callable[[], nn.Module]]) -> nn.Module:
    """A copy with other activations, on the same parameters."""
    model = copy.deepcopy(model)
    for m in list(model.modules()):
        for name, child in m.named_children():
            if type(child) in others:
                setattr(m, name, others[type(child)]())
    return model


def _product(model: nn.Module, v: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """H v by layer rules alone, and without a trace."""
    before = {n: b.clone() for n, b in model.state_dict().items()}
    op = ce.HessianOperator(model, CE, x, y)
    assert [(row.name, row.why) for row in op.explain() if not row.path.startswith("enter")] == []
    hv = op @ torch.cat([t.reshape(-1) for t in v.values()])
    assert all(torch.equal(before[n], b) for n, b in model.state_dict().items())
    return hv


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETS)
def test_products_are_torchs(name, train):
    model, x, y = _net(name, train, 4)
    v = _direction(model)
    hv, expected = _product(model, v, x, y), _by_double_backward(_replaced(model, {nn.Hardsigmoid: Composed}), v, x, y)
    assert (hv - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("name", NETS)
def test_products_are_differences_of_gradients(name):
    """With smooth activations and means for maxima: among millions of arguments some would pass a kink."""
    model, x, y = _net(name, True, 8 if name == "EfficientNet-b0" else 4)
    model, v = _replaced(model, SMOOTH), _direction(model)
    hv = _product(model, v, x, y)
    expected = _by_differences(model, v, x, y)
    assert (hv - expected).norm() <= 1e-9 * expected.norm()
