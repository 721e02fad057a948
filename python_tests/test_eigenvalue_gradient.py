"""Gradients of eigenvalues against differences of exact ones, and everything that is refused."""

import copy
import pickle

import architectures
import functions_table
import pytest
import torch
import torch.nn.functional as F
from eigenvalues import central, directions, moved, slopes
from oracles import double_backward, gauss_newton, relative
from small import batch, mlp
from torch import nn

import chaos_ext as ce
from chaos_ext.curvature.eigenvalue_gradient import _gap

X, Y = batch()
CE = nn.CrossEntropyLoss()


def _mlp(activation, width=5):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, width), activation, nn.Linear(width, 3)).double()


def _agrees(found, model, loss_fn, x, y, pick, tolerance=1e-6, **options):
    rows = directions(len(found.gradient), 3)
    expected = slopes(model, loss_fn, x, y, pick, rows, **options)
    assert relative(rows @ found.gradient.double(), expected) < tolerance
    assert bool((found.residual <= 1e-3 * found.gap).all())


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus, nn.GELU, nn.SiLU, nn.ReLU, nn.Mish])
@pytest.mark.parametrize("i", [-1, 0])
def test_of_networks(activation, i):
    model = _mlp(activation())
    op = ce.HessianOperator(model, CE, X, Y)
    spec = ce.spectrum(op)
    found = op.eigenvalue_gradient(spec, i)
    assert torch.equal(found.eigenvalues, spec.eigenvalues[[i]])
    _agrees(found, model, CE, X, Y, [i])


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["residual BatchNorm", "MLP with BatchNorm", "MLP with LayerNorm", "frozen parts"])
def test_of_normalised_and_residual_networks(name, mode):
    build, shape = architectures.GRAPHS[name]
    torch.manual_seed(1)
    model = build().double().train(mode == "train")
    x = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([0, 2, 1, 1])
    op = ce.HessianOperator(model, CE, x, y)
    found = op.eigenvalue_gradient(ce.spectrum(op, k=2, which="largest"), -1)
    _agrees(found, model, CE, x, y, [-1], h=2e-5, tolerance=1e-5)


def test_of_a_convolutional_network():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)).double()
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    op = ce.HessianOperator(model, CE, x, Y[:5])
    spec = ce.spectrum(op)
    for i in (-1, 0):
        _agrees(op.eigenvalue_gradient(spec, i), model, CE, x, Y[:5], [i], h=2e-5)


LOSSES = {
    "weighted cross-entropy": (
        nn.CrossEntropyLoss(
            weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), label_smoothing=0.1, ignore_index=2
        ),
        Y,
    ),
    "mse": (nn.MSELoss(reduction="sum"), X[:, :3]),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)), X[:, :3].sigmoid()),
    "nll": (lambda o, y: F.nll_loss(o.log_softmax(1), y), Y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_of_losses(name):
    loss_fn, y = LOSSES[name]
    model = _mlp(nn.Tanh())
    op = ce.HessianOperator(model, loss_fn, X, y)
    spec = ce.spectrum(op)
    _agrees(op.eigenvalue_gradient(spec, -1), model, loss_fn, X, y, [-1])


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Mish])
def test_float32(activation):
    wide = _mlp(activation()).float().double()
    model, x = copy.deepcopy(wide).float(), X.float()
    op = ce.HessianOperator(model, CE, x, Y)
    found = op.eigenvalue_gradient(ce.spectrum(op), -1)
    assert found.gradient.dtype == torch.float32
    _agrees(found, wide, CE, x.double(), Y, [-1], tolerance=1e-3)


def test_a_float64_spectrum_of_a_float32_model():
    model, x = _mlp(nn.Tanh()).float(), X.float()
    op = ce.HessianOperator(model, CE, x, Y)
    found = op.eigenvalue_gradient(ce.spectrum(op, spectrum_dtype=torch.float64), -1)
    assert found.gradient.dtype == torch.float64
    _agrees(found, copy.deepcopy(model).double(), CE, x.double(), Y, [-1])


