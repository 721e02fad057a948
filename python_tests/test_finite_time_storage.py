"""Saving, resuming and interrupting a finite-time run: the same bits, or a named refusal."""

import copy
import io
import logging
import signal
import sys

import pytest
import torch
from damage import flips_and_cuts
from training import CE, RUNS, analyse, setting

import chaos_ext as ce
from chaos_ext.dynamics.finite_time.product import ProductSVD
from chaos_ext.experiments import finite_time_run


def start(name="sgd", csv=None, **options):
    cls, own = RUNS[name]
    model, batches = setting()
    opt = cls(model.parameters(), **own)
    return model, opt, batches, ce.LyapunovAnalyzer(model, opt, method="svd", csv=csv, **{"every": 3, **options})


def same(a, b):
    x, y = a.finite_time(), b.finite_time()
    assert torch.equal(x.exponents, y.exponents)
    assert torch.equal(x.tolerance, y.tolerance)
    assert all(map(torch.equal, x.extremes, y.extremes))
    for side in ("left", "right"):
        assert torch.equal(a.singular_vectors(side), b.singular_vectors(side))


@pytest.mark.parametrize("by_file", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [("sgd", {}), ("heavy_ball", {"state": "theta"}), ("adam", {"k": 7, "transient": 4}), ("cgd", {"every": 1})],
)
def test_resume_is_bit_identical(name, options, by_file, tmp_path):
    path = tmp_path / "run.csv"
    model, opt, batches, an = start(name, path, **options)
    analyse(model, opt, batches, 14, an)
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    state = an.state_dict()
    an.save(tmp_path / "an.ckpt")
    analyse(model, opt, batches, 20, an, first=14)
    rows = path.read_text()
    path.write_text(rows + "99,0.1,")  # killed in the middle of a row

    twin, other, _, again = start(name, path, **options)
    twin.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    again.load(tmp_path / "an.ckpt") if by_file else again.load_state_dict(state)
    assert again.steps == 14
    analyse(twin, other, batches, 20, again, first=14)
    same(an, again)
    assert path.read_text() == rows


def test_a_state_is_a_copy():
    model, opt, batches, an = start()
    analyse(model, opt, batches, 8, an)
    state = an.state_dict()
    kept = copy.deepcopy(state)
    theta = copy.deepcopy((model.state_dict(), opt.state_dict()))
    analyse(model, opt, batches, 8, an, first=8)
    for name in ("Y", "U", "l", "leaks"):
        assert torch.equal(state["run"]["product"][name], kept["run"]["product"][name])
    twin, other, _, again = start()
    twin.load_state_dict(theta[0])
    other.load_state_dict(theta[1])
    again.load_state_dict(state)
    state["run"]["product"]["Y"].zero_()
    analyse(twin, other, batches, 8, again, first=8)
    same(an, again)


def test_the_csv_has_the_extremes(tmp_path):
    model, opt, batches, an = start(csv=tmp_path / "run.csv")
    analyse(model, opt, batches, 10, an)
    header, *rows = (tmp_path / "run.csv").read_text().splitlines()
    assert header == "step,largest,smallest,largest_tolerance,smallest_tolerance"
    read = torch.tensor([[float(v) for v in row.split(",")] for row in rows], dtype=torch.float64)
    assert torch.equal(read, torch.stack([c.double() for c in an.extremes], 1))
    assert read[:, 0].tolist() == [3, 6, 9]


def test_states_of_other_runs_are_refused_and_change_nothing():
    model, opt, batches, an = start()
    analyse(model, opt, batches, 6, an)
    state, before = an.state_dict(), an.exponents()
    qr = ce.LyapunovAnalyzer(model, opt)
    analyse(model, opt, batches, 2, qr)
    for name, other in {
        "every": start(every=4)[3],
        "k": start(k=3)[3],
        "transient": start(transient=1)[3],
        "method": qr,
    }.items():
        with pytest.raises(ce.CheckpointError, match=f"{name} ="):
            other.load_state_dict(state)
    with pytest.raises(ce.CheckpointError, match="method ="):
        an.load_state_dict(qr.state_dict())
    assert torch.equal(an.exponents(), before)


