"""The tangent map is the derivative of whole runs of the real optimizers, by central differences of those runs."""

import copy
import itertools

import cases
import pytest
import torch
from oracles import relative
from torch.optim import SGD, Adam, AdamW
from training import CE, batches, small_model, train

import chaos_ext as ce

BUFFERS = {SGD: ("momentum_buffer",), ce.CGD: ("momentum_buffer",), Adam: ("exp_avg", "exp_avg_sq")}
BUFFERS[AdamW] = BUFFERS[Adam]

SGD_OPTIONS = [
    {"lr": 0.2, "momentum": mu, "dampening": damp, "weight_decay": wd, "nesterov": nest, "maximize": up}
    for mu, damp, wd, nest, up in itertools.product([0.0, 0.9], [0.0, 0.3], [0.0, 0.05], [False, True], [False, True])
    if not nest or (mu > 0 and damp == 0)
]
ADAM_OPTIONS = [
    (cls, {"lr": 0.05, **extra})
    for cls in (Adam, AdamW)
    for extra in (
        {"weight_decay": 0.0},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.0},
        {"betas": (0.0, 0.9)},
    )
]


def _ids(v):
    return ",".join(f"{k}={x}" for k, x in v.items() if x) if isinstance(v, dict) else v.__name__


def _trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def _state(model, opt):
    """(theta, buffers) as one vector; buffers in theta order, of the parameters that have them."""
    names = BUFFERS[type(opt)]
    momentum = {p: g.get("momentum", 1.0) for g in opt.param_groups for p in g["params"]}
    parts = list(_trained(model))
    for name in names:
        for p in _trained(model):
            if momentum[p]:
                b = opt.state.get(p, {}).get(name)
                parts.append(torch.zeros_like(p) if b is None else b)
    return torch.cat([t.detach().reshape(-1) for t in parts])


def _shift(model, opt, delta):
    at = 0
    momentum = {p: g.get("momentum", 1.0) for g in opt.param_groups for p in g["params"]}
    tensors = list(_trained(model))
    for name in BUFFERS[type(opt)]:
        tensors += [opt.state.get(p, {}).get(name) for p in _trained(model) if momentum[p]]
    with torch.no_grad():
        for t in tensors:
            if t is None:
                break
            t += delta[at : at + t.numel()].view(t.shape)
            at += t.numel()


def _copy(model, make, opt):
    twin = copy.deepcopy(model)
    other = make(twin)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    return twin, other


def _compare(make, *, warm=0, steps=3, schedule=None, h=1e-5, freeze=None, tol=1e-6, **kwargs):
    """The product of the tangent maps against central differences of the run, from every direction of the state."""
    model = small_model()
    if freeze is not None:
        model[freeze].weight.requires_grad_(False)
    opt = make(model)
    data = batches(warm + steps)
    train(model, opt, data[:warm], schedule)
    tangent = ce.TangentMap(opt, **kwargs)
    P = tangent.parameters
    # Without buffers yet, only theta can be displaced: (I; 0).
    directions = tangent.size if warm else P
    expected = torch.zeros(tangent.size, directions, dtype=torch.float64)
    start, theta_and_first = _state(model, opt), 2 * P
    for j in range(directions):
        # Second moments are tiny and enter by their roots: displace them by a fraction of themselves.
        step = h if j < theta_and_first else 1e-4 * float(start[j])
        ends = []
        for sign in (1, -1):
            twin, other = _copy(model, make, opt)
            delta = torch.zeros(tangent.size, dtype=torch.float64)
            delta[j] = sign * step
            _shift(twin, other, delta)
            train(twin, other, data[warm:], schedule)
            ends.append(_state(twin, other))
        expected[:, j] = (ends[0] - ends[1]) / (2 * step)
    Y = torch.eye(tangent.size, dtype=torch.float64)[:, :directions].contiguous()
    train(model, opt, data[warm:], schedule, lambda op: tangent.apply_(op, Y))
    # Blocks of Adam's state differ by orders of magnitude: unit columns, then rows of comparable size.
    columns = expected.norm(dim=0).clamp_min(1e-12)
    Y, expected = Y / columns, expected / columns
    rows = expected.norm(dim=1, keepdim=True).clamp_min(1e-3 / len(expected) ** 0.5)
    assert relative(Y / rows, expected / rows) < tol
    return tangent


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("options", SGD_OPTIONS, ids=_ids)
def test_sgd_equals_differences_of_real_runs(options, warm):
    tangent = _compare(lambda m: SGD(m.parameters(), **options), warm=warm)
    P = sum(p.numel() for p in small_model().parameters())
    assert (tangent.parameters, tangent.size) == (P, 2 * P if options["momentum"] else P)


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize(("cls", "options"), ADAM_OPTIONS, ids=_ids)
def test_adam_equals_differences_of_real_runs(cls, options, warm):
    # Steps of Adam are ratios of gradients: small shifts keep the difference's own error below the tolerance.
    tangent = _compare(lambda m: cls(m.parameters(), **options), warm=warm, h=1e-6)
    assert tangent.size == 3 * tangent.parameters


@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_learning_rate_schedules_need_nothing(cls):
    def schedule(opt):
        opt.param_groups[0]["lr"] *= 0.5

    extra = {"momentum": 0.9} if cls is SGD else {}
    _compare(lambda m: cls(m.parameters(), lr=0.4, **extra), warm=1, schedule=schedule, h=1e-6)


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_learning_rate_as_a_tensor(cls):
    _compare(lambda m: cls(m.parameters(), lr=torch.tensor(0.2, dtype=torch.float64), foreach=False), h=1e-6)


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("cls", [SGD, Adam])
def test_groups_in_any_order_with_their_own_options(cls, warm):
    def make(m):
        mine = {"momentum": 0.8, "nesterov": True} if cls is SGD else {"betas": (0.6, 0.8)}
        return cls(
            [{"params": list(m[3].parameters())[::-1], "lr": 0.3, **mine}, {"params": m[1].parameters()}], lr=0.1
        )

    tangent = _compare(make, warm=warm, h=1e-6)
    if cls is SGD:  # groups without momentum have no rows of v
        assert tangent.size == tangent.parameters + sum(p.numel() for p in small_model()[3].parameters())


def test_frozen_parameters_have_no_rows():
    _compare(lambda m: SGD(m.parameters(), lr=0.2, momentum=0.9), warm=1, freeze=1)


@pytest.mark.parametrize("options", SGD_OPTIONS[::5], ids=_ids)
def test_cgd_with_fixed_directions_equals_differences_of_real_runs(options):
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    spec = ce.spectrum(ce.HessianOperator(small_model(), CE, x, y))
    _compare(lambda m: ce.CGD(m.parameters(), **options, prune="positive", spectrum=spec, mix=0.7), warm=1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_cgd_true_jacobian_equals_differences_of_real_runs_and_reports_the_gap(momentum):
    options = {"lr": 0.2, "momentum": momentum, "prune": "negative", "mix": 0.7}
    tangent = _compare(lambda m: ce.CGD(m.parameters(), **options), warm=1, steps=1, jacobian="true")
    assert tangent.gap > 0.05
