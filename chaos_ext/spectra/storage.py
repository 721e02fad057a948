"""Spectra in files: what is in one, and whether it can be one of ours.

A file is sealed (``base.files``), so what is read is what was written. It is looked at all the same before anything is
made of it: another version, or another program, may have sealed something else.
"""

from __future__ import annotations

import itertools
import logging
import math
from pathlib import Path
from typing import Any

import torch

from ..base import memory
from ..base.contents import array, count, is_int, number, parts, refusing, require
from ..base.files import is_sealed, read_sealed, read_unsealed, write_sealed
from ..curvature.basis import Basis, Columns, Coordinates, LayerBasis

log = logging.getLogger("chaos_ext")

FORMAT = "chaos_ext.Spectrum/2"
_UNSEALED = "chaos_ext.Spectrum/1"
_NAMES = (
    *("format", "eigenvalues", "Z", "near", "size", "complete", "zero_tol", "zero_threshold", "loss", "gradient"),
    *("exact_gradient", "layers", "shapes"),
)


def is_plain(basis: Columns) -> bool:
    """Whether a basis consists of numbers that a file can hold."""
    return isinstance(basis, (Basis, Coordinates))


def plain(Z: Any, basis: Columns, near: Any) -> tuple[Any, Columns, Any]:
    """Z and near as tensors with a basis of numbers: where that is made of products with a model, V = Q Z [P, r].

    Raises:
        MemoryBudgetError: P * r numbers do not fit.
    """
    if is_plain(basis):
        return Z[:, :], basis, None if near is None else near[:, :]
    size = basis.lift(Z[:, :0]).shape[0]
    memory.require(size * Z.shape[1] * Z.dtype.itemsize, Z.device, "eigenvectors", "keep spec.eigenvalues alone")
    return basis.lift(Z), Coordinates(size), None if near is None else basis.lift(near)


def write(path: Path, state: dict[str, Any]) -> None:
    """Writes the parts of a spectrum to a sealed file."""
    write_sealed(path, {"format": FORMAT, **state})


def read(path: Path, map_location: Any) -> dict[str, Any]:
    """The parts of a spectrum, each of the type, shape and size that fits the others, and its ``basis``.

    A file of version 1, which has no seal, is read with a warning after its zip checksums were verified.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a spectrum, or damaged.
    """
    sealed = is_sealed(path)
    state = read_sealed(path, map_location) if sealed else read_unsealed(path, map_location)
    with refusing(f"{path}: not a spectrum written by Spectrum.save"):
        known = FORMAT if sealed else _UNSEALED
        parts(state, _NAMES)
        require(state["format"] == known, "format", known, state["format"])
        basis = _check(state)
        ends = _ends(state)
    if not sealed:
        log.warning("%s: written by an older version, without a checksum of the whole; save it again", path)
    return {**state, "basis": basis, "ends": ends}


def _check(state: dict[str, Any]) -> Columns:
    """Every part against the others; returns the basis."""
    size = state["size"]
    count("size", size, 1)
    _check_eigenvalues(state)
    r, dtype = len(state["eigenvalues"]), state["eigenvalues"].dtype
    basis = _basis(state["layers"], size, dtype)
    array("Z", state["Z"], (basis.columns, r), (dtype,))
    if state["near"] is not None:
        array("near", state["near"], (basis.columns, None), (dtype,))
    for name, shape in (("loss", ()), ("gradient", (size,))):
        if state[name] is not None:
            array(name, state[name], shape)
    if state["exact_gradient"] is not None:
        array("exact_gradient", state["exact_gradient"], (size,), (dtype,))
    _check_shapes(state["shapes"], size)
    _check_unseen(state.get("unseen"))
    return basis


def _check_eigenvalues(state: dict[str, Any]) -> None:
    values, threshold = state["eigenvalues"], state["zero_threshold"]
    array("eigenvalues", values, (None,))
    require(len(values) <= state["size"], "eigenvalues", f"at most {state['size']}", values)
    require(bool((values[1:] >= values[:-1]).all()), "eigenvalues", "ascending numbers", values)
    require(isinstance(state["complete"], bool), "complete", "a bool", state["complete"])
    number("zero_tol", state["zero_tol"])
    require(state["zero_tol"] < 1, "zero_tol", "a number below 1", state["zero_tol"])
    number("zero_threshold", threshold)
    above = not state["complete"] or bool((values.abs() > threshold).all())
    require(above, "eigenvalues", f"a complete spectrum beyond its zero threshold {threshold}", values)


