"""Diagonals, Gauss-Newton and Fisher matrices, traces and differences of blocks and of data sets."""

import pytest
import torch
from oracles import relative
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
KINDS = {
    "hessian": ce.HessianOperator,
    "gauss-newton": ce.GGNOperator,
    "fisher": ce.FisherOperator,
    "covariance": lambda *args, **more: ce.FisherOperator(*args, "covariance", **more),
}


class Tied(nn.Module):
    """A weight that is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(torch.relu(self.inner(torch.sigmoid(self.inner(h)))))


def _convolutional():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)).eval()


MODELS = {"tied": (Tied, (4,), "inner.*"), "convolutional": (_convolutional, (1, 4, 4), ["0.weight", "2.*"])}


@pytest.fixture(params=MODELS)
def problem(request):
    torch.manual_seed(0)
    make, shape, block = MODELS[request.param]
    model = make().double()
    x, y = torch.randn(6, *shape, dtype=torch.float64), torch.randint(3, (6,))
    names, sizes = zip(*((n, p.numel()) for n, p in model.named_parameters()), strict=True)
    inside = [n.startswith(("inner.", "0.weight", "2.")) for n in names]
    rows = torch.cat([torch.full((s,), i) for i, s in zip(inside, sizes, strict=True)]).nonzero().squeeze(1)
    return model, x, y, block, rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_a_slice_of_the_whole(problem, kind):
    model, x, y, params, rows = problem
    whole, block = (KINDS[kind](model, CE, x, y, **more) for more in ({}, {"params": params}))
    expected = whole.dense()[rows][:, rows]
    v = torch.randn(len(rows), 3, dtype=torch.float64)
    assert relative(block.dense(), expected) < 1e-12
    assert relative(block @ v, expected @ v) < 1e-12
    assert relative(block.diagonal(), expected.diagonal()) < 1e-12
    assert relative(block.gradient, whole.gradient[rows]) < 1e-12
    assert float(ce.trace(block)) == pytest.approx(float(expected.trace()), rel=1e-10)
    assert float(ce.frobenius_norm(block)) == pytest.approx(float(expected.norm()), rel=1e-10)
    eigenvalues = ce.spectrum(block).eigenvalues
    dense = torch.linalg.eigvalsh(expected)
    torch.testing.assert_close(eigenvalues[-3:], dense[-3:], rtol=1e-9, atol=1e-12)


def test_the_functional_part_of_a_block(problem):
    model, x, y, params, rows = problem
    parts = [ce.HessianOperator(model, CE, x, y, params=params), ce.GGNOperator(model, CE, x, y, params=params)]
    difference = parts[0] - parts[1]
    assert relative(difference.dense(), parts[0].dense() - parts[1].dense()) < 1e-12
    assert relative(difference.diagonal(), difference.dense().diagonal()) < 1e-12


@pytest.mark.parametrize("params", [None, "block"])
@pytest.mark.parametrize("keep", [0, 1 << 28])
def test_a_data_set_is_symmetric_like_the_others(problem, params, keep):
    model, x, y, block, _ = problem
    params = None if params is None else block
    batches = [(x[:1], y[:1]), (x[1:], y[1:])]
    whole = ce.DatasetHessian(model, CE, batches, params=params, keep=keep)
    one = ce.HessianOperator(model, CE, x, y, params=params)
    assert relative(whole.diagonal(), one.dense().diagonal()) < 1e-12
    assert float(ce.trace(whole)) == pytest.approx(float(one.dense().trace()), rel=1e-10)
    ggn = ce.GGNOperator(model, CE, x, y, params=params)
    assert relative((whole - ggn).dense(), one.dense() - ggn.dense()) < 1e-10
    v = torch.randn(whole.shape[0], dtype=torch.float64)
    assert relative(torch.from_numpy(whole.to_scipy() @ v.numpy()), one @ v) < 1e-10
    g = ce.solve(ggn, whole.gradient, damping=0.1).x
    assert relative(ggn @ g + 0.1 * g, whole.gradient) < 1e-4


@pytest.mark.parametrize("blocks", [("0.bias", "1.bias"), ("*.0.weight", "*.1.weight"), ("1.bias", "2.bias")])
def test_blocks_of_one_size_have_no_difference(blocks):
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))).append(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    a, b = (ce.GGNOperator(model.double(), nn.MSELoss(), x.double(), y.double(), params=block) for block in blocks)
    for first, second in ((a, b), (a - a, b), (a, b - b)):
        with pytest.raises(ValueError, match="same parameters"):
            first - second
    assert not (a - a).dense().any()


def test_complex_arrays_are_refused():
    scipy = pytest.importorskip("scipy.sparse.linalg")
    assert scipy
    model, x, y = nn.Linear(3, 2).double(), torch.randn(4, 3).double(), torch.randn(4, 2).double()
    op = ce.GGNOperator(model, nn.MSELoss(), x, y).to_scipy()
    for v in (1j * torch.ones(8), torch.ones(8, 2) + 0j):
        with pytest.raises(TypeError, match="complex"):
            op @ v.numpy()
    assert (op @ torch.ones(8, dtype=torch.int64).numpy()).shape == (8,)
