"""Equality with curvlinops on data sets and blocks, where it is right; skipped where it is not installed."""

import pytest
import torch
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce

curvlinops = pytest.importorskip("curvlinops")


def _mlp():
    return nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))


def _conv():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 3 * 3, 5)
    )


def _sequence():
    return nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3), nn.Flatten(0, 1))


# In the manner of curvlinops' own test cases: two batches, of another size each, both reductions.
CASES = {
    "classes": (_mlp, lambda n: (torch.rand(n, 10), torch.randint(3, (n,))), nn.CrossEntropyLoss),
    "regression": (_mlp, lambda n: (torch.rand(n, 10), torch.rand(n, 3)), nn.MSELoss),
    "binary": (_mlp, lambda n: (torch.rand(n, 10), torch.randint(2, (n, 3)).double()), nn.BCEWithLogitsLoss),
    "images": (_conv, lambda n: (torch.rand(n, 3, 6, 6), torch.randint(5, (n,))), nn.CrossEntropyLoss),
    "sequences": (_sequence, lambda n: (torch.rand(n, 5, 4), torch.randint(3, (n * 5,))), nn.CrossEntropyLoss),
}


def _made(name, reduction):
    torch.manual_seed(0)
    make, batch, loss = CASES[name]
    batches = [tuple(t.double() if t.is_floating_point() else t for t in batch(n)) for n in (5, 2, 7)]
    return make().double(), loss(reduction=reduction), batches


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_the_hessian_and_the_gradient_of_several_batches(name, reduction):
    model, loss_fn, batches = _made(name, reduction)
    params = list(model.parameters())
    theirs = curvlinops.HessianLinearOperator(model, loss_fn, params, batches)
    ours = ce.DatasetHessian(model, loss_fn, batches, keep=0)
    x, y = (torch.cat(part) for part in zip(*batches))
    assert relative(ours.dense(), double_backward(model, loss_fn, x, y)) < 1e-10
    eye = torch.eye(ours.shape[0], dtype=torch.float64)
    assert relative(ours.dense(), theirs @ eye) < 1e-6
    v = torch.rand(ours.shape[0], 2, dtype=torch.float64)
    assert relative(ours @ v, theirs @ v) < 1e-6
    g, loss = theirs.gradient_and_loss()
    assert relative(ours.gradient, torch.cat([t.flatten() for t in g])) < 1e-6
    assert relative(ours.loss, loss) < 1e-6


@pytest.mark.parametrize("name", ["classes", "images"])
def test_a_block(name):
    model, loss_fn, batches = _made(name, "mean")
    params = list(model[0].parameters())
    theirs = curvlinops.HessianLinearOperator(model, loss_fn, params, batches)
    ours = ce.DatasetHessian(model, loss_fn, batches, params="0.*")
    assert relative(ours.dense(), theirs @ torch.eye(ours.shape[0], dtype=torch.float64)) < 1e-6


def test_ignored_labels_weigh_nothing_here_and_as_much_as_others_there():
    """Theirs weights a batch by its size: wrong where the loss's mean leaves samples out."""
    model, loss_fn, batches = _made("classes", "mean")
    batches[0][1][:4] = -100
    x, y = (torch.cat(part) for part in zip(*batches))
    H = double_backward(model, loss_fn, x, y)
    ours = ce.DatasetHessian(model, loss_fn, batches)
    theirs = curvlinops.HessianLinearOperator(model, loss_fn, list(model.parameters()), batches)
    assert relative(ours.dense(), H) < 1e-10
    assert relative(theirs @ torch.eye(len(H), dtype=torch.float64), H) > 1e-3
