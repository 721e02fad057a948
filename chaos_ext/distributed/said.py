"""What several ranks have said, in a sentence."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

from .shapes import equal

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 160
_SHORT.maxlist = _SHORT.maxtuple = 12


def ranks_named(ranks: Sequence[int]) -> str:
    """ "rank 2", "ranks 0, 3"; of many the first few."""
    more = f", ... ({len(ranks)} of them)" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{more}"


def by_rank(values: Sequence[object]) -> str:
    """The different values, each with the ranks that hold it."""
    groups: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        text = value if isinstance(value, str) else _SHORT.repr(value)
        groups.setdefault(text, []).append(rank)
    return "; ".join(f"{text} on {ranks_named(ranks)}" for text, ranks in groups.items())


def differing(what: str, values: Sequence[object]) -> str:
    """What differs between the ranks, of dicts entry by entry."""
    found = by_rank(values)
    if all(isinstance(v, dict) and v.keys() == values[0].keys() for v in values):  # type: ignore[attr-defined]
        columns = {k: [v[k] for v in values] for k in values[0]}  # type: ignore[attr-defined, index]
        found = ". ".join(f"{k}: {by_rank(_first(c))}" for k, c in columns.items() if not _same(c))
    return f"{what}: expected the same on all ranks, got {found}"


def _same(values: Sequence[object]) -> bool:
    return all(equal(values[0], v) for v in values)


def _first(values: Sequence[Any]) -> Sequence[object]:
    """Of lists of one length the first items that differ."""
    if all(isinstance(v, list) and len(v) == len(values[0]) for v in values):
        return next((items for items in zip(*values, strict=True) if not _same(items)), values)
    return values


def failed(what: str, ranks: Sequence[int], texts: Sequence[str]) -> str:
    """Which ranks raised what."""
    raised = "; ".join(f"rank {r} raised {texts[r]}" for r in ranks[:8])
    return f"{what}: {raised}"


def misplaced(said: Sequence[str]) -> str:
    """Which ranks are at which call."""
    return (
        f"the ranks are at different calls, or give them different tensors: {by_rank(said)}; every process of the "
        "group has to make the same calls in the same order"
    )
