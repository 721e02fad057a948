"""Random networks, selections and optimizers (Hypothesis) against torch and against rules written out by hand."""

import copy
import itertools
import math
from fractions import Fraction

import cases
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from oracles import double_backward, gradient, relative
from torch import nn

import chaos_ext as ce
from chaos_ext.spectra.decompose import spectrum_of_matrix

TOL = 1e-10
ZERO_TOL = 1e-12  # the documented default in float64
# The same examples in every run: a failure in CI is one that everybody can repeat.
SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
}
SEEDS = st.integers(0, 2**31)


@st.composite
def networks(draw, activations=tuple(cases.ACTIVATIONS), widest=7):
    """An MLP of 1 to 4 layers, every width, activation and bias drawn on its own."""
    sizes = [*draw(st.lists(st.integers(1, widest), min_size=1, max_size=4)), draw(st.integers(2, 5))]
    layers = []
    torch.manual_seed(draw(SEEDS))
    for i, o in itertools.pairwise(sizes):
        layers.append(nn.Linear(i, o, bias=draw(st.booleans())))
        layers.append(cases.ACTIVATIONS[draw(st.sampled_from(activations))]())
    return nn.Sequential(*layers[:-1]).double(), sizes[0], sizes[-1]


def _positive(*shape):
    return 0.1 + 2 * torch.rand(*shape, dtype=torch.float64)


@st.composite
def losses(draw, n, outputs):
    """A loss with drawn options, and targets for it."""
    torch.manual_seed(draw(SEEDS))
    reduction = draw(st.sampled_from(["mean", "sum"]))
    weight = _positive(outputs) if draw(st.booleans()) else None
    kind = draw(st.sampled_from(["indices", "probabilities", "mse", "bce"]))
    if kind == "mse":
        return nn.MSELoss(reduction=reduction), torch.randn(n, outputs, dtype=torch.float64)
    if kind == "bce":
        pos_weight = _positive(outputs) if draw(st.booleans()) else None
        target = torch.rand(n, outputs, dtype=torch.float64)
        target = target if draw(st.booleans()) else target.round()
        return nn.BCEWithLogitsLoss(weight=weight, pos_weight=pos_weight, reduction=reduction), target
    smoothing = draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
    if kind == "probabilities":
        loss = nn.CrossEntropyLoss(weight=weight, reduction=reduction, label_smoothing=smoothing)
        return loss, torch.randn(n, outputs, dtype=torch.float64).softmax(1)
    ignored = draw(st.sampled_from([-100, -1, 0]))
    loss = nn.CrossEntropyLoss(weight=weight, reduction=reduction, label_smoothing=smoothing, ignore_index=ignored)
    y = torch.randint(outputs, (n,))
    y[torch.rand(n) < 0.2] = ignored
    y[draw(st.integers(0, n - 1))] = 1  # not every row may be ignored
    return loss, y


@st.composite
def problems(draw):
    model, inputs, outputs = draw(networks())
    n = draw(st.integers(1, 12))
    loss_fn, y = draw(losses(n, outputs))
    return model, loss_fn, torch.randn(n, inputs, dtype=torch.float64), y


@settings(max_examples=90, **SETTINGS)
@given(problems())
def test_hessian_equals_double_backward_by_every_route(problem):
    model, loss_fn, x, y = problem
    op = ce.HessianOperator(model, loss_fn, x, y)
    H, expected = op.dense(), double_backward(model, loss_fn, x, y)
    assert {r.path for r in op.explain()} == {"enter at units"}
    assert torch.equal(H, H.T)
    assert relative(H, expected) < TOL
    assert relative(op.gradient, gradient(model, loss_fn, x, y)) < TOL
    v = torch.randn(len(H), 2, dtype=torch.float64)
    assert relative(op @ v, expected @ v) < TOL
    compressed = op.compressed()
    assert compressed.S.shape[0] <= op.compressed_bound(torch.float64)
    assert relative(compressed.to_dense(), H) < TOL
    assert relative(compressed @ v, expected @ v) < TOL


