"""A claim of the paper, how it is decided, and what came out: written as code before anything is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

VERDICTS = ("reproduced", "partly", "not reproduced", "undecided")


@dataclass(frozen=True)
class Finding:
    """One claim and its verdict.

    Attributes:
        claim: what the paper says, in our words.
        where: in the paper.
        criterion: when it counts as reproduced.
        numbers: what was measured, with seeds.
        verdict: one of ``VERDICTS``; "undecided" where there were too few seeds or steps for the criterion.
    """

    claim: str
    where: str
    criterion: str
    numbers: str
    verdict: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict: expected one of {VERDICTS}, got {self.verdict!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def verdict(held: Iterable[bool], least: int) -> str:
    """Of a criterion that is asked of each seed.

    Args:
        held: whether it held, seed by seed.
        least: how many seeds have to hold for "reproduced"; half of these are "partly". With fewer seeds than this the
            verdict is "undecided", unless one of them already speaks against it.
    """
    answers = list(held)
    good, bad = sum(answers), len(answers) - sum(answers)
    if good >= least:
        return "reproduced"
    if len(answers) < least and not bad:
        return "undecided"
    return "partly" if 2 * good >= least else "not reproduced"
