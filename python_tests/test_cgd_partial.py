"""Partial spectra that may lack part of what is pruned are refused; what they certainly hold is what LAPACK has."""

import copy

import cases
import pytest
import torch
from oracles import double_backward, gradient, relative
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
LR, K = 0.1, 3
SETS = ("negative", "positive", "chaotic")


@pytest.fixture(scope="module")
def problem():
    """A model in float64 whose H has many eigenvalues of either sign and some beyond 2 / lr, and H itself."""
    model = cases.mlp(3, "tanh", seed=0, width=6).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    x, y = cases.batch(8, cases.LOSSES["ce"][1])
    return model, (x.double(), y), double_backward(model, CE, x.double(), y)


def _partial(problem, k, which):
    model, batch, _ = problem
    return ce.spectrum(ce.HessianOperator(model, CE, *batch), k=k, which=which, tol=1e-12)


def _first(H, prune, k, lr=LR):
    """The eigenvectors that the set takes, by LAPACK and the definition."""
    values, V = torch.linalg.eigh(H)
    zero = 1e-12 * values.abs().max()
    low, high = values < -zero, values > (2 / lr if prune == "chaotic" else zero)
    inside = {"negative": low, "positive": high, "chaotic": low | high}[prune]
    rank = (1 - lr * values).abs() if prune == "chaotic" else values.abs()
    order = torch.where(inside, rank, torch.full_like(rank, -1.0)).argsort(descending=True)
    return V[:, order[: min(int(inside.sum()), len(values) if k is None else k)]]


def _step(problem, how, spec, **options):
    model, batch, _ = problem
    model = copy.deepcopy(model)
    opt = ce.CGD(model.parameters(), lr=LR, **options)
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    if how == "curvature":
        opt.step(ce.HessianOperator(model, CE, *batch), curvature=spec(model))
    elif how == "function":
        opt.step(ce.HessianOperator(model, CE, *batch), curvature=lambda: spec(model))
    else:
        opt.step(spec(model))
    return opt, (before - torch.cat([p.detach().reshape(-1) for p in model.parameters()])) / LR


LACKING = [
    ("negative", K, "largest", K),
    ("negative", None, "largest", K),
    ("negative", None, "both_ends", 4),
    ("negative", 5, "both_ends", 4),
    ("negative", K, "magnitude", 1),
    ("positive", K, "smallest", K),
    ("positive", None, "largest", K),
    ("positive", 5, "both_ends", 6),
    ("chaotic", None, "both_ends", 4),
    ("chaotic", K, "largest", K),
    ("chaotic", K, "smallest", 2 * K),
]


@pytest.mark.parametrize("how", ["select", "source", "curvature", "function"])
@pytest.mark.parametrize(("prune", "k", "which", "listed"), LACKING)
def test_what_may_lack_directions_is_refused(problem, prune, k, which, listed, how):
    def use():
        if how == "select":
            return ce.select(_partial(problem, listed, which), LR, prune, k)
        return _step(problem, how, lambda m: _partial((m, *problem[1:]), listed, which), prune=prune, k=k)

    with pytest.raises(ValueError, match=f"prune='{prune}': .* partial spectrum holds: it has {listed} of P = "):
        use()


HOLDING = [
    ("negative", K, "both_ends", 2 * K),
    ("negative", K, "smallest", K),
    ("positive", K, "largest", K),
    ("positive", K, "both_ends", 2 * K),
    ("chaotic", K, "both_ends", 2 * K),
]


@pytest.mark.parametrize("how", ["source", "curvature", "function"])
@pytest.mark.parametrize(("prune", "k", "which", "listed"), HOLDING)
def test_what_certainly_holds_them_is_used(problem, prune, k, which, listed, how):
    model, batch, H = problem
    opt, moved = _step(problem, how, lambda m: _partial((m, *problem[1:]), listed, which), prune=prune, k=k)
    g, V = gradient(model, CE, *batch), _first(H, prune, k)
    assert opt.last_step.pruned == V.shape[1] == k
    assert relative(moved, g - V @ (V.T @ g)) < 1e-6


@pytest.mark.parametrize("prune", SETS)
def test_all_pairs_by_lanczos_are_complete(problem, prune):
    size = len(problem[2])
    values = torch.linalg.eigvalsh(problem[2])
    spec = _partial(problem, size, "both_ends")
    assert spec.nullity is None
    spec.zero_threshold = 1e-6 * float(values.abs().max())
    low, high = values < -spec.zero_threshold, values > (2 / LR if prune == "chaotic" else spec.zero_threshold)
    expected = {"negative": low, "positive": high, "chaotic": low | high}[prune]
    assert int(ce.select(spec, LR, prune).sum()) == int(expected.sum()) > 0


def _listing(values, every, ends):
    """A partial spectrum of diag(every) with these eigenvalues."""
    full = torch.eye(len(every), dtype=torch.float64)
    index = [every.index(v) for v in values]
    spec = ce.spectrum(ce.HessianOperator(nn.Linear(1, 1).double(), nn.MSELoss(), *torch.ones(2, 1, 1).double()), k=1)
    return type(spec)(
        torch.tensor(values, dtype=torch.float64),
        full[:, index],
        type(spec.basis)(len(every)),
        len(every),
        complete=False,
        zero_tol=1e-9,
        scale=max(map(abs, values)),
        ends=ends,
    )


