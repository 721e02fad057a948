"""The saved state of a finite-time run: what it holds, and whether it can be one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...base.contents import array, count, number, parts, require
from .conditioning import WORST
from .extremes import Basis
from .product import ProductSVD
from .run import FiniteTime

_LEANING = ("leaning", "leaning_at", "leaning_block")
_PRODUCT = ("Y", "l", "U", "leaks", "blocks", "pending", "rate", "allowed", *_LEANING)
_LARGE = ("Y", "l", "U", "leaning")


def packed(run: FiniteTime, copy: bool = True) -> dict[str, Any]:
    """All that a bit-identical continuation needs; ``copy=False``: the run's own tensors, to be written at once."""
    product = None if run.product is None or run.steps <= run.transient else run.product.state_dict()
    if product is not None and copy:
        product = {n: v.clone() if isinstance(v, Tensor) else v for n, v in product.items()}
    return {
        "steps": run.steps,
        "closed": run.closed,
        "stopped": run.stopped,
        "product": product,
        "extremes": torch.tensor(run.rows, dtype=torch.float64, device="cpu").view(-1, 5),
        "bases": [None if b is None else [b.W.clone(), b.image.clone(), b.Z.clone(), b.serial] for b in run.bases],
        "seconds": dict(run.seconds),
    }


def restore(run: FiniteTime, state: dict[str, Any], copy: bool = True) -> None:
    """Puts a state, which has been found to fit, into a run; ``copy=False``: its tensors become the run's."""
    product, device = None, run.shape.device
    bases = [None if b is None else _basis(b, device) for b in state["bases"]]
    seconds = dict(state["seconds"])
    if state["product"] is not None:
        saved = state["product"]
        content = saved | {n: saved[n].to(device, copy=copy) for n in _LARGE if saved[n] is not None}
        product = ProductSVD.restored(content, seconds)
    vars(run).update(
        steps=state["steps"],
        closed=state["closed"],
        stopped=state["stopped"],
        product=product,
        rows=[tuple(row) for row in state["extremes"].tolist()],
        bases=tuple(bases),
        seconds=seconds,
        torn=False,
        _read=None,
    )


def _basis(saved: list[Any], device: torch.device) -> Basis:
    W, image, Z = (t.to(device, copy=True) for t in saved[:3])
    return Basis(W, image, Z, saved[3])


def check(run: FiniteTime, state: Any) -> None:
    """Raises UnfitError unless this is the state of a run with the same options."""
    parts(state, packed(FiniteTime(run.shape, run.start, run.every, run.transient)))
    count("steps", state["steps"])
    count("closed", state["closed"], 0, state["steps"])
    if state["stopped"] is not None:
        count("stopped", state["stopped"])
    for name, value in parts(state["seconds"], run.seconds, "seconds").items():
        number(f"seconds of {name}", value)
    measured = state["steps"] > run.transient
    require((state["product"] is not None) >= measured, "product", "a product after the transient", state["product"])
    if state["product"] is not None:
        _check_product(run, state["product"], state["stopped"] is None)
        done = state["steps"] - state["product"]["pending"]
        require(done >= 0, "pending", f"at most {state['steps']}", state["product"]["pending"])
    _check_extremes(run, state)


def _check_product(run: FiniteTime, state: Any, finite: bool) -> None:
    s = run.shape
    parts(state, _PRODUCT, "product")
    if finite:
        array("Y", state["Y"], (s.size, s.k), (s.dtype,))
    array("U", state["U"], (s.k, s.k), (torch.float64,))
    array("blocks", torch.nan_to_num(state["blocks"], nan=-1.0), (None, 1 + WORST), (torch.float64,))
    require(bool((state["blocks"] >= 0).all()), "blocks", "numbers of at least 0", state["blocks"])
    for name, shape in (("l", (s.k,)), ("leaks", (None, s.k))):
        t = _but_infinite(name, state[name], shape)
        require(not bool(torch.isnan(t).any()), name, "numbers or -inf", "NaN")
    count("pending", state["pending"])
    if state["leaning"] is not None:
        array("leaning", state["leaning"], (s.k, s.k), (torch.float64,))
    for name in _LEANING[1:]:
        count(name, state[name])
    count("allowed", state["allowed"], 1)
    number("rate", state["rate"])


def _check_extremes(run: FiniteTime, state: dict[str, Any]) -> None:
    rows, bases = state["extremes"], state["bases"]
    require(isinstance(rows, Tensor), "extremes", "a tensor", rows)
    t = _but_infinite("extremes", rows, (None, 5))[:, 0]
    expected = 0 if run.every is None else max(state["steps"] - run.transient, 0) // run.every
    fits = len(rows) == expected and bool((t.diff() > 0).all()) and (not len(rows) or float(t[-1]) <= state["steps"])
    require(fits, "extremes", f"{expected} readings up to step {state['steps']}", rows)
    require(isinstance(bases, (list, tuple)) and len(bases) == 2, "bases", "two subspaces", bases)
    for basis in bases:
        if basis is not None:
            require(isinstance(basis, (list, tuple)) and len(basis) == 4, "bases", "three tensors and an int", basis)
            for t, height in zip(basis[:3], (run.shape.k, run.shape.k, run.shape.rows), strict=True):
                array("bases", t, (height, None), (torch.float64,))
            count("bases", basis[3])


def _but_infinite(name: str, t: Any, shape: tuple[int | None, ...]) -> Tensor:
    """Logarithms and readings, which may be infinite, and in a reading NaN."""
    require(isinstance(t, Tensor), name, "a tensor", t)
    array(name, torch.nan_to_num(t, posinf=0.0, neginf=0.0), shape, (torch.float64,))
    own: Tensor = t
    return own
