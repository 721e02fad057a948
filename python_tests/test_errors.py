"""Bad input: a named exception, and parameters and optimizer state as they were."""

import copy

import cases
import pytest
import torch
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


def _setting(n=4):
    model = cases.mlp(2, "tanh")
    x, y = cases.batch(n, cases.LOSSES["ce"][1])
    return model, x, y


def _nan(t):
    t = t.clone()
    t.view(-1)[0] = float("nan")
    return t


OPERATOR = {
    "empty batch": (ValueError, "at least one sample", lambda m, x, y: (m, CE, x[:0], y[:0])),
    "nan in x": (ce.NonFiniteError, "x:", lambda m, x, y: (m, CE, _nan(x), y)),
    "inf in x": (ce.NonFiniteError, "x:", lambda m, x, y: (m, CE, x / 0, y)),
    "features": (ValueError, "forward failed", lambda m, x, y: (m, CE, x[..., :2], y)),
    "rows of y": (ValueError, "y:", lambda m, x, y: (m, CE, x, y[:-1])),
    "label too large": (ValueError, "class indices in", lambda m, x, y: (m, CE, x, y + 3)),
    "label negative": (ValueError, "class indices in", lambda m, x, y: (m, CE, x, y - 1 - y)),
    "float32 x": (ValueError, "forward failed", lambda m, x, y: (m, CE, x.float(), y)),
    "half parameters": (TypeError, "float32 or float64", lambda m, x, y: (m.half(), CE, x.half(), y)),
    "mixed parameters": (TypeError, "like the first", lambda m, x, y: (_mixed(m), CE, x, y)),
    "no parameters": (ValueError, "requires_grad", lambda m, x, y: (m.requires_grad_(False), CE, x, y)),
    "no reduction": (ValueError, "reduction", lambda m, x, y: (m, nn.CrossEntropyLoss(reduction="none"), x, y)),
    "vector loss": (ValueError, "scalar", lambda m, x, y: (m, lambda z, t: z.sum(0), x, y)),
    "not a loss": (TypeError, "callable", lambda m, x, y: (m, "ce", x, y)),
    "mse shape": (ValueError, "y:", lambda m, x, y: (m, nn.MSELoss(), x, torch.zeros(len(x)).double())),
    "mse integers": (TypeError, "floating", lambda m, x, y: (m, nn.MSELoss(), x, torch.zeros(len(x), 3).long())),
    "bce weight": (
        ValueError,
        "pos_weight",
        lambda m, x, y: (m, nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), x, torch.zeros(len(x), 3).double()),
    ),
    "class weight": (ValueError, "weight", lambda m, x, y: (m, nn.CrossEntropyLoss(weight=torch.ones(2)), x, y)),
    "all ignored": (
        ce.NonFiniteError,
        "ignored",
        lambda m, x, y: (m, nn.CrossEntropyLoss(ignore_index=7), x, y * 0 + 7),
    ),
    "nan parameters": (ce.NonFiniteError, "parameters", lambda m, x, y: (_poison(m), CE, x, y)),
    "overflow": (
        ce.NonFiniteError,
        "loss",
        lambda m, x, y: (m, nn.MSELoss(), x, torch.full((len(x), 3), 1e200, dtype=x.dtype)),
    ),
}


def _mixed(m):
    m[1].float()
    return m


def _poison(m):
    with torch.no_grad():
        m[1].weight[0, 0] = float("nan")
    return m


@pytest.mark.parametrize("captured", [False, True], ids=["first use", "captured before"])
@pytest.mark.parametrize("case", OPERATOR)
def test_operator_refuses(case, captured):
    model, x, y = _setting()
    if captured:
        ce.HessianOperator(model, CE, x, y)
    error, match, make = OPERATOR[case]
    with pytest.raises(error, match=match):
        ce.HessianOperator(*make(model, x, y))
    assert all(p.grad is None for p in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    ("v", "error"),
    [
        (torch.zeros(3, dtype=torch.float64), ValueError),
        (torch.zeros(43), TypeError),
        (torch.zeros(43, 2, 2, dtype=torch.float64), ValueError),
        ([0.0] * 43, TypeError),
    ],
)
def test_product_refuses(v, error):
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    assert op.shape == (43, 43)
    with pytest.raises(error, match="v:"):
        op @ v


def test_out_refuses():
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    for out, error in (
        (torch.zeros(43, 42, dtype=torch.float64), ValueError),
        (torch.zeros(43, 43), TypeError),
        (torch.zeros(86, 86, dtype=torch.float64)[::2, ::2], ValueError),
    ):
        with pytest.raises(error, match="out:"):
            op.dense(out)


def test_memory_budget_is_known_before_allocation():
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y, memory_budget=1000)
    with pytest.raises(ce.MemoryBudgetError, match="spectrum"):
        op.dense()
    big = nn.Linear(4000, 4000)
    op = ce.HessianOperator(big, nn.MSELoss(), torch.zeros(1, 4000), torch.zeros(1, 4000))
    with pytest.raises(ce.MemoryBudgetError, match="GiB"):
        op.dense()


CHANGES = {
    "in place": lambda m, x: m[1].weight.data.add_(1e-3),
    "optimizer": lambda m, x: _sgd(m),
    "load": lambda m, x: m.load_state_dict(cases.mlp(2, "tanh", seed=5).state_dict()),
    "vector": lambda m, x: nn.utils.vector_to_parameters(torch.zeros(43, dtype=torch.float64), m.parameters()),
    "batch": lambda m, x: x.add_(1.0),
}


def _sgd(m):
    for p in m.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(m.parameters(), lr=0.1).step()


