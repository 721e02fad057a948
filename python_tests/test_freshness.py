"""After a change of the parameters an operator gives what it has computed before, and nothing new."""

import cases
import pytest
import torch

import chaos_ext as ce

CE = torch.nn.CrossEntropyLoss()

KEPT = {
    "loss": lambda op: op.loss,
    "gradient": lambda op: op.gradient,
    "output": lambda op: op.output,
    "compressed": lambda op: op.compressed().S,
    "spectrum": lambda op: ce.spectrum(op).eigenvalues,
    "directions": lambda op: ce.directions(op).eigenvalues,
}
NEW = {
    "product": lambda op: op @ torch.ones(op.shape[0], dtype=op.dtype),
    "dense": lambda op: op.dense(),
    "Lanczos": lambda op: ce.spectrum(op, k=2),
    "another tolerance": lambda op: ce.spectrum(op, zero_tol=1e-9),
    "native sweep": lambda op: op.native_sweep(),
}


def _operator():
    model, (x, y) = cases.mlp(2, "tanh").double(), cases.batch(5, cases.LOSSES["ce"][1])
    return model, ce.HessianOperator(model, CE, x, y)


@pytest.mark.parametrize("name", KEPT)
def test_what_was_computed_before_is_given_again(name):
    model, op = _operator()
    before = KEPT[name](op).clone()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert torch.equal(KEPT[name](op), before)


@pytest.mark.parametrize("name", [*NEW, "compressed", "spectrum", "directions"])
def test_what_would_be_new_is_refused(name):
    model, op = _operator()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(ce.StaleOperatorError):
        {**NEW, **KEPT}[name](op)


def test_steps_and_tangent_maps_need_a_fresh_operator():
    model, op = _operator()
    spec, opt = ce.spectrum(op), ce.CGD(model.parameters(), lr=0.1)
    tangent = ce.TangentMap(opt)
    Y = tangent.start(op, 2)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    for use in (lambda: opt.step(op), lambda: opt.step(spec), lambda: tangent.apply_(op, Y)):
        with pytest.raises(ce.StaleOperatorError):
            use()


class _Surrounded(torch.nn.Module):
    """A frozen layer, a buffer, another one that nothing reads, and BatchNorm in evaluation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.b = torch.nn.Linear(4, 5).requires_grad_(False), torch.nn.Linear(5, 3)
        self.norm = torch.nn.BatchNorm1d(5).eval()
        self.register_buffer("scale", torch.ones(5))
        self.register_buffer("never", torch.full((3,), float("nan")))
        self.double()

    def forward(self, x):
        return self.b(torch.tanh(self.norm(self.frozen(x))) * self.scale)


HELD = {
    "buffer": lambda m: m.scale,
    "statistics": lambda m: m.norm.running_var,
    "frozen": lambda m: m.frozen.weight,
    "frozen bias": lambda m: m.frozen.bias,
}
WRITE = {
    "data": lambda t: t.data.mul_(2.0),
    "numpy": lambda t: t.detach().numpy().__imul__(2.0),
    "in place": lambda t: t.detach().mul_(2.0),
}


@pytest.mark.parametrize("loss", [CE, lambda z, t: CE(z, t)], ids=["rules", "torch"])
@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize("name", HELD)
def test_constants_are_compared_by_their_values(name, write, loss):
    model, (x, y) = _Surrounded(), cases.batch(5, cases.LOSSES["ce"][1])
    x = torch.randn(len(y), 4, dtype=torch.float64)
    op = ce.HessianOperator(model, loss, x, y)
    H = op.dense()
    WRITE[write](HELD[name](model))
    for use in (NEW["dense"], NEW["product"], NEW["Lanczos"]):
        with pytest.raises(ce.StaleOperatorError):
            use(op)
    HELD[name](model).data.div_(2.0)
    assert torch.equal(op.dense(), H)
