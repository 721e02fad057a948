"""The product SVD against products in integer arithmetic: every digit of every singular value."""

import math

import mpmath
import pytest
import torch
from exact_products import COMMITTED, committed, maps, product_logs

from chaos_ext.dynamics.finite_time import readout
from chaos_ext.dynamics.finite_time.extremes import largest, smallest
from chaos_ext.dynamics.finite_time.jacobi import rotated
from chaos_ext.dynamics.finite_time.product import ProductSVD
from chaos_ext.errors import NotConvergedError


def multiplied(factors, k=None, dtype=torch.float64):
    """The product SVD after these factors [n, n], from the first k unit vectors."""
    n = len(factors[0])
    p = ProductSVD(torch.eye(n, dtype=dtype)[:, : k or n].contiguous())
    for J in factors:
        advance(p, J)
    return p


def advance(p, J):
    torch.mm(J, p.Y.clone(), out=p.Y)
    p.pending += 1
    lengths = torch.linalg.vector_norm(p.Y, dim=0)
    if p.is_due(float(lengths.min()), float(lengths.max())):
        p.factor_()


def logs(p):
    return p.decomposition()[0].logs


def exact(factors, spread):
    return torch.tensor(product_logs([J.numpy() for J in factors], spread), dtype=torch.float64)


def random_maps(steps, n, size=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    eye = torch.eye(n, dtype=torch.float64)
    return [eye + size * torch.randn(n, n, generator=g, dtype=torch.float64) for _ in range(steps)]


@pytest.fixture(scope="module")
def run_of_the_papers_length():
    return multiplied(torch.from_numpy(maps()))


def test_a_product_of_the_papers_length_over_thousands_of_e_folds(run_of_the_papers_length):
    reference = torch.tensor(committed(), dtype=torch.float64)
    assert reference[0] - reference[-1] > 4000
    got = logs(run_of_the_papers_length)
    assert (got - reference).abs().max() < 1e-9
    assert ((got - reference).abs() <= run_of_the_papers_length.errors()).all()


@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 100), (torch.float64, 200)])
def test_eigenvalues_of_the_gram_matrix_are_wrong_long_before(dtype, step):
    """The paper's method beside ours, after the first 100 and 200 of the 36,480 steps."""
    factors = torch.from_numpy(maps(step))
    Y = torch.eye(8, dtype=dtype)
    for J in factors.to(dtype):
        Y = J @ Y
    naive = torch.linalg.eigvalsh(Y.mT @ Y).flip(0).double().log() / 2
    reference = exact(list(factors), 100)
    wrong = ~((naive - reference).abs() < 0.5)  # half an e-fold; NaN, of negative eigenvalues, is wrong, too
    assert wrong.any()
    assert (logs(multiplied(factors)) - reference).abs().max() < 1e-12


def test_the_committed_reference_is_what_the_script_makes():
    """The same arithmetic on a tenth of the digits and steps: against mpmath's own products."""
    factors = maps(60)
    with mpmath.workdps(120):
        M = mpmath.eye(8)
        for J in factors:
            M = mpmath.matrix(J.tolist()) * M
        own = sorted((float(mpmath.log(s)) for s in mpmath.svd_r(M, compute_uv=False)), reverse=True)
    assert product_logs(factors, 60) == pytest.approx(own, abs=1e-13)
    assert COMMITTED.exists()


@pytest.mark.parametrize("seed", range(4))
def test_products_of_random_maps(seed):
    factors = random_maps(300, 12, seed=seed)
    p = multiplied(factors)
    reference = exact(factors, 400)
    assert (logs(p) - reference).abs().max() < 1e-10
    assert ((logs(p) - reference).abs() <= p.errors()).all()
    volume = sum(float(torch.linalg.slogdet(J).logabsdet) for J in factors)
    assert float(logs(p).sum()) == pytest.approx(volume, abs=1e-9)


def test_directions_that_shrink_and_grow_again_lose_digits_and_say_so():
    """Rounding leaks into a direction of e^-30, which then grows to be the largest: no algorithm in float64 escapes."""
    turn = torch.linalg.qr(random_maps(1, 6)[0]).Q
    down = turn @ torch.diag(torch.tensor([0.5, 1, 1, 1, 1, 0.9], dtype=torch.float64)) @ turn.mT
    up = turn @ torch.diag(torch.tensor([2.5, 1, 1, 1, 1, 0.9], dtype=torch.float64)) @ turn.mT
    factors = [down] * 44 + [up] * 44
    p = multiplied(factors)
    error = (logs(p) - exact(factors, 60)).abs()
    assert (error <= p.errors()).all()
    assert p.errors().max() > 1e3 * multiplied([up] * 88).errors().max()


def test_a_singular_map_costs_its_own_direction():
    factors = random_maps(40, 6)
    factors[20] = torch.diag(torch.tensor([1.0, 1, 1, 0, 1, 1], dtype=torch.float64))
    got = logs(multiplied(factors))
    M = torch.eye(6, dtype=torch.float64)
    for J in factors:
        M = J @ M
    assert torch.allclose(got[:5], torch.linalg.svdvals(M)[:5].log(), atol=1e-7)
    assert got[5] < got[0] - 30  # zero, but for the rounding of the block in which the map was


def test_a_diagonal_singular_map_is_minus_infinity():
    factors = [torch.diag(torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64))] * 3
    p = multiplied(factors)
    assert logs(p).tolist() == [pytest.approx(3 * math.log(2)), pytest.approx(-3 * math.log(2)), -math.inf]
    assert torch.isfinite(p.errors()[:2]).all()


