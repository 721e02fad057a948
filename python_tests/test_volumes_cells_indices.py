"""Convolutions of volumes, cells of recurrences, indices, windows: against differences of gradients, in every form."""

from __future__ import annotations

import logging

import pytest
import torch
from differences import of_gradients
from functions_table import FUNCTIONS, GRAPHS, MODULES, _volume_layer
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
NAMES = (
    *(n for n in MODULES if n.startswith("Conv3d")),
    *("indices", "indices of booleans", "indices of two axes", "index_select", "gather", "take_along_dim"),
    *("repeat_interleave", "matmul five axes", "conv3d"),
    *(n for n in GRAPHS if "Cell" in n),
)
CASES = {**MODULES, **FUNCTIONS, **GRAPHS}


def _batch(shape, n):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def _model(name):
    make, shape = CASES[name]
    torch.manual_seed(0)
    return make().double(), shape


@pytest.mark.parametrize("name", NAMES)
def test_every_form_is_the_derivative_of_the_gradient(name):
    model, shape = _model(name)
    for n in (3, 5):  # a program is that of any number of samples
        x, y = _batch(shape, n)
        op = ce.HessianOperator(model, CE, x, y)
        assert all(row.path.startswith("enter") for row in op.explain()), op.explain()
        expected = of_gradients(model, CE, x, y)
        scale = float(expected.abs().max())
        H = op.dense()
        if "relu" not in name:  # a kink may lie within a step
            assert (H - expected).abs().max() <= 1e-8 * scale  # differences have 9 digits
        V = torch.randn(len(H), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(op @ V, H @ V, rtol=1e-10, atol=1e-12 * scale)
        torch.testing.assert_close(op @ V[:, 0], H @ V[:, 0], rtol=1e-10, atol=1e-12 * scale)
        torch.testing.assert_close(op.diagonal(), H.diagonal(), rtol=1e-10, atol=1e-12 * scale)
        torch.testing.assert_close(op.compressed().to_dense(), H, rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("name", ["Conv3d groups no bias", "LSTMCell states", "gather"])
def test_gauss_newton_and_blocks(name):
    model, shape = _model(name)
    x, y = _batch(shape, 4)
    ggn = ce.GGNOperator(model, CE, x, y)
    G = ggn.dense()
    torch.testing.assert_close(ggn.diagonal(), G.diagonal(), rtol=1e-10, atol=1e-13)
    first = next(n for n, _ in model.named_parameters())
    whole, part = ce.HessianOperator(model, CE, x, y).dense(), ce.HessianOperator(model, CE, x, y, params=first)
    size = part.shape[0]
    torch.testing.assert_close(part.dense(), whole[:size, :size], rtol=1e-10, atol=1e-13)


def test_a_first_layer_spares_the_cotangent_of_its_input():
    make, shape = _volume_layer(lambda: nn.Conv3d(2, 3, 2))
    model = nn.Sequential(nn.Conv3d(2, 3, 2, stride=2), nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = _batch(shape, 4)
    H = ce.HessianOperator(model, CE, x, y).dense()
    expected = of_gradients(model, CE, x, y)
    assert (H - expected).abs().max() <= 1e-8 * expected.abs().max()


class Handed(nn.Module):
    """A cell that gets the tuple of another one whole."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTMCell(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.cell(x, self.cell(x))[0])


def test_a_cell_takes_the_whole_state_of_another():
    torch.manual_seed(0)
    model = Handed().double()
    x, y = _batch((3,), 4)
    op = ce.HessianOperator(model, CE, x, y)
    assert all(row.path.startswith("enter") for row in op.explain())
    expected = of_gradients(model, CE, x, y)
    assert (op.dense() - expected).abs().max() <= 1e-8 * expected.abs().max()


def test_unbatched_input_of_a_cell_and_a_volume_goes_to_torch(caplog):
    torch.manual_seed(0)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.GRUCell(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.cell(x[0]).unsqueeze(0))

    model, x, y = Alone().double(), torch.randn(2, 3, dtype=torch.float64), torch.tensor([1])
    with caplog.at_level(logging.WARNING):
        H = ce.HessianOperator(model, CE, x, y).dense()
    expected = of_gradients(model, CE, x, y)
    assert (H - expected).abs().max() <= 1e-8 * expected.abs().max()
