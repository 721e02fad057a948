"""``DatasetHessian``: what the loss would give on all samples of all batches at once."""

import copy
import functools
import itertools
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracles import double_backward, gradient, relative
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import chaos_ext as ce
from chaos_ext.curvature import dataset, recorded

ENDS = (0, 7, 12, 15, 20, 23)  # of batches
KEEP = {"all": 1 << 28, "some": 40_000, "one at a time": 0}


def _mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def _cut(x, y):
    return [(x[a:b], y[a:b]) for a, b in itertools.pairwise(ENDS)]


G = torch.Generator().manual_seed(1)
X = torch.randn(23, 4, generator=G, dtype=torch.float64)
LABELS = torch.randint(3, (23,), generator=G)
SOME_IGNORED = LABELS.clone()
SOME_IGNORED[[3, 9]] = SOME_IGNORED[20:] = -100  # the last batch has nothing else
DENSITIES = torch.softmax(torch.randn(23, 3, generator=G, dtype=torch.float64), 1)
SIGNS = DENSITIES.sub(1 / 3).sign()
W = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def _own(output, y):
    return F.cross_entropy(output, y) + 0.0


LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), SOME_IGNORED),
    "class weights and smoothing": (nn.CrossEntropyLoss(weight=W, label_smoothing=0.1), SOME_IGNORED),
    "another index ignored": (nn.CrossEntropyLoss(ignore_index=2), LABELS),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), SOME_IGNORED),
    "sum with class weights": (nn.CrossEntropyLoss(weight=W, reduction="sum"), LABELS),
    "probabilities with class weights": (nn.CrossEntropyLoss(weight=W), DENSITIES),
    "function": (F.cross_entropy, SOME_IGNORED),
    "partial function": (functools.partial(F.cross_entropy, weight=W, reduction="mean"), SOME_IGNORED),
    "squares": (nn.MSELoss(), DENSITIES),
    "sum of squares": (F.mse_loss, DENSITIES),
    "binary": (nn.BCEWithLogitsLoss(weight=W, pos_weight=W), DENSITIES),
    "smooth l1": (nn.SmoothL1Loss(), DENSITIES),
    "huber": (functools.partial(F.huber_loss, delta=0.5), DENSITIES),
    "poisson": (nn.PoissonNLLLoss(), DENSITIES),
    "soft margin": (nn.SoftMarginLoss(), SIGNS),
    "multi-label soft margin": (nn.MultiLabelSoftMarginLoss(), DENSITIES.round()),
    "of one's own": (lambda z, y: (F.log_softmax(z, 1) * y).mean(), DENSITIES),
}


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_hessian_of_the_union(name):
    loss_fn, y = LOSSES[name]
    model = _mlp()
    H, g = double_backward(model, loss_fn, X, y), gradient(model, loss_fn, X, y)
    weight = "mean" if name == "of one's own" else None  # a mean over outputs: samples have three each
    v = torch.randn(len(g), 3, dtype=torch.float64)
    for keep in KEEP.values():
        op = ce.DatasetHessian(model, loss_fn, _cut(X, y), weight=weight, keep=keep)
        assert relative(op.loss, loss_fn(model(X), y).detach()) < 1e-12
        assert relative(op.gradient, g) < 1e-12
        assert relative(op @ v, H @ v) < 1e-10
        assert relative(op @ v[:, 0], H @ v[:, 0]) < 1e-10
        assert relative(op.dense(), H) < 1e-10
        assert torch.equal(op.dense(), op.dense().T)


class Log(nn.Module):
    """Log-probabilities, or probabilities, for the losses that want them."""

    def __init__(self, then):
        super().__init__()
        self.net, self.then = _mlp(), then

    def forward(self, x):
        return self.then(self.net(x))


IN_BATCHES = {
    "likelihood": (Log(nn.LogSoftmax(1)), nn.NLLLoss(weight=W), SOME_IGNORED),
    "divergence a sample": (Log(nn.LogSoftmax(1)), nn.KLDivLoss(reduction="batchmean"), DENSITIES),
    "divergence in all": (Log(nn.LogSoftmax(1)), nn.KLDivLoss(reduction="sum"), DENSITIES),
    "binary": (Log(nn.Sigmoid()), nn.BCELoss(), DENSITIES),
    "pixels": (
        Log(nn.Sequential(nn.Unflatten(1, (3, 1)), nn.ConvTranspose1d(3, 3, 4).double())),
        nn.CrossEntropyLoss(weight=W),
        torch.where(torch.arange(4) < 3, LABELS.unsqueeze(1), -100),
    ),
}


