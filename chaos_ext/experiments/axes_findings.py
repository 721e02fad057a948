"""What curvatures along fixed axes say of the paper's claim, and what chance and selection alone would make of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .findings import Finding, verdict
from .series import columns
from .significance import fisher_test, sign_test

FEW = 20  # readings: with fewer nothing is decided
LEVEL = 0.01
CLAIMS = {
    "top-end": "the directions of largest curvature at the end",
    "negative-start": "the directions of most negative curvature at the start",
}
_MIRRORS = {"top-end": "top-start", "negative-start": "negative-end"}


class Changes(NamedTuple):
    """Axes of a set and seed; how many go from negative to positive and back, and are negative at either end."""

    axes: int
    up: int
    down: int
    first: int
    last: int


def curvatures(metrics: Path) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """run -> seed -> steps [readings] and curvatures [readings, axes]."""
    found = columns(metrics, "step", "axis", "curvature")
    return {
        run: {seed: _table(rows, int(rows[:, 1].max()) + 1) for seed, rows in seeds.items()}
        for run, seeds in found.items()
    }


def _table(rows: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    return rows[::axes, 0], rows[:, 2].view(-1, axes)


def changes(table: Tensor) -> Changes:
    """Of curvatures [readings, axes]: signs of the medians of the first and of the last tenth."""
    tenth = max(1, len(table) // 10)
    before, after = table[:tenth].median(0).values, table[-tenth:].median(0).values
    return Changes(
        table.shape[1],
        int(((before < 0) & (after > 0)).sum()),
        int(((before > 0) & (after < 0)).sum()),
        int((table[0] < 0).sum()),
        int((table[-1] < 0).sum()),
    )


def findings_of(metrics: Path) -> list[Finding]:
    """Of each set the claim, and how it compares with random axes and with its mirror image."""
    tables = curvatures(metrics)
    few = min(len(table) for seeds in tables.values() for _, table in seeds.values()) < FEW
    found = {run: [changes(table) for _, table in seeds.values()] for run, seeds in tables.items()}
    makers = (_claim, _against_random, _against_mirror)
    return [make(found, name, few) for make in makers for name in CLAIMS]


def _claim(found: dict[str, list[Changes]], name: str, few: bool) -> Finding:
    held = [c.up > c.down and sign_test(c.up, c.down) < LEVEL for c in found[name]]
    return Finding(
        claim=f"Curvature along {CLAIMS[name]} is negative first and positive later",
        where="appendix B.3.1",
        criterion="medians of the first and last tenth of the readings: of the axes that change sign more go up than "
        f"down, two-sided sign test below {LEVEL}, in every seed ({FEW} readings at least)",
        numbers="; ".join(
            f"{c.up} up, {c.down} down of {c.axes} (p = {sign_test(c.up, c.down):.2g}), {c.first} negative at "
            f"the first reading, {c.last} at the last"
            for c in found[name]
        ),
        verdict="undecided" if few else verdict(held, len(held)),
    )


def _against_random(found: dict[str, list[Changes]], name: str, few: bool) -> Finding:
    rates = [_Rates(a.up, a.axes, b.up, b.axes) for a, b in zip(found[name], found["random"], strict=True)]
    return _compared(
        rates,
        few,
        claim=f"This is special to {CLAIMS[name]}: random axes go from negative to positive less often",
        criterion="a smaller share of random axes does",
    )


def _against_mirror(found: dict[str, list[Changes]], name: str, few: bool) -> Finding:
    pairs = zip(found[name], found[_MIRRORS[name]], strict=True)
    return _compared(
        [_Rates(a.up, a.axes, b.down, b.axes) for a, b in pairs],
        few,
        claim=f"Not by selection: axes like {CLAIMS[name]} from the other end of training do not fall as often",
        criterion="a smaller share of the mirror image goes down",
    )


class _Rates(NamedTuple):
    """Axes that went up among those of the set, and that changed among the control's."""

    up: int
    axes: int
    others: int
    of: int


def _compared(rates: list[_Rates], few: bool, claim: str, criterion: str) -> Finding:
    values = [fisher_test(*r) for r in rates]
    held = [r.up * r.of > r.others * r.axes and p < LEVEL for r, p in zip(rates, values, strict=True)]
    pairs = zip(rates, values, strict=True)
    return Finding(
        claim=claim,
        where="control, not in the paper",
        criterion=f"{criterion}, Fisher's exact test below {LEVEL}, in every seed",
        numbers="; ".join(f"{r.up} of {r.axes} against {r.others} of {r.of} (p = {p:.2g})" for r, p in pairs),
        verdict="undecided" if few else verdict(held, len(held)),
    )


def negative_share(table: Tensor) -> Tensor:
    """Share of the axes with negative curvature at each reading."""
    return (table < 0).to(torch.float64).mean(1)