@settings(max_examples=40, **SETTINGS)
@given(problems())
def test_spectrum_is_that_of_the_dense_matrix(problem):
    model, loss_fn, x, y = problem
    expected = double_backward(model, loss_fn, x, y)
    values = torch.linalg.eigvalsh(expected)
    scale = values.abs().max()
    assume(not _between(values.abs(), 1e-14 * scale, 1e-10 * scale))  # else rounding decides which count as zero
    spec = ce.spectrum(ce.HessianOperator(model, loss_fn, x, y))
    assert spec.nullity == int((values.abs() <= ZERO_TOL * scale).sum())
    assert relative(spec.eigenvalues, values[values.abs() > ZERO_TOL * scale]) < TOL
    V = spec.eigenvectors()
    assert relative(V.T @ V, torch.eye(V.shape[1], dtype=V.dtype)) < TOL
    assert relative(expected @ V, V * spec.eigenvalues) < TOL


def _between(values, low, high):
    return bool(((values > low) & (values < high)).any())


# Eighths times powers of two: lr * lambda is exact, and zeros, ties and values on the threshold itself are frequent.
EIGHTHS = st.integers(-40, 40).map(lambda i: i / 8)
LRS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
PRUNE = st.sampled_from(["chaotic", "chaotic", "negative", "positive", None])


def brute_force(values, zero, lr, prune, k):
    """Indices that are selected, by the rule as it is documented, in exact arithmetic."""
    in_set = {
        None: lambda v: False,
        "negative": lambda v: v < 0,
        "positive": lambda v: v > 0,
        "chaotic": lambda v: v < 0 or (lr > 0 and v > 2 / lr),
    }[prune]
    members = [i for i, v in enumerate(values) if abs(v) > zero and in_set(v)]
    if k is None or k >= len(members):
        return members

    def rank(i):
        """The largest exponent ln|1 - lr lambda| of the chaotic set, the largest |lambda| of the others."""
        size = abs(1 - Fraction(lr) * Fraction(values[i])) if prune == "chaotic" else abs(values[i])
        return -size, i

    return sorted(sorted(members, key=rank)[:k])


@settings(max_examples=400, **SETTINGS)
@given(st.lists(EIGHTHS, min_size=1, max_size=12), LRS, PRUNE, st.none() | st.integers(0, 5), st.booleans(), SEEDS)
def test_selection_is_the_brute_force_rule(diagonal, lr, prune, k, random, seed):
    spec = spectrum_of_matrix(torch.diag(torch.tensor(diagonal, dtype=torch.float64)))
    values = spec.eigenvalues.tolist()
    assert values == sorted(v for v in diagonal if v != 0)
    k = None if k is None else min(k, len(diagonal))
    expected = brute_force(values, spec.zero_threshold, lr, prune, k)
    event(f"{prune}, {'all' if k is None else 'k of'} {'some' if expected else 'nothing'}")
    if not random:
        assert ce.select(spec, lr, prune, k).nonzero().flatten().tolist() == expected
        return
    everything = brute_force(values, spec.zero_threshold, lr, prune, None)
    masks = [ce.select(spec, lr, prune, k, "random", torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert torch.equal(*masks)
    chosen = masks[0].nonzero().flatten().tolist()
    assert len(chosen) == len(expected)
    assert set(chosen) <= set(everything)


@settings(max_examples=30, **SETTINGS)
@given(st.integers(2, 8), st.integers(1, 7), SEEDS)
def test_random_order_gives_every_member_its_chance(members, k, seed):
    spec = spectrum_of_matrix(torch.diag(-torch.arange(1.0, members + 1, dtype=torch.float64)))
    k, draws, generator = min(k, members), 400, torch.Generator().manual_seed(seed)
    counts = sum(ce.select(spec, 0.1, "negative", k, "random", generator).double() for _ in range(draws))
    p = k / members
    # Six standard deviations of a binomial count.
    assert ((counts - draws * p).abs() <= 6 * math.sqrt(draws * p * (1 - p))).all()


@st.composite
def optimizers(draw):
    options = {
        "lr": draw(st.sampled_from([0.01, 0.1, 0.5])),
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.9])),
        "dampening": draw(st.sampled_from([0.0, 0.3])),
        "weight_decay": draw(st.sampled_from([0.0, 0.05])),
        "maximize": draw(st.booleans()),
    }
    nesterov = options["momentum"] > 0 and options["dampening"] == 0 and draw(st.booleans())
    start = draw(st.integers(0, 2))
    pruning = {
        "prune": draw(PRUNE),
        "k": draw(st.none() | st.integers(0, 6)),
        "mix": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "start": start,
        "stop": draw(st.none() | st.integers(start + 1, 4)),
    }
    return {**options, "nesterov": nesterov}, pruning


