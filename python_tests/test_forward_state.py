"""What a forward moves advances once a step under CGD, as under torch's own optimizers."""

import copy

import pytest
import torch
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


class Codebook(nn.Module):
    """A running mean of activations, written by forward and read by it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
        return self.b(h - self.mean)


class Counter(nn.Module):
    """A schedule that lives in the model."""

    def __init__(self):
        super().__init__()
        self.a, self.calls = nn.Linear(4, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.a(x) / self.calls


MODELS = {
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)
    ),
    "moving average": Codebook,
    "counter": Counter,
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_state_of_forward_advances_once_a_step(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    twin = copy.deepcopy(model)
    ours = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, prune=None)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, foreach=False, fused=False)
    for _ in range(4):
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
        ours.step(ce.HessianOperator(model, CE, x, y))
        theirs.zero_grad()
        CE(twin(x), y).backward()
        theirs.step()
        for (k, a), (_, b) in zip(model.state_dict().items(), twin.state_dict().items()):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=k)
        assert getattr(model, "calls", 0) == getattr(twin, "calls", 0)