def _spoiled(state):
    """States with one part that cannot be."""
    product = state["run"]["product"]
    nan = product["Y"].clone()
    nan[0, 0] = float("nan")
    parts = [
        ("product", "Y", nan),
        ("product", "Y", product["Y"][:-1]),
        ("product", "U", product["U"].float()),
        ("product", "l", product["l"] + float("nan")),
        ("product", "leaks", product["leaks"][:, :-1]),
        ("product", "blocks", -product["blocks"]),
        ("product", "pending", -1),
        ("product", "pending", 1000),
        ("product", "rate", float("nan")),
        ("product", "allowed", 0),
    ]
    for _, name, value in parts:
        yield {**state, "run": {**state["run"], "product": {**product, name: value}}}
    own = {"steps": -1, "closed": 99, "product": None, "extremes": state["run"]["extremes"][1:], "bases": [1, 2]}
    for name, value in own.items():
        yield {**state, "run": {**state["run"], name: value}}
    for name in state["run"]:
        yield {**state, "run": {k: v for k, v in state["run"].items() if k != name}}


def test_states_that_cannot_be_are_refused():
    model, opt, batches, an = start()
    analyse(model, opt, batches, 7, an)
    before = an.exponents()
    for spoiled in _spoiled(an.state_dict()):
        with pytest.raises(ce.CheckpointError, match="state"):
            an.load_state_dict(spoiled)
        assert torch.equal(an.exponents(), before)


def test_damaged_files_are_noticed_and_the_previous_one_is_used(tmp_path):
    path = tmp_path / "an.ckpt"
    model, opt, batches, an = start()
    analyse(model, opt, batches, 4, an)
    an.save(path)
    theta = copy.deepcopy((model.state_dict(), opt.state_dict()))
    analyse(model, opt, batches, 3, an, first=4)
    an.save(path)
    whole = path.read_bytes()
    for damaged in flips_and_cuts(whole, 20):
        path.write_bytes(damaged)
        model.load_state_dict(theta[0])
        an.load(path)
        assert an.steps == 4


@pytest.mark.parametrize("where", ["factor_", "factors", "is_due"])
def test_an_update_broken_off_in_the_middle_is_known_as_torn(where, monkeypatch):
    """As by an exception that another thread raises: what was half written is never read."""
    model, opt, batches, an = start(every=1)
    analyse(model, opt, batches, 4, an)
    state = an.state_dict()

    def broken(*_):
        raise SystemExit

    with monkeypatch.context() as m:
        m.setattr(ProductSVD, where, broken)
        m.setattr(ProductSVD, "is_due", broken if where == "is_due" else lambda *_: True)
        with pytest.raises(SystemExit):
            analyse(model, opt, batches, 1, an, first=4)
    with pytest.raises(ce.TornStateError):
        an.exponents()
    an.load_state_dict(state)
    assert torch.isfinite(an.exponents()).all()


class _AtLine:
    """Sends SIGINT before the nth line that is run of the files that write to an analyzer's state."""

    def __init__(self, n):
        self.left = n

    def __call__(self, frame, event, arg):
        if "dynamics" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self


def _bits(an):
    """Its state as bytes, but for the clock."""
    state, buffer = an.state_dict(), io.BytesIO()
    state["run"].pop("seconds")
    torch.save(state, buffer)
    return state, buffer.getvalue()


