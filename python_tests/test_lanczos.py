"""A few eigenpairs: every multiplicity, every end, whatever the operator, never a wrong pair."""

import cases
import numpy as np
import pytest
import torch
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce
from chaos_ext.base import memory
from chaos_ext.spectra import cost
from chaos_ext.spectra.krylov import Krylov
from chaos_ext.spectra.lanczos import WHICH, lanczos

CE = nn.CrossEntropyLoss()
CPU = torch.device("cpu")
TOL = {torch.float32: 2e-5, torch.float64: 1e-9}
ORTHOGONAL = {torch.float32: 1e-5, torch.float64: 1e-12}


def _line(low, high, n):
    return torch.linspace(low, high, n, dtype=torch.float64)


def _values(*several):
    return torch.cat([torch.as_tensor(s, dtype=torch.float64).reshape(-1) for s in several])


SPECTRA = {
    "triples": (_values([-3] * 3, [5] * 3, [4] * 3, _line(-1, 1, 300)), 8),
    "ninefold": (_values([2.0] * 9, _line(0, 1, 300)), 12),
    "identity": (torch.ones(200, dtype=torch.float64), 7),
    "zero": (torch.zeros(200, dtype=torch.float64), 5),
    "rank below k": (_values([1, 2, 3, -4, 5], [0.0] * 300), 10),
    "many at the edge": (_values([5, 4], [3.0] * 40, _line(-1, 1, 200)), 6),
    "a cluster": (_values(1 + 1e-6 * torch.arange(6.0), _line(0, 0.5, 200)), 6),
    "copies next to the edge": (_values([2, 1.9, 1.9, 1.9, 1.899], _line(-1, 1.85, 300)), 5),
    "outliers": (_values([1e3, 1e3, 500, 500], _line(-1, 1, 300)), 6),
    "negative": (-_values([7.0, 7.0, 1.0], _line(0, 0.1, 200)), 4),
    "tiny": (1e-20 * _values([3, 3, 2], _line(-0.9, 1, 200)), 4),
}


