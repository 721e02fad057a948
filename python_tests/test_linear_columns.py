"""Products of nets of Linear layers for every kind of column block: few columns, many, fused or layer by layer."""

import copy

import pytest
import torch
from torch import nn

import chaos_ext as ce
from chaos_ext.curvature import plan
from chaos_ext.rules import columns

COLUMNS = [1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33]


class Tied(nn.Module):
    """One weight twice, once on positions within samples; a frozen bias; an unused layer."""

    def __init__(self):
        super().__init__()
        self.first, self.both, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)
        self.last.bias.requires_grad_(False)

    def forward(self, x):
        h = self.both(torch.tanh(self.first(x)))
        return self.last(torch.tanh(self.both(torch.tanh(h))).mean(1))


MODELS = {
    "plain": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3)),
        (7, 5),
    ),
    "norm": (lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3, bias=False)), (7, 5)),
    "tied, positions": (Tied, (7, 2, 5)),
    "one sample": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (1, 5)),
}


def _case(name, dtype):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return make().to(dtype), torch.randn(shape, dtype=torch.float64).to(dtype), torch.arange(shape[0]) % 3


def _double_backward(model, x, y, V):
    params = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(
        nn.functional.cross_entropy(model(x), y), params, create_graph=True, materialize_grads=True
    )
    flat = torch.cat([g.flatten() for g in grads])
    found = []
    for v in V.T:
        parts = torch.autograd.grad(flat @ v, params, retain_graph=True, materialize_grads=True)
        found.append(torch.cat([p.flatten() for p in parts]))
    return torch.stack(found, 1)


@pytest.mark.parametrize("small", [0, 1 << 14], ids=["as large", "as small"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "by layer"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_products(name, dtype, fused, small, monkeypatch):
    """Against double backward in float64, of v as it lies and of a view with strides."""
    if not fused:
        monkeypatch.setattr(plan, "_FUSED_WORK", -1)
    monkeypatch.setattr(columns, "_SMALL", small)
    model, x, y = _case(name, dtype)
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    wide = torch.randn(op.shape[0], 2 * max(COLUMNS), dtype=torch.float64).to(dtype)
    exact = _double_backward(copy.deepcopy(model).double(), x.double(), y, wide.double())
    tol = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for k in COLUMNS:
        torch.testing.assert_close((op @ wide[:, :k].contiguous()).double(), exact[:, :k], **tol)
        torch.testing.assert_close((op @ wide[:, : 2 * k : 2]).double(), exact[:, : 2 * k : 2], **tol)


@pytest.mark.parametrize("most", [2, 100], ids=["two at a time", "all at once"])
def test_blocks_of_any_width_give_the_same(most, monkeypatch):
    model, x, y = _case("norm", torch.float64)
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    V = torch.randn(op.shape[0], 33, dtype=torch.float64)
    expected = op @ V
    monkeypatch.setattr(columns, "_SMALL", 0)
    monkeypatch.setattr(plan, "_LINEAR_COLUMNS", most)
    monkeypatch.setattr(plan, "_LINEAR_BYTES", 0)
    torch.testing.assert_close(op @ V, expected, rtol=1e-12, atol=1e-14)


def test_columns_in_front_are_views_where_they_can_be():
    t = torch.randn(4, 5, 3)
    assert columns.in_front(t).is_contiguous()
    assert torch.equal(columns.in_front(t), t.permute(2, 0, 1))
    one, swept = t[..., :1].contiguous(), torch.randn(3, 4, 5).movedim(0, -1)
    assert columns.in_front(one).data_ptr() == one.data_ptr()
    assert columns.in_front(swept).data_ptr() == swept.data_ptr()
