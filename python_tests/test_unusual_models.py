"""Models and losses at the edges of torch: exact, or refused by name; the parameters stay what they were."""

import copy

import pytest
import torch
from oracles import double_backward, relative
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


def _by_torch(z, y):
    """A loss without a rule: the model is differentiated by torch as a whole."""
    return F.cross_entropy(z, y) + 0.0


both = pytest.mark.parametrize("loss", [CE, _by_torch], ids=["rules", "torch"])


def _batch():
    torch.manual_seed(1)
    return torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


# NaN and infinity in second derivatives


class Kinked(Two):
    """|bias|^1.5 has no second derivative at 0."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.b.bias)

    def forward(self, x):
        return super().forward(x) * (1 + self.b.bias.abs().pow(1.5).sum())


class KinkedScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x * (1 + self.w.abs().pow(1.25))


KINKS = {"alone": Kinked, "in a layer": lambda: nn.Sequential(nn.Linear(4, 3), KinkedScale(), nn.Linear(3, 3))}
USES = {
    "dense": lambda op: op.dense(),
    "product": lambda op: op @ torch.ones(op.shape[0], dtype=op.dtype),
    "block": lambda op: op @ torch.eye(op.shape[0], dtype=op.dtype),
    "sharpness": ce.batch_sharpness,
    "Lanczos": lambda op: ce.spectrum(op, k=2),
    "spectrum": ce.spectrum,
    "directions": ce.directions,
}


@both
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kink", KINKS)
def test_second_derivatives_that_do_not_exist(kink, use, loss):
    op = ce.HessianOperator(KINKS[kink]().double(), loss, *_batch())
    with pytest.raises(ce.NonFiniteError):
        USES[use](op)


def test_lanczos_of_any_operator_names_nan():
    from chaos_ext.spectra.lanczos import lanczos

    def apply(X):
        return X * float("nan")

    with pytest.raises(ce.NonFiniteError, match="NaN"):
        lanczos(apply, 20, 2, "largest", dtype=torch.float64, device=torch.device("cpu"))


# parameters that forward edits


def _mask(m):
    m.a.weight.data *= m.kept


def _clamp(m):
    with torch.no_grad():
        m.b.weight.clamp_(-0.1, 0.1)


def _normalise(m):
    with torch.no_grad():
        m.a.weight.copy_(F.normalize(m.a.weight, dim=1))


class Edited(Two):
    def __init__(self, edit):
        super().__init__()
        self.edit = edit
        self.register_buffer("kept", (torch.rand(5, 4) > 0.5).double())

    def forward(self, x):
        self.edit(self)
        return super().forward(x)


class Embedded(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.b = nn.Embedding(7, 5, **options), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.e(x)).mean(1))


EDITS = {
    "mask": (lambda: Edited(_mask), "a.weight"),
    "clamp": (lambda: Edited(_clamp), "b.weight"),
    "norm": (lambda: Edited(_normalise), "a.weight"),
    "max_norm": (lambda: Embedded(max_norm=0.5), "e.weight"),
}


@both
@pytest.mark.parametrize("name", EDITS)
def test_parameters_edited_in_forward_are_refused_by_name_and_put_back(name, loss):
    make, edited = EDITS[name]
    model, (x, y) = make().double(), _batch()
    x = torch.randint(7, (6, 4)) if name == "max_norm" else x
    before = copy.deepcopy(dict(model.named_parameters()))
    with pytest.raises(ce.UnsupportedError, match=edited):
        ce.HessianOperator(model, loss, x, y).dense()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@both
def test_an_edit_that_changes_nothing_is_none(loss):
    model, (x, y) = Edited(_clamp).double(), _batch()
    model(x)  # from here on the weights are within their bounds
    twin = Two().double()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if k != "kept"})
    op = ce.HessianOperator(model, loss, x, y)
    assert relative(op.dense(), double_backward(twin, CE, x, y)) < 1e-10


class _Masked(nn.Module):
    def forward(self, w):
        return w * torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=w.dtype)


@both
def test_a_mask_as_parametrization_is_exact(loss):
    model, (x, y) = Two().double(), _batch()
    parametrize.register_parametrization(model.a, "weight", _Masked())
    assert relative(ce.HessianOperator(model, loss, x, y).dense(), double_backward(model, CE, x, y)) < 1e-10


# sparse layouts


class Graph(Two):
    """A graph convolution with the adjacency as a buffer."""

    def __init__(self, layout):
        super().__init__()
        torch.manual_seed(2)
        A = (torch.rand(6, 6) > 0.5).double()
        self.register_buffer("A", A.to_sparse(layout=layout))
        self.dense = A

    def forward(self, x):
        return self.A @ super().forward(x)


class Dense(Graph):
    def forward(self, x):
        return self.dense @ Two.forward(self, x)


class OfSparse(Two):
    def forward(self, x):
        return self.b(torch.tanh(x @ self.a.weight.T + self.a.bias))


@both
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=["COO", "CSR"])
def test_sparse_buffers_and_batches(layout, loss):
    x, y = _batch()
    expected = double_backward(Dense(torch.sparse_coo).double(), CE, x, y)
    assert relative(ce.HessianOperator(Graph(layout).double(), loss, x, y).dense(), expected) < 1e-10
    op = ce.HessianOperator(OfSparse().double(), loss, x.to_sparse(layout=layout), y)
    assert relative(op.dense(), double_backward(Two().double(), CE, x, y)) < 1e-10


@both
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=["COO", "CSR"])
def test_nan_in_a_sparse_batch(layout, loss):
    x, y = _batch()
    x[2, 1] = float("nan")
    with pytest.raises(ce.NonFiniteError):
        ce.HessianOperator(OfSparse().double(), loss, x.to_sparse(layout=layout), y)


@both
def test_sparse_embeddings(loss):
    _, y = _batch()
    x = torch.randint(7, (6, 4))
    op = ce.HessianOperator(Embedded(sparse=True).double(), loss, x, y)
    assert relative(op.dense(), double_backward(Embedded().double(), CE, x, y)) < 1e-10
    assert op.origin.model.e.sparse


# complex views, compiled functions


class ComplexView(nn.Module):
    """Before a complex view comes a parameter of odd length."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.w = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(4, 3, 2))

    def forward(self, x):
        return (x.to(torch.complex128) @ torch.view_as_complex(self.w)).abs().pow(2) + self.first


