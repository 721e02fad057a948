"""The tangent map is the derivative of whole runs of the real optimizers."""

import copy
import itertools
import math

import cases
import pytest
import torch
from oracles import double_backward, relative
from torch import nn
from torch.optim import SGD, Adam, AdamW

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
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


def _model():
    return cases.mlp(2, "tanh", seed=3, width=3)


def _batches(n):
    return [cases.batch(5, cases.LOSSES["ce"][1], seed=10 + i) for i in range(n)]


def _whole(model):
    return model.parameters()


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


def _train(model, opt, batches, schedule=None, watch=None):
    for x, y in batches:
        if watch is not None:
            watch(ce.HessianOperator(model, CE, x, y))
        if isinstance(opt, ce.CGD):
            opt.step(ce.HessianOperator(model, CE, x, y))
        else:
            opt.zero_grad()
            CE(model(x), y).backward()
            opt.step()
        if schedule is not None:
            schedule(opt)


def _copy(model, make, opt):
    twin = copy.deepcopy(model)
    other = make(twin)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    return twin, other


def _compare(make, *, warm=0, steps=3, schedule=None, h=1e-5, freeze=None, tol=1e-6, **kwargs):
    """The product of the tangent maps against central differences of the run, from every direction of the state."""
    model = _model()
    if freeze is not None:
        model[freeze].weight.requires_grad_(False)
    opt = make(model)
    batches = _batches(warm + steps)
    _train(model, opt, batches[:warm], schedule)
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
            _train(twin, other, batches[warm:], schedule)
            ends.append(_state(twin, other))
        expected[:, j] = (ends[0] - ends[1]) / (2 * step)
    Y = torch.eye(tangent.size, dtype=torch.float64)[:, :directions].contiguous()
    _train(model, opt, batches[warm:], schedule, lambda op: tangent.apply_(op, Y))
    # Blocks of Adam's state differ by orders of magnitude: unit columns, then rows of comparable size.
    columns = expected.norm(dim=0).clamp_min(1e-12)
    Y, expected = Y / columns, expected / columns
    rows = expected.norm(dim=1, keepdim=True).clamp_min(1e-3 / len(expected) ** 0.5)
    assert relative(Y / rows, expected / rows) < tol
    return tangent


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("options", SGD_OPTIONS, ids=_ids)
def test_sgd_equals_differences_of_real_runs(options, warm):
    tangent = _compare(lambda m: SGD(_whole(m), **options), warm=warm)
    P = sum(p.numel() for p in _model().parameters())
    assert (tangent.parameters, tangent.size) == (P, 2 * P if options["momentum"] else P)


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize(("cls", "options"), ADAM_OPTIONS, ids=_ids)
def test_adam_equals_differences_of_real_runs(cls, options, warm):
    # Steps of Adam are ratios of gradients: small shifts keep the difference's own error below the tolerance.
    tangent = _compare(lambda m: cls(_whole(m), **options), warm=warm, h=1e-6)
    assert tangent.size == 3 * tangent.parameters


@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_learning_rate_schedules_need_nothing(cls):
    def schedule(opt):
        opt.param_groups[0]["lr"] *= 0.5

    extra = {"momentum": 0.9} if cls is SGD else {}
    _compare(lambda m: cls(_whole(m), lr=0.4, **extra), warm=1, schedule=schedule, h=1e-6)


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_learning_rate_as_a_tensor(cls):
    _compare(lambda m: cls(_whole(m), lr=torch.tensor(0.2, dtype=torch.float64), foreach=False), h=1e-6)


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
        assert tangent.size == tangent.parameters + sum(p.numel() for p in _model()[3].parameters())


def test_frozen_parameters_have_no_rows():
    _compare(lambda m: SGD(_whole(m), lr=0.2, momentum=0.9), warm=1, freeze=1)


