"""``params=``: a diagonal block of H is the slice of the whole one, and everything else is a constant."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce


class Tied(nn.Module):
    """An embedding that is the decoder, too, and a scale of the model's own."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.decoder.weight = self.encoder.weight
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x):
        return self.decoder(torch.tanh(self.encoder(x).sum(1) * self.scale))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 4)
        self.inner = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        h = torch.tanh(self.norm(self.stem(x)))
        return self.head((h + self.inner(h)).mean((2, 3)))


class Attends(nn.Module):
    """A layer without a rule between two that have one."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.middle = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(self.middle(h, h, h, need_weights=False)[0].mean(1))


def _mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 3))


MODELS = {
    "mlp": (_mlp, lambda: torch.randn(5, 4).double(), 3),
    "tied": (Tied, lambda: torch.randint(5, (6, 3)), 5),
    "residual": (Residual, lambda: torch.randn(4, 1, 5, 5).double(), 4),
    "attends": (Attends, lambda: torch.randn(4, 3, 4).double(), 3),
}
LOSSES = {"rules": nn.CrossEntropyLoss(), "torch": lambda o, y: F.cross_entropy(o, y) + 0.0}
CHOICES = {
    "mlp": ["0.*", "3.weight", ["5.*", "0.bias"], "*.bias", "2.weight"],
    "tied": ["encoder.weight", "decoder.weight", "scale"],
    "residual": ["stem.weight", "norm.*", ["head.bias", "inner.weight"], "inner.*"],
    "attends": ["first.*", "middle.*", "last.weight", ["first.bias", "middle.in_proj_weight"]],
}


def _made(name):
    torch.manual_seed(0)
    make, batch, classes = MODELS[name]
    model, x = make().double(), batch()
    return model, x, torch.arange(len(x)) % classes


def _places(space, names):
    """Where these parameters are in theta."""
    return torch.cat([torch.arange(space.size)[space.slice(space.names.index(n))] for n in names])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("name", "params"), [(n, p) for n, ps in CHOICES.items() for p in ps], ids=str)
def test_a_block_is_the_slice_of_the_whole(name, params, loss):
    model, x, y = _made(name)
    whole, H = ce.HessianOperator(model, LOSSES[loss], x, y), double_backward(model, LOSSES[loss], x, y)
    op = ce.HessianOperator(model, LOSSES[loss], x, y, params=params)
    at = _places(whole.space, op.space.names)
    expected = H[at][:, at]
    assert 0 < len(at) < len(H)
    assert op.shape == expected.shape
    assert relative(op.dense(), expected) < 1e-10
    assert relative(op.gradient, whole.gradient[at]) < 1e-12
    v = torch.randn(len(at), 2, dtype=torch.float64)
    assert relative(op @ v, expected @ v) < 1e-10
    values = ce.spectrum(op).eigenvalues
    assert relative(torch.linalg.eigvalsh(expected)[[0, -1]].clamp_max(values[-1]), values[[0, -1]]) < 1e-9 or (
        ce.spectrum(op).nullity > 0
    )
    exact = torch.linalg.eigvalsh(expected)
    kept = exact[exact.abs() > 1e-12 * exact.abs().max()]
    assert torch.allclose(kept.sort().values, values, rtol=1e-8, atol=1e-10 * float(values.abs().max()))


def test_a_block_equals_that_of_a_model_whose_other_parameters_are_frozen():
    model, x, y = _made("mlp")
    op = ce.HessianOperator(model, LOSSES["rules"], x, y, params="3.*", verify=True)
    chosen, frozen = op.dense(), dict(model.named_parameters())
    for n, p in frozen.items():
        p.requires_grad_(n.startswith("3."))
    assert torch.equal(ce.hessian(model, LOSSES["rules"], x, y), chosen)


def test_a_parameter_a_list_of_them_and_a_generator_are_the_same_choice():
    model, x, y = _made("mlp")
    H = ce.hessian(model, LOSSES["rules"], x, y, params="3.*")
    for params in (
        list(model[3].parameters()),
        model[3].parameters(),
        (model[3].bias, "3.weight"),
        ["3.weight", "3.b*"],
    ):
        assert torch.equal(ce.hessian(model, LOSSES["rules"], x, y, params=params), H)
    weight = ce.hessian(model, LOSSES["rules"], x, y, params=model[3].weight)
    assert torch.equal(weight, H[:30, :30])


def test_nothing_of_the_model_is_touched():
    model, x, y = _made("residual")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    for loss in LOSSES.values():
        op = ce.HessianOperator(model, loss, x, y, params="head.*")
        op.dense(), op @ op.gradient, ce.spectrum(op)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


BAD = {
    "pattern": ("nope*", ValueError, "no parameter matches 'nope"),
    "name": ("3.weigh", ValueError, "did you mean '3.weight'"),
    "module": ("3", ValueError, r"give '3\.\*'"),
    "one of several": (["0.*", "9.weight"], ValueError, "has no parameter '9.weight'"),
    "nothing": ([], ValueError, "got none"),
    "another model": (nn.Linear(4, 6).weight, ValueError, "is no parameter of this model"),
    "number": (3, TypeError, "got int"),
    "number in a list": (["0.*", 3], TypeError, "got int among them"),
    "module itself": (nn.Linear(4, 6), TypeError, "got Linear"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_choice_that_the_model_does_not_have_is_refused_by_name(name):
    model, x, y = _made("mlp")
    params, error, text = BAD[name]
    with pytest.raises(error, match=f"params: .*{text}"):
        ce.HessianOperator(model, LOSSES["rules"], x, y, params=params)


def test_frozen_parameters_are_left_out_of_patterns_and_refused_by_name():
    model, x, y = _made("mlp")
    model[0].weight.requires_grad_(False)
    assert ce.HessianOperator(model, LOSSES["rules"], x, y, params="0.*").space.names == ("0.bias",)
    model[0].bias.requires_grad_(False)
    for params in ("0.weight", "0.*", model[0].bias):
        with pytest.raises(ValueError, match="requires_grad=False, so that it is a constant"):
            ce.HessianOperator(model, LOSSES["rules"], x, y, params=params)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_change_outside_of_the_block_makes_it_stale(loss):
    model, x, y = _made("mlp")
    op = ce.HessianOperator(model, LOSSES[loss], x, y, params="5.*")
    model[0].weight.data[0, 0] += 1e-3
    with pytest.raises(ce.StaleOperatorError):
        op @ op.gradient


def test_blocks_and_the_whole_do_not_take_each_others_programs():
    model, x, y = _made("mlp")
    H = double_backward(model, LOSSES["rules"], x, y)
    for params, size in (("0.*", 30), (None, 95), ("5.*", 18), ("0.*", 30), (None, 95)):
        op = ce.HessianOperator(model, LOSSES["rules"], x, y, params=params)
        assert op.shape == (size, size)
    assert relative(op.dense(), H) < 1e-10


def test_explain_says_that_it_is_a_block():
    model, x, y = _made("mlp")
    for loss in LOSSES.values():
        rows = ce.HessianOperator(model, loss, x, y, params=["0.bias", "5.*"]).explain()
        assert rows[0].name == "(block)"
        assert "0.bias, 5.weight, 5.bias" in rows[0].why
        assert "(block)" not in [r.name for r in ce.HessianOperator(model, loss, x, y).explain()]


def test_an_operator_at_another_theta_is_of_the_same_block():
    model, x, y = _made("mlp")
    op = ce.HessianOperator(model, LOSSES["rules"], x, y, params="3.*")
    with op.displaced(op.snapshot.theta + 0.1) as there:
        assert there.space.names == op.space.names
        H = there.dense()
    with torch.no_grad():
        for p in model[3].parameters():
            p.add_(0.1)
    assert relative(H, ce.hessian(model, LOSSES["rules"], x, y, params="3.*")) < 1e-14


def test_an_optimizer_of_more_than_the_block_refuses_it_and_one_of_the_block_steps():
    model, x, y = _made("mlp")
    op = ce.HessianOperator(model, LOSSES["rules"], x, y, params="3.*")
    with pytest.raises(ValueError, match="operator: its model's trainable parameters are not this optimizer's"):
        ce.CGD(model.parameters(), lr=0.1).step(op)
    before = [p.clone() for p in model.parameters()]
    ce.CGD(model[3].parameters(), lr=0.1).step(op)
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before)]
    assert [n for (n, _), m in zip(model.named_parameters(), moved) if m] == ["3.weight", "3.bias"]


def test_a_loss_that_reads_parameters_outside_of_the_block():
    model, x, y = _made("mlp")

    def loss_fn(output, y):
        return F.cross_entropy(output, y) + 0.1 * sum((p**4).sum() for p in model.parameters()) * output.square().mean()

    at = _places(ce.HessianOperator(model, loss_fn, x, y).space, ["0.weight", "0.bias"])
    expected = double_backward(model, loss_fn, x, y)[at][:, at]
    op = ce.HessianOperator(model, loss_fn, x, y, params="0.*", verify=True)
    assert relative(op.dense(), expected) < 1e-10


class Masks(nn.Module):
    """Its forward writes to a weight."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        self.first.weight.data.clamp_(max=0.1)
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_forward_that_edits_parameters_outside_of_the_block_is_refused_and_undone(loss):
    torch.manual_seed(0)
    model, x, y = Masks().double(), torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    before = model.first.weight.detach().clone()
    with pytest.raises(ce.UnsupportedError, match=r"edits .*first\.weight.* in place"):
        ce.HessianOperator(model, LOSSES[loss], x, y, params="last.*")
    assert torch.equal(model.first.weight, before)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_float32_block_in_float64(loss):
    model, x, y = _made("mlp")
    model, x = model.float(), x.float()
    H = double_backward(model, LOSSES[loss], x, y)
    op = ce.HessianOperator(model, LOSSES[loss], x, y, params="0.*")
    assert relative(op.dense(), H[:30, :30]) < 1e-4
    if loss == "rules":
        exact = double_backward(copy.deepcopy(model).double(), LOSSES[loss], x.double(), y)[:30, :30]
        assert relative(op.dense_in(torch.float64), exact) < 1e-10