def test_a_block():
    model = _mlp(nn.Tanh())
    op = ce.HessianOperator(model, CE, X, Y, params="2.*")
    found = op.eigenvalue_gradient(ce.spectrum(op), -1)
    model[0].requires_grad_(False)
    _agrees(found, model, CE, X, Y, [-1])


@pytest.mark.parametrize("keep", [0, 1 << 28])
def test_of_a_data_set(keep):
    model, batches = _mlp(nn.Tanh()), [(X[:4], Y[:4]), (X[4:], Y[4:])]
    op = ce.DatasetHessian(model, CE, batches, keep=keep)
    spec = ce.spectrum(op)
    _agrees(op.eigenvalue_gradient(spec, -1), model, CE, X, Y, [-1])


@pytest.mark.parametrize(("loss_fn", "y"), [(CE, Y), LOSSES["bce"]])
def test_of_a_gauss_newton_matrix(loss_fn, y):
    model = _mlp(nn.Tanh())
    op = ce.GGNOperator(model, loss_fn, X, y)
    spec = ce.spectrum(op)
    for i in (-1, [-2, -3]):
        _agrees(op.eigenvalue_gradient(spec, i), model, loss_fn, X, y, i if i != -1 else [-1], matrix=gauss_newton)


class Twin(nn.Module):
    """Two halves that start equal: every eigenvalue of its Hessian is double."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(2))
        self.b.load_state_dict(self.a.state_dict())

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x)], 1)


def _twin():
    model, y = Twin().double(), X[:, :1].sin().expand(-1, 2)
    return model, y, ce.HessianOperator(model, nn.MSELoss(), X, y)


def test_a_double_eigenvalue():
    model, y, op = _twin()
    spec = ce.spectrum(op)
    for i in (-1, -2, [-1, -3], slice(-3, None)):
        with pytest.raises(ValueError, match=r"part of a cluster .* i=\[\d+, \d+"):
            op.eigenvalue_gradient(spec, i)
    found = op.eigenvalue_gradient(spec, [-1, -2])
    _agrees(found, model, nn.MSELoss(), X, y, [-1, -2])
    assert found.gap > 1e-3
    _agrees(op.eigenvalue_gradient(spec, slice(-4, None)), model, nn.MSELoss(), X, y, slice(-4, None))


def test_the_mean_of_a_cluster_depends_on_no_basis():
    _, _, op = _twin()
    V = ce.spectrum(op).eigenvectors([-1, -2])
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    first, second = (op.curvature_along(W)[1] for W in (V, V @ turn))
    assert relative(first, second) < 1e-10
    single = op.curvature_along(V[:, :1])[1]
    assert relative(single, first) > 1e-2  # of one of them it does


def test_the_message_names_the_whole_cluster():
    _, _, op = _twin()
    spec = ce.spectrum(op)
    r = len(spec.eigenvalues)
    with pytest.raises(ValueError, match=rf"pass the whole cluster .* i=\[{r - 2}, {r - 1}\]"):
        op.eigenvalue_gradient(spec, -1)
    with pytest.raises(ValueError, match=rf"i=\[{r - 4}, {r - 3}, {r - 2}, {r - 1}\]"):
        op.eigenvalue_gradient(spec, [-1, -4])


def test_of_directions_that_are_never_formed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    ops = [ce.HessianOperator(model, CE, X, Y) for _ in range(2)]
    formed = ops[0].eigenvalue_gradient(ce.spectrum(ops[0]), -1)
    implicit = ops[1].eigenvalue_gradient(ce.directions(ops[1]), -1)
    assert relative(formed.gradient, implicit.gradient) < 1e-9


@pytest.mark.parametrize("kind", [ce.HessianOperator, ce.GGNOperator, None])
def test_directions_that_do_not_fit(kind):
    op = ce.DatasetHessian(mlp(), CE, [(X, Y)]) if kind is None else kind(mlp(), CE, X, Y)
    P = op.shape[0]
    for V in (X, torch.ones(P, dtype=torch.float64), torch.ones(P, 0, dtype=torch.float64)):
        with pytest.raises(ValueError, match="V: expected shape"):
            op.curvature_along(V)
    for V in (None, torch.ones(P, 1), torch.ones(P, 1, dtype=torch.long)):
        with pytest.raises(TypeError, match="V: expected a"):
            op.curvature_along(V)


def test_indices():
    op = ce.HessianOperator(_mlp(nn.Tanh()), CE, X, Y)
    spec = ce.spectrum(op)
    r = len(spec.eigenvalues)
    mask = torch.zeros(r, dtype=torch.bool)
    mask[-2:] = True
    same = [slice(-2, None), [-2, -1], [r - 2, r - 1], torch.tensor([-2, -1]), mask, (r - 2, r - 1), range(r - 2, r)]
    found = [op.eigenvalue_gradient(spec, i) for i in same]
    assert all(torch.equal(f.gradient, found[0].gradient) and f.indices == (r - 2, r - 1) for f in found)
    ones = [op.eigenvalue_gradient(spec, i).gradient for i in (-1, -2)]
    assert relative(found[0].gradient, (ones[0] + ones[1]) / 2) < 1e-12
    assert torch.equal(op.eigenvalue_gradient(spec, torch.tensor(-1)).gradient, ones[0])


@pytest.mark.parametrize(
    ("i", "error"),
    [
        (10**6, IndexError),
        (-(10**6), IndexError),
        ([0, 10**6], IndexError),
        ([], ValueError),
        ([-1, -1], ValueError),
        (slice(0, 0), ValueError),
        (torch.ones(3, dtype=torch.bool), ValueError),
        (True, TypeError),
        ([True, False], TypeError),
        (0.5, TypeError),
        ("1", TypeError),
        (None, TypeError),
        (torch.tensor([0.5]), TypeError),
        (torch.zeros(1, 1, dtype=torch.long), TypeError),
    ],
)
def test_indices_that_are_none(i, error):
    op = ce.HessianOperator(mlp(), CE, X, Y)
    with pytest.raises(error, match="i: expected"):
        op.eigenvalue_gradient(ce.spectrum(op), i)


@pytest.mark.parametrize("tol", [-1.0, 1.0, float("nan"), "x", True])
def test_a_tol_that_is_none(tol):
    op = ce.HessianOperator(mlp(), CE, X, Y)
    with pytest.raises(ValueError, match="tol: expected"):
        op.eigenvalue_gradient(ce.spectrum(op), -1, tol=tol)


def test_a_tol_of_ones_own():
    op = ce.HessianOperator(mlp(), CE, X, Y)
    spec = ce.spectrum(op)
    gap = op.eigenvalue_gradient(spec, -1).gap / float(spec.eigenvalues.abs().max())
    op.eigenvalue_gradient(spec, -1, tol=0.9 * gap)
    with pytest.raises(ValueError, match="i: eigenvalue"):
        op.eigenvalue_gradient(spec, -1, tol=1.1 * gap)


def test_the_gap_is_to_the_nearest_other_eigenvalue():
    model = mlp()
    op = ce.HessianOperator(model, CE, X, Y)
    spec = ce.spectrum(op)
    values = torch.linalg.eigvalsh(double_backward(model, CE, X, Y))
    assert op.eigenvalue_gradient(spec, -1).gap == pytest.approx(float(values[-1] - values[-2]))
    assert op.eigenvalue_gradient(spec, [-1, -2]).gap == pytest.approx(float(values[-2] - values[-3]))
    assert op.eigenvalue_gradient(spec, 0).gap == pytest.approx(float(values[1] - values[0]))
    assert _gap([-1.0, 2.0], [0, 1], (-0.1, 0.1)) == pytest.approx(0.9)  # zero is an eigenvalue, too


@pytest.mark.parametrize(("which", "k", "inner"), [("largest", 3, 0), ("smallest", 3, -1), ("both_ends", 4, 1)])
def test_a_partial_spectrum_does_not_know_the_neighbours_of_its_innermost(which, k, inner):
    op = ce.HessianOperator(mlp(), CE, X, Y)
    spec, whole = ce.spectrum(op, k=k, which=which), ce.spectrum(op)
    with pytest.raises(ValueError, match="partial spectrum does not list; take"):
        op.eigenvalue_gradient(spec, inner)
    outer = 0 if which == "smallest" else -1
    found, expected = op.eigenvalue_gradient(spec, outer), op.eigenvalue_gradient(whole, outer)
    assert relative(found.gradient, expected.gradient) < 1e-6
    assert found.gap == pytest.approx(expected.gap)


def test_one_pair_alone_is_not_enough():
    op = ce.HessianOperator(mlp(), CE, X, Y)
    for which in ("largest", "magnitude"):
        with pytest.raises(ValueError, match="larger k"):
            op.eigenvalue_gradient(ce.spectrum(op, k=1, which=which), -1)
    every = ce.spectrum(op, k=op.shape[0], which="largest")
    assert op.eigenvalue_gradient(every, -1).gap > 0


def test_what_counts_as_zero_cannot_be_told_apart():
    op = ce.HessianOperator(mlp(), CE, X, Y)
    spec = ce.spectrum(op, zero_tol=1e-3)
    i = int(spec.eigenvalues.abs().argmin())
    with pytest.raises(ValueError, match="count as zero"):
        op.eigenvalue_gradient(spec, i, tol=0.1)


def _others():
    model = mlp()
    op = ce.HessianOperator(model, CE, X, Y)
    moved_ = copy.deepcopy(model)
    with torch.no_grad():
        moved_[0].weight += 0.1
    yield "another model", op, ce.spectrum(ce.HessianOperator(copy.deepcopy(model), CE, X, Y))
    yield "another batch, loss or theta", op, ce.spectrum(ce.HessianOperator(model, CE, X + 0.1, Y))
    yield "another batch, loss or theta", op, ce.spectrum(ce.HessianOperator(model, nn.MSELoss(), X, X[:, :3]))
    elsewhere = pickle.loads(pickle.dumps(ce.spectrum(ce.HessianOperator(moved_, CE, X, Y))))
    yield "another batch, loss or theta", op, elsewhere
    own = model[0].bias.detach().clone()
    model[0].bias.data += 0.1
    before = ce.spectrum(ce.HessianOperator(model, CE, X, Y))
    model[0].bias.data.copy_(own)
    yield "another theta", ce.HessianOperator(model, CE, X, Y), before
    yield "not an eigenpair of this operator", op, ce.spectrum(ce.GGNOperator(model, CE, X, Y))
    block = ce.HessianOperator(model, CE, X, Y, params="2.*")
    yield "expected a spectrum of P = 43", op, ce.spectrum(block)


def test_spectra_of_something_else_are_refused():
    for match, op, spec in _others():
        with pytest.raises(ValueError, match=match):
            op.eigenvalue_gradient(spec, -1)


def test_blocks_of_one_size_are_told_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    ops = [ce.HessianOperator(model, CE, X, Y, params=p) for p in ("0.*", "2.*")]
    with pytest.raises(ValueError, match="other parameters"):
        ops[0].eigenvalue_gradient(ce.spectrum(ops[1]), -1)


def test_a_spectrum_from_a_file(tmp_path):
    op = ce.HessianOperator(mlp(), CE, X, Y)
    spec = ce.spectrum(op, k=3, which="largest")
    expected = op.eigenvalue_gradient(spec, -1)
    spec.save(tmp_path / "s")
    for again in (ce.Spectrum.load(tmp_path / "s"), pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        found = op.eigenvalue_gradient(again, -1)
        assert torch.equal(found.gradient, expected.gradient)
        assert found.gap == expected.gap


def test_no_spectrum_at_all():
    op = ce.HessianOperator(mlp(), CE, X, Y)
    for spec in (None, op, op.dense(), ce.spectrum(op).eigenvalues):
        with pytest.raises(TypeError, match="spec: expected a Spectrum"):
            op.eigenvalue_gradient(spec, -1)
    of_matrix = ce.spectrum(op.dense(), k=2, which="largest")
    with pytest.raises(ValueError, match="carries no loss and no gradient"):
        op.eigenvalue_gradient(of_matrix, -1)


def test_an_edited_spectrum_and_a_stale_operator():
    model = mlp()
    op = ce.HessianOperator(model, CE, X, Y)
    spec = ce.spectrum(op)
    eigenvalues = spec.eigenvalues
    with torch.no_grad():
        model[0].weight += 0.1
    with pytest.raises(ce.StaleOperatorError, match="changed after it was made"):
        op.eigenvalue_gradient(spec, -1)
    fresh = ce.HessianOperator(model, CE, X, Y)
    spec = ce.spectrum(fresh)
    spec.eigenvalues.add_(1)
    with pytest.raises(ce.StaleOperatorError, match="edited"):
        fresh.eigenvalue_gradient(spec, -1)
    assert len(eigenvalues)


def test_what_has_no_third_derivatives_of_its_own():
    fisher = ce.FisherOperator(mlp(), CE, X, Y)
    with pytest.raises(ce.UnsupportedError, match="not of a FisherOperator"):
        fisher.eigenvalue_gradient(ce.spectrum(fisher), -1)
    ggn = ce.GGNOperator(_mlp(nn.Mish()), CE, X, Y)
    with pytest.raises(ce.UnsupportedError, match="of G it needs layer rules"):
        ggn.eigenvalue_gradient(ce.spectrum(ggn), -1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["MLP with BatchNorm", "PReLU channels", "MaxPool2d overlapping", "LSTM"])
def test_under_the_callers_modes(name, mode):
    tables = {**architectures.GRAPHS, **architectures.LAYERS, **functions_table.GRAPHS}
    build, shape = tables[name]
    torch.manual_seed(1)
    model, y = build().double(), torch.tensor([0, 2, 1, 1])
    x = torch.randn(4, *shape, dtype=torch.float64)
    op = ce.HessianOperator(model, CE, x, y)
    expected = op.eigenvalue_gradient(ce.spectrum(op), -1).gradient
    with mode():
        op = ce.HessianOperator(model, CE, x.clone(), y.clone())
        found = op.eigenvalue_gradient(ce.spectrum(op), -1).gradient
    assert relative(found, expected) < 1e-9
    assert not found.requires_grad


class Fails(nn.Module):
    """A third derivative that raises."""

    def __init__(self):
        super().__init__()
        self.net, self.norm = mlp(), nn.BatchNorm1d(3).double()

    def forward(self, x):
        return self.norm(
            F.batch_norm(self.net(x), torch.zeros_like(x[0, :3]), torch.ones_like(x[0, :3]), training=True)
        )


@pytest.mark.parametrize("build", [Fails, lambda: architectures.GRAPHS["MLP with BatchNorm"][0]().double()])
def test_no_trace_on_the_model(build):
    torch.manual_seed(0)
    model = build()
    x = torch.randn(6, 4 if isinstance(model, Fails) else 5, dtype=torch.float64)
    state = copy.deepcopy(model.state_dict())
    op = ce.HessianOperator(model, CE, x, Y)
    spec = ce.spectrum(op)
    rng, flags = torch.get_rng_state(), [(p.requires_grad, p.grad, m) for m in model.modules() for p in m.parameters()]
    if isinstance(model, Fails):
        with pytest.raises(ce.UnsupportedError, match="eigenvalue_gradient"):
            op.eigenvalue_gradient(spec, -1)
    else:
        op.eigenvalue_gradient(spec, -1)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert torch.equal(rng, torch.get_rng_state())
    now = [(p.requires_grad, p.grad, m) for m in model.modules() for p in m.parameters()]
    assert all(a[0] == b[0] and a[1] is b[1] is None for a, b in zip(flags, now, strict=True))
    assert all(m.training for m in model.modules())
    assert torch.overrides._get_current_function_mode_stack() == []
    op.snapshot.require_fresh()


def test_gradient_ascent_raises_the_sharpness():
    """What it is for: a step along the gradient changes the largest eigenvalue by |gradient|^2 times the step."""
    model = _mlp(nn.Tanh())
    op = ce.HessianOperator(model, CE, X, Y)
    found = op.eigenvalue_gradient(ce.spectrum(op, k=2, which="largest"), -1)
    twin, theta, move = moved(model)

    def sharpness(t):
        move(t)
        return torch.linalg.eigvalsh(double_backward(twin, CE, X, Y))[-1]

    rate = central(sharpness, theta, found.gradient, 1e-4)
    assert float(rate) == pytest.approx(float(found.gradient.square().sum()), rel=1e-6)
