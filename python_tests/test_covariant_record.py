"""Where the factors of a run are kept for covariant vectors: in memory, on disk, in a checkpoint."""

import logging
import math

import pytest
import torch

import chaos_ext as ce
from chaos_ext.base.contents import UnfitError
from chaos_ext.dynamics import factors
from chaos_ext.dynamics.benettin import Benettin
from chaos_ext.dynamics.covariant import covariant_of, record_for
from chaos_ext.dynamics.factors import Factors, Record, check_record
from chaos_ext.dynamics.start import start_block


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_results_do_not_depend_on_where_factors_are_kept(monkeypatch):
    s = ce.systems.henon()
    options = {"steps": 300, "transient": 100, "settle": 100}
    memory = ce.covariant_vectors(s.step, s.tangent, s.x0, **options)
    monkeypatch.setattr(factors, "BUDGET", 1000)  # 24 bytes a factor: several writes, and some that stay
    disk = ce.covariant_vectors(s.step, s.tangent, s.x0, **options)
    for name in ("coefficients", "growth", "angles", "exponents", "x", "errors"):
        assert torch.equal(getattr(memory, name), getattr(disk, name))


def test_factors_can_be_written_again_in_memory_and_on_disk():
    R = [_random(4, 4, seed=i).triu() for i in range(20)]
    for budget in (None, 0, 300):
        stack = Factors(4, budget)
        for i, r in enumerate(R):
            stack.put(i, r)
        stack.put(7, R[0])  # what came after is gone
        assert len(stack) == 8
        assert torch.equal(stack[7], R[0])
        assert torch.equal(stack[3], R[3])
        for i in range(8, 12):
            stack.put(i, R[i])
        other = Factors(4, budget)
        other.fill(stack.packed(10))
        assert [torch.equal(other[i], stack[i]) for i in range(10)] == [True] * 10
        assert torch.equal(stack[11], R[11])


def test_a_disk_that_is_full_costs_memory_not_the_run(monkeypatch, caplog):
    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(factors.tempfile, "TemporaryFile", full)
    stack = Factors(3, 0)
    with caplog.at_level(logging.WARNING, logger="chaos_ext"):
        for i in range(50):
            stack.put(i, torch.eye(3, dtype=torch.float64) * (i + 1))
    assert torch.equal(stack[49], 50 * torch.eye(3, dtype=torch.float64))
    assert "No space left" in caplog.text


def test_a_saved_run_goes_on_to_the_same_vectors():
    """Records are part of a run's state, and a copy that loads one leaves the other run's alone."""
    maps = [_random(6, 6, seed=i) / 2 for i in range(240)]

    def run_of():
        return Benettin(start_block(6, 3, torch.float64, torch.device("cpu"), 0), "auto", 20, record=Record(3, most=8))

    whole, half = run_of(), run_of()
    for i, J in enumerate(maps):
        whole.advance(lambda Y, J=J: (J @ Y, None))
        if i < 120:
            half.advance(lambda Y, J=J: (J @ Y, None))
    state = half.state_dict()
    resumed = run_of()
    resumed.load_state_dict(state)
    check_record(state["record"], resumed.Y, state["steps"] - state["pending"])
    for J in maps[120:]:
        resumed.advance(lambda Y, J=J: (J @ Y, None))
    a, b = covariant_of(whole), covariant_of(resumed)
    for name in ("steps", "coefficients", "growth", "angles", "exponents", "block_steps"):
        x, y = getattr(a, name), getattr(b, name)
        assert torch.equal(x.nan_to_num(), y.nan_to_num()), name
    assert all(map(torch.equal, a.frames, b.frames))
    assert 4 <= len(a) <= 8  # spread over the run
    assert len(half.record.factors) == half.recorded < whole.recorded
    assert int(a.steps[-1]) > 150


def test_a_damaged_record_is_refused_by_name():
    run = Benettin(start_block(4, 2, torch.float64, torch.device("cpu"), 0), 1, 0, record=Record(2))
    for i in range(5):
        J = _random(4, 4, seed=i)
        run.advance(lambda Y, J=J: (J @ Y, None))
    good = run.state_dict()["record"]
    check_record(good, run.Y, 5)
    nan = good["frames"] | {1: torch.full((4, 2), math.nan, dtype=torch.float64)}
    for part, value in (
        ("factors", good["factors"][1:]),
        ("factors", good["factors"].float()),
        ("steps", [0, 1, 2, 2, 4, 5]),
        ("steps", [0, 1, 2, 3, 4, 6]),
        ("steps", None),
        ("stride", 0),
        ("frames", nan),
        ("frames", good["frames"] | {6: good["frames"][1]}),
        ("frames", {i: f for i, f in good["frames"].items() if i}),
        ("frames", {0: good["frames"][0][:3]}),
    ):
        with pytest.raises(UnfitError, match=f"^record.({part}|steps): expected"):
            check_record({**good, part: value}, run.Y, 5)
    with pytest.raises(UnfitError, match="record: expected"):
        check_record({n: good[n] for n in ("steps", "stride", "frames")}, run.Y, 5)


def test_a_record_of_a_run_is_within_its_budget():
    Y = start_block(100, 5, torch.float64, torch.device("cpu"), 0)
    record = record_for(Y, 2 * 64 * 100 * 5 * 8)
    assert record.factors.budget == 64 * 100 * 5 * 8
    with pytest.raises(ce.MemoryBudgetError, match="fewer vectors"):
        record_for(Y, 2 * 64 * 100 * 5 * 8 - 2)
    with pytest.raises(ValueError, match="at most 64 covariant vectors, got 65"):
        record_for(torch.eye(65))


def test_a_block_that_is_recorded_twice_counts_once():
    """As after a step that broke off when the record had been written and the run had not."""
    run = Benettin(start_block(4, 2, torch.float64, torch.device("cpu"), 0), 1, 0, record=Record(2))
    other = Benettin(start_block(4, 2, torch.float64, torch.device("cpu"), 0), 1, 0, record=Record(2))
    for i in range(30):
        J = _random(4, 4, seed=i)
        if i == 20:
            other.record.put(other.recorded, 99, torch.zeros(4, 2).double(), torch.ones(2, 2).double())
        for r in (run, other):
            r.advance(lambda Y, J=J: (J @ Y, None))
    a, b = covariant_of(run), covariant_of(other)
    assert torch.equal(a.coefficients.nan_to_num(), b.coefficients.nan_to_num())
    assert torch.equal(a.block_steps, b.block_steps)
    assert all(map(torch.equal, a.frames, b.frames))


def test_what_is_handed_out_cannot_corrupt_the_run():
    run = Benettin(start_block(4, 2, torch.float64, torch.device("cpu"), 0), 1, 0, record=Record(2))
    for i in range(30):
        J = _random(4, 4, seed=i)
        run.advance(lambda Y, J=J: (J @ Y, None))
    found = covariant_of(run)
    first = found.stacked()
    for t in (*found.frames, found.coefficients, found.growth, found.angles):
        t.zero_()
    state = run.state_dict()["record"]
    state["factors"].zero_()
    state["frames"][0].zero_()
    assert torch.equal(covariant_of(run).stacked().nan_to_num(), first.nan_to_num())
