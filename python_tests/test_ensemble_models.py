"""Which models an ensemble runs, by which way, and which it refuses by name."""

import copy
import logging

import pytest
import torch
from architectures import AUTOMATIC, CLASSES, GRAPHS, LAYERS
from ensembles import CE, F64, Alone, batch, deltas, mlp, require_like, size
from torch import nn
from torch.optim import SGD, Adam

import chaos_ext as ce


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)) + x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))


class Gate(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) / self.calls


class Scaled(nn.Module):
    """A parameter outside of every layer, and one that the loss does not read."""

    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(6, 3), nn.Parameter(torch.ones(4))
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return self.layer(x) * self.scale


def _frozen(*names):
    def make():
        model = mlp()
        for name in names:
            model.get_parameter(name).requires_grad_(False)
        return model

    return make


def _conv(*layers):
    return lambda: nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


IMAGE, SIGNAL = (2, 7, 8), (2, 9)
MODELS = {
    "mlp": (mlp, (6,), "rules"),
    "residual": (Residual, (6,), "rules"),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)), (6,), "rules"),
    "frozen layer": (_frozen("0.weight", "0.bias"), (6,), "rules"),
    "frozen last layer": (_frozen("2.weight", "2.bias"), (6,), "rules"),
    "frozen bias": (_frozen("0.bias"), (6,), "rules"),
    "frozen weight": (_frozen("0.weight"), (6,), "vmap"),
    "sequence": (lambda: nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Flatten(), nn.Linear(20, 3)), (4, 6), "rules"),
    "paper's cnn": (lambda: nn.Sequential(*ce.models.paper_cnn(seed=0)[:-1], nn.Linear(8, 3)), (1, 16, 16), "rules"),
    "conv2d": (
        _conv(nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), nn.Tanh()),
        IMAGE,
        "rules",
    ),
    "conv2d twice": (_conv(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 3, bias=False), nn.ELU()), IMAGE, "rules"),
    "conv1d": (_conv(nn.Conv1d(2, 3, 3, padding=2), nn.Tanh(), nn.Conv1d(3, 2, 2, stride=2)), SIGNAL, "rules"),
    "overlapping pool": (_conv(nn.Conv2d(2, 3, 2), nn.MaxPool2d(3, 1), nn.AvgPool2d(2)), IMAGE, "rules"),
    "conv groups": (_conv(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh()), IMAGE, "vmap"),
    "transposed": (_conv(nn.ConvTranspose2d(2, 3, 2), nn.Tanh()), IMAGE, "vmap"),
    "tied": (Tied, (6,), "vmap"),
    "scaled": (Scaled, (6,), "vmap"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (6,), "vmap"),
    "batch norm": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), (6,), "vmap"),
    "batch norm, eval": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval(),
        (6,),
        "vmap",
    ),
}


def _made(name):
    make, shape, way = MODELS[name]
    torch.manual_seed(1)
    model = make().to(F64)
    model(torch.randn(2, *shape, dtype=F64))  # lazy layers, and running statistics that are not those of a new one
    return model, shape, way


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_members_are_what_each_model_alone_would_be(name, batched, device, caplog):
    caplog.set_level(logging.INFO, "chaos_ext")
    model, shape, way = _made(name)
    model.to(device)
    opt = SGD(model.parameters(), lr=0.05, momentum=0.5, weight_decay=0.1)
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 2))
    alone = [Alone(model, t, opt) for t in ens.thetas]
    for t in range(6):
        n = 5 if t % 3 else 4  # as a loader's last batch
        batches = [[v.to(device) for v in batch(n, shape, seed=t + 10 * i * batched)] for i in range(3)]
        expected = torch.stack([one.step(*b) for one, b in zip(alone, batches, strict=True)])
        x, y = (torch.stack(parts) for parts in zip(*batches, strict=True)) if batched else batches[0]
        torch.testing.assert_close(ens.step(x, y, batched=batched), expected, rtol=1e-10, atol=1e-12)
    require_like(ens, alone, 1e-10)
    assert ("vmapping" in caplog.text) == (way == "vmap" and not any(True for _ in model.buffers()))
    for i, one in enumerate(alone):
        for n, b in one.model.named_buffers():
            torch.testing.assert_close(ens.buffers[n][i], b, rtol=1e-12, atol=1e-14)


# Recurrences and whatever else torch has no batching rule for are refused; these are what rules and vmap are tried on.
ARCHITECTURES = {**LAYERS, **GRAPHS, **AUTOMATIC}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_is_right_or_refused(name):
    make, shape = ARCHITECTURES[name]
    model = make().double().eval()
    x = torch.randn(4, *shape, dtype=F64)
    y = torch.randint(0, CLASSES, (4,))
    opt = Adam(model.parameters(), lr=0.01)
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 2, 0.01))
    alone = [Alone(model, t, opt) for t in ens.thetas]
    try:
        ens.step(x, y)
    except ce.UnsupportedError:
        assert torch.equal(ens.thetas[0], alone[0].theta)
        return
    ens.step(x, y)
    for one in alone:
        one.step(x, y)
        one.step(x, y)
    require_like(ens, alone, 1e-7)  # Adam: of gradients that are zero but for rounding, the sign is anybody's


def _net(*layers):
    return nn.Sequential(nn.Linear(6, 5), *layers, nn.Linear(5, 3)).double()


