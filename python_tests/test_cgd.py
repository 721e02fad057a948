"""CGD: the pruned step is the dense one, and where nothing is pruned it is torch's SGD bit for bit."""

import copy
import itertools

import cases
import pytest
import torch
from oracles import double_backward, gradient, pruned_gradient, relative
from torch import nn

import chaos_ext as ce
from chaos_ext.spectra.decompose import spectrum_of_matrix

CE = nn.CrossEntropyLoss()

OPTIONS = [
    {"lr": lr, "momentum": mu, "dampening": damp, "weight_decay": wd, "nesterov": nest, "maximize": up}
    for lr, mu, damp, wd, nest, up in itertools.product(
        [0.1], [0.0, 0.9], [0.0, 0.3], [0.0, 0.05], [False, True], [False, True]
    )
    if not nest or (mu > 0 and damp == 0)
]


def _ids(options):
    return ",".join(f"{k}={v}" for k, v in options.items() if v)


def _setting(activation="tanh", dtype=torch.float64, seed=0):
    model = cases.mlp(3, activation, seed=seed, width=12).to(dtype)
    x, y = cases.batch(8, cases.LOSSES["ce"][1])
    return model, x.to(dtype), y


def _theta(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def _feed(twin, op):
    """The same gradient for torch's optimizer."""
    start = 0
    for p in twin.parameters():
        p.grad = op.gradient[start : start + p.numel()].view(p.shape).clone()
        start += p.numel()


@pytest.mark.parametrize(
    "bypass", [{"prune": None}, {"mix": 0.0}, {"start": 9}, {"stop": 0}, {"k": 0}, {"lr_empty": True}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=_ids)
def test_without_pruning_bit_identical_to_torch_sgd(options, dtype, bypass):
    model, x, y = _setting(dtype=dtype)
    twin = copy.deepcopy(model)
    bypass = dict(bypass)
    if bypass.pop("lr_empty", False):
        # A convex problem has an empty "negative" selection: the projection runs, and selects nothing.
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).to(dtype)
        twin, bypass = copy.deepcopy(model), {"prune": "negative"}
    ours = ce.CGD(model.parameters(), **options, **bypass)
    theirs = torch.optim.SGD(twin.parameters(), **options, foreach=False, fused=False)
    for _ in range(4):
        op = ce.HessianOperator(model, CE, x, y)
        _feed(twin, op)
        loss = ours.step(op)
        theirs.step()
        assert loss.item() == op.loss.item()
        assert torch.equal(_theta(model), _theta(twin))
        assert ours.last_step.pruned == 0


@pytest.mark.parametrize("prune", ["chaotic", "negative", "positive"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_pruned_gradient_equals_that_of_the_dense_eigendecomposition(prune, activation):
    model, x, y = _setting(activation)
    lr = 0.5
    H, g = double_backward(model, CE, x, y), gradient(model, CE, x, y)
    lr = 2 / (0.5 * torch.linalg.eigvalsh(H)[-1].item())  # so that the largest eigenvalues are chaotic too
    expected = pruned_gradient(H, g, lr, prune)
    before = _theta(model)
    opt = ce.CGD(model.parameters(), lr=lr, prune=prune)
    opt.step(ce.HessianOperator(model, CE, x, y))
    assert relative((before - _theta(model)) / lr, expected) < 1e-8
    share = 1 - expected.square().sum().item() / g.square().sum().item()
    assert opt.last_step.share == pytest.approx(share, rel=1e-8)
    assert opt.last_step.pruned > 0


@pytest.mark.parametrize("source", ["operator", "spectrum", "matrix", "closure"])
@pytest.mark.parametrize("options", OPTIONS, ids=_ids)
def test_pruned_steps_follow_torch_sgd_on_the_pruned_gradient(options, source):
    model, x, y = _setting()
    twin = copy.deepcopy(model)
    ours = ce.CGD(model.parameters(), **options, prune="negative")
    theirs = torch.optim.SGD(twin.parameters(), **options, foreach=False, fused=False)
    for step in range(3):
        H, g = double_backward(twin, CE, x, y), gradient(twin, CE, x, y)
        d, start = pruned_gradient(H, g, options["lr"], "negative"), 0
        for p in twin.parameters():
            p.grad = d[start : start + p.numel()].view(p.shape)
            start += p.numel()
        theirs.step()
        loss = ours.step(_source(source, model, x, y))
        assert relative(_theta(model), _theta(twin)) < 1e-10
        assert ours.steps == step + 1
        assert (loss is None) == (source == "matrix")


def _source(kind, model, x, y):
    if kind == "matrix":
        model.zero_grad()
        CE(model(x), y).backward()
        return ce.hessian(model, CE, x, y)
    op = ce.HessianOperator(model, CE, x, y)
    return {"operator": op, "spectrum": ce.spectrum(op), "closure": lambda: op}[kind]


def test_grad_is_neither_read_nor_written_with_an_operator():
    model, x, y = _setting()
    marks = [torch.full_like(p, 7.0) for p in model.parameters()]
    for p, m in zip(model.parameters(), marks):
        p.grad = m
    ce.CGD(model.parameters(), lr=0.1).step(ce.HessianOperator(model, CE, x, y))
    for p, m in zip(model.parameters(), marks):
        assert p.grad is m
        assert (m == 7).all()


def test_mix_interpolates():
    moves = {}
    for mix in (0.0, 0.25, 1.0):
        model, x, y = _setting()
        before = _theta(model)
        ce.CGD(model.parameters(), lr=0.1, prune="positive", mix=mix).step(ce.HessianOperator(model, CE, x, y))
        moves[mix] = _theta(model) - before
    assert relative(moves[0.25], 0.75 * moves[0.0] + 0.25 * moves[1.0]) < 1e-12


def test_start_and_stop():
    model, x, y = _setting()
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative", start=1, stop=3)
    pruned = []
    for _ in range(5):
        opt.step(ce.HessianOperator(model, CE, x, y))
        pruned.append(opt.last_step.pruned > 0)
    assert pruned == [False, True, True, False, False]


def test_k_and_random_order_draw_once_per_step():
    model, x, y = _setting()
    generator = torch.Generator().manual_seed(5)
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative", k=3, order="random", generator=generator)
    spec = ce.spectrum(ce.HessianOperator(model, CE, x, y))
    looked = opt.selection(spec)
    state = generator.get_state()
    assert torch.equal(opt.selection(spec), looked)
    before = _theta(model)
    opt.step(spec)
    assert torch.equal(generator.get_state(), state)
    assert opt.last_step.pruned == 3
    expected = spec.gradient - spec.project(spec.gradient, looked)
    assert relative((before - _theta(model)) / 0.1, expected) < 1e-9


def test_noise_lies_in_the_pruned_directions_with_the_given_deviation():
    model, x, y = _setting()
    start = copy.deepcopy(model.state_dict())
    coefficients = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        model.load_state_dict(start)
        opt = ce.CGD(model.parameters(), lr=1.0, prune="negative", noise=0.5, generator=generator)
        spec = ce.spectrum(ce.HessianOperator(model, CE, x, y))
        mask = opt.selection(spec)
        before = _theta(model)
        opt.step(spec)
        d = before - _theta(model)
        c = spec.coefficients(d)
        coefficients.append(c[mask])
        clean = spec.gradient - spec.project(spec.gradient, mask)
        assert relative(d - spec.project(d, mask), clean) < 1e-10
    c = torch.cat(coefficients)
    assert len(c) > 1000
    assert c.mean().abs() < 5 * 0.5 / len(c) ** 0.5
    assert c.std().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("how", ["operator", "grad", "loaded"])
def test_fixed_directions_are_pruned_at_every_step(how, tmp_path):
    """Global pruning: the directions of the first spectrum, the gradient of every step."""
    model, x, y = _setting()
    spec = ce.spectrum(ce.HessianOperator(model, CE, x, y))
    V = spec.eigenvectors(spec.eigenvalues > 0)
    if how == "loaded":
        spec.save(tmp_path / "s.pt")
        spec = ce.Spectrum.load(tmp_path / "s.pt")
    opt = ce.CGD(model.parameters(), lr=0.1, prune="positive", spectrum=spec)
    for _ in range(3):
        before, g = _theta(model), gradient(model, CE, x, y)
        if how == "operator":
            opt.step(ce.HessianOperator(model, CE, x, y))
        else:
            model.zero_grad()
            CE(model(x), y).backward()
            opt.step()
        assert relative((before - _theta(model)) / 0.1, g - V @ (V.T @ g)) < 1e-9
        assert opt.last_step.pruned == V.shape[1]
        assert opt.last_step.share == pytest.approx((V.T @ g).square().sum().item() / g.square().sum().item())


def test_parameter_groups_and_schedulers():
    model, x, y = _setting()
    twin = copy.deepcopy(model)

    def groups(m):
        return [
            {"params": m[3].parameters(), "lr": 0.3},
            {"params": [*m[1].parameters(), *m[5].parameters()], "momentum": 0.9},
        ]

    ours = ce.CGD(groups(model), lr=0.1, prune="negative")
    theirs = torch.optim.SGD(groups(twin), lr=0.1, foreach=False)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (ours, theirs)]
    for _ in range(3):
        d, start = pruned_gradient(double_backward(twin, CE, x, y), gradient(twin, CE, x, y), 0.1, "negative"), 0
        for p in twin.parameters():
            p.grad = d[start : start + p.numel()].view(p.shape)
            start += p.numel()
        theirs.step()
        ours.step(ce.HessianOperator(model, CE, x, y))
        for s in schedules:
            s.step()
        assert relative(_theta(model), _theta(twin)) < 1e-10
    assert ours.param_groups[0]["lr"] == pytest.approx(0.3 / 8)
    chaotic = ce.CGD(groups(model), lr=0.1)
    with pytest.raises(ce.UnsupportedError, match="different lr"):
        chaotic.step(ce.HessianOperator(model, CE, x, y))


@pytest.mark.parametrize(
    ("options", "upper"),
    [
        ({}, 20.0),
        ({"momentum": 0.5}, 30.0),
        ({"momentum": 0.5, "dampening": 0.5}, 60.0),
        ({"momentum": 0.5, "nesterov": True}, 15.0),
    ],
)
def test_optimizer_threshold_is_where_the_companion_root_leaves_the_unit_circle(options, upper):
    """Checked on real torch.optim.SGD runs on L = lambda x^2 / 2: bounded below the threshold, divergent above."""
    for lam, chaotic in ((upper * 0.99, False), (upper * 1.01, True)):
        x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        run = torch.optim.SGD([x], lr=0.1, **options)
        for _ in range(3000):
            run.zero_grad()
            (lam * x**2 / 2).sum().backward()
            run.step()
        assert (not abs(x.item()) < 1e3) == chaotic
        opt = ce.CGD([x], lr=0.1, **options, threshold="optimizer")
        spec = spectrum_of_matrix(torch.tensor([[lam]], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        assert opt.selection(spec).tolist() == [chaotic]


def test_optimizer_threshold_counts_weight_decay_and_maximize():
    spec = spectrum_of_matrix(torch.diag(torch.tensor([-0.5, -0.05, 19.95, 2.0], dtype=torch.float64)))
    x = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    assert spec.eigenvalues.tolist() == [-0.5, -0.05, 2.0, 19.95]
    decay = ce.CGD([x], lr=0.1, weight_decay=0.1, threshold="optimizer")
    assert decay.selection(spec).tolist() == [True, False, False, True]
    up = ce.CGD([x], lr=0.1, maximize=True, threshold="optimizer")
    assert up.selection(spec).tolist() == [False, False, True, True]


def test_state_dict_round_trip_continues_bit_identically(tmp_path):
    def run(steps, model, opt, x, y):
        for _ in range(steps):
            opt.step(ce.HessianOperator(model, CE, x, y))

    kwargs = {"lr": 0.1, "momentum": 0.9, "prune": "negative", "start": 2, "stop": 5}
    model, x, y = _setting()
    opt = ce.CGD(model.parameters(), **kwargs)
    run(3, model, opt, x, y)
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "c.pt")
    run(4, model, opt, x, y)
    again, *_ = _setting(seed=9)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    again.load_state_dict(saved["model"])
    resumed = ce.CGD(again.parameters(), **{**kwargs, "lr": 7.0})
    resumed.load_state_dict(saved["opt"])
    assert resumed.steps == 3
    run(4, again, resumed, x, y)
    assert torch.equal(_theta(again), _theta(model))
    with pytest.raises(ce.CheckpointError):
        resumed.load_state_dict({**saved["opt"], "chaos_ext": {"steps": "x"}})


def test_state_of_torch_sgd_is_accepted():
    model, x, y = _setting()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    CE(model(x), y).backward()
    sgd.step()
    opt = ce.CGD(model.parameters(), lr=1.0)
    opt.load_state_dict(sgd.state_dict())
    assert opt.param_groups[0]["momentum"] == 0.9
    opt.step(ce.HessianOperator(model, CE, x, y))


def test_float32_pruning_against_float64():
    deltas = {}
    for dtype in (torch.float32, torch.float64):
        model, x, y = _setting(dtype=dtype)
        before = _theta(model)
        opt = ce.CGD(model.parameters(), lr=1.0, prune="negative", spectrum_dtype=torch.float64)
        opt.step(ce.HessianOperator(model, CE, x, y))
        deltas[dtype] = (_theta(model) - before).double()
    assert relative(deltas[torch.float32], deltas[torch.float64]) < 1e-5


def test_functional_models_and_tied_weights_are_pruned_through_the_dense_spectrum():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)).double()
    x, y = cases.batch(8, cases.LOSSES["ce"][1])
    expected = pruned_gradient(double_backward(model, CE, x, y), gradient(model, CE, x, y), 0.1, "chaotic")
    before = _theta(model)
    ce.CGD(model.parameters(), lr=0.1).step(ce.HessianOperator(model, CE, x, y))
    assert relative((before - _theta(model)) / 0.1, expected) < 1e-8


def test_non_contiguous_parameters():
    model, x, y = _setting()
    model[1].weight.data = model[1].weight.data.T.contiguous().T
    assert not model[1].weight.is_contiguous()
    expected = pruned_gradient(double_backward(model, CE, x, y), gradient(model, CE, x, y), 0.1, "negative")
    before = _theta(model)
    ce.CGD(model.parameters(), lr=0.1, prune="negative", momentum=0.9).step(ce.HessianOperator(model, CE, x, y))
    assert relative((before - _theta(model)) / 0.1, expected) < 1e-9


def test_perturb_has_the_given_length():
    model, *_ = _setting()
    before = _theta(model)
    v = torch.randn(len(before), dtype=torch.float64)
    ce.perturb(model, v, 1e-3)
    delta = _theta(model) - before
    assert delta.norm().item() == pytest.approx(1e-3, rel=1e-12)
    assert torch.dot(delta, v).item() == pytest.approx(1e-3 * v.norm().item(), rel=1e-9)
    for bad in (torch.zeros_like(v), v[:-1], v * float("nan")):
        with pytest.raises(ValueError, match="direction"):
            ce.perturb(model, bad, 1e-3)
