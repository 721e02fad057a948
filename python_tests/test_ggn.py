"""The Gauss-Newton matrix against J^T C J made explicitly, and its spectrum against a dense eigendecomposition."""

import copy
import pickle

import cases
import pytest
import torch
from oracles import double_backward, gauss_newton, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce
from chaos_ext.spectra import gauss_newton as by_gram

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([0, 2, 1, 1, 0])
CE = nn.CrossEntropyLoss()


def _seeded(make):
    torch.manual_seed(0)
    return make().double()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(x + F.silu(self.b(self.a(x))))


class Gated(nn.Module):
    """Has no program: its control flow reads values."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x).tanh()
        return self.b(h) if float(h.sum().detach()) > 1e9 else self.b(h * h)


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)),
    "relu_without_bias": lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)),
    "batch_norm_residual": Residual,
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.GELU(), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 3)
    ),
    "prelu_rms_norm": lambda: nn.Sequential(nn.Linear(6, 4), nn.PReLU(), nn.RMSNorm(4), nn.Linear(4, 3)),
    "untraceable": Gated,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_is_jacobian_curvature_jacobian(name, loss):
    model, (make, target) = _seeded(MODELS[name]), cases.LOSSES[loss]
    y = target(5, torch.Generator().manual_seed(4))
    G, ggn = gauss_newton(model, make(), X, y), ce.GGNOperator(model, make(), X, y, verify=True)
    V = torch.randn(len(G), 3, dtype=torch.float64)
    dense = ggn.dense()
    assert relative(dense, G) < 1e-12
    assert torch.equal(dense, dense.T)
    assert relative(ggn @ V, G @ V) < 1e-12
    assert relative(ggn @ V[:, 0], G @ V[:, 0]) < 1e-12
    assert torch.equal(ggn.dense(torch.empty_like(G)), dense)
    assert torch.equal(ggn.gradient, ce.HessianOperator(model, make(), X, y).gradient)


def _focal(z, y):
    p = z.log_softmax(1).gather(1, y[:, None])
    return (-((1 - p.exp()) ** 2) * p).mean()


UNKNOWN = {
    "nll": lambda z, y: F.nll_loss(z.log_softmax(1), y),
    "focal": _focal,
    "not_convex": lambda z, y: z.sin().sum() + (z * z.flip(0)).sum(),
    "linear": lambda z, y: z.sum(),
}


@pytest.mark.parametrize("name", ["mlp", "batch_norm_residual", "untraceable"])
@pytest.mark.parametrize("loss", UNKNOWN)
def test_losses_of_unknown_form(name, loss):
    model = _seeded(MODELS[name])
    ggn = ce.GGNOperator(model, UNKNOWN[loss], X, Y)
    if loss == "linear":
        assert not ggn.dense().any()
        assert len(ce.spectrum(ggn).eigenvalues) == 0
        return
    G = gauss_newton(model, UNKNOWN[loss], X, Y)
    v = torch.randn(len(G), dtype=torch.float64)
    assert relative(ggn.dense(), G) < 1e-11
    assert relative(ggn @ v, G @ v) < 1e-11
    values, expected = ce.spectrum(ggn).eigenvalues, torch.linalg.eigvalsh(G)
    kept = expected[expected.abs() > 1e-12 * expected.abs().max()]
    assert len(kept) == len(values)
    assert relative(values, kept) < 1e-11


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_the_functional_part_is_the_difference(loss):
    model, (make, target) = _seeded(MODELS["mlp"]), cases.LOSSES[loss]
    y = target(5, torch.Generator().manual_seed(4))
    op, ggn = ce.HessianOperator(model, make(), X, y), ce.GGNOperator(model, make(), X, y)
    rest = op - ggn
    expected = double_backward(model, make(), X, y) - gauss_newton(model, make(), X, y)
    v = torch.randn(len(expected), 2, dtype=torch.float64)
    assert rest.shape == op.shape
    assert rest.dtype == op.dtype
    assert rest.device == op.device
    assert relative(rest.dense(), expected) < 1e-11
    assert relative(rest @ v, expected @ v) < 1e-11
    assert relative(rest.diagonal(), expected.diagonal()) < 1e-11
    with pytest.raises(ValueError, match="one shape"):
        op - ce.GGNOperator(_seeded(MODELS["prelu_rms_norm"]), make(), X, y)
    with pytest.raises(TypeError):
        op - expected


def test_of_a_model_that_is_linear_it_is_the_hessian():
    model = nn.Linear(6, 3).double()
    assert relative(ce.GGNOperator(model, CE, X, Y).dense(), ce.hessian(model, CE, X, Y)) < 1e-13


def test_a_dict_of_outputs():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 2)

        def forward(self, x):
            return {"classes": self.a(x).tanh(), "values": self.b(x).sigmoid(), "names": "none"}

    def loss(out, y):
        return F.cross_entropy(out["classes"], y) + (out["values"] ** 4).sum() * out["classes"][0, 0]

    class Flat(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.heads = heads

        def forward(self, x):
            return torch.cat([self.heads(x)["classes"], self.heads(x)["values"]], 1)

    model = _seeded(Heads)
    G = gauss_newton(Flat(model), lambda z, y: loss({"classes": z[:, :3], "values": z[:, 3:]}, y), X, Y)
    assert relative(ce.GGNOperator(model, loss, X, Y).dense(), G) < 1e-11


def _spectra_agree(model, loss_fn, x, y, tol):
    G = gauss_newton(copy.deepcopy(model).double(), loss_fn, x.double(), y)
    expected = torch.linalg.eigvalsh(G)
    ggn = ce.GGNOperator(model, loss_fn, x, y)
    spec = ce.spectrum(ggn)
    r = len(spec.eigenvalues)
    V = spec.eigenvectors().double()
    assert relative(spec.eigenvalues.double(), expected[-r:]) < tol
    assert float(expected[: len(expected) - r].abs().max()) <= (spec.zero_tol + tol) * float(expected[-1])
    assert relative(V.T @ V, torch.eye(r, dtype=torch.float64)) < 100 * tol
    assert relative((V * spec.eigenvalues.double()) @ V.T, G) < 10 * tol
    assert spec.nullity == len(G) - r
    assert torch.equal(spec.gradient, ggn.gradient)
    return spec


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("name", ["mlp", "batch_norm_residual", "convolution", "prelu_rms_norm"])
def test_exact_spectrum(name, gram, monkeypatch):
    if gram:
        monkeypatch.setattr(by_gram, "_SMALL_BYTES", 0)
    spec = _spectra_agree(_seeded(MODELS[name]), CE, X, Y, 1e-12)
    assert len(spec.eigenvalues) <= 10  # N (C - 1)


@pytest.mark.parametrize("gram", [False, True])
def test_exact_spectrum_of_a_float32_model(gram, monkeypatch):
    if gram:
        monkeypatch.setattr(by_gram, "_SMALL_BYTES", 0)
    model = _seeded(MODELS["mlp"]).float()
    assert _spectra_agree(model, CE, X.float(), Y, 1e-5).dtype == torch.float32
    wide = ce.spectrum(ce.GGNOperator(model, CE, X.float(), Y), spectrum_dtype=torch.float64)
    assert wide.dtype == torch.float64


def test_more_outputs_than_parameters():
    model = _seeded(lambda: nn.Linear(6, 3))
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))
    _spectra_agree(model, CE, x, y, 1e-12)


def test_small_eigenvalues_are_not_taken_from_the_gram_matrix(monkeypatch):
    """Two samples that are nearly the same give eigenvalues 1e-11 of the largest."""
    monkeypatch.setattr(by_gram, "_SMALL_BYTES", 0)
    model, x = _seeded(MODELS["mlp"]), X.clone()
    x[1] = x[0] + 1e-5
    spec = _spectra_agree(model, CE, x, Y, 1e-12)
    assert float(spec.eigenvalues[0] / spec.eigenvalues[-1]) < 1e-9
    with pytest.raises(ce.MemoryBudgetError, match="zero_tol"):
        ce.spectrum(ce.GGNOperator(model, CE, x, Y, memory_budget=1000))
    kept = ce.spectrum(ce.GGNOperator(model, CE, x, Y, memory_budget=1000), zero_tol=1e-6)
    assert relative(kept.eigenvalues, spec.eigenvalues[-len(kept.eigenvalues) :]) < 1e-12


def test_a_spectrum_that_goes_through_the_model_outlives_it(monkeypatch, tmp_path):
    monkeypatch.setattr(by_gram, "_SMALL_BYTES", 0)
    model, x = _seeded(MODELS["mlp"]), X.clone()
    spec = ce.spectrum(ce.GGNOperator(model, CE, x, Y))
    V, mask = spec.eigenvectors(), spec.eigenvalues > spec.eigenvalues.median()
    part = spec.project(spec.gradient, mask)
    spec.save(tmp_path / "spec")
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert torch.equal(spec.eigenvectors(), V)
    for other in (copy.deepcopy(spec), pickle.loads(pickle.dumps(spec)), ce.Spectrum.load(tmp_path / "spec")):
        assert torch.equal(other.eigenvectors(), V)
        assert relative(other.project(spec.gradient, mask), part) < 1e-13
    x[0, 0] += 1.0
    with pytest.raises(ce.StaleOperatorError, match="batch x"):
        spec.eigenvectors()


def test_a_few_pairs_by_lanczos():
    model = _seeded(MODELS["mlp"])
    ggn = ce.GGNOperator(model, CE, X, Y)
    expected = torch.linalg.eigvalsh(gauss_newton(model, CE, X, Y))
    assert relative(ce.spectrum(ggn, k=3, which="largest").eigenvalues, expected[-3:]) < 1e-12


def test_pruning_with_its_directions():
    model = _seeded(MODELS["mlp"])
    ggn = ce.GGNOperator(model, CE, X, Y)
    spec, theta = ce.spectrum(ggn), ggn.snapshot.theta.clone()
    ce.CGD(model.parameters(), lr=0.1, prune="positive").step(spec)
    values, V = torch.linalg.eigh(gauss_newton(_seeded(MODELS["mlp"]), CE, X, Y))
    V = V[:, values > 1e-12 * values[-1]]
    moved = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    g = spec.gradient
    assert relative(moved, theta - 0.1 * (g - V @ (V.T @ g))) < 1e-12


def test_fitted_rows_keep_their_digits():
    """p(1 - p) with p within 1e-9 of one, in float32: by subtraction nothing would be left."""
    model = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[20.0, 1.0], [0.5, -1.0], [-1.0, 0.25]]))
    x, y = torch.tensor([[1.0, 0.5]]), torch.tensor([0])
    p = model.double()(x.double()).softmax(1).squeeze(0)
    others = p.sum() - p  # float64 has the digits
    others[0] = p[1] + p[2]
    C = torch.diag(p * others) - (torch.outer(p, p) - torch.diag(p * p))
    G = torch.einsum("ab,i,j->aibj", C, x[0].double(), x[0].double()).reshape(6, 6)
    ggn = ce.GGNOperator(model.float(), CE, x, y)
    assert relative(ggn.dense().double(), G) < 1e-5
    assert relative(ggn.jacobian().root.apply(torch.eye(3)).double().square().sum(1), C.diagonal()) < 1e-5


def test_leaves_no_trace_and_notices_changes():
    model = _seeded(Residual)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ggn = ce.GGNOperator(model, CE, X, Y)
    ggn.dense(), ce.spectrum(ggn), ggn.diagonal()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        model.a.weight.add_(1e-3)
    for use in (lambda: ggn @ ggn.gradient, ggn.dense, ggn.diagonal, ggn.jacobian):
        with pytest.raises(ce.StaleOperatorError):
            use()


class Counting(nn.Module):
    """Edits its arguments and itself."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, z, y):
        self.calls += 1
        self.seen += 1
        z.mul_(2.0)
        return F.nll_loss(z.log_softmax(1), y.clamp_(max=1))