def expected_direction(H, g, lr, step, pruning, maximize):
    """The gradient without its pruned part, from the dense eigendecomposition and the rule by hand."""
    if step < pruning["start"] or (pruning["stop"] is not None and step >= pruning["stop"]):
        return g
    values, vectors = torch.linalg.eigh(H)
    scale = float(values.abs().max())
    assume(not _between(values.abs(), 1e-14 * scale, 1e-10 * scale))  # rounding decides what is zero
    assume(not _between(values.abs(), 2 / lr * (1 - 1e-9), 2 / lr * (1 + 1e-9)))  # or what is chaotic
    # Under maximize the step climbs, and the paper's rule for chaos holds for -lambda.
    flipped = maximize and pruning["prune"] == "chaotic"
    seen = [-v if flipped else v for v in values.tolist()]
    chosen = brute_force(seen, ZERO_TOL * scale, lr, pruning["prune"], pruning["k"])
    everything = brute_force(seen, ZERO_TOL * scale, lr, pruning["prune"], None)
    for out in set(everything) - set(chosen):  # a tie at the cut: which of them is pruned is not determined
        size = [abs(1 - lr * v) if pruning["prune"] == "chaotic" else abs(v) for v in seen]
        assume(all(size[i] > size[out] * (1 + 1e-6) for i in chosen))
    V = vectors[:, chosen]
    return g - pruning["mix"] * (V @ (V.T @ g))


@settings(max_examples=40, **SETTINGS)
@given(networks(("tanh", "gelu", "softplus", "relu"), widest=5), st.integers(2, 8), optimizers(), SEEDS)
def test_cgd_is_torch_sgd_on_the_densely_pruned_gradient(network, n, options, seed):
    (model, inputs, outputs), (sgd, pruning) = network, options
    twin = copy.deepcopy(model)
    P = sum(p.numel() for p in model.parameters())
    pruning = {**pruning, "k": None if pruning["k"] is None else min(pruning["k"], P)}
    ours = ce.CGD(model.parameters(), **sgd, **pruning)
    theirs = torch.optim.SGD(twin.parameters(), **sgd, foreach=False, fused=False)
    torch.manual_seed(seed)
    loss_fn = nn.CrossEntropyLoss()
    for step in range(3):
        x, y = torch.randn(n, inputs, dtype=torch.float64), torch.randint(outputs, (n,))
        H, g = double_backward(twin, loss_fn, x, y), gradient(twin, loss_fn, x, y)
        d = expected_direction(H, g, sgd["lr"], step, pruning, sgd["maximize"])
        for p, part in zip(twin.parameters(), d.split([p.numel() for p in twin.parameters()])):
            p.grad = part.view(p.shape).clone()
        theirs.step()
        ours.step(ce.HessianOperator(model, loss_fn, x, y))
        # An eigenspace is exact to rounding over its distance from the rest of the spectrum.
        assert relative(_theta(model), _theta(twin)) < 1e-8


def _theta(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
