"""prune="dominant" and "bulk": the k algebraically largest eigenvalues' directions taken out, or nothing else kept."""

import copy
import itertools
import pickle

import cases
import pytest
import torch
from oracles import double_backward, gradient, relative
from torch import nn

import chaos_ext as ce
from chaos_ext.spectra.decompose import spectrum_of_matrix

CE = nn.CrossEntropyLoss()
LR, K = 0.1, 4


def _setting(dtype=torch.float64, activation="tanh"):
    model = cases.mlp(3, activation, width=12).to(dtype)
    x, y = cases.batch(8, cases.LOSSES["ce"][1])
    return model, x.to(dtype), y


def _theta(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def _top(H, k=K):
    return torch.linalg.eigh(H).eigenvectors[:, -k:]


def _expected(H, g, prune, mix=1.0, k=K):
    """By an explicit projector from LAPACK on autograd's H."""
    V = _top(H, k)
    inside = V @ (V.T @ g)
    return g - mix * (inside if prune == "dominant" else g - inside)


def _feed(twin, d):
    for p, part in zip(twin.parameters(), d.split([p.numel() for p in twin.parameters()])):
        p.grad = part.view(p.shape).clone()


SGD = [
    {"momentum": mu, "weight_decay": wd, "nesterov": nest, "maximize": up}
    for mu, wd, nest, up in itertools.product([0.0, 0.9], [0.0, 0.05], [False, True], [False, True])
    if mu or not nest
]


@pytest.mark.parametrize("mix", [1.0, 0.3])
@pytest.mark.parametrize("options", SGD, ids=lambda o: ",".join(k for k, v in o.items() if v) or "plain")
@pytest.mark.parametrize("prune", ["dominant", "bulk"])
def test_steps_are_sgd_steps_along_the_projected_gradient(prune, options, mix):
    model, x, y = _setting()
    twin = copy.deepcopy(model)
    ours = ce.CGD(model.parameters(), lr=LR, prune=prune, k=K, mix=mix, **options)
    theirs = torch.optim.SGD(twin.parameters(), lr=LR, foreach=False, **options)
    for _ in range(3):
        H, g = double_backward(twin, CE, x, y), gradient(twin, CE, x, y)
        inside = _top(H).T @ g
        share = float(inside @ inside / (g @ g))
        _feed(twin, _expected(H, g, prune, mix))
        theirs.step()
        ours.step(ce.HessianOperator(model, CE, x, y))
        assert relative(_theta(model), _theta(twin)) < 1e-9
        info = ours.last_step
        assert info.pruned == (K if prune == "dominant" else len(g) - K)
        assert info.share == pytest.approx(share if prune == "dominant" else 1 - share, abs=1e-9)


SOURCES = {
    "matrix": lambda op: op.dense(),
    "spectrum": ce.spectrum,
    "partial": lambda op: ce.spectrum(op, k=K, which="largest", tol=1e-13),
    "magnitude": lambda op: ce.spectrum(op, k=5 * K, which="magnitude", tol=1e-13),
    "both ends": lambda op: ce.spectrum(op, k=2 * K, which="both_ends", tol=1e-13),
    "closure": lambda op: lambda: op,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("prune", ["dominant", "bulk"])
def test_every_kind_of_source(prune, source):
    model, x, y = _setting()
    H, g, before = double_backward(model, CE, x, y), gradient(model, CE, x, y), _theta(model)
    _feed(model, g)
    opt = ce.CGD(model.parameters(), lr=LR, prune=prune, k=K)
    opt.step(SOURCES[source](ce.HessianOperator(model, CE, x, y)))
    assert relative((before - _theta(model)) / LR, _expected(H, g, prune)) < 1e-8
    values, info = torch.linalg.eigvalsh(H), opt.last_step
    assert info.lambda_max == pytest.approx(values[-1].item())
    complete = source in ("matrix", "spectrum", "closure")
    assert (info.n_positive is not None) == complete
    assert info.lambda_min == (None if source == "partial" else pytest.approx(values[0].item()))


@pytest.mark.parametrize("prune", ["dominant", "bulk"])
def test_float32_fixed_directions_groups_and_non_contiguous_parameters(prune):
    model, x, y = _setting(torch.float32)
    model[1].weight.data = model[1].weight.data.T.contiguous().T
    exact = copy.deepcopy(model).double()
    H, g = double_backward(exact, CE, x.double(), y), gradient(exact, CE, x.double(), y)
    spec = ce.spectrum(ce.HessianOperator(model, CE, x, y))
    before = _theta(model)
    groups = [{"params": model[3].parameters()}, {"params": [*model[1].parameters(), *model[5].parameters()]}]
    opt = ce.CGD(groups, lr=1.0, prune=prune, k=K, spectrum=spec)
    opt.step(ce.HessianOperator(model, CE, x, y))
    assert relative((before - _theta(model)).double(), _expected(H, g, prune)) < 2e-4  # eigenvectors in float32


@pytest.mark.parametrize("maximize", [False, True])
def test_dominant_is_positive_with_k(maximize):
    moved = []
    for prune in ("dominant", "positive"):
        model, x, y = _setting()
        ce.CGD(model.parameters(), lr=LR, prune=prune, k=K, maximize=maximize).step(ce.HessianOperator(model, CE, x, y))
        moved.append(_theta(model))
    assert torch.equal(*moved)


def test_bulk_noise_is_isotropic_without_its_dominant_part():
    """The covariance of noise alone (mix=0): sd^2 (I - V V^T), on average over many steps."""
    model, x, y = _setting()
    start, sd, generator = copy.deepcopy(model.state_dict()), 0.5, torch.Generator().manual_seed(1)
    H, g = double_backward(model, CE, x, y), gradient(model, CE, x, y)
    Q = torch.linalg.eigh(H).eigenvectors
    found = []
    for _ in range(200):
        model.load_state_dict(start)
        before = _theta(model)
        opt = ce.CGD(model.parameters(), lr=1.0, prune="bulk", k=K, mix=0.0, noise=sd, generator=generator)
        opt.step(ce.HessianOperator(model, CE, x, y))
        found.append(Q.T @ (before - _theta(model) - g))
    c = torch.stack(found)
    assert c[:, -K:].abs().max() < 1e-12
    rest = c[:, :-K]
    assert rest.std().item() == pytest.approx(sd, rel=0.03)
    assert rest.mean().abs() < 5 * sd / rest.numel() ** 0.5
    halves = [rest[:, : rest.shape[1] // 2].std(), rest[:, rest.shape[1] // 2 :].std()]  # the null space has it, too
    assert float(halves[0] / halves[1]) == pytest.approx(1, rel=0.05)


def test_bulk_noise_with_pruning_and_its_generator():
    model, x, y = _setting()
    H, g, before = double_backward(model, CE, x, y), gradient(model, CE, x, y), _theta(model)
    xi = torch.randn(len(g), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    V = _top(H)
    opt = ce.CGD(
        model.parameters(), lr=1.0, prune="bulk", k=K, mix=0.7, noise=0.2, generator=torch.Generator().manual_seed(3)
    )
    opt.step(ce.HessianOperator(model, CE, x, y))
    expected = _expected(H, g, "bulk", 0.7) + 0.2 * (xi - V @ (V.T @ xi))
    assert relative(before - _theta(model), expected) < 1e-9


@pytest.mark.parametrize("jacobian", ["frozen", "true"])
@pytest.mark.parametrize("prune", ["dominant", "bulk"])
def test_tangent_maps(prune, jacobian):
    """Frozen: I - lr P H with the explicit projector. True: differences of real steps."""
    model, x, y = _setting()
    H, g = double_backward(model, CE, x, y), gradient(model, CE, x, y)
    opt = ce.CGD(model.parameters(), lr=LR, prune=prune, k=K, mix=0.6)
    op = ce.HessianOperator(model, CE, x, y)
    Y = torch.randn(len(g), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ce.TangentMap(opt, jacobian=jacobian).apply_(op, Y.clone())
    if jacobian == "frozen":
        expected = Y - LR * torch.stack([_expected(H, h, prune, 0.6) for h in (H @ Y).T], 1)
        assert relative(found, expected) < 1e-10
        return
    start, eps = _theta(model), 1e-5

    def stepped(theta):
        torch.nn.utils.vector_to_parameters(theta, model.parameters())
        at, d = double_backward(model, CE, x, y), gradient(model, CE, x, y)
        return theta - LR * _expected(at, d, prune, 0.6)

    expected = torch.stack([(stepped(start + eps * v) - stepped(start - eps * v)) / (2 * eps) for v in Y.T], 1)
    assert relative(found, expected) < 1e-6


def test_select_dominant():
    spec = spectrum_of_matrix(torch.diag(torch.tensor([-9.0, 3.0, 0.5, 0.0, 7.0], dtype=torch.float64)))
    assert ce.select(spec, 0.1, "dominant", 2).tolist() == [False, False, True, True]
    assert ce.select(spec, 0.1, "dominant", 3, upper=0.1, sign=-1.0, shift=5.0).tolist() == [False, True, True, True]
    full = spectrum_of_matrix(torch.diag(torch.tensor([-9.0, 3.0, -0.5], dtype=torch.float64)))
    assert ce.select(full, 0.1, "dominant", 2).tolist() == [False, True, True]  # no null space: determined


REFUSED = {
    "no k": (lambda s, o: ce.CGD(o, prune="dominant"), ValueError, "k: expected the number of dominant directions"),
    "k = 0": (lambda s, o: ce.CGD(o, prune="bulk", k=0), ValueError, "k: expected the number of dominant directions"),
    "k > P": (lambda s, o: ce.CGD(o, prune="bulk", k=6), ValueError, "k: expected 0 <= k <= P = 5"),
    "order": (lambda s, o: ce.CGD(o, prune="dominant", k=2, order="random"), ValueError, "order: prune='dominant'"),
    "an option set later": (
        lambda s, o: setattr(ce.CGD(o, prune="bulk", k=2), "order", "random"),
        ValueError,
        "order: prune='bulk'",
    ),
    "k taken away": (
        lambda s, o: setattr(ce.CGD(o, prune="bulk", k=2), "k", None),
        ValueError,
        "k: expected the number",
    ),
    "select bulk": (lambda s, o: ce.select(s, 0.1, "bulk", 2), ValueError, "null space of H"),
    "select without k": (lambda s, o: ce.select(s, 0.1, "dominant"), ValueError, "k: expected the number"),
    "select in another order": (
        lambda s, o: ce.select(s, 0.1, "dominant", 2, "random"),
        ValueError,
        "order: prune='dominant'",
    ),
    "beyond the rank": (lambda s, o: ce.select(s, 0.1, "dominant", 4), ValueError, "k: expected at most 3, got 4"),
    "selection of bulk": (
        lambda s, o: ce.CGD(o, prune="bulk", k=2).selection(s),
        ce.UnsupportedError,
        "selection: prune='bulk'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals(kind):
    spec = spectrum_of_matrix(torch.diag(torch.tensor([-9.0, 3.0, 0.5, 0.0, 7.0], dtype=torch.float64)))
    call, error, match = REFUSED[kind]
    with pytest.raises(error, match=match):
        call(spec, [nn.Parameter(torch.zeros(5, dtype=torch.float64))])


@pytest.mark.parametrize("which", ["smallest", "both_ends", "older file"])
def test_a_partial_spectrum_without_the_largest_is_refused(which):
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    if which == "older file":
        spec = copy.deepcopy(ce.spectrum(op, k=K, which="largest"))
        spec.ends = None
    else:
        spec = ce.spectrum(op, k=K, which=which)
    opt = ce.CGD(model.parameters(), lr=LR, momentum=0.9, prune="dominant", k=K)
    before = _theta(model)
    with pytest.raises(ValueError, match="this partial spectrum has"):
        opt.step(spec)
    assert torch.equal(_theta(model), before)
    assert opt.steps == 0
    assert not opt.state


def test_a_step_beyond_the_rank_changes_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    (x, y), before = cases.batch(1, cases.LOSSES["ce"][1]), _theta(model)
    opt = ce.CGD(model.parameters(), lr=LR, momentum=0.9, prune="bulk", k=3)
    with pytest.raises(ValueError, match="k: expected at most 2, got 3"):
        opt.step(ce.HessianOperator(model, CE, x, y))
    assert torch.equal(_theta(model), before)
    assert (opt.steps, len(opt.state)) == (0, 0)
    opt.k = 2
    opt.step(ce.HessianOperator(model, CE, x, y))


@pytest.mark.parametrize("how", ["save", "pickle", "copy"])
def test_which_ends_a_partial_spectrum_has_is_kept(how, tmp_path):
    model, x, y = _setting()
    spec = ce.spectrum(ce.HessianOperator(model, CE, x, y), k=5)
    if how == "save":
        spec.save(tmp_path / "s")
        again = ce.Spectrum.load(tmp_path / "s")
    else:
        again = pickle.loads(pickle.dumps(spec)) if how == "pickle" else copy.deepcopy(spec)
    assert spec.ends == again.ends == (2, 3)
    assert ce.select(again, LR, "dominant", 3).tolist() == [False, False, True, True, True]


def test_without_a_gradient_there_is_no_share():
    model, x, y = _setting()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    spec = ce.spectrum(ce.HessianOperator(model, CE, x, y))
    opt = ce.CGD(model.parameters(), lr=LR, prune="bulk", k=K, spectrum=spec)
    before = _theta(model)
    opt.step()
    assert torch.equal(_theta(model), before)
    assert opt.last_step.share == 0.0
