"""CGD steps whose directions come from elsewhere: another operator's, a whole data set's, an older step's."""

import copy
import pickle

import cases
import pytest
import torch
from oracles import double_backward, gradient, pruned_gradient, relative
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
LR = 0.1


def _setting(dtype=torch.float64, seed=0):
    model = cases.mlp(3, "tanh", seed=seed, width=12).to(dtype)
    batches = [cases.batch(n, cases.LOSSES["ce"][1]) for n in (8, 5, 7)]
    return model, [(x.to(dtype), y) for x, y in batches]


def _theta(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def _whole_hessian(model, batches):
    n = [len(y) for _, y in batches]
    return sum(c * double_backward(model, CE, x, y) for c, (x, y) in zip(n, batches)) / sum(n)


def _backward(model, x, y):
    model.zero_grad()
    CE(model(x), y).backward()


SOURCES = {
    "operator": lambda model, x, y: ce.HessianOperator(model, CE, x, y),
    "spectrum": lambda model, x, y: ce.spectrum(ce.HessianOperator(model, CE, x, y)),
    "closure": lambda model, x, y: lambda: ce.HessianOperator(model, CE, x, y),
    "grad": lambda model, x, y: _backward(model, x, y),
}
CURVATURES = {
    "data set": lambda model, batches: ce.DatasetHessian(model, CE, batches),
    "spectrum": lambda model, batches: ce.spectrum(ce.DatasetHessian(model, CE, batches)),
    "function": lambda model, batches: lambda: ce.DatasetHessian(model, CE, batches),
    "function of a spectrum": lambda model, batches: lambda: ce.directions(ce.DatasetHessian(model, CE, batches)),
    "pickled": lambda model, batches: pickle.loads(pickle.dumps(ce.spectrum(ce.DatasetHessian(model, CE, batches)))),
}


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("source", SOURCES)
def test_gradient_of_one_directions_of_the_other(source, curvature):
    """Three real SGD steps with momentum on g_batch without the eigenvectors of the dense H of all batches."""
    model, batches = _setting()
    twin = copy.deepcopy(model)
    ours = ce.CGD(model.parameters(), lr=LR, momentum=0.9, prune="negative")
    theirs = torch.optim.SGD(twin.parameters(), lr=LR, momentum=0.9, foreach=False)
    for x, y in batches:
        H, g = _whole_hessian(twin, batches), gradient(twin, CE, x, y)
        d = pruned_gradient(H, g, LR, "negative")
        torch.nn.utils.vector_to_parameters(d, grads := [torch.zeros_like(p) for p in twin.parameters()])
        for p, own in zip(twin.parameters(), grads):
            p.grad = own
        loss = CE(twin(x), y).item()
        theirs.step()
        found = ours.step(SOURCES[source](model, x, y), curvature=CURVATURES[curvature](model, batches))
        assert relative(_theta(model), _theta(twin)) < 1e-9
        assert ours.last_step.share == pytest.approx(1 - float(d @ d / (g @ g)), abs=1e-9)
        assert ours.last_step.n_negative == int((torch.linalg.eigvalsh(H) < -1e-12 * H.abs().max()).sum())
        assert found is None if source == "grad" else found.item() == pytest.approx(loss)


def test_a_data_set_is_a_source_too():
    model, batches = _setting()
    H = _whole_hessian(model, batches)
    n = [len(y) for _, y in batches]
    g = sum(c * gradient(model, CE, x, y) for c, (x, y) in zip(n, batches)) / sum(n)
    before = _theta(model)
    opt = ce.CGD(model.parameters(), lr=LR, prune="negative")
    opt.step(ce.DatasetHessian(model, CE, batches))
    assert relative((before - _theta(model)) / LR, pruned_gradient(H, g, LR, "negative")) < 1e-9


def test_a_spectrum_of_an_older_step_is_taken_on_purpose_a_stale_operator_is_not():
    model, (first, second, _) = _setting()
    op = ce.HessianOperator(model, CE, *first)
    spec, H = ce.spectrum(op), double_backward(model, CE, *first)
    opt = ce.CGD(model.parameters(), lr=LR, prune="negative")
    opt.step(ce.HessianOperator(model, CE, *second))
    before, g = _theta(model), gradient(model, CE, *second)
    with pytest.raises(ce.StaleOperatorError):
        opt.step(ce.HessianOperator(model, CE, *second), curvature=op)
    assert torch.equal(_theta(model), before)
    opt.step(ce.HessianOperator(model, CE, *second), curvature=spec)
    assert relative((before - _theta(model)) / LR, pruned_gradient(H, g, LR, "negative")) < 1e-9


def test_running_statistics_are_those_of_the_source():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()

    model, twin = net(), net()
    (x, y), (other, labels), _ = _setting()[1]
    CE(twin(x), y)
    opt = ce.CGD(model.parameters(), lr=LR, prune="negative")
    opt.step(ce.HessianOperator(model, CE, x, y), curvature=ce.HessianOperator(model, CE, other, labels))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers()))


