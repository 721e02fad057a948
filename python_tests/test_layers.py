"""Every layer with every option against float64 double backward; mode, buffers and .grad of the model stay."""

import importlib
import logging

import architectures as arch
import functions_table as functions
import pytest
import torch
from oracles import double_backward, gradient, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce

TOL = 1e-10
FUNCTIONS = {**functions.MODULES, **functions.FUNCTIONS, **functions.GRAPHS}
TABLE = {**arch.LAYERS, **arch.GRAPHS, **FUNCTIONS, **arch.AUTOMATIC}


def build(name, training, dtype=torch.float64, n=3):
    make, shape = TABLE[name]
    torch.manual_seed(0)
    model = make().to(dtype).train(training)
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(n, *shape, generator=gen, dtype=torch.float64).to(dtype)
    return model, x, torch.arange(n) % arch.CLASSES


def state_of(model):
    return (
        [m.training for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        {k: v.clone() for k, v in model.state_dict().items()},
    )


def same_state(a, b):
    return (
        a[0] == b[0]
        and all(x is y is None or torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
        and all(torch.equal(v, b[2][k]) for k, v in a[2].items())
    )


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", TABLE)
def test_hessian_equals_double_backward(name, training):
    if "Dropout" in name and training:
        model, x, y = build(name, True)
        with pytest.raises(ce.UnsupportedError, match=r"draws random numbers \(layer\)"):
            ce.HessianOperator(model, F.cross_entropy, x, y)
        return
    model, x, y = build(name, training)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = state_of(model)
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    H = op.dense(torch.full(op.shape, float("nan"), dtype=torch.float64))
    v = torch.randn(op.shape[0], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    products = op @ v
    compressed = op.compressed()
    assert same_state(before, state_of(model))
    assert op.explain()[0].name != "(model)", op.explain()[0].why
    reference = double_backward(model, F.cross_entropy, x, y)
    assert torch.equal(H, H.T)
    assert relative(op.gradient, gradient(model, F.cross_entropy, x, y)) < TOL
    assert relative(H, reference) < TOL
    assert relative(products, reference @ v) < TOL
    assert relative(op @ v[:, 0], reference @ v[:, 0]) < TOL
    assert relative(compressed.to_dense(), reference) < TOL
    assert relative(op.diagonal(), reference.diagonal()) < TOL
    automatic = [n.name for n in op._engine.program.nodes if n.rule.path != "layer rule"]
    assert bool(automatic) == (name in arch.AUTOMATIC), automatic


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", [n for n in TABLE if "Dropout" not in n])
def test_float32_against_float64(name, training):
    model, x, y = build(name, training, torch.float32)
    H = ce.hessian(model, F.cross_entropy, x, y)
    expected = double_backward(model.double(), F.cross_entropy, x.double(), y)
    assert H.dtype == torch.float32
    assert (H.double() - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}], ids=["plain", "padding_idx"])
def test_embedding(options):
    torch.manual_seed(0)
    model = arch.Tokens(**options).double()
    x, y = torch.randint(7, (4, 5)), torch.tensor([0, 1, 2, 0])
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    reference = double_backward(model, F.cross_entropy, x, y)
    assert op.explain()[0].name == "embed"
    assert relative(op.dense(), reference) < TOL
    assert relative(op.compressed().to_dense(), reference) < TOL
    v = torch.randn(op.shape[0], 2, dtype=torch.float64)
    assert relative(op @ v, reference @ v) < TOL


@pytest.mark.parametrize("loss", ["cross_entropy", "probabilities", "mse", "bce"])
def test_losses_of_images(loss):
    """Outputs with positions: [N, C, H, W]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    loss_fn, y = {
        "cross_entropy": (
            nn.CrossEntropyLoss(weight=torch.rand(3).double(), ignore_index=1),
            torch.randint(3, (2, 4, 3)),
        ),
        "probabilities": (nn.CrossEntropyLoss(label_smoothing=0.1), torch.rand(2, 3, 4, 3).double().softmax(1)),
        "mse": (nn.MSELoss(), torch.randn(2, 3, 4, 3).double()),
        "bce": (nn.BCEWithLogitsLoss(pos_weight=torch.rand(3, 1, 1).double()), torch.rand(2, 3, 4, 3).double().round()),
    }[loss]
    op = ce.HessianOperator(model, loss_fn, x, y)
    assert op.explain()[0].name != "(model)"
    assert relative(op.dense(), double_backward(model, loss_fn, x, y)) < TOL


def test_dropout_in_training_is_refused():
    model, x, y = build("Dropout", True)
    state = torch.get_rng_state()
    with pytest.raises(ce.UnsupportedError, match=r"draws random numbers \(layer\)"):
        ce.HessianOperator(model, F.cross_entropy, x, y)
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_of_another_size_uses_the_same_program():
    for name in ("residual BatchNorm", "functional calls", "MLP with LayerNorm"):
        model, x, y = build(name, True)
        ce.HessianOperator(model, F.cross_entropy, x, y)
        model_, x, y = build(name, True, n=5)
        assert relative(ce.hessian(model, F.cross_entropy, x, y), double_backward(model, F.cross_entropy, x, y)) < TOL


def test_the_path_is_chosen_by_cost():
    """Units for Linear rows where samples stay apart; parameters where they interact or act on few positions."""
    model, x, y = build("MLP with LayerNorm", True)
    assert {r.path for r in ce.HessianOperator(model, F.cross_entropy, x, y).explain() if r.name != "1"} == {
        "enter at units"
    }
    model, x, y = build("MLP with BatchNorm", True)
    report = {r.name: r for r in ce.HessianOperator(model, F.cross_entropy, x, y).explain()}
    assert report["0"].path == "enter at parameters"
    assert report["0"].why == "samples interact downstream"
    assert report["3"].path == "enter at units"
    model.eval()
    report = {r.name: r for r in ce.HessianOperator(model, F.cross_entropy, x, y).explain()}
    assert report["0"].path == "enter at units"


@pytest.mark.parametrize("name", ["MLP with BatchNorm", "MLP with LayerNorm"])
def test_compression_holds_with_normalisation(name):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(12) if "Batch" in name else nn.LayerNorm(12)
    model = nn.Sequential(nn.Linear(40, 12), arch.scaled(norm), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y = torch.randn(4, 40, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    compressed, reference = op.compressed(), double_backward(model, F.cross_entropy, x, y)
    assert compressed.S.shape[0] <= op.compressed_bound(torch.float64) < 0.4 * op.shape[0]
    assert relative(compressed.to_dense(), reference) < TOL
    values = torch.linalg.eigvalsh(reference)
    assert relative(ce.spectrum(op).eigenvalues, values[values.abs() > 1e-12 * values.abs().max()]) < TOL


def test_tied_linear_layers_compress():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    model[2].weight = model[0].weight
    x, y = torch.randn(3, 30, dtype=torch.float64), torch.tensor([0, 1, 2])
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    assert op.compressed().S.shape[0] < 0.7 * op.shape[0]
    assert relative(op.compressed().to_dense(), double_backward(model, F.cross_entropy, x, y)) < TOL


def test_a_layer_by_torchs_derivatives_is_reported_with_its_operations():
    model, x, y = build("untraceable submodule", False)
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    reports = op.explain()
    (cell,) = [r for r in reports if r.path == "torch's derivatives of this layer"]
    assert {r.path for r in reports if r.name == cell.name} == {"enter at parameters", cell.path}
    assert all(r.flops > 0 for r in reports)
    assert sum(r.bytes for r in reports) == 8 * op.shape[0] ** 2
    assert cell.why.startswith("no layer rule: ")


class Constants(nn.Module):
    """A forward that makes tensors: torch.fx would leave them on the model."""

    def __init__(self):
        super().__init__()
        self.lin, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        weights = torch.tensor([1.0, 2.0, -3.0, 0.5, 4.0], dtype=torch.float64)
        return self.out(torch.tanh(self.lin(x)) * weights + torch.ones(5, dtype=torch.float64))


def test_tensors_made_in_forward_do_not_stay_on_the_model():
    torch.manual_seed(0)
    model = Constants().double()
    x, y = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    before, reference = dict(vars(model)), double_backward(model, F.cross_entropy, x, y)
    for _ in range(2):  # the second operator uses the program of the first
        op = ce.HessianOperator(model, F.cross_entropy, x, y)
        assert op.explain()[0].name != "(model)"
        assert relative(op.dense(), reference) < TOL
    assert vars(model).keys() == before.keys()


class Lengths(nn.Module):
    """len of the batch, of a list and of an activation."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)])

    def forward(self, x):
        x = x.view(len(x), 6)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i + 1 < len(self.layers):
                x = torch.tanh(x)
        return x.reshape(len(x), -1) / len(self.layers)


def test_len_of_tensors_is_traced(caplog):
    model, x, y = Lengths().double(), torch.randn(3, 2, 3).double(), torch.randint(4, (3,))
    for n in (3, 2):
        op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x[:n], y[:n])
        assert relative(op.dense(), double_backward(model, nn.CrossEntropyLoss(), x[:n], y[:n])) < 1e-10
        assert {r.path for r in op.explain()} <= {"enter at units", "enter at parameters"}
    assert not caplog.records
    assert len(x) == 3
    assert "len" not in globals()


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.first(x).tanh() if x.mean() > 0 else self.second(x).sin()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_untraceable_model_is_differentiated_as_a_whole_with_a_warning(sign, caplog, monkeypatch):
    monkeypatch.setattr(importlib.import_module("chaos_ext.curvature.engine"), "_warned", set())
    torch.manual_seed(0)
    model, y = Untraceable().double(), torch.tensor([0, 1, 2])
    x = sign * torch.rand(3, 4, dtype=torch.float64)
    with caplog.at_level(logging.WARNING, "chaos_ext"):
        op = ce.HessianOperator(model, F.cross_entropy, x, y)
    (record,) = [r for r in caplog.records if r.name == "chaos_ext"]
    assert record.levelno == logging.WARNING
    assert "Untraceable: no layer rules here (torch.fx cannot trace it (TraceError" in record.getMessage()
    assert op.explain()[0].name == "(model)"
    assert relative(op.dense(), double_backward(model, F.cross_entropy, x, y)) < TOL


def test_a_cgd_step_commits_running_statistics_once():
    """As one forward in training mode does; the operator and its products commit nothing."""
    model, x, y = build("residual BatchNorm", True)
    twin, _, _ = build("residual BatchNorm", True)
    twin(x)
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    op @ torch.ones(op.shape[0], dtype=torch.float64)
    assert all(int(b) == 0 for n, b in model.named_buffers() if n.endswith("num_batches_tracked"))
    ce.CGD(model.parameters(), lr=1e-3).step(op)
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(4, 3), (1, 3, 2, 2), (4, 3, 1)])
def test_class_probabilities_of_any_layout(shape, reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh()).double()
    model.append(nn.Linear(6, torch.Size(shape[1:]).numel()).double()).append(nn.Unflatten(1, shape[1:]))
    x, loss_fn = torch.randn(shape[0], 2, dtype=torch.float64), nn.CrossEntropyLoss(reduction=reduction)
    y = torch.rand(shape, dtype=torch.float64).softmax(1)
    y = y.movedim(1, 0).contiguous().movedim(0, 1)  # the classes of an entry far from each other
    expected = double_backward(model, loss_fn, x, y)
    assert relative(ce.HessianOperator(model, loss_fn, x, y).dense(), expected) < TOL