def test_what_the_loss_writes_to_is_put_back():
    model, loss_fn, y = _seeded(MODELS["mlp"]), Counting(), Y.clone()
    ggn = ce.GGNOperator(model, loss_fn, X, y)
    expected = gauss_newton(model, lambda z, y: F.cross_entropy(2 * z, y.clamp(max=1)), X, Y)
    assert relative(ggn.dense(), expected) < 1e-11
    assert relative(ggn @ ggn.gradient, expected @ ggn.gradient) < 1e-11
    ce.spectrum(ggn)
    assert (loss_fn.calls, float(loss_fn.seen)) == (0, 0.0)
    assert torch.equal(y, Y)


@pytest.mark.parametrize("loss", [CE, UNKNOWN["nll"]], ids=["rule", "torch"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_within_modes_without_gradients(mode, loss):
    model = _seeded(MODELS["mlp"])
    expected = gauss_newton(model, CE, X, Y)
    with mode():
        ggn = ce.GGNOperator(model, loss, X, Y)
        assert relative(ggn.dense(), expected) < 1e-11
        assert relative(ggn.diagonal(), expected.diagonal()) < 1e-11
        assert len(ce.spectrum(ggn).eigenvalues) == 10


def test_nothing_that_follows_training_takes_it_for_the_hessian():
    model = _seeded(MODELS["mlp"])
    ggn, opt = ce.GGNOperator(model, CE, X, Y), ce.CGD(model.parameters(), lr=0.1)
    for use in (
        lambda: opt.step(ggn),
        lambda: ce.TangentMap(opt).apply_(ggn, torch.ones(ggn.shape[0], 1, dtype=torch.float64)),
        lambda: ce.LyapunovAnalyzer(model, opt).update(ggn),
    ):
        with pytest.raises(TypeError, match="HessianOperator"):
            use()


def test_refuses_a_loss_that_reads_parameters():
    model = _seeded(MODELS["mlp"])
    with pytest.raises(ce.UnsupportedError, match="other than through"):
        ce.GGNOperator(model, lambda z, y: F.cross_entropy(z, y) + model[0].weight.square().sum(), X, Y)


class Curve(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64))

    def forward(self, x):
        return torch.sin(x * self.theta[0]) * self.theta[1] + self.theta[2]


def test_more_outputs_than_a_curvature_without_a_rule_has_room_for():
    """What needs no C as a matrix takes products."""
    model, x, y = Curve(), torch.linspace(0, 3, 9000, dtype=torch.float64), torch.zeros(9000, dtype=torch.float64)
    ggn, expected = ce.GGNOperator(model, lambda z, t: (z - t).pow(2).mean(), x, y), torch.zeros(3, 3).double()
    for part in x.split(1000):
        expected += gauss_newton(model, lambda z, t: (z - t).pow(2).sum() / 9000, part, y[:1000])
    assert relative(ggn.dense(), expected) < 1e-11
    assert relative(ggn.diagonal(), expected.diagonal()) < 1e-11
    assert relative(ce.spectrum(ggn).eigenvalues, torch.linalg.eigvalsh(expected)) < 1e-11
    assert float(ce.trace(ggn)) == pytest.approx(float(expected.trace()), rel=1e-11)
    assert float(ce.frobenius_norm(ggn)) == pytest.approx(float(expected.norm()), rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_row", [False, True])
def test_no_product_sees_past_a_padded_row(dtype, per_row):
    """torch's jvp moves it; in float32 one number u^T J v does not always tell."""
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 3), nn.SiLU())
        rest = [nn.Linear(3, 2), nn.Flatten(0, 1)] if per_row else [nn.Flatten(), nn.Linear(9, 2)]
        model = model.extend(rest).to(dtype)
        x, y = torch.randint(0, 5, (4, 3)), torch.randint(0, 2, (12 if per_row else 4,))
        x[0, 0] = 0
        ggn = ce.GGNOperator(model, UNKNOWN["nll"], x, y)
        v = torch.randn(ggn.shape[0], 2, dtype=dtype)
        G = gauss_newton(copy.deepcopy(model).double(), CE, x, y)
        assert relative((ggn @ v).double(), G @ v.double()) < (1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(
    "penalised",
    [
        lambda z, y, b: F.mse_loss(z, y) + 5 * b.square().sum(),
        lambda z, y, b: F.mse_loss(z, y) * (1 + b.square().sum()),
        lambda z, y, b: F.mse_loss(z, y) + (z.mean(0) * 0).sum() + b.pow(4).mean(),
    ],
)
def test_refuses_a_loss_that_reads_parameters_whose_part_has_no_gradient_here(penalised):
    model = nn.Linear(3, 2).double()
    nn.init.zeros_(model.bias)
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ce.UnsupportedError, match="other than through"):
        ce.GGNOperator(model, lambda z, t: penalised(z, t, model.bias), x, y)
    ggn = ce.GGNOperator(model, lambda z, t: penalised(z, t, model.bias.detach()), x, y)
    assert relative(ggn.dense(), gauss_newton(model, nn.MSELoss(), x, y)) < 1e-11
    block = ce.GGNOperator(model, lambda z, t: penalised(z, t, model.bias), x, y, params="weight")
    assert relative(block.dense(), gauss_newton(model, nn.MSELoss(), x, y)[:6, :6]) < 1e-11


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class _WrongJvp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g

    @staticmethod
    def jvp(ctx, t):
        return 2 * ctx.saved_tensors[0] ** 2 * t


