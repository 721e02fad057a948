"""Sparse tensors that a module holds as plain attributes: put back where forward writes to them, edits noticed."""

import pytest
import torch
from small import LOSSES, X, Y
from torch import nn

import chaos_ext as ce
from chaos_ext.base.torch_internals import stored_parts
from chaos_ext.base.traces import untouched

LAYOUTS = {
    "coo": lambda t: t.to_sparse(),
    "csr": lambda t: t.to_sparse_csr(),
    "csc": lambda t: t.to_sparse_csc(),
    "bsr": lambda t: t.to_sparse_bsr((2, 2)),
    "bsc": lambda t: t.to_sparse_bsc((2, 2)),
}


class Reads(nn.Module):
    """Scales by the sum of the entries."""

    def __init__(self, layout):
        super().__init__()
        torch.manual_seed(0)
        self.last, self.held = nn.Linear(4, 3).double(), [LAYOUTS[layout](torch.eye(4, dtype=torch.float64))]

    def forward(self, x):
        self.write()
        return torch.tanh(self.last(x)) * stored_parts(self.held[0])[-1].sum()

    def write(self):
        pass


class Writes(Reads):
    """Every call scales by 1.5 times more."""

    def write(self):
        stored_parts(self.held[0])[-1].mul_(1.5)


class Grows(Reads):
    """Every call adds an entry."""

    def write(self):
        self.held[0].add_(torch.ones(4, 4, dtype=torch.float64).to_sparse())


def _same(a, b):
    return all(map(torch.equal, stored_parts(a), stored_parts(b)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_edits_are_noticed(layout, loss):
    model = Reads(layout)
    op = ce.HessianOperator(model, LOSSES[loss], X, Y)
    op.dense()
    stored_parts(model.held[0])[-1].mul_(2)
    for read in (op.dense, lambda: op @ torch.ones(15, dtype=torch.float64)):
        with pytest.raises(ce.StaleOperatorError):
            read()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", [*((Writes, name) for name in LAYOUTS), (Grows, "coo")], ids=str)
def test_what_forward_writes_is_put_back(case, loss):
    """H is that of the first call from here; a CGD step leaves what one call leaves."""
    make, layout = case
    model, once = make(layout), make(layout)
    before, held = model.held[0].clone(), model.held[0]
    op = ce.HessianOperator(model, LOSSES[loss], X, Y)
    H = op.dense()
    assert model.held[0] is held
    assert _same(held, before)

    once.write()
    fixed = Reads(layout)
    fixed.held = once.held
    torch.testing.assert_close(H, ce.HessianOperator(fixed, LOSSES[loss], X, Y).dense(), rtol=1e-10, atol=1e-12)
    ce.CGD(model.parameters(), lr=0.1).step(op)
    assert _same(model.held[0].coalesce() if make is Grows else model.held[0], once.held[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_shape_is_put_back(layout):
    model = Reads(layout)
    held, before = model.held[0], model.held[0].clone()
    larger = LAYOUTS[layout](torch.eye(6, dtype=torch.float64))
    with untouched([model]) as written:
        if layout == "coo":
            held.sparse_resize_((6, 6), 2, 0)
        else:
            held.resize_as_sparse_(larger).copy_(larger)
        assert written() == ["Reads.held"]
    assert held.shape == before.shape
    assert _same(held, before)


class Frozen(Reads):
    """The same as a parameter without a gradient."""

    def __init__(self, layout):
        super().__init__(layout)
        self.adjacency = nn.Parameter(self.held[0], requires_grad=False)
        self.held = []

    def forward(self, x):
        self.write()
        return torch.tanh(self.last(x)) * stored_parts(self.adjacency)[-1].sum()


class Edits(Frozen):
    def write(self):
        self.adjacency.mul_(1.5)


class GrowsFrozen(Frozen):
    def write(self):
        self.adjacency.add_(torch.ones(4, 4, dtype=torch.float64).to_sparse())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_parameters(layout, loss):
    model, plain = Frozen(layout), Reads(layout)
    theirs = ce.HessianOperator(plain, LOSSES[loss], X, Y).dense()
    op = ce.HessianOperator(model, LOSSES[loss], X, Y)
    torch.testing.assert_close(op.dense(), theirs, rtol=1e-10, atol=1e-14)
    stored_parts(model.adjacency)[-1].mul_(2)
    with pytest.raises(ce.StaleOperatorError):
        op.dense()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", [*((Edits, name) for name in LAYOUTS), (GrowsFrozen, "coo")], ids=str)
def test_frozen_parameters_that_forward_edits_are_refused_and_put_back(case, loss):
    make, layout = case
    model = make(layout)
    before = model.adjacency.detach().clone()
    with pytest.raises(ce.UnsupportedError, match="edits adjacency in place"):
        ce.HessianOperator(model, LOSSES[loss], X, Y)
    assert _same(model.adjacency, before)


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_graph_of_many_nodes_is_not_made_dense(layout, monkeypatch):
    """As a dense one this adjacency takes 3.2 GB."""

    class Graph(nn.Sequential):
        def forward(self, pair):
            return super().forward(torch.sparse.mm(pair[1], pair[0]))

    n = 20_000
    places = torch.arange(n).expand(2, n)
    A = torch.sparse_coo_tensor(places, torch.ones(n, dtype=torch.float64), (n, n)).coalesce()
    A = A if layout == "coo" else A.to_sparse_csr()
    x = X[torch.arange(n) % 6]
    op = ce.HessianOperator(Graph(nn.Linear(4, 3)).double(), LOSSES["torch"], (x, A), Y[torch.arange(n) % 6])
    monkeypatch.setattr(torch.Tensor, "to_dense", None)
    op @ torch.ones(15, dtype=torch.float64)
    stored_parts(A)[-1][0] = 2
    with pytest.raises(ce.StaleOperatorError):
        op @ torch.ones(15, dtype=torch.float64)