@pytest.mark.parametrize("name", ["update", "load"])
@pytest.mark.parametrize("done", [0, 5])
def test_ctrl_c_comes_before_or_after_never_between(name, done, tmp_path):
    """At every seventh line; step 6 ends a block and reads the extremes."""
    handler, n, seen, lines = signal.signal(signal.SIGINT, signal.default_int_handler), 1, set(), _AtLine(0)
    try:
        while lines.left <= 0:
            model, opt, batches, an = start()
            analyse(model, opt, batches, done, an)
            an.save(tmp_path / "an.ckpt")
            op = ce.HessianOperator(model, CE, *batches[done % 4])
            if name == "load":
                an.update(op)
            call = (lambda: an.update(op)) if name == "update" else (lambda: an.load(tmp_path / "an.ckpt"))  # noqa: B023
            _, before = _bits(an)
            lines = _AtLine(n)
            try:
                sys.settrace(lines)
                call()
            except KeyboardInterrupt:
                sys.settrace(None)
                unchanged = _bits(an)[1] == before
                seen.add(unchanged)
                if unchanged:
                    call()
            finally:
                sys.settrace(None)
            assert an.steps == done + (name == "update")
            last = _bits(an)[1]
            first = last if n == 1 else first  # noqa: F821
            assert last == first, n
            n += 7
    finally:
        signal.signal(signal.SIGINT, handler)
    assert True in seen


class _Killed(BaseException):
    pass


def _study(tmp_path, folder):
    data = ce.data.load("digits")
    settings = finite_time_run.FiniteTimeSettings(
        data="digits", data_fingerprint=data.fingerprint(), model="mlp", activation="relu", epochs=1, max_steps=60,
        lr=1e-2, batch_size=8, momentum=0.0, seeds=(1,), runs=("sgd",), k=5, device="cpu", state="auto",
        dtype="float64", threads=1, chaos_ext="", torch="", every=7,
    )  # fmt: skip
    (tmp_path / folder).mkdir(exist_ok=True)
    return finite_time_run.Training(settings, data, tmp_path / folder, tmp_path / f"{folder}.csv")


@pytest.mark.parametrize("at", [3, 20, 41])
@pytest.mark.parametrize("between", [False, True])
def test_a_study_killed_anywhere_goes_on_to_the_same_bits(at, between, tmp_path, monkeypatch):
    """Also between the two files of a checkpoint."""
    whole = _study(tmp_path, "whole")
    finite_time_run.train(whole, 1e9, lambda *_: None)

    killed = _study(tmp_path, "killed")
    count = {"saves": 0}

    def save(path):
        count["saves"] += 1
        if between and count["saves"] > at:
            raise _Killed
        type(killed.analyzer).save(killed.analyzer, path)

    def report(steps, restored):
        if not between and killed.step == at:
            raise _Killed

    monkeypatch.setattr(killed.analyzer, "save", save)
    with pytest.raises(_Killed):
        finite_time_run.train(killed, 0.0, report)
    again = _study(tmp_path, "killed")
    seen = []
    finite_time_run.train(again, 1e9, lambda steps, restored: seen.append((steps, restored)))
    assert seen[0] == (at if between else at - 1, True)
    same(whole.analyzer, again.analyzer)
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "killed.csv").read_text()
    assert again.evaluate() == whole.evaluate()


def test_a_damaged_checkpoint_of_a_study_falls_back_or_says_so(tmp_path, caplog):
    first = _study(tmp_path, "run")
    first.advance(), first.save(), first.advance(), first.save()
    folder = tmp_path / "run"
    (folder / "analyzer.ckpt").write_bytes(b"chaos_ext sealed 1\nno")
    again = _study(tmp_path, "run")
    with caplog.at_level(logging.WARNING):
        again.restore()
    assert again.step == again.analyzer.steps == 1
    (folder / "training.ckpt").unlink()
    with pytest.raises(ce.CheckpointError, match=r"no whole training\.ckpt of step 1"):
        _study(tmp_path, "run").restore()
    (folder / "analyzer.ckpt.previous").write_bytes(b"chaos_ext sealed 1\nno")
    with caplog.at_level(logging.WARNING):
        fresh = _study(tmp_path, "run")
        fresh.restore()
    assert fresh.step == 0
    assert "starts anew" in caplog.text