def _wanted(d, k, which):
    s = d.sort().values
    if which == "magnitude":
        return d[d.abs().argsort(descending=True, stable=True)[:k]].sort().values
    low = {"largest": 0, "smallest": k, "both_ends": k // 2}[which]
    return torch.cat([s[:low], s[len(s) - (k - low) :]])


def _rotated(d, dtype, seed=3):
    Q = torch.linalg.qr(torch.randn(len(d), len(d), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    H = (Q.Q * d) @ Q.Q.T
    return ((H + H.T) / 2).to(dtype)


def _assert_pairs(H, values, V, wanted, dtype):
    scale = max(float(torch.linalg.matrix_norm(H.double(), 2)), 1e-300)
    assert float((values.double() - wanted).abs().max() / scale) < TOL[dtype]
    assert float((H.double() @ V.double() - V.double() * values.double()).norm(dim=0).max() / scale) < TOL[dtype]
    assert float((V.T @ V - torch.eye(V.shape[1], dtype=dtype)).abs().max()) < ORTHOGONAL[dtype]


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("rotated", [False, True], ids=["diagonal", "rotated"])
@pytest.mark.parametrize("name", SPECTRA)
def test_every_eigenvalue_has_its_multiplicity(name, rotated, which, dtype):
    d, k = SPECTRA[name]
    H = _rotated(d, dtype) if rotated else torch.diag(d).to(dtype)
    values, V = lanczos(lambda X: H @ X, len(d), k, which, dtype=dtype, device=CPU)
    _assert_pairs(H, values, V, _wanted(d, k, which), dtype)


@pytest.mark.parametrize("seed", range(20))
def test_multiplicities_do_not_depend_on_luck(seed):
    d, k = SPECTRA["triples"]
    values, _ = lanczos(lambda X: d[:, None] * X, len(d), k, "both_ends", dtype=d.dtype, device=CPU, seed=seed)
    assert relative(values, _wanted(d, k, "both_ends")) < 1e-9


def test_without_a_second_look_copies_are_lost():
    d, args = _values([5, 5], _line(-1, 1, 300)), {"dtype": torch.float64, "device": CPU, "tol": 1e-2}
    for confirm, error in ((False, 0.8), (True, 0.0)):
        values, _ = lanczos(lambda X: d[:, None] * X, len(d), 2, "largest", confirm=confirm, **args)
        assert float(values[1] - values[0]) / 5 == pytest.approx(error, abs=0.01)


@pytest.mark.parametrize("size", [1, 2, 3, 20, 90])
def test_of_every_size_and_every_k(size, dtype):
    H = _rotated(torch.linspace(-2, 1, size, dtype=torch.float64).pow(3), dtype)
    exact = torch.linalg.eigvalsh(H.double())
    for k in sorted({1, 2, size // 2, size - 1, size} & set(range(1, size + 1))):
        for which in WHICH:
            values, V = lanczos(lambda X: H @ X, size, k, which, dtype=dtype, device=CPU)
            _assert_pairs(H, values, V, _wanted(exact, k, which), dtype)


def test_symmetric_units_have_multiple_eigenvalues():
    """A head that is zero: the logits are equal, and the Hessian of the head is (I / C - 1 1^T / C^2) x h h^T."""
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8)).double()
    for p in model[2].parameters():
        nn.init.zeros_(p)
    x, y = torch.randn(16, 12, dtype=torch.float64), torch.randint(8, (16,))
    H = double_backward(model, CE, x, y)
    spec = ce.spectrum(ce.HessianOperator(model, CE, x, y), k=16)
    _assert_pairs(H, spec.eigenvalues, spec.eigenvectors(), _wanted(torch.linalg.eigvalsh(H), 16, "both_ends"), H.dtype)


def _op(n=8, dtype=torch.float64, shift=0.0):
    model = cases.mlp(3, "tanh", width=12).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(shift * torch.sin(torch.arange(p.numel(), dtype=dtype)).view_as(p))
    x, y = cases.batch(n, cases.LOSSES["ce"][1])
    return ce.HessianOperator(model, CE, x.to(dtype), y)


class _Counted:
    def __init__(self, H):
        self.H, self.shape, self.columns = H, H.shape, 0

    def __matmul__(self, X):
        self.columns += X.shape[1]
        return self.H @ X


@pytest.mark.parametrize("which", WHICH)
def test_a_start_saves_products_and_changes_no_result(which, dtype):
    H = _rotated(_values([-2, -1.9, 2, 1.9, 1.8, 1.7], _line(-1, 1, 600)), dtype)
    E = _rotated(torch.randn(len(H), generator=torch.Generator().manual_seed(1)).double(), dtype, seed=5)
    cold, warm = _Counted(H + 1e-4 * E), _Counted(H + 1e-4 * E)
    before = ce.spectrum(H, k=6, which=which)
    expected, found = ce.spectrum(cold, k=6, which=which), ce.spectrum(warm, k=6, which=which, start=before)
    assert relative(found.eigenvalues, expected.eigenvalues) < TOL[dtype]
    assert warm.columns < cold.columns


def test_a_start_hides_nothing():
    """From exact eigenvectors, to which the new outliers are orthogonal."""
    d = _values([3, 2], _line(-1, 1, 300))
    before = ce.spectrum(torch.diag(d), k=4)
    d[100], d[101], d[102] = 7, 7, -5
    found = ce.spectrum(torch.diag(d), k=4, start=before)
    assert relative(found.eigenvalues, _wanted(d, 4, "both_ends")) < 1e-9


def test_start_may_be_any_spectrum_of_that_size():
    op = _op()
    exact = ce.spectrum(op, k=6).eigenvalues
    for start in (ce.spectrum(op), ce.spectrum(op, k=2), ce.directions(_op(shift=0.01)), ce.spectrum(op, k=30)):
        assert relative(ce.spectrum(op, k=6, start=start).eigenvalues, exact) < 1e-9
    empty = ce.spectrum(torch.zeros(op.shape), k=1)
    assert relative(ce.spectrum(op, k=6, start=empty).eigenvalues, exact) < 1e-9


def test_start_of_another_kind_is_refused():
    op = _op()
    with pytest.raises(TypeError, match="start: expected a Spectrum"):
        ce.spectrum(op, k=2, start=torch.ones(3))
    with pytest.raises(ValueError, match="start: expected a spectrum of P"):
        ce.spectrum(op, k=2, start=ce.spectrum(torch.eye(5), k=2))
    with pytest.raises(ValueError, match="without k"):
        ce.spectrum(op, start=ce.spectrum(op, k=2))


class _Numpy:
    def __init__(self, H):
        self.H, self.shape, self.dtype = H, H.shape, H.dtype

    def __matmul__(self, X):
        assert isinstance(X, np.ndarray)
        return self.H @ X


class _Plain:
    """With shape and @ only, of one dtype only."""

    def __init__(self, H):
        self._H, self.shape = H, H.shape

    def __matmul__(self, X):
        return self._H @ X


def _scipy(H):
    return pytest.importorskip("scipy.sparse.linalg").aslinearoperator(H.numpy())


FOREIGN = {
    "a matrix": lambda H: H,
    "a numpy matrix": lambda H: H.numpy(),
    "an object of numpy": lambda H: _Numpy(H.numpy()),
    "an object of torch": _Plain,
    "scipy": _scipy,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_whatever_has_a_shape_and_products(kind, dtype):
    d = _values([3, 3, 2, -4], _line(-1, 1, 150))
    H = _rotated(d, dtype)
    spec = ce.spectrum(FOREIGN[kind](H), k=5)
    assert (spec.dtype, spec.loss, spec.gradient, spec.origin, spec.nullity) == (dtype, None, None, None, None)
    _assert_pairs(H, spec.eigenvalues, spec.eigenvectors(), _wanted(d, 5, "both_ends"), dtype)


@pytest.mark.parametrize(
    ("op", "error", "text"),
    [
        (object(), TypeError, "shape and @"),
        (torch.ones(3, 4), ValueError, "square"),
        (torch.ones(3, 3, dtype=torch.int64), TypeError, "float32 or float64"),
        (np.ones((3, 3), dtype=np.complex128), TypeError, "float32 or float64"),
        (torch.full((50, 50), float("nan")), ce.NonFiniteError, "NaN"),
        (torch.full((5, 5), float("inf")), ce.NonFiniteError, "NaN"),
        (torch.triu(torch.ones(90, 90, dtype=torch.float64)), ce.NotConvergedError, "lanczos"),
    ],
)
def test_what_is_no_symmetric_operator_is_refused(op, error, text):
    with pytest.raises(error, match=text):
        ce.spectrum(op, k=2)


def test_other_operators_need_k():
    with pytest.raises(TypeError, match="give k"):
        ce.spectrum(torch.eye(3))


def test_a_product_that_returns_its_argument_is_not_written_to():
    values, V = lanczos(lambda X: X, 100, 3, "largest", dtype=torch.float64, device=CPU)
    assert relative(values, torch.ones(3, dtype=torch.float64)) < 1e-12
    assert relative(V.T @ V, torch.eye(3, dtype=torch.float64)) < 1e-12


def test_memory_is_asked_for_before_anything_is_allocated(monkeypatch):
    op = _op()
    monkeypatch.setattr(memory, "available_bytes", lambda device: 50 * op.shape[0] * 8)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: pytest.fail("allocated"))
    with pytest.raises(ce.MemoryBudgetError, match="fewer eigenpairs k"):
        ce.spectrum(op, k=20)


def test_the_same_input_gives_the_same_bits_and_draws_nothing():
    op = _op()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = ce.spectrum(op, k=6), ce.spectrum(op, k=6)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.eigenvalues, b.eigenvalues)
    assert torch.equal(a.eigenvectors(), b.eigenvectors())


def test_a_long_run_says_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr("chaos_ext.spectra.lanczos._PATIENCE", 0.0)
    ce.spectrum(_op(), k=6)
    assert "lanczos: " in caplog.text
    assert "pairs are above the tolerance" in caplog.text


def test_a_step_that_does_not_look_at_values_finds_the_same(dtype):
    """As on a GPU: every vector is projected twice, and a negligible one is replaced without a branch."""
    for name in ("triples", "rank below k", "zero"):
        d, k = SPECTRA[name]
        H = _rotated(d, dtype)
        basis = Krylov(lambda X, H=H: H @ X, len(d), 60, dtype, CPU, 0)
        basis.looks = False
        basis.add_random()
        while basis.n < 50:
            basis.expand()
        V = basis.vectors
        assert float((V @ V.T - torch.eye(50, dtype=dtype)).abs().max()) < ORTHOGONAL[dtype]
        theta, S, residual = basis.ritz()
        Y = basis.combine(S)
        scale = max(float(d.abs().max()), 1e-30)
        explicit = (H @ Y - Y * theta.to(dtype)).double().norm(dim=0)
        assert float((explicit - residual).abs().max()) < 100 * torch.finfo(dtype).eps * scale


def test_no_more_products_than_arpack():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    op = _op(n=64)
    P, counted, theirs = op.shape[0], _Counted(op), [0]

    def product(v):
        theirs[0] += 1
        return (op @ torch.from_numpy(v.reshape(-1).copy())).numpy()

    A = linalg.LinearOperator((P, P), matvec=product, dtype=np.float64)
    expected, _ = linalg.eigsh(A, k=8, which="BE", tol=1e-10, v0=np.linspace(-1, 2, P))
    values, _ = lanczos(counted.__matmul__, P, 8, "both_ends", dtype=op.dtype, device=CPU, confirm=False)
    assert relative(values, torch.from_numpy(expected).sort().values) < 1e-9
    assert counted.columns <= theirs[0] + 1  # the last one checks the result


def test_a_long_decomposition_says_what_it_will_cost(monkeypatch, caplog):
    monkeypatch.setattr("chaos_ext.spectra.cost._LONG_SIZE", 10)
    cost.announce.cache_clear()
    ce.spectrum(_op())
    assert not caplog.text
    monkeypatch.setattr("chaos_ext.spectra.cost._LONG_SECONDS", 0.0)
    for find in (ce.spectrum, ce.directions):
        op = _op()
        cost.announce.cache_clear()
        find(op)
        find(_op())  # said once
        assert f"of size {cost.decomposed_size(op, op.dtype)} at most, in" in caplog.text
        assert "spectrum(op, k=...)" in caplog.text
        assert len(caplog.records) == 1
        caplog.clear()


@pytest.mark.parametrize("k", [5, 10, 25])
@pytest.mark.parametrize("room", [12, 16])
def test_what_waits_finds_a_place_in_a_full_basis(monkeypatch, k, room):
    """A geometric spectrum: eigenvectors turn up late, and wait while the basis is full."""
    monkeypatch.setattr("chaos_ext.spectra.lanczos.rows_for", lambda k, size: min(size, 2 * k + room))
    values = 0.9 ** torch.arange(600, dtype=torch.float64)
    U = torch.linalg.qr(torch.randn(600, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    A = ((U * values) @ U.T).float()
    found, V = lanczos(lambda X: A @ X, 600, k, "both_ends", dtype=torch.float32, device=CPU)
    expected = torch.linalg.eigvalsh(A.double())
    low = k // 2
    wanted = torch.cat([expected[:low], expected[len(expected) - (k - low) :]])
    assert float((found.double() - wanted).abs().max()) < 1e-5
    assert float((V.T @ V - torch.eye(k)).abs().max()) < 1e-5