@pytest.mark.parametrize("by", ["layer", "parameter"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_the_spectra_of_layers_are_those_of_the_blocks(name, loss, by):
    model, x, y = _made(name)
    H, space = double_backward(model, LOSSES[loss], x, y), ce.HessianOperator(model, LOSSES[loss], x, y).space
    spectra = ce.spectra_per_layer(model, LOSSES[loss], x, y, by=by)
    total, rounding = 0, 1e-10 * float(H.abs().max())  # the bias before a BatchNorm has nothing else
    for key, spec in spectra.items():
        names = [n for n in space.names if n == key or (by == "layer" and n.rpartition(".")[0] == key)]
        at = _places(space, names)
        block, V = H[at][:, at], spec.eigenvectors()
        assert spec.size == len(block)
        assert spec.origin is None
        assert torch.allclose(spec.eigenvalues.sum(), block.trace(), rtol=0, atol=rounding)
        assert torch.allclose((V * spec.eigenvalues) @ V.T, block, rtol=0, atol=rounding)
        assert torch.allclose(V.T @ V, torch.eye(V.shape[1], dtype=V.dtype), atol=1e-10)
        assert relative(spec.coefficients(spec.gradient), V.T @ spec.gradient) < 1e-12
        total += spec.size
    assert total == space.size


def test_layers_that_the_loss_does_not_see_have_no_eigenvalues_but_zero():
    model, x, y = _made("mlp")
    model.register_module("6", nn.Identity())
    model.spare = nn.Linear(2, 2).double()
    model.forward = lambda x: nn.Sequential(*list(model)[:7])(x)
    spectra = ce.spectra_per_layer(model, LOSSES["rules"], x, y)
    assert len(spectra["spare"].eigenvalues) == 0
    assert spectra["spare"].nullity == 6


def test_k_pairs_of_each_layer_and_all_of_a_smaller_one():
    model, x, y = _made("mlp")
    spectra = ce.spectra_per_layer(model, LOSSES["rules"], x, y, k=14)
    assert {n: len(s.eigenvalues) for n, s in spectra.items()} == {"0": 14, "2": 12, "3": 14, "5": 14}
    with pytest.raises(ValueError, match="by: expected 'layer' or 'parameter', got 'block'"):
        ce.spectra_per_layer(model, LOSSES["rules"], x, y, by="block")
