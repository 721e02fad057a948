"""Spectra in files, pickles and copies: the same numbers, or a refusal by name."""

import copy
import os
import pickle

import cases
import pytest
import torch
from damage import flips_and_cuts
from oracles import relative
from torch import nn

import chaos_ext as ce
from chaos_ext.base.files import read_sealed, write_sealed
from chaos_ext.spectra.decompose import directions

CE = nn.CrossEntropyLoss()


def _op(n=8, depth=3):
    model = cases.mlp(depth, "tanh", width=12)
    x, y = cases.batch(n, cases.LOSSES["ce"][1])
    return ce.HessianOperator(model.double(), CE, x.double(), y)


def same(a, b):
    """Every number of two spectra."""
    pairs = ((a.eigenvalues, b.eigenvalues), (a.Z, b.Z), (a.gradient, b.gradient), (a.loss, b.loss))
    scalars = ("size", "nullity", "zero_tol", "zero_threshold", "near_threshold")
    return all(torch.equal(s, t) for s, t in pairs) and all(getattr(a, n) == getattr(b, n) for n in scalars)


@pytest.mark.parametrize("name", ["compressed", "dense"])
def test_save_and_load(tmp_path, name):
    op = _op(n=8 if name == "compressed" else 64, depth=1 if name == "dense" else 3)
    spec = ce.spectrum(op)
    spec.save(tmp_path / "s.pt")
    back = ce.Spectrum.load(tmp_path / "s.pt")
    assert torch.equal(back.eigenvalues, spec.eigenvalues)
    assert torch.equal(back.eigenvectors(), spec.eigenvectors())
    assert torch.equal(back.gradient, spec.gradient)
    assert (back.nullity, back.zero_tol, back.zero_threshold) == (spec.nullity, spec.zero_tol, spec.zero_threshold)
    assert ce.spectral_summary(back, 0.1) == ce.spectral_summary(spec, 0.1)
    data = (tmp_path / "s.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ce.CheckpointError, match=r"cut\.pt"):
        ce.Spectrum.load(tmp_path / "cut.pt")
    torch.save({"format": "other"}, tmp_path / "other.pt")
    with pytest.raises(ce.CheckpointError):
        ce.Spectrum.load(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError):
        ce.Spectrum.load(tmp_path / "none.pt")


def test_directions_can_be_saved(tmp_path):
    op = _op()
    lazy = directions(op)
    lazy.save(tmp_path / "s.pt")
    back = ce.Spectrum.load(tmp_path / "s.pt")
    assert relative(back.eigenvectors(), lazy.eigenvectors()) < 1e-14
    assert ce.spectral_summary(back, 0.1).n_chaotic == ce.spectral_summary(lazy, 0.1).n_chaotic


@pytest.fixture
def saved(tmp_path):
    spec = ce.spectrum(_op())
    spec.save(tmp_path / "s.pt")
    return spec, tmp_path / "s.pt"


def unsealed(path):
    """The same content as files had it before they were sealed."""
    old = path.with_name("old.pt")
    torch.save({**read_sealed(path), "format": "chaos_ext.Spectrum/1"}, old)
    return old


def outcomes(spec, path):
    """How often a damaged file was refused, after checking that it was never believed with other numbers."""
    refused = 0
    for damaged in flips_and_cuts(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            read = ce.Spectrum.load(path)
        except ce.CheckpointError:
            refused += 1
        else:
            assert same(read, spec)
    return refused


def test_no_flipped_bit_and_no_cut_gives_other_numbers(saved):
    assert outcomes(*saved) == 221


def test_nor_in_a_file_of_the_old_format(saved, caplog):
    spec, path = saved
    old = unsealed(path)
    assert same(ce.Spectrum.load(old), spec)
    assert "save it again" in caplog.text
    assert outcomes(spec, old) > 150  # flips in the names and dates of a zip change nothing


DAMAGE = {
    "eigenvalues": lambda s: s["eigenvalues"].flip(0),
    "zero_tol": lambda s: -1.0,
    "zero_threshold": lambda s: float("nan"),
    "complete": lambda s: 1,
    "size": lambda s: s["size"] - 1,
    "Z": lambda s: s["Z"][:-1],
    "near": lambda s: s["Z"].float(),
    "loss": lambda s: torch.tensor(float("inf")),
    "gradient": lambda s: s["gradient"][1:],
    "exact_gradient": lambda s: s["exact_gradient"].float(),
    "layers": lambda s: [*s["layers"], s["layers"][0]],
    "shapes": lambda s: [(3, 4)],
    "format": lambda s: "chaos_ext.Spectrum/99",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_whole_file_with_a_part_that_does_not_fit_is_refused(saved, name):
    _, path = saved
    state = read_sealed(path)
    write_sealed(path, {**state, name: DAMAGE[name](state)})
    with pytest.raises(ce.CheckpointError, match="not a spectrum"):
        ce.Spectrum.load(path)


def layer_damage(layer):
    yield {**layer, "weight": -2}
    yield {**layer, "units": layer["units"] + 1}
    yield {**layer, "start": 1}
    yield {**layer, "span": layer["span"][:-1]}
    yield {**layer, "span": layer["span"] * float("nan")}
    yield {**layer, "seen": layer["seen"].float()}
    yield {k: v for k, v in layer.items() if k != "bias"}
    yield "layer"


def test_a_basis_that_does_not_fit_is_refused(saved):
    _, path = saved
    state = read_sealed(path)
    first, *rest = state["layers"]
    for damaged in layer_damage(first):
        write_sealed(path, {**state, "layers": [damaged, *rest]})
        with pytest.raises(ce.CheckpointError, match="layers"):
            ce.Spectrum.load(path)


def test_overlapping_layers_are_refused(saved):
    _, path = saved
    state = read_sealed(path)
    first, second, *rest = state["layers"]
    write_sealed(path, {**state, "layers": [first, {**second, "weight": first["weight"]}, *rest]})
    with pytest.raises(ce.CheckpointError, match="disjoint"):
        ce.Spectrum.load(path)


def test_every_kind_of_spectrum_can_be_loaded(tmp_path):
    op = _op()
    kinds = [ce.spectrum(op, k=4), ce.spectrum(op, spectrum_dtype=torch.float32), directions(op)]
    kinds += [ce.spectrum(_op(64, 1)), ce.spectrum(op, zero_tol=0.0)]
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3)).double()
    model[2].weight.requires_grad_(False)
    x, y = torch.randn(4, 1, 3, 3, dtype=torch.float64), torch.arange(4) % 3
    kinds.append(ce.spectrum(ce.HessianOperator(model, CE, x, y)))
    for i, spec in enumerate(kinds):
        spec.save(tmp_path / f"{i}.pt")
        back = ce.Spectrum.load(tmp_path / f"{i}.pt")
        assert torch.equal(back.eigenvalues, spec.eigenvalues)
        assert relative(back.eigenvectors(), spec.eigenvectors()) < 1e-6


def test_a_failed_save_leaves_the_old_file_and_no_other(saved, monkeypatch):
    spec, path = saved

    def full(handle):
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        spec.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_pickle_is_what_a_file_is(saved):
    spec, path = saved
    back = pickle.loads(pickle.dumps(spec))
    loaded = ce.Spectrum.load(path)
    assert same(back, spec)
    assert back.origin is None
    assert back.shapes == loaded.shapes
    assert spec.origin is not None


def test_a_deep_copy_has_numbers_of_its_own_and_the_same_origin(saved):
    spec, _ = saved
    twin = copy.deepcopy({"a": spec, "b": [spec]})["a"]
    assert same(twin, spec)
    assert twin.origin is spec.origin
    twin.eigenvalues.zero_()
    assert bool(spec.eigenvalues.abs().min() > 0)


def test_directions_can_be_copied_and_pickled():
    lazy = directions(_op())
    v = torch.randn(lazy.size, dtype=torch.float64)
    for twin in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
        assert torch.equal(twin.coefficients(v), lazy.coefficients(v))


def test_an_operator_is_not_copied_or_pickled():
    op = _op()
    for attempt in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match=r"HessianOperator.*ce\.spectrum"):
            attempt(op)
