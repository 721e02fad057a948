"""Operators whose batches lie on several ranks: the Hessian of the union, the same bits on all."""

import functools
import itertools

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce

TIGHT = 1e-12
ENDS = (0, 7, 12, 15, 20, 23)  # of batches


def _mlp(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).to(dtype)


def _data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ENDS[-1], 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (ENDS[-1],), generator=generator)


def _ignored(y):
    """Labels of which some are ignored, and in one batch all."""
    y = y.clone()
    y[::5] = -100
    y[ENDS[2] : ENDS[3]] = -100
    return y


def _as_they_are(y):
    return y


WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
CASES = {  # loss, targets
    "mean": (nn.CrossEntropyLoss(), _as_they_are),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), _as_they_are),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHT), _as_they_are),
    "ignored": (functools.partial(F.cross_entropy, label_smoothing=0.1), _ignored),
    "squares": (nn.MSELoss(), lambda y: F.one_hot(y, 3).double() * 2),
}


def _batches(y, x):
    return [(x[a:b], y[a:b]) for a, b in itertools.pairwise(ENDS)]


def _shard(batches, rank, size):
    """Uneven: the last rank has none, the first most."""
    if size == 1:
        return batches
    return batches[rank :: size - 1] if rank < size - 1 else []


def _results(op):
    v = torch.linspace(-1, 1, op.shape[0], dtype=op.dtype)
    V = torch.stack([v, v.flip(0), v.square()], 1)
    spec = ce.spectrum(op)
    found = {
        "loss": op.loss,
        "gradient": op.gradient,
        "product": op @ v,
        "block": op @ V,
        "no columns": op @ V[:, :0],
        "dense": op.dense(),
        "dense into": op.dense(torch.full(op.shape, float("nan"), dtype=op.dtype)),
        "diagonal": op.diagonal(),
        "spectrum": spec.eigenvalues,
        "some": ce.spectrum(op, k=3, which="largest").eigenvalues,
        "of an eigenvalue": op.eigenvalue_gradient(spec, -1).gradient,
        "trace": torch.as_tensor(ce.trace(op).value, dtype=torch.float64),
    }
    return found, sorted(op.unused)


def _of_the_union(rank, cases):
    """What each case gives on this rank."""
    found = {}
    x, y = _data()
    for name, keep in cases:
        loss, targets = CASES[name]
        shard = _shard(_batches(targets(y), x), rank, dist.get_world_size())
        op = ce.DatasetHessian(_mlp(), loss, shard, keep=keep, group=dist.group.WORLD)
        found[name, keep] = _results(op)
    again = ce.DatasetHessian(_mlp(), loss, shard, keep=keep, group=dist.group.WORLD)
    _require_same(_results(again), found[name, keep])
    assert len(op.explain()) == 3
    return found


def _require_same(a, b):
    assert a[0].keys() == b[0].keys()
    assert a[1] == b[1]
    for key in a[0]:
        assert torch.equal(a[0][key], b[0][key]), key


KEPT = 1 << 28
OF_SIZE = {2: [("mean", 0), ("sum", KEPT), ("weights", KEPT), ("squares", KEPT)], 4: [("ignored", 0), ("mean", KEPT)]}


@pytest.mark.parametrize("size", OF_SIZE)
def test_a_data_set_on_several_ranks_is_the_union_bit_for_bit_on_all(size):
    first, *others = ranks.run(size, _of_the_union, OF_SIZE[size])
    x, y = _data()
    for key, found in first.items():
        for other in others:
            _require_same(found, other[key])
        loss, targets = CASES[key[0]]
        alone = _results(ce.DatasetHessian(_mlp(), loss, _batches(targets(y), x)))
        assert found[1] == alone[1]
        for name, value in alone[0].items():
            limit = 1e-9 if name == "of an eigenvalue" else TIGHT  # of a pair with a neighbour
            assert relative(found[0][name], value) < limit, (key, name)
        assert relative(found[0]["dense"], double_backward(_mlp(), loss, x, targets(y))) < 1e-10
        assert torch.equal(found[0]["dense"], found[0]["dense"].T)


