"""A LyapunovAnalyzer whose columns are spread over processes: what one process says, the same bits on every rank."""

import pytest
import ranks
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import CE, RUNS, analyse, setting

import chaos_ext as ce

STEPS = 30
# Optimizer, columns, steps between QRs: k = S, uneven numbers of columns, and fewer columns than ranks.
RUN = [("sgd", None, "auto"), ("heavy_ball", 6, "auto"), ("adam", 11, "auto"), ("cgd", 33, 4), ("nesterov", 3, 7)]
MORE = [("heavy_ball", None, 6), ("adam", None, "auto"), ("sgd", 1, 5), ("cgd", 5, "auto"), ("adamw", 7, "auto")]


def _analysed(case, group=None, dtype=torch.float64, **options):
    name, k, every = case
    cls, own = RUNS[name]
    model, batches = setting(dtype)
    opt = cls(model.parameters(), **own)
    an = ce.LyapunovAnalyzer(model, opt, k=k, qr_every=every, group=group, **options)
    analyse(model, opt, batches, STEPS, an)
    return an


def _said(an):
    plain = torch.tensor([an.steps, an.sum_of_positive_exponents()], dtype=torch.float64)
    history = an.history
    found = [an.exponents(), an.errors(), an.local_exponents, history.steps, history.exponents, an.directions()]
    return [t.nan_to_num() for t in [*found, plain]]


def _runs(rank, folder, cases):
    said = [_said(_analysed(case, dist.group.WORLD)) for case in cases]
    again = _said(_analysed(cases[0], dist.group.WORLD))
    assert all(map(torch.equal, said[0], again))
    options = {"state": "full", "transient": 7, "csv": folder / "run.csv", "progress": STEPS}
    return said, _said(_analysed(("heavy_ball", 5, 5), ce.Ranks(), **options))


@pytest.mark.parametrize(("size", "cases"), [(2, RUN + MORE), (4, RUN)])
def test_results_are_those_of_one_process(size, cases, tmp_path):
    results = ranks.run(size, _runs, tmp_path, cases)
    (said, full), *others = results
    for other, other_full in others:
        for case, one, two in zip(cases, said, other, strict=True):
            assert all(map(torch.equal, one, two)), case
        assert all(map(torch.equal, full, other_full))
    alone = [_said(_analysed(case)) for case in cases]
    alone.append(_said(_analysed(("heavy_ball", 5, 5), state="full", transient=7, csv=tmp_path / "alone.csv")))
    for case, spread, whole in zip([*cases, "full"], [*said, full], alone, strict=True):
        for a, b in zip(spread, whole, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-10), case  # 30 steps' rounding errors
    rows, expected = (path.read_text().splitlines() for path in (tmp_path / "run.csv", tmp_path / "alone.csv"))
    assert len(rows) == len(expected) > 2
    assert rows[0] == expected[0]
    for row, other in zip(rows[1:], expected[1:], strict=True):
        assert [float(v) for v in row.split(",")] == pytest.approx([float(v) for v in other.split(",")], abs=1e-10)


def _in_float32(rank):
    return [_analysed(case, dist.group.WORLD, torch.float32).exponents() for case in (RUN[0], RUN[1])]


def test_in_float32():
    for spread, case in zip(ranks.run(2, _in_float32)[0], RUN, strict=False):
        assert torch.allclose(spread, _analysed(case, dtype=torch.float64).exponents(), rtol=0, atol=1e-5)


class _Largest(TorchDispatchMode):
    """Notes how many bytes the largest tensor has that any operation returns."""

    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.found = max([self.found, *(t.numel() * t.element_size() for t in tensors)])
        return out


def _sizes(rank, k):
    ce.dynamics.sharded.start._DRAWN = 1 << 10
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3)).double()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(4, 20, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    loss = torch.nn.CrossEntropyLoss()
    op = ce.HessianOperator(model, loss, x, y)
    with _Largest() as largest:
        an = ce.LyapunovAnalyzer(model, opt, k=k, qr_every=1, group=dist.group.WORLD)
        for _ in range(2):
            an.update(op)
        an.exponents()
    return largest.found, an.tangent.size


@pytest.mark.parametrize("k", [None, 120])
def test_no_rank_ever_has_all_columns(k):
    for found, S in ranks.run(4, _sizes, k):
        share = 8 * S * ((k or S) // 4)  # or a column more
        assert share <= found <= 1.2 * share + (1 << 18)  # what is less than 256 KB is sent in one piece


def _refused(rank):
    model, batches = setting()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for options in ({"method": "svd"}, {"gali": True}, {"covariant": True, "k": 3}):
        with pytest.raises(ce.UnsupportedError, match=f"{next(iter(options))}: .*group"):
            ce.LyapunovAnalyzer(model, opt, group=dist.group.WORLD, **options)
    with pytest.raises(ValueError, match="k: expected"):
        ce.LyapunovAnalyzer(model, opt, k=99, group=dist.group.WORLD)
    with pytest.raises(TypeError, match="group: expected"):
        ce.LyapunovAnalyzer(model, opt, k=3, group=2)
    with pytest.raises(ce.MemoryBudgetError if rank == 1 else ce.RankFailedError, match="k = 3"):
        ce.LyapunovAnalyzer(model, opt, k=3, memory_budget=10 if rank == 1 else None, group=dist.group.WORLD)
    an = ce.LyapunovAnalyzer(model, opt, k=3, group=dist.group.WORLD)
    with pytest.raises(ValueError, match="at least one step"):
        an.exponents()
    for read in (an.log_gali, an.covariant_vectors):
        with pytest.raises(ValueError, match="made with"):
            read()
    with pytest.raises(ce.UnsupportedError, match="svd"):
        an.singular_vectors()
    with pytest.raises(ce.UnsupportedError, match="op: made with group="):
        an.update(ce.HessianOperator(model, CE, *batches[rank], group=dist.group.WORLD))
    an.update(ce.HessianOperator(model, CE, *batches[0]))


def test_what_needs_all_columns_is_refused():
    ranks.run(2, _refused)