def test_ends_prove_that_a_set_is_complete():
    """The second smallest is positive: there is one negative eigenvalue; how many positive ones is not known."""
    every = [-2.0, 0.5, 1.0, 3.0, 30.0]
    spec = _listing([-2.0, 0.5, 30.0], every, (2, 1))
    assert ce.select(spec, LR, "negative").tolist() == [True, False, False]
    assert ce.select(spec, LR, "negative", 1, "random").tolist() == [True, False, False]
    with pytest.raises(ValueError, match="prune='positive'"):
        ce.select(spec, LR, "positive")
    with pytest.raises(ValueError, match="prune='chaotic'"):  # up to 30 others may lie beyond 20
        ce.select(spec, LR, "chaotic")
    assert ce.select(_listing([-2.0, 0.5, 3.0, 30.0], every, (2, 2)), LR, "chaotic").tolist() == [True, 0, 0, True]


def test_of_a_set_that_is_drawn_from_every_member_is_needed():
    every = [-3.0, -2.0, -1.0, 1.0, 2.0]
    spec = _listing([-3.0, -2.0, 2.0], every, (2, 1))
    assert ce.select(spec, LR, "negative", 2).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="order='random'"):
        ce.select(spec, LR, "negative", 2, "random")


def test_maximize_and_shift_turn_the_ends_around():
    """kappa = -lambda: the negative ones are at the upper end, and a shift of 2.5 moves the smallest ones over."""
    every = [-3.0, -2.0, -1.0, 1.0, 2.0]
    upper = _listing([1.0, 2.0], every, (0, 2))
    assert ce.select(upper, LR, "negative", 2, sign=-1.0).tolist() == [True, True]
    with pytest.raises(ValueError, match="prune='negative'"):
        ce.select(upper, LR, "negative", 2)
    lower = _listing([-3.0, -2.0], every, (2, 0))
    assert ce.select(lower, LR, "negative", shift=2.5).tolist() == [True, False]
    with pytest.raises(ValueError, match="prune='negative'"):
        ce.select(lower, LR, "negative")


def test_a_threshold_below_the_fastest_contraction():
    """upper = 2 < 1 / lr = 10: of kappa > 2 the exponents fall to 10 and grow from there on."""
    every = [2.5, 4.0, 16.0, 17.0]
    with pytest.raises(ValueError, match="prune='chaotic'"):  # ln|1 - 0.25| of 2.5 is above ln|1 - 1.6| of 16
        ce.select(_listing([16.0, 17.0], every, (0, 2)), LR, "chaotic", 2, upper=2.0)
    spec = _listing([2.5, 17.0], every, (1, 1))
    assert ce.select(spec, 0.2, "chaotic", 1, upper=2.0).tolist() == [False, True]
    with pytest.raises(ValueError, match="prune='chaotic'"):  # the others may be just above 2, where it is ln 0.8
        ce.select(_listing([1.0, 17.0], [1.0, 2.5, 17.0], (1, 1)), LR, "chaotic", 1, upper=2.0, shift=-0.5)


def test_of_unknown_ends_nothing_is_certain():
    spec = _listing([-3.0, 2.0], [-3.0, -2.0, -1.0, 1.0, 2.0], None)
    for prune in SETS:
        for k in (1, None):
            with pytest.raises(ValueError, match="the others lie anywhere"):
                ce.select(spec, LR, prune, k)


def test_what_a_file_tells_is_enough(problem, tmp_path):
    _partial(problem, 2 * K, "both_ends").save(tmp_path / "ends")
    spec = ce.Spectrum.load(tmp_path / "ends")
    assert int(ce.select(spec, LR, "negative", K).sum()) == K
    with pytest.raises(ValueError, match="partial spectrum holds"):
        ce.select(spec, LR, "negative", K + 1)


@pytest.mark.parametrize("prune", SETS)
def test_fixed_directions_are_the_users_choice(problem, prune):
    """Those of the listed ones that are in the set."""
    spec = _partial(problem, 4, "both_ends")
    values = spec.eigenvalues
    inside = {"negative": values < 0, "positive": values > 0, "chaotic": (values < 0) | (values > 2 / LR)}[prune]
    opt, _ = _step(problem, "source", lambda m: ce.HessianOperator(m, CE, *problem[1]), prune=prune, spectrum=spec)
    assert opt.last_step.pruned == int(inside.sum()) > 0


class Three(nn.Module):
    """P = 3."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(x * self.w).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("prune", "k"), [*((prune, k) for prune in SETS for k in (1, 2, 3)), ("dominant", 2), ("bulk", 2)]
)
def test_directions_are_kept_also_where_they_are_all_of_them(prune, k):
    """2 k > P: refreshed every third step, no operator needed in between, also after a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=generator).double() * 2, torch.randn(7, 1, generator=generator).double()
    model, loss_fn, ages = Three(), nn.MSELoss(), []
    options = {"lr": 1e-3, "prune": prune, "k": k, "refresh_every": 3}
    opt = ce.CGD(model.parameters(), **options)
    for t in range(6):
        if t % 3:
            model.zero_grad()
            loss_fn(model(x), y).backward()
            opt.step()
        else:
            opt.step(ce.HessianOperator(model, loss_fn, x, y))
        ages.append(opt.last_step.age)
        again = ce.CGD(model.parameters(), **options)
        again.load_state_dict(opt.state_dict())
        opt = again
    assert ages == [0, 1, 2, 0, 1, 2]
