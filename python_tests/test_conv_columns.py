"""Products of convolutional networks for every number of columns, against double backward in float64."""

import copy

import pytest
import torch
from torch import nn

import chaos_ext as ce
from chaos_ext.rules import conv

COLUMNS = [*range(1, 20), 31, 32, 33]

MODELS = {
    "strides, groups, dilation": (
        lambda: [
            nn.Conv2d(2, 4, 3, padding=1, stride=2),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
            nn.GroupNorm(3, 6),
            nn.Sigmoid(),
            nn.Conv2d(6, 4, 1, bias=False),
        ],
        (3, 2, 9, 8),
    ),
    "transposed": (
        lambda: [
            nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 4, 2, groups=2),
            nn.Tanh(),
        ],
        (2, 3, 4, 5),
    ),
    "depthwise, wide rows": (
        lambda: [nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Tanh(), nn.Conv2d(3, 2, 1), nn.Tanh()],
        (2, 3, 6, 33),
    ),
    "large images": (lambda: [nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.AvgPool2d(4)], (2, 1, 16, 16)),
    "one-dimensional": (lambda: [nn.Conv1d(2, 3, 4, stride=3, padding=2), nn.BatchNorm1d(3), nn.Tanh()], (3, 2, 11)),
    "large weight, one pixel": (lambda: [nn.Conv2d(48, 40, 3, padding=1), nn.Tanh()], (2, 48, 1, 1)),
}


def _model(name, dtype):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    body = nn.Sequential(*make(), nn.Flatten()).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    model = nn.Sequential(*body, nn.Linear(body(x).shape[1], 3, dtype=dtype))
    return model, x, torch.arange(shape[0]) % 3


def _double_backward(model, x, y, V):
    params = list(model.parameters())
    grads = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), params, create_graph=True)
    flat = torch.cat([g.flatten() for g in grads])
    products = [torch.autograd.grad(flat @ v, params, retain_graph=True) for v in V.T]
    return torch.stack([torch.cat([p.flatten() for p in parts]) for parts in products], 1)


@pytest.mark.parametrize("large", [0, 1 << 14], ids=["any weight is large", "as measured"])
@pytest.mark.parametrize("name", MODELS)
def test_products(name, large, dtype, monkeypatch):
    monkeypatch.setattr(conv, "_LARGE_WEIGHT", large)
    model, x, y = _model(name, dtype)
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    V = torch.randn(op.shape[0], max(COLUMNS), dtype=torch.float64).to(dtype)
    exact = _double_backward(copy.deepcopy(model).double(), x.double(), y, V.double())
    limit = (1e-11 if dtype == torch.float64 else 2e-5) * exact.abs().max()
    for k in COLUMNS:
        assert ((op @ V[:, :k].contiguous()).double() - exact[:, :k]).abs().max() <= limit, k


@pytest.mark.parametrize("k", [1, 2, 5, 15, 16])
@pytest.mark.parametrize("places", [(1, 1), (7, 5), (16, 16), (48, 48)], ids=str)
def test_sums_over_places(places, k, dtype):
    t = torch.randn(3, 4, *places, k, dtype=dtype)
    wanted = t.double().sum((0, 2, 3))
    limit = (1e-13 if dtype == torch.float64 else 1e-5) * t[0, 0].numel() ** 0.5
    assert (conv._over_places(t).double() - wanted).abs().max() <= limit
    assert (conv._over_places(t.transpose(2, 3)).double() - wanted).abs().max() <= limit