SIZES = (9, 6, 8)  # of the batches of three ranks


def _step_batches(step, dtype=torch.float64):
    """The batch of each rank in a step."""
    x, y = _data(seed=step)
    return [(a.to(dtype), b) for a, b in zip(x.split(SIZES), y.split(SIZES))]


def _union(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches))


def _agrees(name, ours, theirs, limit=TIGHT):
    assert relative(ours, theirs) < limit, name


class Spare(nn.Module):
    """A model with a parameter that no loss depends on."""

    def __init__(self):
        super().__init__()
        self.spare, self.net = nn.Parameter(torch.ones(2, dtype=torch.float64)), _mlp()

    def forward(self, x):
        return self.net(x)


def _leaves_alone_what_is_unused(rank, batches):
    model = Spare()
    opt = ce.CGD(model.parameters(), lr=0.1, weight_decay=0.5)
    for given in (batches, [batches[0], [], []]):
        op = ce.DatasetHessian(model, F.cross_entropy, given[rank] and [given[rank]], group=dist.group.WORLD)
        assert op.unused == op.origin.unused == {0}
        before = [p.detach().clone() for p in model.parameters()]
        opt.step(op)
        moved = [not torch.equal(p, then) for p, then in zip(model.parameters(), before)]
        assert moved == [False] + [True] * (len(moved) - 1)


def _one_batch_each(rank):
    """``HessianOperator`` of three ranks, held against that of all their samples on each."""
    world, batches = dist.group.WORLD, _step_batches(0)
    for loss in (nn.CrossEntropyLoss(weight=WEIGHT), F.cross_entropy, nn.CrossEntropyLoss(reduction="sum")):
        op = ce.HessianOperator(_mlp(), loss, *batches[rank], group=world)
        alone = ce.HessianOperator(_mlp(), loss, *_union(batches))
        ours, theirs = _results(op), _results(alone)
        for name in theirs[0]:
            _agrees(name, ours[0][name], theirs[0][name], 1e-9 if name == "of an eigenvalue" else TIGHT)
        assert isinstance(op, ce.HessianOperator)
        assert torch.equal(op.output, ce.HessianOperator(_mlp(), loss, *batches[rank]).output)
        with op.displaced(op.snapshot.theta + 0.1) as there, alone.displaced(alone.snapshot.theta + 0.1) as expected:
            _agrees("displaced", there.gradient, expected.gradient)
        assert op.held_constant is None
        with pytest.raises(ce.UnsupportedError, match="several ranks"):
            op.compressed()
        with pytest.raises(TypeError, match="HessianOperator: it belongs to live"):
            op.__reduce__()
    ignored = torch.full_like(batches[2][1], -100)
    given = [batches[0], batches[1], (batches[2][0], ignored)]
    op = ce.HessianOperator(_mlp(), F.cross_entropy, *given[rank], group=world)
    _agrees("a rank of ignored labels", op.dense(), ce.hessian(_mlp(), F.cross_entropy, *_union(given[:2])))
    assert op.output.shape == (SIZES[rank], 3)
    block = ce.HessianOperator(_mlp(), F.cross_entropy, *batches[rank], params="3.*", group=world)
    _agrees("block", block.dense(), ce.hessian(_mlp(), F.cross_entropy, *_union(batches), params="3.*"))
    narrow = [(x.float(), y) for x, y in batches]
    spec = ce.spectrum(
        ce.HessianOperator(_mlp(torch.float32), F.cross_entropy, *narrow[rank], group=world),
        spectrum_dtype=torch.float64,
    )
    whole = ce.HessianOperator(_mlp(torch.float32), F.cross_entropy, *_union(narrow))
    theirs = ce.spectrum(whole, spectrum_dtype=torch.float64)
    _agrees("float32 in float64", spec.eigenvalues, theirs.eigenvalues, 1e-7)  # batches' parts were rounded
    with pytest.raises(ce.UnsupportedError, match="DatasetHessian"):
        ce.HessianOperator(_mlp(), lambda z, y: F.cross_entropy(z, y), *batches[rank], group=world)
    _leaves_alone_what_is_unused(rank, batches)
    half = dist.new_group([0, 2])
    if rank != 1:
        op = ce.HessianOperator(_mlp(), F.cross_entropy, *batches[rank], group=ce.Ranks(half, timeout=30))
        _agrees("two of three", op.dense(), ce.hessian(_mlp(), F.cross_entropy, *_union(batches[::2])))
    return op.gradient


