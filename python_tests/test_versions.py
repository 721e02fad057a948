"""What is written in place counts as written: an older graph that has saved it refuses to run backward."""

import cases
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from training import CE, batches, small_model

import chaos_ext as ce

MODIFIED = "modified by an inplace operation"


def _graph_through(model, x, y):
    """A graph whose backward reads the weights."""
    return CE(model(x.clone().requires_grad_()), y)


@pytest.mark.parametrize("prune", [None, "negative"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("loss", [CE, lambda z, t: F.cross_entropy(z, t)], ids=["layers", "functional"])
def test_a_step_of_cgd_invalidates_older_graphs(prune, momentum, loss):
    model, (x, y) = small_model(), batches(1)[0]
    opt = ce.CGD(model.parameters(), lr=0.1, prune=prune, momentum=momentum)
    for _ in range(2):
        older = _graph_through(model, x, y)
        opt.step(ce.HessianOperator(model, loss, x, y))
        with pytest.raises(RuntimeError, match=MODIFIED):
            older.backward()


def test_a_step_of_cgd_invalidates_graphs_that_read_the_momentum_buffer():
    model, (x, y) = small_model(), batches(1)[0]
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative", momentum=0.9)
    opt.step(ce.HessianOperator(model, CE, x, y))
    weight = model[1].weight
    scale = torch.ones_like(weight, requires_grad=True)
    older = (scale * opt.state[weight]["momentum_buffer"]).sum()
    opt.step(ce.HessianOperator(model, CE, x, y))
    with pytest.raises(RuntimeError, match=MODIFIED):
        older.backward()


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("columns", ["rows", "columns first"])
def test_a_tangent_map_invalidates_graphs_that_read_the_deviations(width, columns):
    model, (x, y) = small_model(), batches(1)[0]
    tangent = ce.TangentMap(SGD(model.parameters(), lr=0.1))
    op = ce.HessianOperator(model, CE, x, y)
    Y = tangent.start(op, k=width)
    Y = Y if columns == "rows" else Y.T.contiguous().T
    scale = torch.ones_like(Y, requires_grad=True)
    older = (scale * Y).sum()
    tangent.apply_(op, Y)
    with pytest.raises(RuntimeError, match=MODIFIED):
        older.backward()


def test_a_tangent_map_layer_by_layer_invalidates_graphs_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)).double()
    x, y = cases.batch(5, cases.LOSSES["ce"][1])
    tangent, op = ce.TangentMap(SGD(model.parameters(), lr=0.1)), ce.HessianOperator(model, CE, x, y)
    Y = tangent.start(op, k=2)
    older = (torch.ones_like(Y, requires_grad=True) * Y).sum()
    tangent.apply_(op, Y)
    with pytest.raises(RuntimeError, match=MODIFIED):
        older.backward()


@pytest.mark.parametrize("make", [lambda op, H: op.dense(H), lambda op, H: op.dense(out=H)])
def test_a_dense_hessian_into_memory_invalidates_graphs_that_read_it(make):
    model, (x, y) = small_model(), batches(1)[0]
    op = ce.HessianOperator(model, CE, x, y)
    H = op.dense()
    older = (torch.ones_like(H, requires_grad=True) * H).sum()
    assert make(op, H) is H
    with pytest.raises(RuntimeError, match=MODIFIED):
        older.backward()


def test_tensors_without_version_counters_are_written_as_before():
    model, (x, y) = small_model(), batches(1)[0]
    op = ce.HessianOperator(model, CE, x, y)
    tangent = ce.TangentMap(SGD(model.parameters(), lr=0.1))
    with torch.inference_mode():
        out, Y = torch.empty(op.shape, dtype=op.dtype), tangent.start(op, k=2)
        assert torch.equal(op.dense(out), op.dense())
        tangent.apply_(op, Y)
    assert bool(Y.isfinite().all())
