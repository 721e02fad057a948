"""What ``DatasetHessian`` refuses by name, and which batch it was; nothing is changed by it."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from small import batch, mlp
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import chaos_ext as ce

X, Y = batch()
LOSS = nn.CrossEntropyLoss()


def _batches():
    return [(X[:3].clone(), Y[:3].clone()), (X[3:].clone(), Y[3:].clone())]


class Walked:
    """Batches that each walk may make anew: ``walk(n)`` those of the n-th."""

    def __init__(self, walk):
        self.walk, self.count = walk, 0

    def __iter__(self):
        self.count += 1
        return iter(self.walk(self.count))


class Stream(IterableDataset):
    def __init__(self):
        self.samples = iter(zip(X, Y))

    def __iter__(self):
        return self.samples


ONE_WALK = {
    "generator": lambda: (b for b in _batches()),
    "iterator": lambda: iter(_batches()),
    "map": lambda: map(tuple, _batches()),
    "zip": lambda: zip(X, Y),
    "iterator of a loader": lambda: iter(DataLoader(TensorDataset(X, Y), batch_size=3)),
}
BAD = {
    "number": (3, TypeError, "expected an iterable of .x, y., got int"),
    "text": ("data", TypeError, "got str"),
    "dict": ({"x": X}, TypeError, "got dict"),
    "empty list": ([], ValueError, "expected at least one batch, got an empty iterable"),
    "batches of x": ([X], TypeError, r"expected pairs .x, y., got a Tensor as batch 0"),
    "one batch": ((X, Y), TypeError, "got a Tensor as batch 0"),
    "stacked": (torch.zeros(2, 2, 3), TypeError, "got a Tensor as batch 0"),
    "triples": ([(X, Y), (X, Y, Y)], TypeError, "got a tuple of length 3 as batch 1"),
    "dicts": ([{"x": X, "y": Y}], TypeError, "got a dict as batch 0"),
    "dtype of x": ([(X, Y), (X.float(), Y)], TypeError, "torch.float64 on cpu, torch.int64 on cpu, got torch.float32"),
    "dtype of y": ([(X, Y), (X, torch.eye(3)[Y].double())], TypeError, "got .* torch.float64 on cpu in batch 1"),
    "no tensors": ([(X, Y), (X, [0, 1])], TypeError, "in batch 1"),
}


@pytest.mark.parametrize("name", ONE_WALK)
def test_what_can_be_walked_once_is_refused_before_it_is(name):
    batches = ONE_WALK[name]()
    with pytest.raises(TypeError, match="batches: expected an iterable that can be walked again, got a"):
        ce.DatasetHessian(mlp(), LOSS, batches)
    assert len(list(batches)) in (2, 6)  # all are still there


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_batches_is_refused_by_name(name):
    batches, error, text = BAD[name]
    with pytest.raises(error, match=f"batches: .*{text}"):
        ce.DatasetHessian(mlp(), LOSS, batches)


def test_an_empty_loader_and_one_that_one_walk_uses_up():
    with pytest.raises(ValueError, match="batches: expected at least one batch"):
        ce.DatasetHessian(mlp(), LOSS, DataLoader(TensorDataset(X[:0], Y[:0]), batch_size=3))
    with pytest.raises(ValueError, match=r"batches: batch 0 was missing .0 batches instead of 2. in a second walk"):
        ce.DatasetHessian(mlp(), LOSS, DataLoader(Stream(), batch_size=3))


OTHERS = {
    "more": (lambda n: _batches() * n, "there was a batch 2"),
    "fewer": (lambda n: _batches()[: 3 - n], "batch 1 was missing .1 batches instead of 2."),
    "augmented": (lambda n: [_batches()[0], (X[3:] + 0.1 * n, Y[3:])], "batch 1 was another one"),
    "relabelled": (lambda n: [_batches()[0], (X[3:], Y[3:].roll(n))], "batch 1 was another one"),
    "reordered": (lambda n: _batches()[:: 1 if n == 1 else -1], "batch 0 was another one"),
    "global noise": (lambda n: [_batches()[0], (X[3:] + torch.randn(3, 4), Y[3:])], "batch 1 was another one"),
    "python's noise": (lambda n: [(X + random.random(), Y)], "batch 0 was another one"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_batches_in_the_second_walk_are_refused_by_their_place(name):
    walk, text = OTHERS[name]
    with pytest.raises(ValueError, match=f"batches: {text} in a second walk"):
        ce.DatasetHessian(mlp(), LOSS, Walked(walk))


@pytest.mark.parametrize("name", ["more", "fewer", "augmented", "relabelled", "reordered"])
def test_other_batches_in_a_later_walk_make_it_stale(name):
    walk, text = OTHERS[name]
    op = ce.DatasetHessian(mlp(), LOSS, Walked(lambda n: walk(max(1, n - 2))), keep=0)
    v = op.gradient
    assert torch.isfinite(op @ v).all()
    with pytest.raises(ce.StaleOperatorError, match=f"batches: {text} after the operator was made"):
        op @ v


@pytest.mark.parametrize("keep", [0, 1 << 28])
def test_an_edit_of_a_batch_names_it(keep):
    batches = _batches()
    op = ce.DatasetHessian(mlp(), LOSS, batches, keep=keep)
    batches[1][0].data[0, 0] += 1e-3
    with pytest.raises(ce.StaleOperatorError, match="batch 1"):
        op @ op.gradient


def test_what_is_kept_is_not_walked_again():
    batches = Walked(lambda n: _batches())
    op = ce.DatasetHessian(mlp(), LOSS, batches)
    op @ op.gradient, op.dense(), ce.spectrum(op, k=2)
    assert batches.count == 2
    again = ce.DatasetHessian(mlp(), LOSS, batches, keep=0)
    again @ op.gradient, again @ op.gradient
    assert batches.count == 6


def _shift(model):
    model[0].weight.data[0, 0] += 1e-3


def _freeze(model):
    model[0].weight.requires_grad_(False)


def _replace(model):
    model[2] = nn.Linear(5, 3).double()


@pytest.mark.parametrize("keep", [0, 1 << 28])
@pytest.mark.parametrize("change", [_shift, _freeze, _replace, nn.Module.eval])
def test_a_change_of_the_model_makes_it_stale(change, keep):
    model = mlp()
    op = ce.DatasetHessian(model, LOSS, _batches(), keep=keep)
    loss, g = op.loss, op.gradient
    change(model)
    for use in (lambda: op @ g, op.dense, op.explain, lambda: ce.spectrum(op), lambda: ce.spectrum(op, k=2)):
        with pytest.raises(ce.StaleOperatorError):
            use()
    assert torch.equal(op.loss, loss)
    assert torch.equal(op.gradient, g)


SCALE = [1.0]


def _scaled(output, y):
    return SCALE[0] * F.cross_entropy(output, y)


@pytest.mark.parametrize("keep", [0, 1 << 28])
def test_a_change_of_what_the_loss_reads_names_the_batch(keep):
    op = ce.DatasetHessian(mlp(), _scaled, _batches(), weight="mean", keep=keep)
    try:
        SCALE[0] = 1.5
        with pytest.raises(ce.StaleOperatorError, match=r"batch 0: .*something that .* the loss reads"):
            op @ op.gradient
    finally:
        SCALE[0] = 1.0


def test_dropout_is_refused_with_its_batch_and_leaves_the_random_state():
    model = nn.Sequential(mlp(), nn.Dropout(0.5))
    before = torch.get_rng_state()
    with pytest.raises(ce.UnsupportedError, match=r"^batch 0: model: its forward draws random numbers .1."):
        ce.DatasetHessian(model, LOSS, _batches())
    assert torch.equal(before, torch.get_rng_state())
    model.eval()
    assert ce.DatasetHessian(model, LOSS, _batches()).shape == (43, 43)


FAULTS = {
    "labels": ((X, Y + 5), ValueError, "class indices"),
    "features": ((X[:, :3], Y), ValueError, "forward failed"),
    "NaN": ((X * torch.nan, Y), ce.NonFiniteError, "x: expected finite values"),
    "no samples": ((X[:0], Y[:0]), ValueError, "at least one sample"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_one_batch_names_it(name):
    bad, error, text = FAULTS[name]
    model = mlp()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=f"^batch 2: .*{text}"):
        ce.DatasetHessian(model, LOSS, [*_batches(), bad])
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))


IGNORED = torch.full_like(Y, -100)
IGNORING = {
    "rules": (nn.CrossEntropyLoss(), None),
    "class weights": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double()), None),
    "torch": (
        lambda z, y: F.nll_loss(F.log_softmax(z, 1), y),
        lambda z, y: (y != -100).sum(),
    ),
}


@pytest.mark.parametrize("name", IGNORING)
@pytest.mark.parametrize("keep", [0, 1 << 28])
def test_a_batch_whose_samples_are_all_ignored_adds_nothing_and_all_such_are_refused(name, keep):
    loss_fn, weight = IGNORING[name]
    whole = ce.HessianOperator(mlp(), loss_fn, X, Y)
    op = ce.DatasetHessian(mlp(), loss_fn, [(X, IGNORED), (X, Y), (2 * X, IGNORED)], weight=weight, keep=keep)
    v = torch.ones(op.shape[0], dtype=torch.float64)
    assert op.normalisers[0] == op.normalisers[2] == 0
    assert torch.allclose(op.loss, whole.loss, rtol=1e-14)
    assert torch.allclose(op @ v, whole @ v, rtol=1e-12)
    assert torch.allclose(op.dense(), whole.dense(), rtol=1e-12)
    with pytest.raises(ce.NonFiniteError, match="every sample is ignored"):
        ce.DatasetHessian(mlp(), loss_fn, [(X, IGNORED)] * 2, weight=weight)


def test_classes_of_weight_zero_count_as_ignored():
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 1.0]).double())
    op = ce.DatasetHessian(mlp(), loss_fn, [(X, Y), (X, torch.zeros_like(Y))])
    assert torch.allclose(op.dense(), ce.hessian(mlp(), loss_fn, X, Y), rtol=1e-12)


class Turned:
    """Images of zeros and ones; in every second walk their rows are turned round."""

    def __init__(self, dtype, size):
        self._x = torch.randint(2, (4, 1, size), generator=torch.Generator().manual_seed(0)).to(dtype)
        self._walks = 0

    def __iter__(self):
        self._walks += 1
        yield self._x if self._walks % 2 else self._x.flip(0), Y[:4]


@pytest.mark.parametrize("size", [64, 1024, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_round_numbers_in_another_order(dtype, size):
    model = nn.Sequential(nn.AvgPool1d(size // 4), nn.Flatten(), nn.Linear(4, 3)).to(dtype)
    with pytest.raises(ValueError, match="batch 0 was another one in a second walk"):
        ce.DatasetHessian(model, nn.CrossEntropyLoss(), Turned(dtype, size))


@pytest.mark.parametrize("ignored", [0, 3])
@pytest.mark.parametrize("keep", [0, 1 << 28])
def test_smoothed_labels_of_weight_zero_are_not_left_out(ignored, keep):
    """Their batch's own mean is x/0, with an x that the union has, too."""
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 1.0]).double(), label_smoothing=0.1)
    zeros = torch.zeros_like(Y)
    zeros[:ignored] = -100
    with pytest.raises(ce.NonFiniteError, match=r"^batch 1: loss: all its labels have class weight 0"):
        ce.DatasetHessian(mlp(), loss_fn, [(X, Y), (X, zeros)], keep=keep)
    op = ce.DatasetHessian(mlp(), loss_fn, [(X, Y), (X, IGNORED)], keep=keep)
    assert torch.allclose(op.dense(), ce.hessian(mlp(), loss_fn, X, Y), rtol=1e-12)
    both = torch.cat([X, X]), torch.cat([Y, zeros])
    summed = nn.CrossEntropyLoss(weight=loss_fn.weight, label_smoothing=0.1, reduction="sum")
    op = ce.DatasetHessian(mlp(), summed, [(X, Y), (X, zeros)], keep=keep)
    assert torch.allclose(op.dense(), ce.hessian(mlp(), summed, *both), rtol=1e-12)


