"""The functional engine: any module and any callable loss, with the same exactness and without side effects."""

import logging

import cases
import pytest
import torch
from oracles import double_backward, gradient, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce

TOL = 1e-10


def _check(model, loss_fn, x, y, path="jvp of grad"):
    op = ce.HessianOperator(model, loss_fn, x, y)
    assert [r.name for r in op.explain()] == ["(model)"]
    H, H_ref = op.dense(), double_backward(model, loss_fn, x, y)
    assert relative(H, H_ref) < TOL
    assert torch.equal(H, H.T)
    v = torch.randn(len(H), 2, dtype=H.dtype)
    assert relative(op @ v, H_ref @ v) < TOL
    assert relative(op.gradient, gradient(model, loss_fn, x, y)) < TOL
    assert op.explain()[0].path == path
    return op


def test_lambda_loss():
    model = cases.mlp(2, "tanh")
    x, y = cases.batch(4, cases.LOSSES["mse"][1])
    _check(model, lambda z, t: ((z - t) ** 4).sum() + z.exp().mean(), x, y)


@pytest.mark.parametrize("how", ["attribute", "captured"])
def test_loss_that_reads_parameters(how):
    """A regulariser belongs to the scalar, whether the loss looks the parameter up or holds on to it."""
    model = cases.mlp(2, "tanh")
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    held = list(model.parameters())

    def loss(z, t):
        params = held if how == "captured" else list(model.parameters())
        return F.cross_entropy(z, t) + 1e-6 * sum((p**3).sum() for p in params)

    _check(model, loss, x, y, "double backward" if how == "captured" else "jvp of grad")


class OnlyParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64))

    def forward(self, x):
        return self.w


def test_module_that_ignores_its_input():
    model = OnlyParameter()
    op = _check(model, lambda w, y: (w**4).sum() + w.prod(), torch.zeros(1), None)
    w = model.w.detach()
    assert torch.allclose(op.dense().diagonal(), 12 * w**2)


def test_constant_loss_has_zero_hessian():
    model = OnlyParameter()
    op = ce.HessianOperator(model, lambda w, y: torch.tensor(2.0, dtype=torch.float64), torch.zeros(1), None)
    assert torch.equal(op.dense(), torch.zeros(3, 3, dtype=torch.float64))
    spec = ce.spectrum(op)
    assert (spec.nullity, len(spec.eigenvalues)) == (3, 0)


class Conv(nn.Module):
    def __init__(self, norm=None):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 3, 2), norm or nn.Identity(), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.conv(x))).flatten(1))


@pytest.mark.parametrize("norm", [None, "batch", "batch_eval", "batch_no_stats", "group", "layer"])
def test_convolution_and_normalisation(norm):
    """Affine normalisation with gamma != 1, where reverse mode inside vmapped jacobians is silently wrong."""
    make = {
        None: lambda: None,
        "batch": lambda: nn.BatchNorm2d(3),
        "batch_eval": lambda: nn.BatchNorm2d(3),
        "batch_no_stats": lambda: nn.BatchNorm2d(3, track_running_stats=False),
        "group": lambda: nn.GroupNorm(3, 3),
        "layer": lambda: nn.LayerNorm([3, 1, 2]),
    }
    torch.manual_seed(0)
    model = Conv(make[norm]()).double().train(norm != "batch_eval")
    for p in model.norm.parameters():
        nn.init.uniform_(p, 0.5, 2.0)
    x, y = cases.batch(6, cases.LOSSES["ce"][1])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    H, v = op.dense(), torch.randn(op.shape[0], dtype=torch.float64)
    op @ v
    for k, value in model.state_dict().items():
        assert torch.equal(value, before[k]), k
    assert model.training == (norm != "batch_eval")
    assert all(p.grad is None for p in model.parameters())
    assert relative(H, double_backward(model, nn.CrossEntropyLoss(), x, y)) < TOL


def test_dropout_is_refused_in_training_and_exact_in_eval():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    state = torch.get_rng_state()
    with pytest.raises(ce.UnsupportedError, match=r"\(3\)"):
        ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    assert op.explain()[0].path == "enter at units"
    assert relative(op.dense(), double_backward(model, nn.CrossEntropyLoss(), x, y)) < TOL