class Spectral(Two):
    def forward(self, x):
        return torch.fft.fft(super().forward(x)).abs().pow(2)


def _differences(model, x, y, h=1e-5):
    """H by central differences of gradients."""
    params = list(model.parameters())
    theta = nn.utils.parameters_to_vector(params).detach()

    def gradient(at):
        for p, part in zip(params, at.split([p.numel() for p in params])):
            p.data.copy_(part.view_as(p))
        return torch.cat([g.flatten() for g in torch.autograd.grad(CE(model(x), y), params)])

    steps = h * torch.eye(len(theta), dtype=theta.dtype)
    return torch.stack([(gradient(theta + s) - gradient(theta - s)) / (2 * h) for s in steps])


@both
@pytest.mark.parametrize("make", [ComplexView, Spectral])
def test_complex_numbers_inside(make, loss):
    x, y = _batch()
    op = ce.HessianOperator(make().double(), loss, x, y)
    assert relative(op.dense(), _differences(make().double(), x, y)) < 1e-7
    v = torch.randn(op.shape[0], 2, dtype=op.dtype)
    assert relative(op @ v, op.dense() @ v) < 1e-10


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_losses(backend):
    x, y = _batch()
    compiled = torch.compile(lambda z, t: 2 * F.cross_entropy(z, t), backend=backend)
    op = ce.HessianOperator(Two().double(), compiled, x, y)
    try:
        H = op.dense()
    except ce.ChaosExtError:
        return  # refused: torch's compiler does not differentiate twice
    assert relative(H, 2 * double_backward(Two().double(), CE, x, y)) < 1e-10


# modules compiled by torch.jit

SCRIPTED = {
    "script": lambda m: torch.jit.script(m),
    "trace": lambda m: torch.jit.trace(m, _batch()[0]),
    "layer": lambda m: nn.Sequential(torch.jit.script(m.a), nn.Tanh(), m.b),
    "frozen layer": lambda m: nn.Sequential(torch.jit.script(m.a.requires_grad_(False)), nn.Tanh(), m.b),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@both
@pytest.mark.parametrize("name", SCRIPTED)
def test_scripted_modules_are_refused_by_name_and_work_on(name, loss):
    model, (x, y) = SCRIPTED[name](Two().double()), _batch()
    before = model(x)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for use in (lambda: ce.HessianOperator(model, loss, x, y), lambda: ce.LyapunovAnalyzer(model, opt, k=2)):
        with pytest.raises(ce.UnsupportedError, match="scripted or traced"):
            use()
    assert torch.equal(model(x), before)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@both
def test_a_scripted_activation_is_exact(loss):
    model, (x, y) = Two().double(), _batch()
    scripted = nn.Sequential(model.a, torch.jit.script(nn.Tanh()), model.b)
    H = ce.HessianOperator(scripted, loss, x, y).dense()
    assert relative(H, double_backward(model, CE, x, y)) < 1e-10


class Sum(nn.Module):
    """Two weights whose gradients are one tensor; torch.fx cannot trace the branch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(5, 4).double()), nn.Parameter(torch.randn(5, 4).double())

    def forward(self, x):
        return F.linear(x if x.sum() < 1e9 else 2 * x, torch.tanh(self.a + self.b))


def test_gradients_that_are_one_tensor():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(Sum(), nn.Linear(5, 3).double()), torch.randn(6, 4).double(), torch.arange(6) % 3
    op = ce.HessianOperator(model, CE, x, y)
    assert len(op.explain()) > 1  # by rules, not as a whole
    torch.testing.assert_close(op.dense(), ce.HessianOperator(model, _by_torch, x, y).dense(), rtol=1e-10, atol=1e-14)
