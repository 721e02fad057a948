"""A Gauss-Newton operator by torch reads the live model and loss: what they read must be what it was."""

import pytest
import torch
from torch import nn

import chaos_ext as ce


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.scale, self.listed = 1.0, [1.0]

    def forward(self, x):
        return self.b(torch.sin(self.a(x) * self.scale * self.listed[0] * SETTINGS["forward"]))


class Loss:
    def __init__(self):
        self.scale = 1.0

    def __call__(self, z, y):
        return (z - y).abs().pow(3).sum() * self.scale * SETTINGS["loss"]


SETTINGS = {"forward": 1.0, "loss": 1.0}
EDITS = {
    "attribute of the model": lambda model, loss: setattr(model, "scale", 2.0),
    "list of the model": lambda model, loss: model.listed.__setitem__(0, 2.0),
    "what forward reads": lambda model, loss: SETTINGS.__setitem__("forward", 2.0),
    "attribute of the loss": lambda model, loss: setattr(loss, "scale", 2.0),
    "what the loss reads": lambda model, loss: SETTINGS.__setitem__("loss", 2.0),
}
READINGS = {
    "products": lambda ggn: ggn @ torch.ones(ggn.shape[0], 2, dtype=ggn.dtype),
    "dense": lambda ggn: ggn.dense(),
    "diagonal": lambda ggn: ggn.diagonal(),
    "spectrum": lambda ggn: ce.spectrum(ggn).eigenvalues,
    "largest": lambda ggn: ce.spectrum(ggn, k=1).eigenvalues,
    "trace": lambda ggn: ce.trace(ggn),
    "norm": lambda ggn: ce.frobenius_norm(ggn),
    "solve": lambda ggn: ce.solve(ggn, ggn.gradient, 1.0),
}


@pytest.fixture(autouse=True)
def _settings_as_they_were():
    yield
    SETTINGS.update(forward=1.0, loss=1.0)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_noticed_by_every_reading(edit, reading):
    torch.manual_seed(0)
    model, loss = Model().double(), Loss()
    x, y = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    READINGS[reading](ce.GGNOperator(model, loss, x, y))
    ggn = ce.GGNOperator(model, loss, x, y)
    EDITS[edit](model, loss)
    with pytest.raises(ce.StaleOperatorError):
        READINGS[reading](ggn)