def test_a_batch_on_each_rank_is_their_union():
    first, *others = ranks.run(3, _one_batch_each)
    assert torch.equal(first, others[1])


OPTIONS = [{}, {"momentum": 0.9, "prune": "negative"}, {"prune": "dominant", "k": 2}, {"k": 3, "order": "random"}]


def _trained(options, source, steps=4):
    torch.manual_seed(5)
    model = _mlp()
    opt = ce.CGD(model.parameters(), lr=0.05, **options)
    analyzer = ce.LyapunovAnalyzer(model, opt, k=3, qr_every=2) if not options else None
    losses = []
    for step in range(steps):
        op = source(model, _step_batches(step))
        if analyzer is not None:
            analyzer.update(op)
        losses.append(opt.step(op))
    found = [torch.stack(losses), *[p.detach() for p in model.parameters()]]
    return found if analyzer is None else [*found, analyzer.exponents()]


def _alone(model, batches):
    return ce.HessianOperator(model, F.cross_entropy, *_union(batches))


def _trains(rank):
    world, found = dist.group.WORLD, []

    def one_each(model, batches):
        return ce.HessianOperator(model, F.cross_entropy, *batches[rank], group=world)

    def sets(model, batches):
        return ce.DatasetHessian(model, F.cross_entropy, batches if rank == 1 else [], group=world)

    for options in OPTIONS:
        found.append(_trained(options, one_each))
        expected = _trained(options, _alone)
        assert all(relative(a, b) < 1e-10 for a, b in zip(found[-1], expected)), options  # steps amplify rounding
        if options:
            found.append(_trained(options, sets))
    return found


def test_every_rank_does_the_steps_of_one_process():
    first, *others = ranks.run(3, _trains)
    for other in others:
        for a, b in zip(first, other):
            assert all(map(torch.equal, a, b))


def _normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def _batch_norm(rank):
    """In training mode the mean of the ranks' functions; each keeps its own running statistics, as with torch's DDP."""
    batches, model, world = _step_batches(0), _normed(), dist.group.WORLD
    op = ce.HessianOperator(model, F.cross_entropy, *batches[rank], group=world)
    parts = [n * ce.hessian(_normed(), F.cross_entropy, *b) for n, b in zip(SIZES, batches)]
    _agrees("mean of functions", op.dense(), sum(parts) / sum(SIZES))
    assert torch.equal(model[1].running_mean, torch.zeros(6, dtype=torch.float64))
    ce.CGD(model.parameters(), lr=0.1).step(op)
    seen = model[1].running_mean.clone()
    ce.HessianOperator(model, F.cross_entropy, *batches[rank], group=world)  # which may differ
    model.eval()
    with pytest.raises(ce.errors.RanksDisagreeError, match="running_mean"):
        ce.HessianOperator(model, F.cross_entropy, *batches[rank], group=world)
    return seen


def test_batch_norm_on_several_ranks():
    means = ranks.run(3, _batch_norm)
    assert not torch.equal(means[0], means[1])