@pytest.mark.parametrize("change", CHANGES)
def test_stale_operator(change):
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    spec = ce.spectrum(op)
    values = spec.eigenvalues.clone()
    CHANGES[change](model, x)
    opt = ce.CGD(model.parameters(), lr=0.1)
    uses = [
        lambda: op @ torch.zeros(43, dtype=torch.float64),
        op.dense,
        lambda: ce.spectrum(op, k=2),
        lambda: opt.step(op),
        lambda: opt.step(spec),
    ]
    before = [p.clone() for p in model.parameters()]
    for use in uses:
        with pytest.raises(ce.StaleOperatorError):
            use()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert opt.steps == 0
    assert torch.equal(ce.spectrum(op).eigenvalues, values)  # obtained before: still valid
    assert op.loss.isfinite()


def test_no_new_results_from_a_stale_operator():
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    _sgd(model)
    for use in (op.compressed, lambda: ce.spectrum(op)):
        with pytest.raises(ce.StaleOperatorError):
            use()


CGD_ARGUMENTS = {
    "lr": ({"lr": -1.0}, ValueError),
    "momentum": ({"momentum": -0.1}, ValueError),
    "weight_decay": ({"weight_decay": -0.1}, ValueError),
    "nesterov": ({"nesterov": True}, ValueError),
    "prune": ({"prune": "chaotics"}, ValueError),
    "order": ({"order": "top"}, ValueError),
    "k": ({"k": 44}, ValueError),
    "start": ({"start": -1}, ValueError),
    "stop": ({"start": 3, "stop": 2}, ValueError),
    "mix": ({"mix": 1.5}, ValueError),
    "noise": ({"noise": -1.0}, ValueError),
    "threshold": ({"threshold": "2/lr"}, ValueError),
    "zero_tol": ({"zero_tol": 1.0}, ValueError),
    "spectrum_dtype": ({"spectrum_dtype": torch.float16}, ValueError),
    "spectrum": ({"spectrum": torch.eye(43)}, TypeError),
}


@pytest.mark.parametrize("name", CGD_ARGUMENTS)
def test_cgd_arguments(name):
    model, *_ = _setting()
    kwargs, error = CGD_ARGUMENTS[name]
    with pytest.raises(error, match=name):
        ce.CGD(model.parameters(), **{"lr": 0.1, **kwargs})


def test_cgd_refuses_parameters_and_groups():
    with pytest.raises(TypeError, match="float32"):
        ce.CGD([nn.Parameter(torch.zeros(2).half())])
    with pytest.raises(ValueError, match="prune"):
        ce.CGD([{"params": [nn.Parameter(torch.zeros(2))], "prune": "negative"}])
    with pytest.raises(ValueError, match="empty"):
        ce.CGD([])


STEPS = {
    "no source": (ValueError, "expected a HessianOperator", lambda m, o, x, y: None),
    "a number": (TypeError, "float", lambda m, o, x, y: 1.0),
    "closure of loss": (TypeError, "closure returned float", lambda m, o, x, y: lambda: 1.0),
    "matrix without grad": (ValueError, ".grad is required", lambda m, o, x, y: torch.eye(43).double()),
    "other model": (ValueError, "another model", lambda m, o, x, y: ce.HessianOperator(copy.deepcopy(m), CE, x, y)),
}


@pytest.mark.parametrize("case", STEPS)
def test_step_refuses(case):
    model, x, y = _setting()
    opt = ce.CGD(model.parameters(), lr=0.1, momentum=0.9)
    error, match, make = STEPS[case]
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=match):
        opt.step(make(model, opt, x, y))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert not any("momentum_buffer" in s for s in opt.state.values())
    assert opt.steps == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda H: H[:-1], ValueError),
        (lambda H: H[:-1, :-1], ValueError),
        (lambda H: H.float(), TypeError),
        (_nan, ce.NonFiniteError),
        (lambda H: H + torch.triu(torch.ones_like(H)), ValueError),
    ],
)
def test_dense_hessian_is_checked(change, error):
    model, x, y = _setting()
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative")
    CE(model(x), y).backward()
    H = ce.hessian(model, CE, x, y)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error):
        opt.step(change(H))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    model[1].weight.grad[0, 0] = float("inf")
    with pytest.raises(ce.NonFiniteError, match="grad"):
        opt.step(H)


def test_moved_and_replaced_parameters_are_refused_by_name():
    model, x, y = _setting()
    opt = ce.CGD(model.parameters(), lr=0.1)
    model.float()
    with pytest.raises(ce.UnsupportedError, match="moved"):
        opt.step(ce.HessianOperator(model, CE, x.float(), y))
    model, x, y = _setting()
    opt = ce.CGD(model.parameters(), lr=0.1)
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())
    with pytest.raises(ValueError, match="replaced"):
        opt.step(ce.HessianOperator(model, CE, x, y))


def test_compressed_where_there_is_none():
    model = cases.mlp(2)
    model[1].register_forward_hook(lambda *_: None)
    x, y = cases.batch(3, cases.LOSSES["ce"][1])
    with pytest.raises(ce.UnsupportedError, match="1 has hooks"):
        ce.HessianOperator(model, CE, x, y).compressed()


def test_spectrum_arguments():
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    for kwargs, match in (
        ({"k": 0}, "k:"),
        ({"k": 44}, "k:"),
        ({"k": 2, "which": "best"}, "which"),
        ({"zero_tol": -1.0}, "zero_tol"),
        ({"spectrum_dtype": torch.int64}, "spectrum_dtype"),
    ):
        with pytest.raises(ValueError, match=match):
            ce.spectrum(op, **kwargs)
    with pytest.raises(TypeError, match="HessianOperator"):
        ce.spectrum(op.dense())
    spec = ce.spectrum(op)
    with pytest.raises(ValueError, match="mask"):
        spec.project(spec.gradient, torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="v:"):
        spec.coefficients(spec.gradient.float())
