"""Random programs, losses and options of the operators, all at once, against torch's double backward in float64.

What is drawn depends on the seed alone; a case that fails is run again by its number.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from oracles import double_backward, gauss_newton
from torch import Tensor, nn
from torch.nn import functional as F

import chaos_ext as ce

W, INPUTS = 6, 5
FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    torch.tanh,
    F.gelu,
    F.mish,
    F.celu,
    lambda h: F.softplus(h, beta=2.0),
    lambda h: h.softmax(-1) * 3,
    lambda h: F.log_softmax(h, 1),
    lambda h: h[:, [5, 0, 0, 3, 2, 1]] * h.sin(),
    lambda h: torch.gather(h, 1, (h > 0).long() + torch.arange(W) // 2).cos(),
    lambda h: torch.where(h > 0.1, h.square(), h.exp()),
    lambda h: (h.view(-1, 2, 3) @ h.view(-1, 3, 2)).flatten(1).repeat(1, 2)[:, :W],
    lambda h: torch.cat([h.chunk(2, 1)[1].square(), h.chunk(2, 1)[0]], 1),
    lambda h: F.pad(h, (2, -1), value=0.3)[:, :W] * 2,
    lambda h: h.roll(2, 1) + h.flip(1).square(),
    lambda h: h.cumsum(1) * 0.3,
    lambda h: F.glu(torch.cat([h, h.sin()], 1)),
    lambda h: h / (h.square() + 0.5),
    lambda h: torch.einsum("ni,nj->nij", h, h).mean(2),
    lambda h: F.scaled_dot_product_attention(
        h.view(-1, 1, 3, 2), h.sin().view(-1, 1, 3, 2), h.view(-1, 1, 3, 2)
    ).flatten(1),
]
LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(W, W),
    lambda: nn.LayerNorm(W),
    lambda: nn.PReLU(W),
    lambda: nn.Sequential(
        nn.Unflatten(1, (1, W)), nn.Conv1d(1, 2, 3, padding=1), nn.Tanh(), nn.AvgPool1d(2), nn.Flatten()
    ),
    lambda: nn.Sequential(nn.Unflatten(1, (1, 1, 2, 3)), nn.Conv3d(1, 1, (1, 2, 2), padding=(0, 1, 0)), nn.Flatten()),
    lambda: nn.GRUCell(W, W),
    lambda: nn.Sequential(nn.RMSNorm(W), nn.SiLU()),
]


class Net(nn.Module):
    """Layers and functions of [N, 6] in turn, some of them beside a skip connection."""

    def __init__(self, draw: random.Random, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, W), nn.Linear(W, outputs)
        steps = [
            draw.choice(FUNCTIONS) if draw.random() < 0.5 else draw.choice(LAYERS)() for _ in range(draw.randint(2, 4))
        ]
        self.layers = nn.ModuleList(s for s in steps if isinstance(s, nn.Module))
        self.steps, self.skips = tuple(steps), [draw.random() < 0.3 for _ in steps]

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for step, skip in zip(self.steps, self.skips, strict=True):
            z = step(h)
            h = h + z if skip else z
        return self.last(h)


def _loss(draw: random.Random, outputs: int) -> tuple[nn.Module, Callable[[int, torch.Generator], Tensor]]:
    """A loss with options, and targets for so many samples."""
    reduction = draw.choice(["mean", "mean", "sum"])
    weight = torch.rand(outputs, dtype=torch.float64) + 0.3 if draw.random() < 0.5 else None

    def labels(n: int, g: torch.Generator) -> Tensor:
        y = torch.randint(outputs, (n,), generator=g)
        return torch.where(torch.rand(n, generator=g) < 0.2, -100, y) if ignores else y

    def numbers(n: int, g: torch.Generator) -> Tensor:
        return torch.rand(n, outputs, generator=g, dtype=torch.float64)

    ignores, smoothing = draw.random() < 0.4, draw.choice([0.0, 0.0, 0.1])
    made: list[tuple[nn.Module, Callable[[int, torch.Generator], Tensor]]] = [
        (nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=smoothing), labels),
        (nn.CrossEntropyLoss(weight, reduction=reduction), lambda n, g: numbers(n, g).softmax(1)),
        (nn.MSELoss(reduction=reduction), numbers),
        (nn.BCEWithLogitsLoss(pos_weight=weight, reduction=reduction), numbers),
        (nn.HuberLoss(reduction=reduction, delta=0.7), numbers),
    ]
    return draw.choice(made)


def _split(draw: random.Random, n: int) -> list[int]:
    sizes = []
    while sum(sizes) < n:
        sizes.append(min(draw.randint(1, 4), n - sum(sizes)))
    return sizes


def _close(found: Tensor, expected: Tensor, scale: float) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("seed", range(24))
def test_all_forms_and_options(seed):
    draw, g = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    outputs, n = draw.randint(2, 4), draw.randint(4, 9)
    model = Net(draw, outputs).double()
    loss_fn, targets = _loss(draw, outputs)
    x, y = torch.randn(n, INPUTS, generator=g, dtype=torch.float64), targets(n, g)
    if y.dtype == torch.int64:
        y[0] = 0  # not all are ignored
    H = double_backward(model, loss_fn, x, y)
    scale = float(H.abs().max())
    op = ce.HessianOperator(model, loss_fn, x, y)
    if not isinstance(loss_fn, nn.HuberLoss):  # which has no rule
        assert all(row.path.startswith("enter") for row in op.explain()), op.explain()
    V = torch.randn(len(H), draw.choice([1, 2, 5]), generator=g, dtype=torch.float64)
    _close(op.dense(), H, scale)
    _close(op @ V, H @ V, scale)
    _close(op.diagonal(), H.diagonal(), scale)
    assert ce.trace(op, exact=True).value == pytest.approx(float(H.trace()), rel=1e-9, abs=1e-10 * scale)

    names = [name for name, _ in model.named_parameters()]
    block = draw.choice(["first.*", "last.weight", draw.sample(names, 2), "*bias"])
    rows = _rows(model, block)
    _close(ce.HessianOperator(model, loss_fn, x, y, params=block).dense(), H[rows][:, rows], scale)

    sizes = _split(draw, n)
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    union = ce.DatasetHessian(model, loss_fn, batches, keep=draw.choice([0, 1 << 28]))
    _close(union @ V, H @ V, scale)
    _close(union.dense(), H, scale)
    _close(union.gradient, op.gradient, float(op.gradient.abs().max()))
    _close(union.diagonal(), H.diagonal(), scale)

    if not isinstance(loss_fn, nn.HuberLoss):
        G = gauss_newton(model, loss_fn, x, y)
        ggn = ce.GGNOperator(model, loss_fn, x, y)
        _close(ggn.dense(), G, float(G.abs().max()))
        _close(ggn @ V, G @ V, float(G.abs().max()))
        _close(ggn.diagonal(), G.diagonal(), float(G.abs().max()))


def _rows(model: nn.Module, block: str | list[str]) -> list[int]:
    """The rows of H that the names, or a pattern of them, stand for."""
    from fnmatch import fnmatchcase

    patterns = [block] if isinstance(block, str) else block
    owners = [name for name, p in model.named_parameters() for _ in range(p.numel())]
    return [i for i, name in enumerate(owners) if any(fnmatchcase(name, p) for p in patterns)]