def test_a_function_is_called_only_where_directions_are_needed():
    model, (batch, *_) = _setting()
    calls = []

    def make():
        calls.append(torch.is_grad_enabled())
        return ce.HessianOperator(model, CE, *batch)

    opt = ce.CGD(model.parameters(), lr=LR, prune="negative", start=1)
    for _ in range(3):
        opt.step(ce.HessianOperator(model, CE, *batch), curvature=make)
    assert calls == [True, True]


def _wrong(kind, model, batches):
    other = cases.mlp(3, "tanh", seed=4, width=12).double()
    other_op = ce.HessianOperator(other, CE, *batches[0])
    reordered = nn.ModuleList(reversed(list(model)))
    spec = ce.spectrum(ce.HessianOperator(model, CE, *batches[0]))
    edited = ce.spectrum(ce.HessianOperator(model, CE, *batches[0]))
    if kind == "edited":
        edited.eigenvalues.mul_(2)

    def order():
        class Back(nn.Module):
            def __init__(self):
                super().__init__()
                self.parts = reordered

            def forward(self, x):
                for part in reversed(self.parts):
                    x = part(x)
                return x

        return ce.HessianOperator(Back(), CE, *batches[0])

    small = cases.mlp(2, "tanh", seed=0, width=5).double()
    return {
        "another model": lambda: other_op,
        "a spectrum of another model": lambda: ce.spectrum(other_op),
        "another order": order,
        "a function, another order": lambda: order,
        "a block": lambda: ce.HessianOperator(model, CE, *batches[0], params="1.weight"),
        "another size, pickled": lambda: pickle.loads(
            pickle.dumps(ce.spectrum(ce.HessianOperator(small, CE, *batches[0])))
        ),
        "edited": lambda: edited,
        "float32": lambda: _loaded_float32(model, batches),
        "no curvature": lambda: torch.eye(3),
        "a function of nothing": lambda: lambda: None,
        "a function of a loss": lambda: lambda: torch.tensor(1.0),
        "another device": lambda: _on_meta(spec),
    }[kind]()


def _loaded_float32(model, batches):
    low = copy.deepcopy(model).float()
    x, y = batches[0]
    return pickle.loads(pickle.dumps(ce.spectrum(ce.HessianOperator(low, CE, x.float(), y))))


def _on_meta(spec):
    moved = pickle.loads(pickle.dumps(spec))
    moved.Z = moved.Z.to("meta")
    fresh = object.__new__(ce.Spectrum)
    fresh.__setstate__({k: v for k, v in vars(moved).items() if k != "_handed_out"})
    return fresh


WRONG = {
    "another model": (ValueError, "parameters that the step moves"),
    "a spectrum of another model": (ValueError, "parameters that the step moves"),
    "another order": (ValueError, "in this order"),
    "a function, another order": (ValueError, "in this order"),
    "a block": (ValueError, "parameters that the step moves"),
    "another size, pickled": (ValueError, "expected a spectrum of P"),
    "edited": (ce.StaleOperatorError, "edited"),
    "float32": (TypeError, "expected a spectrum of torch.float64"),
    "no curvature": (TypeError, "curvature: expected a HessianOperator"),
    "a function of nothing": (TypeError, "the function returned NoneType"),
    "a function of a loss": (TypeError, "the function returned Tensor"),
    "another device": (ValueError, "map_location"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_refused_by_name_and_nothing_changes(kind):
    model, batches = _setting()
    opt = ce.CGD(model.parameters(), lr=LR, momentum=0.9, prune="negative")
    opt.step(ce.HessianOperator(model, CE, *batches[1]))
    wrong = _wrong(kind, model, batches)
    before = copy.deepcopy([model.state_dict(), opt.state_dict(), opt.last_step])
    error, match = WRONG[kind]
    with pytest.raises(error, match=match):
        opt.step(ce.HessianOperator(model, CE, *batches[1]), curvature=wrong)
    now = [model.state_dict(), opt.state_dict(), opt.last_step]
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), now[0].values()))
    assert (opt.steps, now[2]) == (1, before[2])
    opt.step(ce.HessianOperator(model, CE, *batches[1]), curvature=ce.HessianOperator(model, CE, *batches[0]))