@pytest.mark.parametrize("name", IN_BATCHES)
def test_other_outputs_and_losses_in_batches(name):
    model, loss_fn, y = IN_BATCHES[name]
    H = double_backward(model, loss_fn, X, y)
    op = ce.DatasetHessian(model, loss_fn, _cut(X, y), keep=0)
    assert relative(op.loss, loss_fn(model(X), y).detach()) < 1e-12
    assert relative(op.dense(), H) < 1e-9


ONCE = {
    "margins": (nn.MultiMarginLoss(weight=W), LABELS),
    "several labels": (F.multilabel_margin_loss, torch.stack([LABELS, LABELS - LABELS - 1, LABELS], 1)),
}


@pytest.mark.parametrize("name", ONCE)
def test_loss_and_gradient_of_what_torch_does_not_differentiate_twice(name):
    (loss_fn, y), model = ONCE[name], _mlp()
    op = ce.DatasetHessian(model, loss_fn, _cut(X, y))
    assert relative(op.loss, loss_fn(model(X), y).detach()) < 1e-12
    assert relative(op.gradient, gradient(model, loss_fn, X, y)) < 1e-12
    with pytest.raises(ce.UnsupportedError, match=r"^batch 0: .*multi.*margin"):
        op @ op.gradient


@pytest.mark.parametrize("keep", KEEP)
def test_spectra_are_those_of_the_union(keep):
    model, (loss_fn, y) = _mlp(), LOSSES["class weights and smoothing"]
    exact = torch.linalg.eigvalsh(double_backward(model, loss_fn, X, y))
    op = ce.DatasetHessian(model, loss_fn, _cut(X, y), keep=KEEP[keep])
    spec = ce.spectrum(op)
    assert len(spec.eigenvalues) + spec.nullity == len(exact)
    assert torch.allclose(spec.eigenvalues, exact[exact.abs() > 1e-12 * exact.abs().max()], rtol=1e-8, atol=1e-13)
    assert relative(spec.gradient, gradient(model, loss_fn, X, y)) < 1e-12
    assert relative(ce.directions(op).eigenvalues, spec.eigenvalues) < 1e-12
    few = ce.spectrum(op, k=4)
    assert relative(few.eigenvalues, exact[[0, 1, -2, -1]]) < 1e-9
    assert relative(op @ few.eigenvectors(), few.eigenvectors() * few.eigenvalues) < 1e-8
    assert torch.equal(few.loss, op.loss)


@pytest.mark.parametrize("keep", KEEP)
def test_a_data_loader(keep):
    model, y = _mlp(), SOME_IGNORED
    loader = DataLoader(TensorDataset(X, y), batch_size=5)
    op = ce.DatasetHessian(model, nn.CrossEntropyLoss(), loader, keep=KEEP[keep])
    assert relative(op.dense(), double_backward(model, nn.CrossEntropyLoss(), X, y)) < 1e-10
    assert op.normalisers == (4.0, 4.0, 5.0, 5.0, 0.0)
    assert (op.shape, op.dtype, op.device.type) == ((63, 63), torch.float64, "cpu")
    assert op.space.names == tuple(n for n, _ in model.named_parameters())


@pytest.mark.parametrize("keep", KEEP)
def test_a_block(keep):
    model, (loss_fn, y) = _mlp(), LOSSES["cross-entropy"]
    H = double_backward(model, loss_fn, X, y)
    op = ce.DatasetHessian(model, loss_fn, _cut(X, y), "0.*", keep=KEEP[keep])
    assert relative(op.dense(), H[:30, :30]) < 1e-10
    assert relative(op @ op.gradient, H[:30, :30] @ gradient(model, loss_fn, X, y)[:30]) < 1e-10
    assert op.explain()[0].name == "(block)"
    with pytest.raises(ValueError, match="params: no parameter matches 'zz"):
        ce.DatasetHessian(model, loss_fn, _cut(X, y), params="zz*")


def test_batch_norm_in_training_mode_is_the_mean_of_the_batches_functions_and_its_buffers_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    before = copy.deepcopy(model.state_dict())
    op = ce.DatasetHessian(model, nn.CrossEntropyLoss(), _cut(X, LABELS), keep=0)
    H = op.dense()
    op @ op.gradient
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    parts = [len(y) / 23 * double_backward(model, nn.CrossEntropyLoss(), x, y) for x, y in _cut(X, LABELS)]
    assert relative(H, sum(parts)) < 1e-9
    model.eval()
    exact = double_backward(model, nn.CrossEntropyLoss(), X, LABELS)
    assert relative(ce.DatasetHessian(model, nn.CrossEntropyLoss(), _cut(X, LABELS)).dense(), exact) < 1e-9