class _Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(6, 4), nn.Linear(4, 3), function

    def forward(self, x):
        return self.b(self.function.apply(self.a(x)))


def test_a_surrogate_gradient_is_refused_and_a_wrong_jvp_avoided():
    with pytest.raises(ce.ChaosExtError, match="derivatives of the output"):
        ce.GGNOperator(_seeded(lambda: _Applied(_Straight)), UNKNOWN["nll"], X, Y)
    model = _seeded(lambda: _Applied(_WrongJvp))
    assert relative(ce.GGNOperator(model, UNKNOWN["nll"], X, Y).dense(), gauss_newton(model, CE, X, Y)) < 1e-11


def test_says_how_it_is_computed():
    model = _seeded(MODELS["mlp"])
    assert "layer rules" in ce.GGNOperator(model, CE, X, Y).explain()[0].path
    (report,) = ce.GGNOperator(model, UNKNOWN["nll"], X, Y).explain()
    assert "by torch" in report.path
    assert "no rule" in report.why


def test_as_a_scipy_operator():
    scipy = pytest.importorskip("scipy.sparse.linalg")
    model = _seeded(MODELS["mlp"])
    for op in (ce.GGNOperator(model, CE, X, Y), ce.HessianOperator(model, CE, X, Y)):
        expected = torch.linalg.eigvalsh(op.dense())
        found = torch.from_numpy(scipy.eigsh(op.to_scipy(), k=3, which="LA", return_eigenvectors=False)).sort().values
        assert relative(found, expected[-3:]) < 1e-9
        matrix = torch.from_numpy(op.to_scipy() @ torch.eye(op.shape[0], dtype=torch.float64).numpy())
        assert relative(matrix, op.dense()) < 1e-13


@pytest.mark.parametrize(
    ("v", "error"),
    [(torch.ones(3, dtype=torch.float64), ValueError), (torch.ones(73), TypeError), ([1.0], TypeError)],
)
def test_refuses_other_vectors(v, error):
    with pytest.raises(error, match="v: expected"):
        ce.GGNOperator(_seeded(MODELS["mlp"]), CE, X, Y) @ v


def test_can_be_neither_copied_nor_pickled():
    ggn = ce.GGNOperator(_seeded(MODELS["mlp"]), CE, X, Y)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            attempt(ggn)


@pytest.mark.parametrize("operator", [ce.GGNOperator, ce.FisherOperator])
def test_a_group_is_refused_by_name(operator):
    model = nn.Linear(3, 2)
    match = f"group: {operator.__name__} is of the batch of one process.*DatasetHessian"
    with pytest.raises(ce.UnsupportedError, match=match):
        operator(model, nn.CrossEntropyLoss(), torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), group=object())