def _ensemble(model, batch):
    """Twins of a wrapped model are those of its module, and are loaded into either."""
    deltas = 1e-3 * torch.eye(nn.utils.parameters_to_vector(model.parameters()).numel(), 2, dtype=torch.float64)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    both = [ce.Ensemble.around(m, F.cross_entropy, sgd, deltas) for m in (model, model.module)]
    assert torch.equal(*[ens.step(*batch) for ens in both])
    assert torch.equal(both[0].thetas, both[1].thetas)
    both[0].load_into(model, 1)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), both[1].thetas[1])


def _wrapped(rank):
    """A model in DDP is its module, and nobody has called its forward or its hooks."""
    batches, world = _step_batches(0), dist.group.WORLD
    model = nn.parallel.DistributedDataParallel(_mlp())
    calls = []

    def reduce(state, bucket):
        calls.append(bucket)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, reduce)
    model.register_forward_pre_hook(lambda *_: calls.append("forward"))
    before = dict(vars(model))
    for group in (None, world):
        op = ce.HessianOperator(model, F.cross_entropy, *batches[rank], verify=True, group=group)
        data = ce.DatasetHessian(model, F.cross_entropy, [batches[rank]], group=group)
        plain = ce.HessianOperator(model.module, F.cross_entropy, *batches[rank], group=group)
        assert torch.equal(op.dense(), plain.dense())
        assert torch.equal(op.gradient, plain.gradient)
        _agrees("data set", data.dense(), plain.dense())
        assert all(p.grad is None for p in model.parameters())
        by_torch = ce.HessianOperator(model, lambda z, y: F.cross_entropy(z, y), *batches[rank])
        by_torch.eigenvalue_gradient(ce.spectrum(by_torch), -1)
        ce.GGNOperator(model, lambda z, y: F.cross_entropy(z, y), *batches[rank]).dense()
        opt = ce.CGD(model.parameters(), lr=0.1)
        analyzer = ce.LyapunovAnalyzer(model, opt, k=2)
        op = ce.HessianOperator(model, F.cross_entropy, *batches[rank], group=world)
        analyzer.update(op)
        opt.step(op)
    ce.spectra_per_layer(model, F.cross_entropy, *batches[rank])
    ce.FisherOperator(model, nn.CrossEntropyLoss(), *batches[rank]).dense()
    ce.perturb(model, torch.ones(op.shape[0], dtype=torch.float64), 1e-3)
    _ensemble(model, batches[rank])
    assert not calls
    assert dict(vars(model)) == before
    F.cross_entropy(model(batches[rank][0]), batches[rank][1]).backward()
    assert len(calls) > 1  # as ever
    with pytest.raises(ce.UnsupportedError, match="DistributedDataParallel"):
        ce.HessianOperator(nn.Sequential(model, nn.Tanh()), F.cross_entropy, *batches[rank])


def test_a_model_in_ddp_is_unwrapped_without_a_trace():
    ranks.run(2, _wrapped)


def _sharded(rank):
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    mesh, (x, y), cpu = init_device_mesh("cpu", (2,)), _step_batches(0)[rank], torch.device("cpu")
    whole, part = _mlp(), _mlp()
    fsdp.fully_shard(whole, mesh=mesh)
    fsdp.fully_shard(part[0], mesh=mesh)
    first = fsdp.FullyShardedDataParallel(_mlp(), device_id=cpu)
    tensors = distribute_module(_mlp(), mesh)
    for model, name in [(whole, "FSDP"), (part, "FSDP"), (first, "FullyShardedDataParallel"), (tensors, "DTensor")]:
        for make in (
            lambda model: ce.HessianOperator(model, F.cross_entropy, x, y),
            lambda model: ce.HessianOperator(model, F.cross_entropy, x, y, group=dist.group.WORLD),
            lambda model: ce.DatasetHessian(model, F.cross_entropy, [(x, y)], group=dist.group.WORLD),
            lambda model: ce.GGNOperator(model, F.cross_entropy, x, y),
        ):
            with pytest.raises(ce.UnsupportedError, match=name):
                make(model)


@pytest.mark.filterwarnings("ignore")
def test_sharded_models_are_refused_by_name():
    ranks.run(2, _sharded)