def test_float32_and_its_spectrum_in_float64():
    model = _mlp()
    H = double_backward(model, nn.CrossEntropyLoss(), X.float().double(), LABELS)
    batches = _cut(X.float(), LABELS)
    op = ce.DatasetHessian(model.float(), nn.CrossEntropyLoss(), batches)
    exact = double_backward(copy.deepcopy(model).double(), nn.CrossEntropyLoss(), X.float().double(), LABELS)
    assert relative(op.dense().double(), H) < 1e-4
    assert relative(op.dense_in(torch.float64), exact) < 1e-10
    values = ce.spectrum(op, spectrum_dtype=torch.float64).eigenvalues
    assert relative(values[[0, -1]], torch.linalg.eigvalsh(exact)[[0, -1]]) < 1e-10


def test_dense_writes_where_it_is_told_to_and_keeps_to_its_budget():
    model = _mlp()
    op = ce.DatasetHessian(model, nn.CrossEntropyLoss(), _cut(X, LABELS), memory_budget=2 * 63**2 * 8)
    out = torch.full((63, 63), 7.0, dtype=torch.float64)
    assert op.dense(out) is out
    assert torch.equal(out, op.dense())
    with pytest.raises(ValueError, match="out: "):
        op.dense(out[:5])
    with pytest.raises(ce.MemoryBudgetError, match="dense Hessian"):
        ce.DatasetHessian(model, nn.CrossEntropyLoss(), _cut(X, LABELS), memory_budget=63**2 * 8).dense()
    one = ce.DatasetHessian(model, nn.CrossEntropyLoss(), [(X, LABELS)], memory_budget=63**2 * 8)
    assert relative(one.dense(), out) < 1e-12


@pytest.mark.parametrize("keep", [0, 1 << 28])
def test_one_batch_at_a_time_where_nothing_is_kept(keep, monkeypatch):
    alive, counts = weakref.WeakSet(), []

    class Counted(ce.HessianOperator):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            alive.add(self)
            counts.append(len(alive))

    monkeypatch.setattr(dataset, "HessianOperator", Counted)
    op = ce.DatasetHessian(_mlp(), nn.CrossEntropyLoss(), [(X, LABELS)] * 6, keep=keep)
    op @ op.gradient
    assert counts == ([1] * 12 if keep == 0 else [1, 2, 3, 4, 5, 6])
    assert len(alive) == (0 if keep == 0 else 6)


def test_a_loss_of_ones_own_says_how_its_batches_combine():
    model, y = _mlp(), SOME_IGNORED
    H = double_backward(model, _own, X, y)

    def weight(output, y):
        return (y != -100).sum()

    for keep in KEEP.values():
        op = ce.DatasetHessian(model, _own, _cut(X, y), weight=weight, keep=keep)
        assert relative(op.dense(), H) < 1e-10
    mean = ce.DatasetHessian(model, _own, _cut(X, LABELS), weight="mean")
    assert relative(mean.dense(), double_backward(model, _own, X, LABELS)) < 1e-10

    def total(output, y):
        return F.cross_entropy(output, y, reduction="sum") + 0.0

    added = ce.DatasetHessian(model, total, _cut(X, y), weight="sum")
    assert relative(added.dense(), double_backward(model, total, X, y)) < 1e-10


def test_batches_of_dicts_are_counted_by_their_first_tensor():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = _mlp()

        def forward(self, batch):
            return {"logits": self.net(batch["x"])}

    def loss_fn(output, y):
        return F.cross_entropy(output["logits"], y["labels"])

    batches = [({"x": x}, {"labels": y}) for x, y in _cut(X, LABELS)]
    op = ce.DatasetHessian(Takes(), loss_fn, batches, weight="mean", keep=0)
    assert op.normalisers == (7.0, 5.0, 3.0, 5.0, 3.0)
    assert relative(op.dense(), double_backward(_mlp(), nn.CrossEntropyLoss(), X, LABELS)) < 1e-10


def test_a_step_with_its_spectrum_is_one_of_the_whole_data_set():
    model, twin = _mlp(), _mlp()
    whole = ce.CGD(twin.parameters(), lr=0.1).step(ce.HessianOperator(twin, nn.CrossEntropyLoss(), X, LABELS))
    spec = ce.spectrum(ce.DatasetHessian(model, nn.CrossEntropyLoss(), _cut(X, LABELS)))
    loss = ce.CGD(model.parameters(), lr=0.1).step(spec)
    assert relative(loss, whole) < 1e-12
    assert all(relative(a.detach(), b.detach()) < 1e-9 for a, b in zip(model.parameters(), twin.parameters()))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_edge_of_stability_of_the_whole_data_set(make):
    model = _mlp()
    opt = make(model.parameters(), lr=0.1)
    whole = ce.distance_to_threshold(ce.HessianOperator(model, nn.CrossEntropyLoss(), X, LABELS), opt)
    found = ce.distance_to_threshold(ce.DatasetHessian(model, nn.CrossEntropyLoss(), _cut(X, LABELS)), opt)
    assert found.sharpness == pytest.approx(whole.sharpness, rel=1e-9)


