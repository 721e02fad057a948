"""Activations that are not contiguous keep their layer rules."""

import pytest
import torch
from oracles import double_backward, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce

NORMS = [lambda: nn.LayerNorm(4), lambda: nn.LayerNorm((9, 4)), lambda: nn.GroupNorm(3, 9), lambda: nn.BatchNorm1d(9)]


class Patches(nn.Module):
    """Positions of a convolution as a sequence of tokens, normalised: a transposed view."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 4, 2), norm, nn.Linear(36, 3)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.out(torch.tanh(self.norm(tokens)).flatten(1))


def _check(model):
    x, y = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    assert op.explain()[0].name != "(model)", op.explain()[0].why
    reference = double_backward(model, F.cross_entropy, x, y)
    assert relative(op.dense(), reference) < 1e-10
    v = torch.randn(op.shape[0], 3, dtype=torch.float64)
    assert relative(op @ v, reference @ v) < 1e-10


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("norm", NORMS, ids=["layer", "layer, two axes", "group", "batch"])
def test_normalisation_of_a_transposed_activation(norm, training):
    _check(Patches(norm()).double().train(training))


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm2d(4), lambda: nn.GroupNorm(2, 4), nn.Identity])
def test_channels_last(norm):
    layers = [nn.Conv2d(2, 4, 2), norm(), nn.Tanh(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(36, 3)]
    _check(nn.Sequential(*layers).double().to(memory_format=torch.channels_last))
