"""The diagonal of H and of the Gauss-Newton matrix of every layer, against double backward and J^T C J."""

import cases
import pytest
import torch
from oracles import double_backward, gauss_newton, relative
from test_layers import TABLE, build
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import chaos_ext as ce
from chaos_ext.curvature import diagonal, squares

TOL = 1e-10  # as of test_layers: of the largest entry


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", TABLE)
def test_of_every_layer(name, training):
    if "Dropout" in name and training:
        pytest.skip("draws random numbers")
    model, x, y = build(name, training)
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    assert relative(op.diagonal(), double_backward(model, F.cross_entropy, x, y).diagonal()) < TOL
    ggn = ce.GGNOperator(model, F.cross_entropy, x, y)
    with sdpa_kernel(SDPBackend.MATH):
        G = gauss_newton(model, F.cross_entropy, x, y)
    assert relative(ggn.diagonal(), G.diagonal()) < TOL
    assert relative(ggn.dense(), G) < TOL


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_of_every_loss(loss, activation):
    make, target = cases.LOSSES[loss]
    model, (x, y) = cases.mlp(3, activation), cases.batch(8, target)
    expected = double_backward(model, make(), x, y).diagonal()
    assert relative(ce.HessianOperator(model, make(), x, y).diagonal(), expected) < 1e-12
    expected = gauss_newton(model, make(), x, y).diagonal()
    assert relative(ce.GGNOperator(model, make(), x, y).diagonal(), expected) < 1e-12


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 3), nn.LayerNorm(6)

    def forward(self, x):
        return self.b(self.norm(self.a(F.relu(self.a(self.norm(x))))))


class Segmenter(nn.Module):
    """An output at every position, through grouped, dilated and strided convolutions."""

    def __init__(self, activation):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, groups=2),
            nn.BatchNorm2d(4),
            activation(),
            nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False),
            activation(),
            nn.ConvTranspose2d(4, 3, 3, padding=1),
        )

    def forward(self, x):
        return self.body(x)


def _images(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 4, 4, generator=g, dtype=torch.float64), torch.randint(3, (3, 4, 4), generator=g)


