"""Tensors that spectra, compressed Hessians and CGD hand out: edits of copies reach nothing, others are found out."""

import copy
import pickle

import cases
import pytest
import torch

import chaos_ext as ce

CE = torch.nn.CrossEntropyLoss()


def _operator(dtype=torch.float64):
    model = cases.mlp(2, "tanh", width=6).to(dtype)
    x, y = cases.batch(3, cases.LOSSES["ce"][1])
    return model, ce.HessianOperator(model, CE, x.to(dtype), y)


WAYS = {
    "in place": lambda t: t.mul_(2),
    "data": lambda t: t.data.mul_(2),
    "numpy": lambda t: t.numpy().__imul__(2),
    "view": lambda t: t[-1:].add_(1),
    "one bit": lambda t: t.data.view(torch.int64)[(-1,) * t.dim()].bitwise_xor_(1),
    "signs": lambda t: t.data.neg_(),
    "order": lambda t: t.data.copy_(t.flip(0).clone()),
    "one column's sign": lambda t: t.data[..., -1].neg_(),
}

COPIES = {
    "S": lambda op: op.compressed().S,
    "S of a kept one": lambda op: _kept(op).S,
    "span": lambda op: op.compressed().basis.layers[0].span,
    "seen": lambda op: op.compressed().basis.layers[-1].seen,
    "perp": lambda op: op.compressed().basis.layers[-1].perp,
    "eigenvectors": lambda op: ce.spectrum(op).eigenvectors(),
    "eigenvectors of a slice": lambda op: ce.spectrum(op).eigenvectors(slice(1, 4)),
    "eigenvectors by Lanczos": lambda op: _lanczos(op).eigenvectors(),
    "an eigenvector by Lanczos": lambda op: _lanczos(op).eigenvectors(slice(0, 1)),
    "coefficients of the gradient": lambda op: ce.spectrum(op).gradient_coefficients(),
}


def _kept(op):
    return op.results.once("kept", op.compressed)


def _lanczos(op):
    return op.results.once("lanczos", lambda: ce.spectrum(op, k=3))


def _everything(op):
    spec, few, compressed = ce.spectrum(op), _lanczos(op), _kept(op)
    H, V = compressed.to_dense(), torch.eye(op.shape[0], dtype=op.dtype)
    spectra = [[s.eigenvalues, s.eigenvectors(), s.gradient_coefficients(), s.gradient] for s in (spec, few)]
    return [H, compressed @ V, ce.directions(op).eigenvalues, *spectra[0], *spectra[1]]


