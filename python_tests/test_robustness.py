"""Circumstances that must not change a number: modes, contexts, threads, copies, fitted batches, state of the model."""

import copy
import pickle
import threading

import cases
import pytest
import torch
from oracles import double_backward, gradient, pruned_gradient, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


class Captured:
    """A loss that holds on to a parameter: only double backward is exact for it."""

    def __init__(self, model):
        self.held = list(model.parameters())

    def __call__(self, z, y):
        return F.cross_entropy(z, y) + 1e-2 * sum((p**4).sum() for p in self.held)


def _setting(kind="layers"):
    model = cases.mlp(3, "tanh", width=8)
    x, y = cases.batch(8, cases.LOSSES["ce"][1])
    loss = {"layers": CE, "functional": lambda z, t: F.cross_entropy(z, t), "double backward": Captured(model)}[kind]
    return model, loss, x, y


def _theta(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
@pytest.mark.parametrize("kind", ["layers", "functional", "double backward"])
def test_the_callers_grad_mode_changes_nothing(kind, context):
    model, loss, x, y = _setting(kind)
    H, g = double_backward(model, loss, x, y), gradient(model, loss, x, y)
    with context():
        op = ce.HessianOperator(model, loss, x, y)
        assert (op.explain()[0].name == "(model)") == (kind != "layers")
        assert relative(op.gradient, g) < 1e-10
        assert relative(op.dense(), H) < 1e-10
        assert relative(op @ torch.eye(len(H), dtype=H.dtype), H) < 1e-10


@pytest.mark.parametrize("kind", ["layers", "functional", "double backward"])
def test_the_step_prunes_on_every_path(kind):
    model, loss, x, y = _setting(kind)
    expected = pruned_gradient(double_backward(model, loss, x, y), gradient(model, loss, x, y), 0.1, "negative")
    before = _theta(model)
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative")
    opt.step(ce.HessianOperator(model, loss, x, y))
    assert opt.last_step.pruned > 0
    assert relative((before - _theta(model)) / 0.1, expected) < 1e-8


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.bn(self.a(x.flatten(1)))))


def test_modes_and_buffers_belong_to_the_function():
    torch.manual_seed(0)
    model = Normed().double().eval()
    x, y = cases.batch(8, cases.LOSSES["ce"][1])
    op = ce.HessianOperator(model, CE, x, y)
    model.train()
    with pytest.raises(ce.StaleOperatorError):
        op.dense()
    model.eval()
    op.dense()
    model.bn.running_var.mul_(3)
    with pytest.raises(ce.StaleOperatorError):
        op.dense()
    model.train()
    op = ce.HessianOperator(model, CE, x, y)
    model(x)  # updates running statistics, of which H in training mode does not depend
    assert relative(op.dense(), double_backward(model, CE, x, y)) < 1e-10


def test_frozen_parameters_belong_to_the_function():
    model, loss, x, y = _setting()
    model[1].weight.requires_grad_(False)
    op = ce.HessianOperator(model, loss, x, y)
    with torch.no_grad():
        model[1].weight.mul_(2)
    with pytest.raises(ce.StaleOperatorError):
        op.dense()


@pytest.mark.parametrize("kind", ["layers", "functional"])
def test_autocast_is_refused(kind):
    model, loss, x, y = _setting(kind)
    op = ce.HessianOperator(model, loss, x, y)
    opt = ce.CGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for use in (
            lambda: ce.HessianOperator(model, loss, x, y),
            op.dense,
            lambda: op @ op.gradient,
            lambda: opt.step(op),
        ):
            with pytest.raises(ce.UnsupportedError, match="autocast"):
                use()


def test_spectrum_dtype_needs_layer_rules():
    """A float32 Hessian under the float64 zero tolerance would count rounding noise as curvature."""
    model, loss, x, y = _setting("functional")
    op = ce.HessianOperator(model.float(), loss, x.float(), y)
    with pytest.raises(ce.UnsupportedError, match="double"):
        ce.spectrum(op, spectrum_dtype=torch.float64)


@pytest.mark.parametrize("groups", ["reversed", "split"])
def test_directions_of_another_order_are_refused(groups, tmp_path):
    model, loss, x, y = _setting()
    ce.spectrum(ce.HessianOperator(model, loss, x, y)).save(tmp_path / "s.pt")
    spec = ce.Spectrum.load(tmp_path / "s.pt")
    params = list(model.parameters())
    if groups == "reversed":
        given = params[::-1]
    else:
        given = [{"params": [p for p in params if p.dim() == 2]}, {"params": [p for p in params if p.dim() == 1]}]
    loss(model(x), y).backward()
    before = _theta(model)
    with pytest.raises(ValueError, match="spectrum"):
        ce.CGD(given, lr=0.1, prune="positive", spectrum=spec).step()
    if groups == "split":
        with pytest.raises(ce.UnsupportedError, match="groups"):
            ce.CGD(given, lr=0.1, prune="positive").step(ce.hessian(model, loss, x, y))
    assert torch.equal(_theta(model), before)


