"""What several ranks have said, in a sentence."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

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
