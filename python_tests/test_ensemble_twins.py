"""Twins: equal members stay equal bit for bit, others part as the tangent map says."""

import pytest
import torch
from ensembles import CE, F64, OPTIMIZERS, batch, deltas, mlp, size
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

import chaos_ext as ce
from chaos_ext.base.parameters import ParameterSpace
from chaos_ext.ensemble import choice
from chaos_ext.ensemble.layout import Layout
from chaos_ext.ensemble.scratch import Scratch


def _all_equal(ens):
    return bool((ens.thetas == ens.thetas[0]).all())


def _paper(dtype=F64, seed=0, **options):
    model = ce.models.paper_mlp(seed=seed, dtype=dtype)
    return model, SGD(model.parameters(), lr=1e-3, **options)


def _images(seed, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(8, 1, 16, 16, generator=g, dtype=F64).to(dtype), torch.randint(0, 10, (8,), generator=g)


def test_twins_at_distance_zero_stay_equal_bit_for_bit_over_10000_steps():
    """The paper's network and learning rate; a member at a distance is among them, and must part."""
    model, opt = _paper()
    d = torch.zeros(5350, 19, dtype=F64)
    d[:, 18] = 1e-6 / 5350**0.5
    ens = ce.Ensemble.around(model, CE, opt, d)
    batches = [_images(seed) for seed in range(50)]
    for t in range(10_000):
        losses = ens.step(*batches[t % 50])
        assert bool((losses[:19] == losses[0]).all())
    assert bool((ens.thetas[:19] == ens.thetas[0]).all())
    assert ens.distances()[19] > 0


ODD = {
    "mlp": (lambda: nn.Sequential(nn.Linear(33, 65), nn.Tanh(), nn.Linear(65, 7), nn.GELU(), nn.Linear(7, 3)), (33,)),
    "one output": (lambda: nn.Sequential(nn.Linear(300, 11), nn.Sigmoid(), nn.Linear(11, 3)), (300,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(3, 5, 2), nn.ELU(), nn.Flatten(), nn.Linear(45, 3)
        ),
        (1, 10, 11),
    ),
    "batch norm": (lambda: nn.Sequential(nn.Linear(9, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 3)), (9,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(9, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)), (9,)),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 7, 64])
@pytest.mark.parametrize("name", ODD)
def test_odd_sizes_and_threads(name, n, threads, dtype):
    """Sizes at which plain batched products of equal matrices differ in their last bits."""
    if name == "batch norm" and n == 1:
        n = 2
    make, shape = ODD[name]
    model = make().to(dtype)
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ens = ce.Ensemble.around(model, CE, opt, torch.zeros(size(model), 12, dtype=dtype))
        for t in range(4):
            ens.step(*batch(n, shape, seed=t, dtype=dtype))
    finally:
        torch.set_num_threads(before)
    assert _all_equal(ens)
    assert not torch.equal(ens.thetas[0], parameters_to_vector(model.parameters()))


@pytest.mark.parametrize("name", ["momentum_all", "nesterov", "adam_all", "amsgrad"])
def test_equal_members_with_equal_batches_of_their_own(name):
    cls, options = OPTIMIZERS[name]
    model = mlp()
    ens = ce.Ensemble.around(model, CE, cls(model.parameters(), **options), torch.zeros(size(model), 10, dtype=F64))
    for t in range(20):
        x, y = batch(5, seed=t)
        ens.step(x.expand(11, 5, 6), y.expand(11, 5), batched=True)
    assert _all_equal(ens)


def test_equal_members_have_company_of_others():
    """What the others are must not matter: equal ones lie far apart, in different parts of the work."""
    model, opt = _paper(momentum=0.9)
    d = 0.1 * torch.randn(5350, 200, dtype=F64)
    d[:, [70, 150, 199]] = d[:, [3]]
    ens = ce.Ensemble.around(model, CE, opt, d)
    for t in range(10):
        ens.step(*_images(t))
    assert bool((ens.thetas[[71, 151, 200]] == ens.thetas[4]).all())
    assert not torch.equal(ens.thetas[5], ens.thetas[4])


def test_kernels_that_break_equality_are_noticed(monkeypatch):
    """Members go one by one then; where that does not help, the ensemble refuses."""
    model = mlp()

    def ens():
        return ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), torch.zeros(size(model), 3, dtype=F64))

    tried = []

    def unequal(engine, parts, *rest):
        tried.append([p.stop - p.start for p in parts])
        return len(parts) > 1

    monkeypatch.setattr(choice, "_stay_equal", unequal)
    one = ens()
    one.step(*batch())
    assert tried == [[4], [1, 1, 1, 1]]
    assert _all_equal(one)
    monkeypatch.setattr(choice, "_stay_equal", lambda *args: False)
    with pytest.raises(ce.UnsupportedError, match="do not stay equal"):
        ens().step(*batch())


