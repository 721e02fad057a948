"""Parameters that share memory without being one object: refused by name, since a step would move them twice."""

import pytest
import torch
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


def _batch():
    torch.manual_seed(1)
    return torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])


class Three(nn.Module):
    """4 -> 5 -> 4 -> 3."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def _tied_by_data(m):
    m.b.weight.data = m.a.weight.data.t()


def _tied_by_parameter(m):
    m.b.weight = nn.Parameter(m.a.weight.detach().t())


def _overlapping(m):
    base = torch.randn(35, dtype=torch.float64)
    m.a.weight, m.b.weight = nn.Parameter(base[:20].view(5, 4)), nn.Parameter(base[15:].view(4, 5))


def _within(m):
    m.a.bias = nn.Parameter(m.a.weight.detach()[:, 2])


def _buffer(m):
    m.register_buffer("copy", m.a.weight.detach().t())


def _teacher(m):
    m.teacher = nn.Linear(4, 5).requires_grad_(False)
    m.teacher.weight.data = m.a.weight.data


SHARED = {
    "buffer": _buffer,
    "teacher": _teacher,
    "data": _tied_by_data,
    "parameter": _tied_by_parameter,
    "part": _overlapping,
    "column": _within,
}


@pytest.mark.parametrize("name", SHARED)
def test_parameters_that_share_memory_are_refused_by_name(name):
    model = Three()
    SHARED[name](model)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for use in (lambda: ce.HessianOperator(model, CE, *_batch()), lambda: ce.LyapunovAnalyzer(model, opt)):
        with pytest.raises(ce.UnsupportedError, match=r"a\.(weight|bias).* share memory"):
            use()


def test_expanded_parameters_are_refused_by_name():
    model = Three()
    model.b.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64).expand(4))
    with pytest.raises(ce.UnsupportedError, match=r"b\.bias.*one place in memory"):
        ce.HessianOperator(model, CE, *_batch())


def _chunks(m):
    base = torch.randn(5, 8, dtype=torch.float64)  # rows of one lie between rows of the other
    m.a.weight, m.b.weight = nn.Parameter(base[:, :4]), nn.Parameter(base[:, 4:].t())
    m.b.weight.data = torch.randn(4, 5, dtype=torch.float64)
    m.b.bias = nn.Parameter(base[:, 4:][0])


def _flat(m):
    base = torch.randn(40, dtype=torch.float64)
    m.a.weight, m.b.weight = nn.Parameter(base[20:].view(5, 4)), nn.Parameter(base[:20].view(4, 5))


def _constants_alone(m):
    base = torch.randn(5, 1, dtype=torch.float64)
    m.register_buffer("one", base.expand(5, 4)), m.register_buffer("other", base)  # nobody steps these


def _channels_last(m):
    m.a.weight = nn.Parameter(torch.randn(4, 5, dtype=torch.float64).t())


ALONE = [_chunks, _flat, _constants_alone, _channels_last]


@pytest.mark.parametrize("place", ALONE, ids=["interleaved", "flat", "constants", "transposed"])
def test_parts_of_one_memory_without_an_element_in_common_are_exact(place):
    model, (x, y) = Three(), _batch()
    place(model)
    H = ce.HessianOperator(model, CE, x, y).dense()
    assert relative(H, double_backward(model, CE, x, y)) < 1e-10