class NoGrad(nn.Module):
    """torch.fx does not record the context manager: a trace would be silently wrong."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            h = self.a(x.flatten(1)).tanh()
        return self.b(h)


def test_no_grad_inside_forward_is_noticed(caplog):
    torch.manual_seed(0)
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    with caplog.at_level(logging.WARNING, "chaos_ext"):
        _check_unused(NoGrad().double(), x, y)
    assert "NoGrad" in caplog.text


def _check_unused(model, x, y):
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    assert relative(op.dense(), double_backward(model, nn.CrossEntropyLoss(), x, y)) < TOL


class Flag(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.settings = nn.Linear(6, 3), {"scale": False}

    def forward(self, x):
        z = self.a(x.flatten(1))
        return torch.tanh(z) if self.settings["scale"] else z


def test_a_flag_that_forward_reads_may_change_after_the_capture():
    torch.manual_seed(0)
    model = Flag().double()
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    for flag in (False, True, False):
        model.settings["scale"] = flag
        H = ce.hessian(model, nn.CrossEntropyLoss(), x, y)
        assert relative(H, double_backward(model, nn.CrossEntropyLoss(), x, y)) < TOL


def test_hooks_and_patched_forwards_are_honoured():
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    hooked = cases.mlp(2, "tanh")
    assert ce.HessianOperator(hooked, nn.CrossEntropyLoss(), x, y).explain()[0].name != "(model)"
    hooked[1].register_forward_hook(lambda m, args, out: out**3)
    _check(hooked, nn.CrossEntropyLoss(), x, y)
    patched = cases.mlp(2, "tanh")
    patched[1].forward = lambda a: F.linear(a, patched[1].weight) * 2
    H = ce.hessian(patched, nn.CrossEntropyLoss(), x, y)
    assert relative(H, double_backward(patched, nn.CrossEntropyLoss(), x, y)) < TOL


def test_weight_norm_is_not_taken_for_a_linear_layer():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    model = nn.Sequential(nn.Flatten(), layer).double()
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    assert op.explain()[0].name == "(model)"
    # torch 2.14's own double backward of weight_norm disagrees with finite differences
    found = op.dense(), op @ torch.eye(op.shape[0], dtype=torch.float64)
    expected = _differences(model, x, y)
    assert all(relative(H, expected) < 1e-6 for H in found)


def _differences(model, x, y, eps=1e-5):
    params = list(model.parameters())
    theta = nn.utils.parameters_to_vector(params).detach().clone()

    def at(shift):
        nn.utils.vector_to_parameters(theta + shift, params)
        return gradient(model, nn.CrossEntropyLoss(), x, y)

    return torch.stack([(at(eps * e) - at(-eps * e)) / (2 * eps) for e in torch.eye(len(theta), dtype=theta.dtype)])


def test_verify_accepts_what_is_right_and_catches_what_is_wrong(monkeypatch):
    model = cases.mlp(2, "tanh")
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y, verify=True)
    from chaos_ext.curvature.layerwise import LayerwiseEngine

    right = LayerwiseEngine.hvp
    monkeypatch.setattr(LayerwiseEngine, "hvp", lambda self, v: right(self, v) * (1 + 1e-4))
    with pytest.raises(ce.ChaosExtError, match="verify"):
        ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y, verify=True)


def test_recurrent_and_attention_models():
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(3, 2, batch_first=True), nn.Linear(2, 3)

        def forward(self, x):
            return self.out(self.rnn(x.squeeze(1))[0][:, -1])

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.att, self.out = nn.MultiheadAttention(3, 1, batch_first=True), nn.Linear(3, 3)

        def forward(self, x):
            a = x.squeeze(1)
            return self.out(self.att(a, a, a)[0].mean(1))

    x, y = cases.batch(3, cases.LOSSES["ce"][1])
    for model in (Recurrent().double(), Attention().double()):
        op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
        assert relative(op.dense(), double_backward(model, nn.CrossEntropyLoss(), x, y)) < TOL


def test_batchnorm_running_statistics_are_committed_once_by_the_step():
    torch.manual_seed(0)
    model, twin = Conv(nn.BatchNorm2d(3)).double(), Conv(nn.BatchNorm2d(3)).double()
    twin.load_state_dict(model.state_dict())
    x, y = cases.batch(6, cases.LOSSES["ce"][1])
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    ce.CGD(model.parameters(), lr=1e-3, prune="negative").step(op)
    twin(x)
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers()):
        assert torch.equal(ours, theirs), name