def test_a_group_that_loses_its_momentum_keeps_its_buffer():
    def schedule(opt):
        opt.param_groups[0]["momentum"] = 0.0

    model = _model()
    opt = SGD(model.parameters(), lr=0.2, momentum=0.9)
    tangent = ce.TangentMap(opt)
    Y = torch.eye(tangent.size, dtype=torch.float64)
    _train(model, opt, _batches(1), schedule, lambda op: tangent.apply_(op, Y))
    v = Y[tangent.parameters :].clone()
    _train(model, opt, _batches(1), None, lambda op: tangent.apply_(op, Y))
    assert torch.equal(Y[tangent.parameters :], v)
    late = SGD(model.parameters(), lr=0.2)
    tangent = ce.TangentMap(late)
    late.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ce.UnsupportedError, match="momentum after"):
        tangent.apply_(ce.HessianOperator(model, CE, *_batches(1)[0]), Y[: tangent.size].clone())


@pytest.mark.parametrize("options", SGD_OPTIONS[::5], ids=_ids)
def test_cgd_with_fixed_directions_equals_differences_of_real_runs(options):
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    spec = ce.spectrum(ce.HessianOperator(_model(), CE, x, y))
    _compare(lambda m: ce.CGD(_whole(m), **options, prune="positive", spectrum=spec, mix=0.7), warm=1)


