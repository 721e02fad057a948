"""Tangents that share memory: nothing that is still needed is overwritten, nothing of a sweep outlives it."""

import threading

import architectures as arch
import pytest
import torch
from oracles import double_backward, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce
from chaos_ext.base import workspace

TOL = 1e-10


class Branches(nn.Module):
    """Tangents with several readers and views of them before in-place activations and sums."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.out = arch.scaled(nn.BatchNorm2d(4)), nn.Linear(64, arch.CLASSES)

    def forward(self, x):
        h = self.norm(self.a(x))
        if self.which == "read twice":
            h = torch.relu(h) * h
        elif self.which == "read before":
            h = torch.tanh(h) + torch.relu(h)
        elif self.which == "view":
            h = torch.relu(h.flatten(1)).view(-1, 4, 4, 4) + h
        elif self.which == "sum with itself":
            h = torch.relu(h + h)
        elif self.which == "identity skip":
            h = torch.relu(h)
            h = torch.relu(self.norm(self.b(h)) + h)
        elif self.which == "two sums":
            h = torch.relu(self.b(h) + h) - h
        elif self.which == "constant operand":
            h = torch.relu(h + x[:, :1]) + torch.relu(x[:, 1:] + h)
        elif self.which == "branches to one sum":
            h = torch.relu(self.b(h)) + torch.relu(h[:, :, :1])
        return self.out(torch.relu(h).flatten(1))


WHICH = "read twice, read before, view, sum with itself, identity skip, two sums, constant operand, branches to one sum"


@pytest.mark.parametrize("which", WHICH.split(", "))
@pytest.mark.parametrize("n", [1, 3])
def test_shared_tangents(which: str, n: int) -> None:
    torch.manual_seed(0)
    model = Branches(which).double()
    x, y = torch.randn(n, 2, 4, 4, dtype=torch.float64), torch.arange(n) % arch.CLASSES
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    reference = double_backward(model, F.cross_entropy, x, y)
    v = torch.randn(op.shape[0], 200, dtype=torch.float64)  # large enough for kept memory
    before = v.clone()
    assert relative(op @ v, reference @ v) < TOL
    assert torch.equal(v, before)
    assert relative(op @ v[:, :1], reference @ v[:, :1]) < TOL
    assert relative(op.dense(), reference) < TOL


class Passing(nn.Module):
    def forward(self, x):
        return x * x


class PassingRule:
    """x * x; a rule of one's own keeps the argument that it was given, and hands on the tangent that it got."""

    path, rowwise, slots = "layer rule", True, ()

    def forward(self, inputs, theta):
        return inputs[0] * inputs[0], inputs[0]

    def backward(self, saved, delta):
        return [2 * saved * delta], []

    def tangent_forward(self, saved, dinputs, dtheta):
        self.kept = dinputs[0]
        return 2 * saved.unsqueeze(-1) * dinputs[0]

    def tangent_backward(self, saved, delta, dinputs, dtheta, ddelta):
        dx = self.kept
        back = 2 * delta.unsqueeze(-1) * dx
        return [back if ddelta is None else back + 2 * saved.unsqueeze(-1) * ddelta], []


def test_what_a_rule_of_ones_own_has_seen_is_left_alone() -> None:
    ce.register_rule(Passing, lambda m, leaf, shape: PassingRule())
    try:
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), Passing(), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
        model = nn.Sequential(*layers).double()
        x, y = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.arange(3)
        op = ce.HessianOperator(model, F.cross_entropy, x, y)
        assert op.explain()[0].name != "(model)"
        v = torch.randn(op.shape[0], 64, dtype=torch.float64)
        assert relative(op @ v, double_backward(model, F.cross_entropy, x, y) @ v) < TOL
    finally:
        ce.unregister_rule(Passing)


def _problem(seed: int = 0):
    torch.manual_seed(seed)
    make, shape = arch.GRAPHS["residual BatchNorm"]
    model = make()
    op = ce.HessianOperator(model, F.cross_entropy, torch.randn(4, *shape), torch.arange(4) % arch.CLASSES)
    return op, torch.randn(op.shape[0], 128)


def test_results_outlive_the_sweep() -> None:
    (op, v), (other, w) = _problem(0), _problem(1)
    product, H = op @ v, op.dense()
    copies = product.clone(), H.clone()
    for _ in range(3):
        other @ w
        other.dense()
    assert torch.equal(product, copies[0])
    assert torch.equal(H, copies[1])
    assert torch.equal(op @ v, product)


def test_threads_have_memory_of_their_own() -> None:
    problems, results = [_problem(seed) for seed in range(4)], {}
    expected = [op @ v for op, v in problems]

    def work(i: int) -> None:
        op, v = problems[i]
        results[i] = [op @ v for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(r, expected[i]) for i, rs in results.items() for r in rs)


def test_kept_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    op, v = _problem()
    expected = op @ v
    own = workspace._workspace()
    assert 0 < own.kept_bytes() <= workspace.KEPT_BYTES
    assert own.depth == 0
    assert not own._used
    monkeypatch.setattr(workspace, "KEPT_BYTES", 0)
    assert torch.equal(op @ v, expected)
    assert own.kept_bytes() == 0


def test_an_error_inside_a_sweep_frees_its_memory() -> None:
    like = torch.zeros(1)

    def failing() -> None:
        with workspace.sweep():
            workspace.empty((1 << 16,), like)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        failing()
    assert not workspace._workspace()._used
    assert workspace.empty((1 << 16,), like).shape == (1 << 16,)  # outside a sweep: torch's own
    assert not workspace._workspace()._used