def _of(make, training=False):
    torch.manual_seed(0)
    model = make().double().train(training)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize("few", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("way", ["positions", "columns"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_at_positions(activation, training, way, few, monkeypatch):
    if few:
        monkeypatch.setattr(squares, "_BYTES", 1)
        monkeypatch.setattr(diagonal, "_BYTES", 1)
    chosen = {"positions": squares._by_positions, "columns": squares._by_columns}[way]
    monkeypatch.setattr(squares, "_by_positions", chosen)
    monkeypatch.setattr(squares, "_by_columns", chosen)
    model, (x, y) = _of(lambda: Segmenter(activation), training), _images()
    H = double_backward(model, F.cross_entropy, x, y)
    assert relative(ce.HessianOperator(model, F.cross_entropy, x, y).diagonal(), H.diagonal()) < 1e-11
    G = gauss_newton(model, F.cross_entropy, x, y)
    assert relative(ce.GGNOperator(model, F.cross_entropy, x, y).diagonal(), G.diagonal()) < 1e-11


def test_tied_and_frozen_parameters():
    model, (x, y) = _of(Tied), cases.batch(5, lambda n, g: torch.randint(3, (n,), generator=g))
    x = x.flatten(1)
    for frozen in ((), ("b.weight",), ("b.weight", "norm.bias", "b.bias")):
        for name, p in model.named_parameters():
            p.requires_grad_(name not in frozen)
        H, G = double_backward(model, F.cross_entropy, x, y), gauss_newton(model, F.cross_entropy, x, y)
        assert relative(ce.HessianOperator(model, F.cross_entropy, x, y).diagonal(), H.diagonal()) < 1e-12
        assert relative(ce.GGNOperator(model, F.cross_entropy, x, y).diagonal(), G.diagonal()) < 1e-12


def test_by_torch_where_there_are_no_rules():
    model, (x, y) = cases.mlp(2, "tanh"), cases.batch(5, cases.LOSSES["mse"][1])

    def fourth(z, y):
        return ((z - y) ** 4).sum()

    op, ggn = ce.HessianOperator(model, fourth, x, y), ce.GGNOperator(model, fourth, x, y)
    assert "rule" in op.explain()[0].why
    assert relative(op.diagonal(), double_backward(model, fourth, x, y).diagonal()) < 1e-12
    assert relative(ggn.diagonal(), gauss_newton(model, fourth, x, y).diagonal()) < 1e-12


@pytest.mark.parametrize(
    ("make", "training", "path"),
    [
        (lambda: Segmenter(nn.ReLU), False, {diagonal.SQUARES}),
        (lambda: Segmenter(nn.ReLU), True, {diagonal.SQUARES, diagonal.PARAMETERS}),
        (lambda: Segmenter(nn.SiLU), False, {diagonal.SQUARES, diagonal.PARAMETERS}),
    ],
)
def test_every_path_is_taken(make, training, path, monkeypatch):
    """The paths of the tests above are those that they are meant to reach."""
    taken = []
    plan = diagonal.plan_diagonal
    monkeypatch.setattr(diagonal, "plan_diagonal", lambda tape: taken.extend(plan(tape)) or plan(tape))
    x, y = _images()
    ce.HessianOperator(_of(make, training), F.cross_entropy, x, y).diagonal()
    assert {part.path for part in taken} == path


class Smooth(nn.Module):
    """Wide layers at few positions: cheaper at the units, with cross terms between positions."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 2), nn.Conv2d(8, 6, 2, groups=2, bias=False)
        self.c, self.d = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.b(F.silu(self.a(x)))).flatten(2).transpose(1, 2)
        return self.d(torch.sigmoid(self.c(h)).mean(1))


@pytest.mark.parametrize("loss", ["ce", "mse_sum", "bce"])
def test_units_at_positions(loss, monkeypatch):
    monkeypatch.setattr(diagonal, "_THERE_AND_BACK", 0)
    taken = []
    plan = diagonal.plan_diagonal
    monkeypatch.setattr(diagonal, "plan_diagonal", lambda tape: taken.extend(plan(tape)) or plan(tape))
    make, target = cases.LOSSES[loss]
    model, x, y = _of(Smooth), _images()[0], target(3, torch.Generator().manual_seed(1))
    expected = double_backward(model, make(), x, y).diagonal()
    for columns in (None, 5):
        if columns:
            monkeypatch.setattr(diagonal, "sweep_columns", lambda *_, k=columns: k)
        found = ce.HessianOperator(model, make(), x, y).diagonal()
        assert relative(found, expected) < 1e-12
    assert [p.path for p in taken[:4]] == [diagonal.UNITS] * 3 + [diagonal.SQUARES]


def test_units_are_entered_in_smooth_nets_on_rows(monkeypatch):
    taken = []
    plan = diagonal.plan_diagonal
    monkeypatch.setattr(diagonal, "plan_diagonal", lambda tape: taken.extend(plan(tape)) or plan(tape))
    x, y = cases.batch(5, cases.LOSSES["ce"][1])
    ce.HessianOperator(cases.mlp(3, "tanh"), F.cross_entropy, x, y).diagonal()
    assert [part.path for part in taken] == [diagonal.UNITS, diagonal.UNITS, diagonal.SQUARES]


def test_residual_network_of_torchvision():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model(torch.randn(8, 3, 32, 32))
    model = model.eval().double()
    x, y = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 7])
    found = ce.HessianOperator(model, F.cross_entropy, x, y).diagonal()
    params = list(model.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y), params, create_graph=True)
    parts, g = found.split([p.numel() for p in params]), torch.Generator().manual_seed(2)
    for _ in range(20):
        i = int(torch.randint(len(params), (), generator=g))
        j = int(torch.randint(params[i].numel(), (), generator=g))
        (row,) = torch.autograd.grad(gradient[i].reshape(-1)[j], params[i], retain_graph=True)
        assert float(parts[i][j]) == pytest.approx(float(row.reshape(-1)[j]), rel=1e-9, abs=1e-13)


def test_is_refused_when_stale_and_leaves_no_trace():
    model, (x, y) = _of(lambda: Segmenter(nn.SiLU), training=True), _images()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    op = ce.HessianOperator(model, F.cross_entropy, x, y)
    first = op.diagonal()
    assert torch.equal(first, op.diagonal())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not first.requires_grad
    x[0] += 1.0
    with pytest.raises(ce.StaleOperatorError):
        op.diagonal()
