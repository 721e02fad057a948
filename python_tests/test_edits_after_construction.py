"""What forward reads is edited after an operator was made: it says that it is stale, or H is the old one."""

import pytest
import torch
from small import LOSSES, batch
from torch import nn

import chaos_ext as ce


class Net(nn.Module):
    """Reads attributes of every kind."""

    factor = 1.0  # of the class

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
        self.scale, self.t = 1.0, torch.ones((), dtype=torch.float64)
        self.held = {"t": torch.ones((), dtype=torch.float64)}

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))) * self.t * self.held["t"] * self.scale * self.factor


EDITS = {
    "tensor": lambda m: m.t.fill_(2.0),
    "through numpy": lambda m: m.t.numpy().fill(2.0),
    "in a dict": lambda m: m.held["t"].fill_(2.0),
    "number": lambda m: setattr(m, "scale", 2.0),
    "of the class": lambda m: setattr(m, "factor", 2.0),
    "hook": lambda m: m.b.register_forward_hook(lambda *a: 2 * a[2]),
    "function": lambda m: setattr(m, "forward", lambda x: 2 * Net.forward(m, x)),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", EDITS)
def test_what_forward_reads_is_edited_after_the_operator_was_made(name, loss):
    """H is the old one, or the operator says that it is stale; never one of both, and never beside an old gradient."""
    (x, y), model = batch(), Net()
    before = ce.HessianOperator(model, LOSSES[loss], x, y).dense()
    op = ce.HessianOperator(model, LOSSES[loss], x, y)
    EDITS[name](model)
    for read in (op.dense, lambda: op @ torch.eye(len(before), dtype=torch.float64)):
        try:
            H = read()
        except ce.StaleOperatorError:
            continue
        torch.testing.assert_close(H, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.int64, torch.bool]
)
@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_edits_of_large_constants_are_noticed(dtype, kind):
    (x, y), model = batch(), Net()
    t = (torch.arange(1 << 21) % 251).to(dtype)
    if kind == "buffer":
        model.register_buffer("large", t)
    else:
        model.large = t
    op = ce.HessianOperator(model, LOSSES["rules"], x, y)
    op.dense()
    t[5] = not t[5] if dtype == torch.bool else 0.25 if dtype.is_floating_point else 77
    with pytest.raises(ce.StaleOperatorError):
        op @ torch.ones(len(op.gradient), dtype=torch.float64)
    op = ce.HessianOperator(model, LOSSES["rules"], x, y)
    t.copy_(t.flip(0))  # the same numbers in another order
    with pytest.raises(ce.StaleOperatorError):
        op.dense()


def test_nan_and_what_cannot_be_written_to_are_left_alone():
    numpy = pytest.importorskip("numpy")
    fixed = numpy.array([1.0, float("nan")])
    fixed.setflags(write=False)
    x, y = batch()
    model = Net()
    model.fixed, model.wide = fixed, torch.full((1,), float("nan"), dtype=torch.float64).expand(4)
    model.z = torch.full((3,), complex(float("nan"), 0.0))
    model.register_buffer("q", torch.full((3,), complex(float("nan"), 0.0)))
    model.register_buffer("halves", torch.zeros(3, dtype=torch.complex32))
    nan = model.nan = torch.tensor([float("nan")])
    version = nan._version
    op = ce.HessianOperator(model, LOSSES["torch"], x, y)
    op.dense()
    op @ torch.ones(len(op.gradient), dtype=torch.float64)
    assert nan._version == version
    assert op.origin.loss is None


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_an_expanded_constant_takes_no_memory_of_its_size(kind):
    """A petabyte, if it were looked at in full."""
    (x, y), model, one = batch(), Net(), torch.ones(1, 3, dtype=torch.float64)
    wide = one.expand(1 << 45, 3)
    if kind == "buffer":
        model.register_buffer("wide", wide)
    else:
        model.wide = wide
    op = ce.HessianOperator(model, LOSSES["rules"], x, y)
    op.dense()
    one[0, 1] = 2
    with pytest.raises(ce.StaleOperatorError):
        op.dense()
