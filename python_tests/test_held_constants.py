"""What forward takes out of the graph is a constant to H: ``detach``, the padded row of an embedding.

Where the gradient changes with it, a step has no tangent map I - lr H.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from small import batch, mlp
from torch import nn

import chaos_ext as ce


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))

    def forward(self, x):
        return self.w * self.w.detach() * x


@pytest.mark.parametrize("inner", [False, True])
def test_a_step_whose_gradient_holds_something_constant_has_no_tangent_map(inner):
    """d(step)/dtheta by differences is 1.146 here, 1 - lr H would be 0.982."""
    x = torch.ones(4, 1, dtype=torch.float64)
    model = nn.Sequential(Cut(), nn.Linear(1, 1).double()) if inner else Cut()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    op = ce.HessianOperator(model, nn.MSELoss(), x, x)
    assert op.held_constant == "detach"
    Y = torch.eye(op.space.size, dtype=torch.float64)
    for use in (
        lambda: ce.TangentMap(opt).apply_(op, Y),
        lambda: ce.LyapunovAnalyzer(model, opt).update(op),
        lambda: ce.LyapunovAnalyzer(model, opt, method="svd").update(op),
    ):
        with pytest.raises(ce.UnsupportedError, match="takes something out of the graph"):
            use()
    assert torch.equal(Y, torch.eye(op.space.size, dtype=torch.float64))


def test_a_detach_that_changes_nothing_is_none():
    class Logging(nn.Sequential):
        def forward(self, x):
            out = super().forward(x)
            self.last = out.detach().mean()
            return out

    (x, y), model = batch(), Logging(*mlp())
    op = ce.HessianOperator(model, lambda o, y: F.cross_entropy(o, y) + 0.0, x, y)
    assert op.held_constant is None
    ce.TangentMap(torch.optim.SGD(model.parameters(), lr=0.1)).apply_(op, torch.eye(43, dtype=torch.float64))


class Padded(nn.Module):
    """Tokens; the values of row 0 of the table are not zero, and get no gradient."""

    def __init__(self, look_up, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.look_up, self.tied = look_up, tied
        self.table, self.last = nn.Parameter(torch.randn(5, 3).double()), nn.Linear(3, 5).double()

    def forward(self, x):
        h = torch.tanh(self.look_up(x, self.table))
        return (h @ self.table.T if self.tied else self.last(h)).sum(1)


LOOK_UP = {
    "keyword": lambda x, w: F.embedding(x, w, padding_idx=0),
    "position": lambda x, w: F.embedding(x, w, 0),
    "from the end": lambda x, w: F.embedding(x, w, -5),
    "native": lambda x, w: torch.embedding(w, x, 0),
    "native, by keyword": lambda x, w: torch.embedding(weight=w, indices=x, padding_idx=0),
}
TOKENS, CLASSES = torch.tensor([[0, 1, 2], [3, 0, 4]]), torch.tensor([0, 1])


def _norm(o, y):
    return torch.exp(-o.norm()) + F.cross_entropy(o, y)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", LOOK_UP)
def test_a_padded_row_is_a_constant(name, tied, verify):
    """Against differences of the loss whose look-ups see a copy of the row that does not move."""
    model = Padded(LOOK_UP[name], tied)
    kept = model.table[0].detach().clone()
    H = ce.HessianOperator(model, _norm, TOKENS, CLASSES, verify=verify).dense()
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def gradient(theta):
        free = Padded(lambda x, w: torch.where(x.unsqueeze(2) == 0, kept, F.embedding(x, w)), tied)
        torch.nn.utils.vector_to_parameters(theta, free.parameters())
        grads = torch.autograd.grad(_norm(free(TOKENS), CLASSES), list(free.parameters()), allow_unused=True)
        parts = zip(grads, free.parameters(), strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts])

    eye, h = torch.eye(len(theta), dtype=torch.float64), 1e-5
    columns = [(gradient(theta + h * e) - gradient(theta - h * e)) / (2 * h) for e in eye]
    torch.testing.assert_close(H, torch.stack(columns, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LOOK_UP)
def test_a_detach_behind_a_padded_row_is_seen(name):
    model = Padded(LOOK_UP[name])
    op = ce.HessianOperator(model, lambda o, y: (o * o.detach()).sum(), TOKENS, CLASSES)
    assert op.held_constant == "detach"


class Tokens(nn.Module):
    """A table with a padded row, and a decoder of its own or the table's."""

    def __init__(self, tied, by_rule):
        super().__init__()
        torch.manual_seed(0)
        self.e = nn.Embedding.from_pretrained(torch.randn(5, 3).double(), freeze=False, padding_idx=1)
        self.last, self.by_rule = nn.Linear(3, 5, bias=False).double(), by_rule
        if tied:
            self.last.weight = self.e.weight

    def forward(self, x):
        h = self.e(x) if self.by_rule else F.embedding(x, self.e.weight, padding_idx=1)
        return self.last(torch.tanh(h).sum(1))


def _step(model, theta, loss):
    """theta after a real step."""
    twin = copy.deepcopy(model)
    torch.nn.utils.vector_to_parameters(theta, twin.parameters())
    opt = torch.optim.SGD(twin.parameters(), lr=0.1)
    loss(twin(TOKENS), CLASSES).backward()
    opt.step()
    return torch.nn.utils.parameters_to_vector(twin.parameters()).detach()


LOSS = {"rules": nn.CrossEntropyLoss(), "torch": lambda o, y: F.cross_entropy(o, y) + 0.0}


@pytest.mark.parametrize("loss", LOSS)
@pytest.mark.parametrize("by_rule", [True, False])
def test_tangent_maps_of_padded_rows(by_rule, loss):
    """A row that nothing moves is a constant of training; one that a decoder shares is none."""
    loss = LOSS[loss]
    model = Tokens(False, by_rule)
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    Y = torch.linspace(-1, 1, len(theta), dtype=torch.float64).unsqueeze(1)
    Y[3:6] = 0  # the padded row stays where it is
    v = Y.squeeze(1).clone()
    expected = (_step(model, theta + 1e-5 * v, loss) - _step(model, theta - 1e-5 * v, loss)) / 2e-5
    op = ce.HessianOperator(model, loss, TOKENS, CLASSES)
    ce.TangentMap(torch.optim.SGD(model.parameters(), lr=0.1)).apply_(op, Y)
    torch.testing.assert_close(Y.squeeze(1), expected, rtol=1e-6, atol=1e-8)

    tied = Tokens(True, by_rule)
    op = ce.HessianOperator(tied, loss, TOKENS, CLASSES)
    assert op.held_constant == "padding_idx"
    with pytest.raises(ce.UnsupportedError, match="padding_idx"):
        ce.TangentMap(torch.optim.SGD(tied.parameters(), lr=0.1)).apply_(op, torch.eye(15, dtype=torch.float64))
    without = ce.HessianOperator(tied, loss, torch.tensor([[0, 3], [4, 2]]), CLASSES)
    assert without.held_constant is None