def _check_unseen(unseen: Any) -> None:
    """Files of before this was kept have none."""
    pair = isinstance(unseen, tuple) and len(unseen) == 2 and all(isinstance(u, float) for u in unseen)
    require(unseen is None or (pair and unseen[0] <= unseen[1]), "unseen", "two ascending numbers", unseen)


def _ends(state: dict[str, Any]) -> tuple[int, int] | None:
    """Of a partial spectrum; files from before it was known have none."""
    ends = state.get("ends")
    if ends is None:
        return None
    whole = isinstance(ends, list) and len(ends) == 2 and all(is_int(n) and n >= 0 for n in ends)
    require(whole and not state["complete"], "ends", "two counts of a partial spectrum", ends)
    require(sum(ends) == len(state["eigenvalues"]), "ends", f"{len(state['eigenvalues'])} in total", ends)
    return ends[0], ends[1]


def _check_shapes(shapes: Any, size: int) -> None:
    if shapes is None:
        return
    whole = isinstance(shapes, list) and all(isinstance(s, tuple) and all(map(is_int, s)) for s in shapes)
    require(whole, "shapes", "a list of tuples of ints", shapes)
    require(sum(map(math.prod, shapes)) == size, "shapes", f"{size} parameters", shapes)


def _basis(layers: Any, size: int, dtype: torch.dtype) -> Columns:
    if layers is None:
        return Coordinates(size)
    require(isinstance(layers, list) and layers, "layers", "a list", layers)
    made = tuple(_layer(fields, dtype) for fields in layers)
    starts = [0, *itertools.accumulate(b.size for b in made)]
    for layer, start in zip(made, starts, strict=False):
        require(layer.start == start, "layers", f"coordinates from {start}", layer.start)
    rows = sorted((r for layer in made for r in _rows(layer)), key=lambda r: r.start)
    disjoint = all(a.stop <= b.start for a, b in itertools.pairwise(rows))
    require(disjoint and rows[-1].stop <= size, "layers", f"disjoint parts of {size} parameters", rows)
    return Basis(made, size)


def _layer(fields: Any, dtype: torch.dtype) -> LayerBasis:
    names = set(LayerBasis.__dataclass_fields__)
    require(isinstance(fields, dict), "layers", "the fields of a layer", fields)
    fields = {"turn": None, "kept": None, **fields}  # which files of before did not have
    require(set(fields) == names, "layers", "the fields of a layer", fields)
    b = LayerBasis(**fields)
    for name in ("weight", "bias", "units", "inputs", "start"):
        count(f"layers.{name}", getattr(b, name), -1 if name in ("weight", "bias") else 0)
    require(max(b.weight, b.bias) >= 0, "layers", "a weight or a bias", (b.weight, b.bias))
    height = (b.inputs if b.weight >= 0 else 0) + (b.bias >= 0)
    for name, rows in (("span", height), ("perp", height), ("seen", b.units)):
        array(f"layers.{name}", getattr(b, name), (rows, None), (dtype,))
    require((b.turn is None) == (b.kept is None), "layers", "turn and kept, or neither", fields)
    if b.turn is not None and b.kept is not None:
        array("layers.turn", b.turn, (*b.x_shape, None), (dtype,))
        array("layers.kept", b.kept, (None,), (torch.int64,))
        inside = bool(((b.kept >= 0) & (b.kept < b.units * b.turn.shape[2])).all())
        require(inside and len(b.kept.unique()) == len(b.kept), "layers.kept", "coordinates of turn", b.kept)
    return b


def _rows(b: LayerBasis) -> list[range]:
    """The rows of theta that a layer speaks of."""
    weight = [range(b.weight, b.weight + b.units * b.inputs)] if b.weight >= 0 else []
    return weight + ([range(b.bias, b.bias + b.units)] if b.bias >= 0 else [])