@pytest.mark.parametrize("k", [1, 3])
def test_fewer_columns_than_rows_are_the_restricted_map(k):
    factors = random_maps(30, 7)
    M = torch.eye(7, dtype=torch.float64)
    for J in factors:
        M = J @ M
    assert torch.allclose(logs(multiplied(factors, k)), torch.linalg.svdvals(M[:, :k]).log(), atol=1e-9)


@pytest.mark.parametrize("pending", [0, 5])
def test_singular_vectors_are_those_of_the_product(pending):
    factors = random_maps(12, 9, size=0.05)
    p = multiplied(factors[: 12 - pending])
    for J in factors[12 - pending :]:
        torch.mm(J, p.Y.clone(), out=p.Y)
        p.pending += 1
    M = torch.eye(9, dtype=torch.float64)
    for J in factors:
        M = J @ M
    d, _ = p.decomposition(vectors=True)
    assert torch.allclose((d.left * d.logs.exp()) @ d.right.mT, M, atol=1e-13)
    for V in (d.left, d.right):
        assert torch.allclose(V.mT @ V, torch.eye(9, dtype=torch.float64), atol=1e-13)


def test_reading_changes_nothing():
    factors = random_maps(60, 9)
    p, q = multiplied(factors[:30]), multiplied(factors[:30])
    p.decomposition(vectors=True), p.errors(), largest(p.factors(), None, 1e-6)
    for J in factors[30:]:
        advance(p, J), advance(q, J)
    assert torch.equal(p.Y, q.Y)
    assert torch.equal(p.U, q.U)
    assert torch.equal(p.l, q.l)


def graded(n, spread, seed=0):
    g = torch.Generator().manual_seed(seed)
    U = torch.eye(n, dtype=torch.float64) + 0.5 / n**0.5 * torch.randn(n, n, generator=g, dtype=torch.float64)
    return torch.linspace(spread / 2, -spread / 2, n, dtype=torch.float64), U / U.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_own_jacobi_against_lapack(n):
    pytest.importorskip("scipy")
    l, U = graded(n, 500)
    by_lapack = readout.decompose_(l, U.clone(), torch.empty_like(U), vectors=True)
    values = readout.decompose_(l, U.clone(), torch.empty_like(U)).logs
    own, right, left = rotated(l, U, vectors=True)
    assert torch.allclose(own, by_lapack.logs, rtol=0, atol=1e-12)
    assert torch.equal(values, by_lapack.logs) or torch.allclose(values, own, rtol=0, atol=1e-12)
    assert torch.allclose(right.mT.abs(), by_lapack.right.abs(), atol=1e-12)
    assert torch.allclose(left.abs(), by_lapack.left.abs(), atol=1e-12)


@pytest.mark.parametrize("spread", [0, 40, 5000])
@pytest.mark.parametrize("without", [False, True])
def test_the_read_out_against_mpmath(spread, without, monkeypatch):
    """Also where e^l is far outside of a double, and where scipy is not installed."""
    if without:
        monkeypatch.setattr(readout, "_lapack", lambda: None)
    n = 7
    l, U = graded(n, spread)
    with mpmath.workdps(int(spread) + 60):
        M = mpmath.matrix(n, n)
        for i in range(n):
            for j in range(n):
                M[i, j] = mpmath.exp(mpmath.mpf(float(l[i]))) * mpmath.mpf(float(U[i, j]))
        reference = sorted((float(mpmath.log(s)) for s in mpmath.svd_r(M, compute_uv=False)), reverse=True)
    got = readout.decompose_(l.flip(0), U.flip(0).clone(), torch.empty_like(U)).logs
    assert got.tolist() == pytest.approx(reference, abs=1e-12)


def test_dependent_rows_are_refused_or_lost_but_never_invented():
    l, U = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    U[2] = U[1]
    try:
        got = rotated(l, U)[0]
    except NotConvergedError:
        return
    assert got[0] == pytest.approx(math.log(2) / 2)
    assert got[2] < -30 or torch.isnan(got[2]) or got[2] == -math.inf


@pytest.mark.parametrize("n", [3, 60])
def test_extremes_in_the_middle_of_blocks(n):
    p = ProductSVD(torch.eye(n, dtype=torch.float64))
    start = low = None
    for t, J in enumerate(random_maps(80, n, size=0.2 / n**0.5)):
        advance(p, J)
        if t % 8 == 7:
            high, bottom = largest(p.factors(), start, 1e-6), smallest(p.factors(), low, 1e-6)
            start, low = high.basis, bottom.basis
            values = logs(p)
            for extreme, value in ((high, values[0]), (bottom, values[-1])):
                assert extreme.tolerance <= 1e-6 or n > 40
                assert abs(extreme.log - float(value)) <= max(extreme.tolerance, 1e-12)


def test_extremes_of_equal_singular_values():
    """sigma_1 = sigma_2 = ...: power steps would stall between them; any of them is the answer."""
    p = multiplied([torch.eye(5, dtype=torch.float64) * 0.5] * 20)
    for extreme in (largest(p.factors(), None, 1e-8), smallest(p.factors(), None, 1e-8)):
        assert extreme.log == pytest.approx(-20 * math.log(2), abs=1e-12)


def test_float32_blocks_are_as_good_as_their_steps():
    factors = random_maps(200, 8)
    p = multiplied([J.float() for J in factors], dtype=torch.float32)
    reference = exact([J.float().double() for J in factors], 300)
    assert ((logs(p) - reference).abs() <= p.errors()).all()
    assert (logs(p) - reference).abs().max() < 1e-3