@pytest.mark.parametrize("prune", ["chaotic", "negative", "positive"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_cgd_frozen_is_the_projected_hessian(prune, momentum):
    model, (x, y) = _model(), _batches(1)[0]
    H = double_backward(model, CE, x, y)
    values, V = torch.linalg.eigh(H)
    chosen = values < -1e-12 if prune != "positive" else values > 1e-12
    V, lr, mix, w = V[:, chosen], 0.3, 0.8, 0.1
    opt = ce.CGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=w, prune=prune, mix=mix)
    op = ce.HessianOperator(model, CE, x, y)
    tangent = ce.TangentMap(opt)
    Y = tangent.apply_(op, tangent.start(op))
    K = H - mix * V @ (V.T @ H) + w * torch.eye(len(H), dtype=torch.float64)
    assert relative(Y[: len(H)], torch.eye(len(H), dtype=torch.float64) - lr * K) < 1e-10
    if momentum:
        assert relative(Y[len(H) :], K) < 1e-10
    assert tangent.gap is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_cgd_true_jacobian_equals_differences_of_real_runs_and_reports_the_gap(momentum):
    options = {"lr": 0.2, "momentum": momentum, "prune": "negative", "mix": 0.7}
    tangent = _compare(lambda m: ce.CGD(_whole(m), **options), warm=1, steps=1, jacobian="true")
    assert tangent.gap > 0.05


def test_true_jacobian_leaves_model_and_operator_as_they_were():
    model, (x, y) = _model(), _batches(1)[0]
    before = [p.detach().clone() for p in model.parameters()]
    op = ce.HessianOperator(model, CE, x, y)
    opt = ce.CGD(model.parameters(), lr=0.2, prune="negative")
    tangent = ce.TangentMap(opt, jacobian="true")
    tangent.apply_(op, tangent.start(op, 2))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
    opt.step(op)
    with pytest.raises(ce.UnsupportedError, match="noise"):
        ce.TangentMap(ce.CGD(model.parameters(), prune="negative", noise=0.1), jacobian="true").apply_(
            ce.HessianOperator(model, CE, x, y), torch.eye(tangent.size, 1, dtype=torch.float64)
        )
    with pytest.raises(ValueError, match="jacobian"):
        ce.TangentMap(SGD(model.parameters(), lr=0.1), jacobian="true")


def test_cgd_random_directions_are_those_that_the_step_prunes():
    model, (x, y) = _model(), _batches(1)[0]
    generator = torch.Generator().manual_seed(2)
    opt = ce.CGD(model.parameters(), lr=1.0, prune="negative", k=2, order="random", generator=generator)
    op = ce.HessianOperator(model, CE, x, y)
    tangent = ce.TangentMap(opt)
    J = tangent.apply_(op, tangent.start(op))
    spec = ce.spectrum(op)
    mask = opt.selection(spec)
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    opt.step(op)
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    g = op.gradient
    assert relative(before - after, g - spec.project(g, mask)) < 1e-10
    V = spec.eigenvectors(mask)
    assert relative(J @ V, V) < 1e-10  # pruned directions are neutral


def test_dead_units_are_zero_over_zero_equals_zero():
    """A unit that never fires has m = v = 0; nothing of it may become NaN, whatever eps is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        model[1].bias[0] = -100.0
    for eps in (0.0, 1e-8):
        opt = Adam(model.parameters(), lr=0.01, eps=eps)
        tangent = ce.TangentMap(opt)
        x, y = _batches(1)[0]
        op = ce.HessianOperator(model, CE, x, y)
        Y = tangent.apply_(op, torch.eye(tangent.size, dtype=torch.float64))
        assert torch.isfinite(Y).all()
        assert torch.equal(Y[:6, :6], torch.eye(6, dtype=torch.float64))  # weights of the dead unit stay where they are


def test_units_conjugate_the_map_and_condition_it():
    """Heavy ball at lambda = 80, lr = 1e-3: condition 7e3 in (theta, v), 2.3 in (theta, lr v)."""
    model = nn.Linear(1, 1, bias=False).double()
    x, y = torch.full((1, 1), 40.0**0.5, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    opt = SGD(model.parameters(), lr=1e-3, momentum=0.9)
    nn.functional.mse_loss(model(x), y).backward()
    opt.step()
    op = ce.HessianOperator(model, nn.MSELoss(), x, y)
    tangent = ce.TangentMap(opt)
    raw = tangent.apply_(op, torch.eye(2, dtype=torch.float64))
    scaled = tangent.apply_(op, torch.eye(2, dtype=torch.float64), tangent.units(op))
    D = torch.diag(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    assert relative(scaled, D @ raw @ D.inverse()) < 1e-12
    assert 6e3 < torch.linalg.cond(raw) < 8e3
    assert torch.linalg.cond(scaled) < 2.6


def test_heavy_ball_is_conformally_symplectic():
    """Singular values pair up, s_i s_(2P + 1 - i) = mu^t in (theta, c v), under every option and schedule."""
    model, steps, mu = _model(), 6, 0.9
    options = {"momentum": mu, "dampening": 0.3, "weight_decay": 0.1, "maximize": True}
    opt = SGD(model.parameters(), lr=0.3, **options)
    tangent = ce.TangentMap(opt)
    Y, units = torch.eye(tangent.size, dtype=torch.float64), None

    def watch(op):
        nonlocal units
        units = units or tangent.units(op)
        tangent.apply_(op, Y, units)

    def schedule(opt):
        opt.param_groups[0]["lr"] *= 0.8

    _train(model, opt, _batches(steps), schedule, watch)
    s = torch.linalg.svdvals(Y)
    assert ((s * s.flip(0)).log() - steps * math.log(mu)).abs().max() < 1e-8


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_float32_against_float64(cls):
    blocks = {}
    for dtype in (torch.float32, torch.float64):
        model = _model().to(dtype)
        opt = cls(model.parameters(), lr=0.1, **({"momentum": 0.9} if cls is SGD else {"eps": 1e-3}))
        tangent = ce.TangentMap(opt)
        Y = torch.eye(tangent.size, dtype=dtype)
        for x, y in _batches(3):
            tangent.apply_(ce.HessianOperator(model, CE, x.to(dtype), y), Y)
            opt.zero_grad()
            CE(model(x.to(dtype)), y).backward()
            opt.step()
        blocks[dtype] = Y.double()
    assert relative(blocks[torch.float32], blocks[torch.float64]) < 1e-4


def test_theta_state_starts_from_identity_over_zero():
    model, (x, y) = _model(), _batches(1)[0]
    tangent = ce.TangentMap(SGD(model.parameters(), lr=0.1, momentum=0.9), state="theta")
    op = ce.HessianOperator(model, CE, x, y)
    Y = tangent.start(op)
    P = tangent.parameters
    assert tuple(Y.shape) == (2 * P, P)
    assert torch.equal(Y[:P], torch.eye(P, dtype=torch.float64))
    assert not Y[P:].any()
    assert not tangent.is_cocycle
    assert ce.TangentMap(SGD(model.parameters(), lr=0.1), state="theta").is_cocycle


class _SignSGD(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for p in (p for g in self.param_groups for p in g["params"]):
            p -= self.param_groups[0]["lr"] * p.grad.sign()


class _OddSGD(SGD):
    pass


def test_unknown_optimizers_are_refused_by_name_and_can_be_taught():
    model, (x, y) = _model(), _batches(1)[0]
    for opt in (_SignSGD(model.parameters()), torch.optim.RMSprop(model.parameters()), _OddSGD(model.parameters())):
        with pytest.raises(ce.UnsupportedError, match=type(opt).__name__):
            ce.TangentMap(opt)
    with pytest.raises(ce.UnsupportedError, match="amsgrad"):
        ce.TangentMap(Adam(model.parameters(), amsgrad=True))
    ce.register_tangent(_SignSGD, lambda opt, op, Y: Y.mul_(2.0), buffers=1)
    tangent = ce.TangentMap(_SignSGD(model.parameters()))
    op = ce.HessianOperator(model, CE, x, y)
    assert tangent.size == 2 * tangent.parameters
    assert float(tangent.apply_(op, tangent.start(op)).sum()) == 2 * tangent.parameters
    for bad in (int, "SGD"):
        with pytest.raises(TypeError, match="cls"):
            ce.register_tangent(bad, lambda opt, op, Y: None)
    with pytest.raises(ValueError, match="buffers"):
        ce.register_tangent(_SignSGD, lambda opt, op, Y: None, buffers=-1)


def test_bad_input_leaves_the_block_untouched():
    model, (x, y) = _model(), _batches(1)[0]
    other = _model()
    opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
    tangent, op = ce.TangentMap(opt), ce.HessianOperator(model, CE, x, y)
    Y = torch.eye(tangent.size, dtype=torch.float64)
    foreign = ce.HessianOperator(other, CE, x, y)
    narrow = ce.TangentMap(SGD(list(model.parameters())[:2], lr=0.1))
    wide = ce.TangentMap(SGD([*model.parameters(), nn.Parameter(torch.zeros(7).double())], lr=0.1))
    for error, match, call in (
        (ValueError, "1.weight", lambda: tangent.apply_(foreign, Y)),
        (ValueError, "3.bias", lambda: narrow.apply_(op, Y)),
        (ValueError, r"\(7,\)", lambda: wide.apply_(op, Y)),
        (ValueError, "Y: expected shape", lambda: tangent.apply_(op, Y[:-1].clone())),
        (TypeError, "Y: expected", lambda: tangent.apply_(op, Y.float())),
        (TypeError, "op: expected", lambda: tangent.apply_(model, Y)),
        (ValueError, "state", lambda: ce.TangentMap(opt, state="x")),
        (ValueError, "jacobian", lambda: ce.TangentMap(opt, jacobian="x")),
        (TypeError, "opt", lambda: ce.TangentMap(model)),
        (ValueError, "joined", lambda: _join(model).apply_(op, Y)),
    ):
        with pytest.raises(error, match=match):
            call()
    CE(model(x), y).backward()
    opt.step()
    with pytest.raises(ce.StaleOperatorError):
        tangent.apply_(op, Y)
    assert torch.equal(Y, torch.eye(tangent.size, dtype=torch.float64))


def _join(model):
    first, *rest = model.parameters()
    opt = SGD([first], lr=0.1, momentum=0.9)
    tangent = ce.TangentMap(opt)
    opt.add_param_group({"params": rest})
    return tangent


def test_displaced_operator():
    model, (x, y) = _model(), _batches(1)[0]
    op = ce.HessianOperator(model, CE, x, y)
    theta, shift = op.snapshot.theta.clone(), torch.full((op.shape[0],), 0.1, dtype=torch.float64)
    with op.displaced(theta + shift) as there:
        H = there.dense()
        assert relative(H, double_backward(model, CE, x, y)) < 1e-10
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in model.parameters()]), theta)
    assert relative(op.dense(), double_backward(model, CE, x, y)) < 1e-10
    with pytest.raises(ce.StaleOperatorError):
        there.dense()
    with pytest.raises(ValueError, match="theta"), op.displaced(theta[1:]):
        pass
    with pytest.raises(TypeError, match="theta"), op.displaced(theta.float()):
        pass
    with pytest.raises(KeyError), op.displaced(theta + shift):
        raise KeyError
    assert op.snapshot.is_fresh()
