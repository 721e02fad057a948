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