@pytest.mark.parametrize("way", ["in place", "data", "numpy"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", COPIES)
def test_copies_are_handed_out(name, when, way):
    (model, op), (twin, other) = _operator(), _operator()
    if when == "after":  # everything has been computed, and is kept
        _everything(op)
        ce.directions(op).gradient_coefficients()
    WAYS[way](COPIES[name](op))
    assert all(map(torch.equal, _everything(op), _everything(other)))
    for m, o in ((model, op), (twin, other)):
        ce.CGD(m.parameters(), lr=0.1, prune="negative").step(o)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


PARTS = {
    "eigenvalues": lambda spec: spec.eigenvalues,
    "Z": lambda spec: spec.Z,
    "gradient": lambda spec: spec.gradient,
    "span": lambda spec: spec.basis.layers[0].span,
    "perp": lambda spec: spec.basis.layers[-1].perp,
}
USES = {
    "step": lambda spec, model: ce.CGD(model.parameters(), lr=0.1, prune="negative").step(spec),
    "fixed": lambda spec, model: _step_with_fixed(spec, model),
    "selection": lambda spec, model: ce.CGD(model.parameters(), lr=0.1).selection(spec),
    "again": lambda spec, model: ce.spectrum(spec.made_from),
    "directions": lambda spec, model: ce.directions(spec.made_from),
    "save": lambda spec, model: spec.save("/nowhere/at/all"),
}


def _step_with_fixed(spec, model):
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative", spectrum=spec)
    opt.step(ce.HessianOperator(model, CE, *cases.batch(3, cases.LOSSES["ce"][1])))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", PARTS)
def test_edits_of_what_is_no_copy_are_found_out(part, way, use):
    model, op = _operator()
    spec = ce.spectrum(op)
    spec.made_from = op
    before = copy.deepcopy(model.state_dict())
    tensor = PARTS[part](spec)
    values = tensor.clone()
    WAYS[way](tensor)
    assert not torch.equal(values, tensor)
    with pytest.raises(ce.StaleOperatorError, match=r"were edited after it was made.*edit clones"):
        USES[use](spec, model)
    with pytest.raises(ce.StaleOperatorError):
        PARTS[part](spec)
    tensor.data.copy_(values)  # an edit that is taken back leaves nothing
    USES["step"](spec, model)
    assert not all(torch.equal(before[k], v) for k, v in model.state_dict().items())


READS = {
    "eigenvectors": ("Z", lambda spec: spec.eigenvectors([0])),
    "coefficients": ("Z", lambda spec: spec.coefficients(torch.ones(spec.size, dtype=spec.dtype))),
    "combine": ("span", lambda spec: spec.combine(torch.ones(spec.Z.shape[1], dtype=spec.dtype))),
    "project": ("perp", lambda spec: spec.project(torch.ones(spec.size, dtype=spec.dtype), spec.eigenvalues < 0)),
    "norm": ("gradient", lambda spec: spec.gradient_norm_squared),
    "coefficients of the gradient": ("gradient", lambda spec: spec.gradient_coefficients()),
    "select": ("eigenvalues", lambda spec: ce.select(spec, 0.1)),
    "summary": ("eigenvalues", lambda spec: ce.spectral_summary(spec, 0.1)),
    "copy": ("Z", lambda spec: copy.deepcopy(spec).Z),
    "pickle": ("Z", lambda spec: pickle.loads(pickle.dumps(spec)).Z),
}


@pytest.mark.parametrize("name", READS)
def test_what_reads_an_edited_part_says_so(name):
    part, read = READS[name]
    spec = ce.spectrum(_operator()[1])
    read(spec)
    PARTS[part](spec).data.mul_(2)
    with pytest.raises(ce.StaleOperatorError):
        read(spec)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_looking_at_a_spectrum_changes_nothing(dtype):
    (model, op), (twin, other) = _operator(dtype), _operator(dtype)
    spec = ce.spectrum(op)
    for part in PARTS.values():
        part(spec)
    spec.require_unedited()
    for m, s in ((model, spec), (twin, ce.spectrum(other))):
        ce.CGD(m.parameters(), lr=0.1, prune="negative").step(s)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_the_loss_of_a_step_is_the_callers_own():
    model, op = _operator()
    spec = ce.spectrum(op)
    expected = spec.loss.clone()
    ce.CGD(model.parameters(), lr=0.1).step(spec).zero_()
    assert torch.equal(spec.loss, expected)


def test_a_loss_edited_in_a_spectrum_is_found_out():
    spec = ce.spectrum(_operator()[1])
    spec.loss.zero_()
    with pytest.raises(ce.StaleOperatorError, match="loss"):
        spec.require_unedited()


def test_pickles_from_before_are_read():
    """They named the gradient otherwise, and kept version counters."""
    spec = ce.spectrum(_operator()[1])
    state = spec.__getstate__()
    old = {k: v for k, v in state.items() if k not in ("gradient", "_handed_out")}
    again = object.__new__(ce.Spectrum)
    again.__setstate__({**old, "_gradient": state["gradient"], "_made_with": [(1, 2)]})
    assert torch.equal(again.gradient, spec.gradient)
    assert torch.equal(again.Z, spec.Z)
    again.require_unedited()