def test_near_duplicate_samples_of_a_wide_layer_in_float32():
    """Small singular values of the inputs are directions, not rounding: H v and g stay within 1e-4 of float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4096, 6), nn.Tanh(), nn.Linear(6, 4))
    x, y = torch.randn(1, 4096) + 1e-3 * torch.randn(8, 4096), torch.arange(8) % 4
    op = ce.HessianOperator(model, CE, x, y)
    basis = op.compressed().basis
    g = op.gradient.unsqueeze(1)
    assert relative(basis.lift(basis.coordinates(g)), g) < 1e-4
    v = g / g.norm()
    exact = ce.HessianOperator(copy.deepcopy(model).double(), CE, x.double(), y) @ v.double()
    assert relative((op.compressed() @ v).double(), exact) < 1e-4


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_the_first_operator_may_see_a_fitted_batch(loss):
    model, _, x, y = _setting()
    with torch.no_grad():
        model[-1].weight.mul_(400)
        target = model(x)
    loss_fn, y = (nn.MSELoss(), target) if loss == "mse" else (CE, target.argmax(1))
    op = ce.HessianOperator(model, loss_fn, x, y)
    assert op.explain()[0].path == "enter at units"
    assert op.dense().isfinite().all()


def test_rounding_on_a_fitted_batch_is_not_mistaken_for_a_wrong_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.PReLU(), nn.Linear(5, 3)).double()
    x, _ = cases.batch(6, cases.LOSSES["ce"][1])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(60)
    y = model(x).argmax(1)
    op = ce.HessianOperator(model, CE, x, y)
    assert op.loss < 1e-8
    H = op.dense()
    assert torch.equal(H, H.T)
    assert (op @ op.gradient).isfinite().all()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.a(x.flatten(1))


def test_buffers_that_forward_writes_are_left_alone():
    torch.manual_seed(0)
    model = Counting().double()
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    for _ in range(2):
        op = ce.HessianOperator(model, CE, x, y)
        assert model.calls == 0
        assert relative(op.dense(), double_backward(model, CE, x, y)) < 1e-10
        model.calls.zero_()


@pytest.mark.parametrize("kind", ["layers", "functional"])
def test_a_forward_that_edits_its_input_edits_a_copy(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6, 3)).double()
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    before = x.clone()
    loss = CE if kind == "layers" else lambda z, t: F.cross_entropy(z, t)
    H = ce.HessianOperator(model, loss, x, y).dense()
    assert torch.equal(x, before)
    assert relative(H, double_backward(model, CE, x.clone(), y)) < 1e-10


class Configured(nn.Module):
    """The flag changes derivatives and no value."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.options = nn.Linear(6, 4), nn.Linear(4, 3), {"detach": False}

    def forward(self, x):
        h = torch.tanh(self.a(x.flatten(1)))
        return self.b(h.detach() if self.options["detach"] else h)


def test_a_flag_that_changes_derivatives_only():
    torch.manual_seed(0)
    model = Configured().double()
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    assert ce.HessianOperator(model, CE, x, y).gradient[:24].abs().max() > 0
    model.options["detach"] = True
    op = ce.HessianOperator(model, CE, x, y)
    assert op.gradient[:24].abs().max() == 0
    assert relative(op.dense(), double_backward(model, CE, x, y)) < 1e-10


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_of_the_optimizer_go_on_alike(how):
    model, loss, x, y = _setting()
    opt = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, prune="negative", k=2)
    opt.step(ce.HessianOperator(model, loss, x, y))
    twin_model, twin = how((model, opt))
    for m, o in ((model, opt), (twin_model, twin)):
        o.step(ce.HessianOperator(m, loss, x, y))
    assert (twin.steps, twin.last_step) == (2, opt.last_step)
    assert torch.equal(_theta(model), _theta(twin_model))


def test_random_directions_and_noise_resume_bit_identically():
    def make(model, seed):
        generator = torch.Generator().manual_seed(seed)
        return ce.CGD(model.parameters(), lr=0.1, prune="negative", k=2, order="random", noise=0.1, generator=generator)

    model, loss, x, y = _setting()
    opt = make(model, 1)
    opt.step(ce.HessianOperator(model, loss, x, y))
    other = copy.deepcopy(model)
    resumed = make(other, 2)
    resumed.load_state_dict(opt.state_dict())
    for m, o in ((model, opt), (other, resumed)):
        for _ in range(2):
            o.step(ce.HessianOperator(m, loss, x, y))
    assert torch.equal(_theta(model), _theta(other))


def test_a_look_does_not_outlive_a_change_of_options():
    model, loss, x, y = _setting()
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative", k=2)
    spec = ce.spectrum(ce.HessianOperator(model, loss, x, y))
    assert int(opt.selection(spec).sum()) == 2
    opt.k = 5
    assert int(opt.selection(spec).sum()) == 5


def test_a_bad_matrix_is_refused_also_while_nothing_is_pruned():
    model, loss, x, y = _setting()
    opt = ce.CGD(model.parameters(), lr=0.1, start=5)
    value = loss(model(x), y)
    value.backward()
    before = _theta(model)
    for bad, error in ((torch.full((3, 7), float("nan")), ValueError), (lambda: value, TypeError)):
        with pytest.raises(error, match="dense Hessian"):
            opt.step(bad)
    assert torch.equal(_theta(model), before)


def test_memory_budget_holds_for_the_compressed_form():
    model, loss, x, y = _setting()
    op = ce.HessianOperator(model, loss, x, y, memory_budget=1000)
    for use in (op.compressed, lambda: ce.spectrum(op)):
        with pytest.raises(ce.MemoryBudgetError):
            use()


def test_first_operators_in_threads_leave_torch_intact():
    call = nn.Module.__call__
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    models = [cases.mlp(3, "tanh", seed=i) for i in range(6)]
    bystander, errors, results = cases.mlp(2), [], {}
    done = threading.Event()

    def run(i):
        try:
            results[i] = ce.hessian(models[i], CE, x, y)
        except Exception as e:
            errors.append(e)

    def forward():
        try:
            while not done.is_set():
                bystander(x)
        except Exception as e:
            errors.append(e)

    other = threading.Thread(target=forward)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    other.start()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    done.set()
    other.join()
    assert not errors
    assert nn.Module.__call__ is call
    for i, model in enumerate(models):
        assert relative(results[i], double_backward(model, CE, x, y)) < 1e-10
