"""The same numbers as curvlinops, wherever that is right; where it is not, the case is named."""

import pytest
import torch
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce

curvlinops = pytest.importorskip("curvlinops")


def _mlp():
    return nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))


def _cnn():  # not SiLU, which theirs cannot differentiate
    features = nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(18, 3))


CASES = {
    "mlp": (_mlp, (10,), nn.CrossEntropyLoss, "classes"),
    "mlp sum": (_mlp, (10,), lambda: nn.CrossEntropyLoss(reduction="sum"), "classes"),
    "mlp squared error": (_mlp, (10,), nn.MSELoss, "numbers"),
    "mlp binary": (_mlp, (10,), nn.BCEWithLogitsLoss, "binary"),
    "cnn": (_cnn, (1, 8, 8), nn.CrossEntropyLoss, "classes"),
    "cnn squared error": (_cnn, (1, 8, 8), lambda: nn.MSELoss(reduction="sum"), "numbers"),
}


def _problem(name):
    make, shape, loss, kind = CASES[name]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(4, *shape, dtype=torch.float64)
    numbers = torch.randn(4, 3, dtype=torch.float64)
    y = {"classes": torch.tensor([0, 2, 1, 2]), "numbers": numbers, "binary": (numbers > 0).double()}
    return model, loss(), x, y[kind]


def _theirs(kind, model, loss_fn, x, y):
    return kind(model, loss_fn, list(model.parameters()), [(x, y)])


@pytest.mark.parametrize("name", CASES)
def test_hessian_and_gauss_newton(name):
    model, loss_fn, x, y = _problem(name)
    pairs = ((ce.HessianOperator, curvlinops.HessianLinearOperator), (ce.GGNOperator, curvlinops.GGNLinearOperator))
    for our_kind, their_kind in pairs:
        ours, theirs = our_kind(model, loss_fn, x, y), _theirs(their_kind, model, loss_fn, x, y)
        eye = torch.eye(ours.shape[0], dtype=torch.float64)
        matrix = theirs @ eye
        assert relative(ours.dense(), matrix) < 1e-10
        assert relative(ours @ eye[:, :3], matrix[:, :3]) < 1e-10
        assert relative(ours.diagonal(), matrix.diagonal()) < 1e-10
        for read in (ce.trace, ce.frobenius_norm):
            expected = matrix.trace() if read is ce.trace else matrix.norm()
            assert float(read(ours)) == pytest.approx(float(expected), rel=1e-10)
            assert float(read(theirs, exact=True)) == pytest.approx(float(expected), rel=1e-10)


def test_their_operators_are_taken_as_they_are():
    model, loss_fn, x, y = _problem("mlp")
    theirs = _theirs(curvlinops.GGNLinearOperator, model, loss_fn, x, y)
    ours = ce.GGNOperator(model, loss_fn, x, y)
    b = torch.randn(ours.shape[0], dtype=torch.float64)
    assert relative(ce.solve(theirs, b, 0.1).x, ce.solve(ours, b, 0.1).x) < 1e-8
    a, b = (ce.spectral_density(op, probes=4, steps=10, width=0.1) for op in (theirs, ours))
    assert relative(a.density, b.density) < 1e-6


def test_affine_layer_norm():
    """Their Hessian is off by a tenth here (version 3.0.1), their Gauss-Newton matrix is right; ours both are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()
    loss_fn, x, y = nn.CrossEntropyLoss(), torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
    assert relative(ce.hessian(model, loss_fn, x, y), double_backward(model, loss_fn, x, y)) < 1e-10
    ggn = ce.GGNOperator(model, loss_fn, x, y).dense()
    theirs = _theirs(curvlinops.GGNLinearOperator, model, loss_fn, x, y)
    assert relative(ggn, theirs @ torch.eye(len(ggn), dtype=torch.float64)) < 1e-10