REFUSED = {
    "control flow": (lambda: _net(Gate()), r"1 \(Gate\) cannot be run for many members at once"),
    "control flow inside": (lambda: _net(nn.Sequential(nn.Tanh(), Gate())), r"1\.1 \(Gate\) cannot be run"),
    "dropout": (lambda: _net(nn.Dropout(0.5)), r"its forward draws random numbers \(1\).*\.eval\(\)"),
    "a counter": (lambda: Counting().double(), r"writes to attributes \(Counting\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_batched_is_refused_by_name(name):
    make, message = REFUSED[name]
    model = make()
    ens = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), deltas(model, 2))
    before, random = ens.thetas, torch.get_rng_state()
    with pytest.raises(ce.UnsupportedError, match=message):
        ens.step(*batch())
    assert torch.equal(ens.thetas, before)
    assert ens.steps == 0
    assert torch.equal(torch.get_rng_state(), random)


def test_dropout_in_evaluation_mode_is_the_identity():
    model = _net(nn.Dropout(0.5)).eval()
    opt = SGD(model.parameters(), lr=0.1)
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 1))
    alone = [Alone(model, t, opt) for t in ens.thetas]
    ens.step(*batch())
    for one in alone:
        one.step(*batch())
    require_like(ens, alone, 1e-12)


def test_a_loss_that_reads_parameters_by_itself_is_refused():
    """It would read the user's, the same for all members."""
    model = mlp()

    def penalised(z, y):
        return CE(z, y) + sum(p.square().sum() for p in model.parameters())

    ens = ce.Ensemble.around(model, penalised, SGD(model.parameters(), lr=0.1), deltas(model, 1))
    with pytest.raises(ce.UnsupportedError, match=r"loss_fn: it depends on trained parameters.*weight_decay"):
        ens.step(*batch())


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, z, y):
        return CE(z / self.t, y)


def test_a_loss_with_parameters_is_refused_unless_they_are_frozen():
    model, loss_fn = mlp(), Temperature()
    opt = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ce.UnsupportedError, match="a parameter of its own"):
        ce.Ensemble.around(model, loss_fn, opt, deltas(model, 1)).step(*batch())
    loss_fn.t.requires_grad_(False)
    ce.Ensemble.around(model, loss_fn, opt, deltas(model, 1)).step(*batch())


def test_parameters_that_the_loss_does_not_read_are_left_alone():
    """As torch leaves parameters without gradient: no weight decay."""
    model = Scaled().double()
    ens = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1, weight_decay=0.5), deltas(model, 2))
    before = ens.thetas
    ens.step(*batch())
    names = [n for n, _ in model.named_parameters()]
    at = sum(p.numel() for n, p in list(model.named_parameters())[: names.index("unused")])
    assert torch.equal(ens.thetas[:, at : at + 4], before[:, at : at + 4])
    assert not torch.equal(ens.thetas, before)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x) if len(x) > 4 else self.b(x)


def test_parameters_that_are_read_on_some_batches_only_are_refused():
    model = Branching().double()
    ens = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), deltas(model, 1))
    ens.step(*batch(5))
    before = ens.thetas
    with pytest.raises(ce.UnsupportedError, match=r"a\.weight.*differs from batch to batch"):
        ens.step(*batch(3))
    assert torch.equal(ens.thetas, before)


@pytest.mark.parametrize("name", ["mlp", "batch norm", "paper's cnn"])
def test_the_users_objects_are_left_as_they_are(name):
    model, shape, _ = _made(name)
    opt = SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = batch(5, shape)
    CE(model(x), y).backward()
    opt.step()
    kept = copy.deepcopy((model.state_dict(), opt.state_dict(), [p.grad for p in model.parameters()], x, y))
    random = torch.get_rng_state()
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 2))
    for _ in range(3):
        ens.step(x, y)
        ens.evaluate(x, y)
    now = (model.state_dict(), opt.state_dict(), [p.grad for p in model.parameters()], x, y)
    torch.testing.assert_close(now, kept, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training for m in model.modules())


def test_changing_the_users_objects_changes_nothing():
    model = mlp()
    opt = SGD(model.parameters(), lr=0.05)
    one, two = (ce.Ensemble.around(model, CE, opt, deltas(model, 2)) for _ in range(2))
    one.step(*batch())
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    opt.param_groups[0]["lr"] = 7.0
    model.eval()
    two.step(*batch())
    assert torch.equal(one.thetas, two.thetas)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["mlp", "batch norm"])
def test_the_callers_grad_mode_does_not_matter(name, mode):
    model, shape, _ = _made(name)
    opt = SGD(model.parameters(), lr=0.05)
    plain = ce.Ensemble.around(model, CE, opt, deltas(model, 2))
    plain.step(*batch(5, shape))
    with mode():
        ens = ce.Ensemble.around(model, CE, opt, deltas(model, 2))
        ens.step(*batch(5, shape))
    ens.step(*batch(5, shape, seed=1))
    plain.step(*batch(5, shape, seed=1))
    assert torch.equal(ens.thetas, plain.thetas)


def test_evaluation_is_in_evaluation_mode():
    model, shape, _ = _made("batch norm")
    ens = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.05), deltas(model, 2))
    ens.step(*batch(5, shape))
    x, y = batch(50, shape, seed=9)
    loss, accuracy = ens.evaluate(x, y)
    for i in range(3):
        ens.load_into(model, i)
        z = model.eval()(x)
        torch.testing.assert_close(loss[i], CE(z, y).detach(), rtol=1e-12, atol=0)
        assert accuracy[i] == (z.argmax(1) == y).double().mean()
    assert (
        ce.Ensemble.around(model, nn.MSELoss(), SGD(model.parameters(), lr=0.05), deltas(model, 1))
        .evaluate(x, torch.randn(50, 3, dtype=F64))
        .accuracy
        is None
    )
    assert size(model) == ens.thetas.shape[1]