def test_directions_from_two_places_are_refused():
    model, (batch, other, _) = _setting()
    op = ce.HessianOperator(model, CE, *batch)
    fixed = ce.CGD(model.parameters(), lr=LR, prune="negative", spectrum=ce.spectrum(op))
    with pytest.raises(ValueError, match=r"fixed by CGD\(\.\.\., spectrum=\.\.\.\)"):
        fixed.step(op, curvature=op)
    _backward(model, *batch)
    opt = ce.CGD(model.parameters(), lr=LR, prune="negative")
    with pytest.raises(ValueError, match="dense Hessian, which has directions of its own"):
        opt.step(op.dense(), curvature=op)
    assert opt.steps == fixed.steps == 0


def test_a_function_that_moves_the_parameters_is_found_out():
    model, (batch, *_) = _setting()

    def move():
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return ce.HessianOperator(model, CE, *batch)

    before = _theta(model)
    opt = ce.CGD(model.parameters(), lr=LR, prune="negative")
    with pytest.raises(ce.StaleOperatorError):
        opt.step(ce.HessianOperator(model, CE, *batch), curvature=move)
    assert torch.equal(_theta(model), before)


def test_a_tangent_map_of_the_step_knows_no_other_directions():
    model, (batch, other, _) = _setting()
    opt = ce.CGD(model.parameters(), lr=LR, prune="negative", start=1)
    tangent = ce.TangentMap(opt)
    op = ce.HessianOperator(model, CE, *batch)
    Y = tangent.start(op, k=2)
    tangent.apply_(op, Y)  # of a step that does not prune: whose directions makes no difference
    opt.step(op, curvature=ce.HessianOperator(model, CE, *other))
    op = ce.HessianOperator(model, CE, *batch)
    tangent.apply_(op, Y)
    before = _theta(model)
    for stepping in (opt, pickle.loads(pickle.dumps(opt))):
        if stepping is opt:
            with pytest.raises(ce.UnsupportedError, match="curvature: a TangentMap"):
                stepping.step(op, curvature=ce.HessianOperator(model, CE, *other))
    assert torch.equal(_theta(model), before)
    opt.step(op)
    opt.step(ce.HessianOperator(model, CE, *batch), curvature=ce.HessianOperator(model, CE, *other))


FIXED = {
    "another order": (ValueError, "in order"),
    "another size, pickled": (ValueError, "spectrum: expected a spectrum of P"),
    "float32": (TypeError, "spectrum: expected a spectrum of torch.float64"),
    "another device": (ValueError, "spectrum: .*map_location"),
    "other shapes, pickled": (ValueError, "spectrum: its parameters have shapes"),
    "another order, pickled": (ValueError, "spectrum: its parameters have shapes"),
}


def _fixed(kind, model, batches):
    if kind == "another order":
        backward = ModelOf(reversed(list(model)))
        return ce.spectrum(ce.HessianOperator(backward, CE, *batches[0]))
    if not kind.startswith(("other shapes", "another order")):
        return _wrong(kind, model, batches)
    spec = pickle.loads(pickle.dumps(ce.spectrum(ce.HessianOperator(model, CE, *batches[0]))))
    spec.shapes = spec.shapes[::-1] if kind.startswith("another") else [(spec.size,)]
    return spec


class ModelOf(torch.nn.Module):
    """The same layers, listed backward."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x):
        for layer in reversed(self.layers):
            x = layer(x)
        return x


@pytest.mark.parametrize("late", [False, True], ids=["at construction", "at a step"])
@pytest.mark.parametrize(
    ("kind", "source"),  # without an operator the spectrum tells in which order theta is
    [(k, s) for k in FIXED for s in ("operator", "spectrum", "grad", "dense") if k != "another order" or len(s) > 5],
)
def test_fixed_directions_that_do_not_fit_are_refused_by_name(kind, source, late):
    model, batches = _setting()
    error, match = FIXED[kind]
    wrong = _fixed(kind, model, batches)
    _backward(model, *batches[0])
    op = ce.HessianOperator(model, CE, *batches[0])
    given = {"operator": op, "grad": None, "spectrum": ce.spectrum(op), "dense": op.dense()}[source]
    before = copy.deepcopy(model.state_dict())

    def step():
        opt = ce.CGD(model.parameters(), lr=LR, prune="negative", spectrum=None if late else wrong)
        opt.spectrum = wrong
        opt.step(given)

    with pytest.raises(error, match=match):
        step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