def test_inference_mode_and_no_columns():
    model = _mlp()
    v = torch.ones(63, 2, dtype=torch.float64)
    expected = double_backward(model, nn.CrossEntropyLoss(), X, LABELS) @ v
    with torch.inference_mode():
        op = ce.DatasetHessian(model, nn.CrossEntropyLoss(), _cut(X.clone(), LABELS.clone()), keep=0)
        assert relative(op @ v, expected) < 1e-10
    assert relative(op @ v.requires_grad_(), expected) < 1e-10
    assert not (op @ v).requires_grad
    assert (op @ v[:, :0]).shape == (63, 0)


def test_a_step_with_its_spectrum_runs_no_forward():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = _mlp(), 0

        def forward(self, x):
            self.calls += 1
            return self.net(x)

    model = Counts()
    spec = ce.spectrum(ce.DatasetHessian(model, nn.CrossEntropyLoss(), _cut(X, LABELS)))
    ce.CGD(model.parameters(), lr=0.1).step(spec)
    assert model.calls == 0


def test_explain_adds_up_the_batches():
    model = _mlp()
    one = ce.HessianOperator(model, nn.CrossEntropyLoss(), X[:5], LABELS[:5]).explain()
    three = ce.DatasetHessian(model, nn.CrossEntropyLoss(), [(X[:5], LABELS[:5])] * 3, keep=0).explain()
    assert [(r.name, r.path, r.flops, r.bytes) for r in three] == [(r.name, r.path, 3 * r.flops, r.bytes) for r in one]


def test_progress_counts_batches(monkeypatch):
    counted = []

    class Bar:
        def __init__(self, total, shown):
            counted.append((total, shown))

        def report(self, steps, restored):
            counted.append(steps)

    monkeypatch.setattr(recorded, "Progress", Bar)
    op = ce.DatasetHessian(_mlp(), nn.CrossEntropyLoss(), _cut(X, LABELS), progress=True)
    op @ op.gradient
    assert counted == [(None, True)] + 10 * [1]


def test_what_it_hands_out_is_a_copy_and_it_can_be_verified():
    op = ce.DatasetHessian(_mlp(), nn.CrossEntropyLoss(), _cut(X, LABELS), verify=True)
    op.gradient.zero_(), op.loss.zero_()
    assert op.gradient.any()
    assert op.loss
    for use in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="can be neither copied nor pickled"):
            use(op)
    assert op.unused == frozenset()
    assert op.block_columns() > 0


def test_random_states_and_generators_are_what_they_were():
    model, y = _mlp(), LABELS
    generator = torch.Generator().manual_seed(3)
    loaders = [
        DataLoader(TensorDataset(X, y), batch_size=5),
        DataLoader(TensorDataset(X, y), batch_size=5, generator=generator),
        DataLoader(TensorDataset(X, y), batch_size=5, shuffle=True),
        DataLoader(TensorDataset(X, y), batch_size=5, shuffle=True, generator=generator),
    ]
    random.seed(5)
    states = torch.get_rng_state(), random.getstate(), generator.get_state()
    for keep in KEEP.values():
        for loader in loaders[:2]:
            op = ce.DatasetHessian(model, nn.CrossEntropyLoss(), loader, keep=keep)
            op @ op.gradient
        for loader in loaders[2:]:
            with pytest.raises(ValueError, match="batch 0 was another one in a second walk"):
                ce.DatasetHessian(model, nn.CrossEntropyLoss(), loader, keep=keep)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert torch.equal(states[2], generator.get_state())


@pytest.mark.parametrize("weight", [None, W])
def test_probabilities_of_pixels_of_one_sample(weight):
    """Whose rows lie apart in memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Tanh(), nn.Conv2d(3, 3, 1)).double()
    x, y = X.view(-1, 1, 2, 2), torch.stack([DENSITIES] * 4, 2).unflatten(2, (2, 2))
    loss_fn = nn.CrossEntropyLoss(weight=weight)
    op = ce.DatasetHessian(model, loss_fn, [(x[:1], y[:1]), (x[1:], y[1:])])
    assert relative(op.dense(), double_backward(model, loss_fn, x, y)) < 1e-12
