"""Saved states and CSV files of a LyapunovAnalyzer: what is damaged is refused by name and changes nothing."""

import copy

import pytest
import torch
from damage import flips_and_cuts
from torch.optim import SGD, Adam
from training import analyse, setting

import chaos_ext as ce


def analyzer(steps=9, opt_class=SGD, **kwargs):
    model, batches = setting()
    opt = opt_class(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, **{"k": 3, "transient": 2, "qr_every": 2, "gali": True, **kwargs})
    analyse(model, opt, batches, steps, an)
    return an


def numbers(an):
    return torch.cat([an.exponents(), an.log_gali(), an.history.exponents.flatten(), an.directions().flatten()])


RUN = {
    "steps": ["abc", -1, 2.0, True, None, 4],
    "pending": [-1, 99, "x"],
    "stopped": ["never", -1],
    "Y": [None, "x", torch.full((3, 3), float("nan"))],
    "growth": [torch.full((3,), float("nan"), dtype=torch.float64), torch.zeros(3), torch.zeros(3).double(), [0, 0, 0]],
    "blocks": [torch.zeros(3, 2, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64), None, []],
    "ends": [[4, 4, 8], [8, 6, 4], [1, 6, 8], ["a", "b", "c"], [4, 6], None, [4, 6, 10]],
    "last": [None, [torch.zeros(3, dtype=torch.float64), 0], [torch.zeros(2, dtype=torch.float64), 2], "x"],
    "gali": [None, [torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)], "x"],
    "_merged": [0, "1"],
    "_open": [1, -1],
    "_allowed": [0, None],
    "_rate": [float("nan"), -1.0, "x"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in RUN.items() for v in values], ids=str)
def test_a_state_with_one_bad_part_is_refused_and_changes_nothing(name, value):
    an = analyzer()
    state, before = an.state_dict(), numbers(an)
    if name == "Y" and isinstance(value, torch.Tensor):
        value = torch.full_like(state["run"]["Y"], float("nan"))
    damaged = copy.deepcopy(state)
    damaged["run"][name] = value
    with pytest.raises(ce.CheckpointError, match=f"state.*{name.strip('_')}|state.*(last|ends|growth)"):
        an.load_state_dict(damaged)
    assert an.steps == 9
    assert torch.equal(numbers(an), before)
    an.load_state_dict(state)


@pytest.mark.parametrize(
    "units", ["x", [], [[0.1]], [["a", "b"]] * 4, [[float("nan")] * 2] * 4, [[-1.0, 1.0]] * 4, [1.0] * 4]
)
def test_bad_units_and_thetas_are_refused(units):
    an = analyzer(opt_class=Adam)
    state = an.state_dict()
    assert len(state["units"]) == 4
    with pytest.raises(ce.CheckpointError, match="units"):
        an.load_state_dict({**state, "units": units})
    with pytest.raises(ce.CheckpointError, match="theta"):
        an.load_state_dict({**state, "theta": None})


def test_states_of_every_moment_are_taken():
    """In the transient, inside a block, at its end, without any block, with a direction that is lost."""
    for steps in (0, 1, 2, 3, 4, 9):
        state = analyzer(steps).state_dict()
        again = analyzer(0)
        again.load_state_dict(state)
        assert again.steps == steps
    state = analyzer(9).state_dict()
    state["run"]["growth"][2] = state["run"]["blocks"][1, 2] = -float("inf")
    analyzer(0).load_state_dict(state)


def test_no_flipped_bit_and_no_cut_of_a_saved_state_gives_other_numbers(tmp_path):
    an, path = analyzer(), tmp_path / "an.pt"
    an.save(path)
    again = analyzer(0)
    for damaged in flips_and_cuts(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(ce.CheckpointError, match=str(path)):
            again.load(path)
        assert again.steps == 0


def rows(path):
    return path.read_text().splitlines()


def resumed(path, state, **kwargs):
    again = analyzer(0, csv=path, **kwargs)
    again.load_state_dict(state)
    return again


def test_damaged_rows_are_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "run.csv"
    an = analyzer(csv=path)
    whole = rows(path)
    for bad in ("x,1,2,3", "4,1,2", "4,nan,1,2", ""):
        path.write_text("\n".join([*whole[:2], bad, *whole[3:]]) + "\n")
        resumed(path, an.state_dict())
        assert rows(path) == [*whole[:2], *whole[3:]]
    assert "damaged rows" in caplog.text


@pytest.mark.parametrize("content", [b"my own notes\n", b"step,loss\n1,2\n", b"\xff\xfe\x00", b"step,exponent_1"])
def test_somebody_elses_file_is_not_replaced_on_resume(tmp_path, content):
    path = tmp_path / "run.csv"
    state = analyzer().state_dict()
    path.write_bytes(content)
    with pytest.raises(ce.CheckpointError, match=r"csv.*run\.csv"):
        resumed(path, state)
    assert path.read_bytes() == content


def test_rows_of_another_number_of_exponents_are_not_mixed_in(tmp_path):
    stream = ce.dynamics.csv_stream.ExponentStream(tmp_path / "run.csv")
    stream.append(1, [0.0, 0.0])
    other = ce.dynamics.csv_stream.ExponentStream(tmp_path / "run.csv")
    other.resume(1)
    with pytest.raises(ce.CheckpointError, match="3 exponents"):
        other.append(2, [0.0, 0.0, 0.0])
    assert rows(tmp_path / "run.csv") == ["step,exponent_1,exponent_2", "1,0.0,0.0"]


def test_a_stream_whose_file_is_gone_begins_a_new_one_with_its_header(tmp_path):
    path = tmp_path / "run.csv"
    stream = ce.dynamics.csv_stream.ExponentStream(path)
    stream.append(1, [0.5])
    path.unlink()
    stream.resume(1)
    stream.append(2, [0.25])
    assert rows(path) == ["step,exponent_1", "2,0.25"]


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    path = tmp_path / "run.csv"
    stream = ce.dynamics.csv_stream.ExponentStream(path)
    stream.append(1, [0.0, 0.0])
    before = rows(path)
    usual = type(path).open

    class Full:
        def __init__(self, f):
            self.f = f

        def write(self, row):
            return self.f.write(row[:3])

        def __getattr__(self, name):
            return getattr(self.f, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.f.close()

    monkeypatch.setattr(type(path), "open", lambda self, *a, **k: Full(usual(self, *a, **k)))
    with pytest.raises(OSError, match="No space left"):
        stream.append(2, [0.0, 0.0])
    monkeypatch.undo()
    assert rows(path) == before
    stream.append(3, [0.0, 0.0])
    assert rows(path) == [*before, "3,0.0,0.0"]