def test_an_ignored_batch_that_is_not_finite_is_refused():
    """0 * NaN in the union's gradient is NaN."""
    for bad in (math.nan, math.inf):
        x = X.clone()
        x[0, 0] = bad
        with pytest.raises(ce.NonFiniteError, match=r"^batch 1: x"):
            ce.DatasetHessian(mlp(), nn.CrossEntropyLoss(), [(X, Y), (x, IGNORED)])


class Subclass(nn.CrossEntropyLoss):
    def forward(self, output, y):
        return super().forward(output, y) * 2


def _hooked():
    loss_fn = nn.MSELoss()
    loss_fn.register_forward_hook(lambda m, args, out: 2 * out)
    return loss_fn


UNKNOWN = {
    "function": (lambda z, y: F.cross_entropy(z, y), "<lambda>"),
    "subclass": (Subclass(), "Subclass"),
    "hooked": (_hooked(), "MSELoss"),
    "mean of a divergence, which torch will change": (nn.KLDivLoss(), "KLDivLoss"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_loss_that_does_not_say_how_batches_combine_is_refused_by_name(name):
    loss_fn, called = UNKNOWN[name]
    with pytest.raises(ce.UnsupportedError, match=f"loss_fn: whether {called} is a sum .* pass weight='sum'"):
        ce.DatasetHessian(mlp(), loss_fn, _batches())


WEIGHTS = {
    "name": ("median", ValueError, "weight: expected 'mean', 'sum', a callable .* got 'median'"),
    "number": (0.5, ValueError, "got float"),
    "contradiction": ("sum", ValueError, "weight: 'sum' contradicts the loss, whose reduction is 'mean'"),
    "negative": (lambda z, y: -1.0, ValueError, "^batch 0: weight: expected .* a finite number >= 0, got -1.0"),
    "NaN": (lambda z, y: torch.tensor(torch.nan), ValueError, "finite number >= 0"),
    "tensor": (lambda z, y: y, ValueError, "finite number >= 0"),
    "truth": (lambda z, y: True, ValueError, "finite number >= 0"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none_are_refused(name):
    weight, error, text = WEIGHTS[name]
    with pytest.raises(error, match=text):
        ce.DatasetHessian(mlp(), LOSS, _batches(), weight=weight)


def test_reductions():
    with pytest.raises(ValueError, match="expected reduction 'mean' or 'sum', got 'none'"):
        ce.DatasetHessian(mlp(), nn.CrossEntropyLoss(reduction="none"), _batches())
    with pytest.raises(ValueError, match="weight: a callable contradicts the loss, whose reduction is 'sum'"):
        ce.DatasetHessian(mlp(), nn.CrossEntropyLoss(reduction="sum"), _batches(), weight=lambda z, y: 1)
    with pytest.raises(TypeError, match="loss_fn: expected a callable"):
        ce.DatasetHessian(mlp(), 3, _batches())
    equal = ce.DatasetHessian(mlp(), LOSS, [(X[:2], Y[:2]), (X[2:], Y[2:])], weight=lambda z, y: 1)
    parts = [ce.hessian(mlp(), LOSS, X[:2], Y[:2]), ce.hessian(mlp(), LOSS, X[2:], Y[2:])]
    assert torch.allclose(equal.dense(), (parts[0] + parts[1]) / 2, rtol=1e-12)


@pytest.mark.parametrize("v", [torch.zeros(5).double(), torch.zeros(43), torch.zeros(43, 1, 1).double(), [0.0] * 43])
def test_vectors_of_another_shape_or_dtype(v):
    op = ce.DatasetHessian(mlp(), LOSS, _batches())
    with pytest.raises((TypeError, ValueError), match="v: expected"):
        op @ v


def test_k_beyond_the_parameters():
    model = mlp()
    op = ce.DatasetHessian(model, LOSS, _batches())
    with pytest.raises(ValueError, match=r"k: expected an int in 1\.\.P = 43"):
        ce.spectrum(op, k=44)


class BreaksError(Exception):
    pass


def test_an_error_of_the_data_comes_through_and_leaves_no_trace():
    def walk(n):
        torch.rand(3), random.random()
        yield X, Y
        raise BreaksError

    model = mlp()
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(BreaksError):
        ce.DatasetHessian(model, LOSS, Walked(walk))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("keep", [-1, 0.5, "all", True])
def test_bytes_to_keep_that_are_none(keep):
    with pytest.raises(ValueError, match="keep: expected a number of bytes >= 0, got"):
        ce.DatasetHessian(mlp(), LOSS, _batches(), keep=keep)


def test_batches_in_one_buffer_are_recorded_again_and_noticed_where_they_were_kept():
    class Buffered:
        def __iter__(self):
            x, y = torch.empty_like(X[:3]), torch.empty_like(Y[:3])
            for new_x, new_y in _batches():
                x.copy_(new_x), y.copy_(new_y)
                yield x, y

    op = ce.DatasetHessian(mlp(), LOSS, Buffered(), keep=0)
    assert torch.allclose(op.dense(), ce.hessian(mlp(), LOSS, X, Y), rtol=1e-12)
    with pytest.raises(ce.StaleOperatorError, match="batch 0"):
        ce.DatasetHessian(mlp(), LOSS, Buffered()).dense()


def test_bytes_as_labels_are_not_ignored_by_their_low_bits():
    torch.manual_seed(0)
    model, y = nn.Linear(4, 200).double(), torch.tensor([156, 3, 156, 7, 1, 2], dtype=torch.uint8)
    op = ce.DatasetHessian(model, LOSS, [(X[:3], y[:3]), (X[3:], y[3:])])
    assert op.normalisers == (3.0, 3.0)
    assert torch.allclose(op.gradient, ce.HessianOperator(model, LOSS, X, y.long()).gradient, rtol=1e-12)
