"""Models inside of others, with reparametrised weights, several inputs or outputs, and losses with parameters."""

import dataclasses

import pytest
import torch
from differences import of_gradients
from oracles import double_backward, relative
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

import chaos_ext as ce

X, Y = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(5) % 3


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("wrap", [AveragedModel, nn.DataParallel])
def test_a_wrapper_has_the_rules_of_its_model(wrap):
    op = ce.HessianOperator(wrap(_net()), F.cross_entropy, X, Y)
    assert op.explain()[0].name != "(model)", op.explain()[0].why
    assert relative(op.dense(), double_backward(_net(), F.cross_entropy, X, Y)) < 1e-10


def _old(layer, dim):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer, dim=dim)


def _normed(kind, norm, dim):
    model = _net()
    if kind == "convolution":
        layers = nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)
        model = nn.Sequential(*layers).double()
    norm(model[kind == "convolution"], dim=dim)
    return model


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_weight_norm(kind, dim):
    """Torch's second derivative of it is wrong on a CPU: the oracle is differences of its gradients."""
    model = _normed(kind, parametrizations.weight_norm, dim)
    op = ce.HessianOperator(model, F.cross_entropy, X, Y)
    H = op.dense()
    assert torch.equal(H, H.T)
    assert relative(H, of_gradients(model, F.cross_entropy, X, Y)) < 1e-9
    v = torch.randn(op.shape[0], 2, dtype=torch.float64)
    assert relative(op @ v, H @ v) < 1e-10
    hooked = _normed(kind, _old, dim)  # which cannot be copied
    assert relative(ce.hessian(hooked, F.cross_entropy, X, Y), H) < 1e-10


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.orthogonal])
def test_other_parametrizations(wrap):
    model = _net()
    wrap(model[0])
    model.eval()
    op = ce.HessianOperator(model, F.cross_entropy, X, Y)
    assert relative(op.dense(), double_backward(model, F.cross_entropy, X, Y)) < 1e-10


class Tempered(nn.Module):
    """A loss with a parameter of its own, which is a constant to H."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))

    def forward(self, z, y):
        return F.cross_entropy(z * self.scale, y)


def test_a_loss_with_parameters():
    loss, model = Tempered(), _net()
    op = ce.HessianOperator(model, loss, X, Y)
    assert op.shape[0] == sum(p.numel() for p in model.parameters())
    assert relative(op.dense(), double_backward(model, loss, X, Y)) < 1e-10
    assert loss.scale.grad is None


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        a, b = (x["a"], x["b"]) if isinstance(x, dict) else x
        return self.out(torch.tanh(self.a(a)) * self.b(b))


@pytest.mark.parametrize("x", [(X, X.flip(1)), {"a": X, "b": X.flip(1)}], ids=["tuple", "dict"])
def test_several_inputs(x):
    torch.manual_seed(0)
    model = Two().double()
    op = ce.HessianOperator(model, F.cross_entropy, x, Y)
    assert relative(op.dense(), double_backward(model, F.cross_entropy, x, Y)) < 1e-10


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: object = None


class Wrapped(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.net, self.make = _net(), make

    def forward(self, x):
        return self.make(self.net(x))


@pytest.mark.parametrize(
    ("make", "logits"),
    [
        (Output, lambda o: o.logits),
        (lambda z: {"logits": z}, lambda o: o["logits"]),
        (lambda z: (z, None), lambda o: o[0]),
    ],
    ids=["dataclass", "dict", "tuple"],
)
def test_outputs_that_are_no_tensors(make, logits):
    op = ce.HessianOperator(Wrapped(make), lambda o, y: F.cross_entropy(logits(o), y), X, Y)
    assert relative(op.dense(), double_backward(_net(), F.cross_entropy, X, Y)) < 1e-10