def test_around_puts_the_members_where_it_says():
    model = mlp()
    d = deltas(model, 3)
    ens = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), d)
    theta = parameters_to_vector(model.parameters()).detach()
    assert len(ens) == 4
    assert torch.equal(ens.thetas[0], theta)
    assert torch.equal(ens.thetas[1:], theta + d.T)
    torch.testing.assert_close(ens.distances()[1:], d.norm(dim=0), rtol=1e-12, atol=0)


def test_distances_and_components():
    model = mlp()
    d = deltas(model, 3)
    ens = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), d)
    for t in range(3):
        ens.step(*batch(seed=t))
    thetas, v = ens.thetas, torch.randn(size(model), 2, dtype=F64)
    for to, origin in ((0, thetas[0]), (2, thetas[2]), (v[:, 0], v[:, 0])):
        torch.testing.assert_close(ens.distances(to), (thetas - origin).norm(dim=1))
        torch.testing.assert_close(ens.along(v, to), (thetas - origin) @ v)
        torch.testing.assert_close(ens.along(v[:, 1], to), (thetas - origin) @ v[:, 1:])


@pytest.mark.parametrize("name", ["sgd_decay", "momentum", "adamw"])
def test_small_twins_follow_the_tangent_map(name):
    """||dtheta - eps Y w|| / ||dtheta|| is of the order of eps; for large ones it is not."""
    cls, options = OPTIMIZERS[name]
    small = []
    for eps in (1e-6, 1e-4):
        model = mlp()
        opt = cls(model.parameters(), **options)
        ens = ce.Ensemble.around(model, CE, opt, deltas(model, 3, eps))
        tangent = ce.TangentMap(opt)
        Y = torch.zeros(tangent.size, 3, dtype=F64)
        Y[: size(model)] = (ens.thetas[1:] - ens.thetas[0]).T
        for t in range(20):
            x, y = batch(seed=t)
            op = ce.HessianOperator(model, CE, x, y)
            tangent.apply_(op, Y)
            ens.step(x, y)
            opt.zero_grad()
            CE(model(x), y).backward()
            opt.step()
        torch.testing.assert_close(ens.thetas[0], parameters_to_vector(model.parameters()).detach())
        small.append(float(ens.nonlinearity(Y[: size(model)]).max()))
    assert small[0] < 1e-3
    assert 20 < small[1] / small[0] < 500  # first order in eps: 100


def test_nonlinearity_of_what_is_known():
    model = mlp()
    d = deltas(model, 2)
    ens = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), d)
    moved = (ens.thetas[1:] - ens.thetas[0]).T
    assert ens.nonlinearity(moved).tolist() == [0.0, 0.0]
    assert ens.nonlinearity(torch.zeros_like(d)).tolist() == [1.0, 1.0]
    torch.testing.assert_close(ens.nonlinearity(1.5 * moved), torch.tensor([0.5, 0.5], dtype=F64))
    one = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), torch.zeros(size(model), 1, dtype=F64))
    assert one.nonlinearity(torch.zeros(size(model), dtype=F64)).tolist() == [0.0]


def test_a_displacement_that_rounding_swallows_is_refused():
    model = mlp(torch.float32)
    opt = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"deltas: column 1, of length .* vanishes in the rounding of torch.float32"):
        ce.Ensemble.around(model, CE, opt, torch.tensor([0.0, 1e-12, 1e-2]).expand(size(model), 3))


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (64, 33), (5, 7, 3)])
def test_every_members_numbers_are_aligned_alike(shape, dtype):
    """What products of equal matrices need for equal bits, whatever the sizes are."""
    layout = Layout(ParameterSpace.of(nn.Sequential(nn.Linear(33, 7), nn.Linear(7, 3, bias=False)).to(dtype)))
    rows, scratch = layout.zeros(5), Scratch()
    made = scratch.take("z", (5, *shape), rows)
    misaligned = torch.zeros(5 * made[0].numel() + 1, dtype=dtype)[1:].view(5, *shape)
    copied = scratch.aligned(misaligned, "a")
    assert torch.equal(copied, misaligned)
    assert scratch.aligned(made, "b") is made
    for t in (*layout.views(rows), made, copied):
        assert len({row.data_ptr() % 64 for row in t}) == 1
        assert t.data_ptr() % 64 == 0


def test_another_number_of_threads_is_tried_anew():
    model, opt = _paper()
    ens = ce.Ensemble.around(model, CE, opt, torch.zeros(5350, 20, dtype=F64))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            ens.step(*_images(threads))
    finally:
        torch.set_num_threads(before)
    assert _all_equal(ens)
