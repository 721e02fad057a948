"""What a finite-time spectrum says of the paper's claims."""

from __future__ import annotations

import chaos_ext as ce

from .findings import Finding
from .series import rank_correlation

_FEW = 20  # readings: with fewer nothing is decided


def findings_of(spec: ce.FiniteTimeSpectrum) -> list[Finding]:
    """Of the extreme exponents on the way, and of the signs at the end."""
    return [_largest(spec.extremes), _smallest(spec.extremes), _signs(spec)]


def _largest(read: ce.Extremes) -> Finding:
    count = len(read.steps)
    positive, rho = int((read.largest > 0).sum()), rank_correlation(read.largest, read.steps.double())
    holds = positive == count and rho < -0.9
    return Finding(
        claim="The largest finite-time exponent is positive throughout training, and falls",
        where="section 4.2",
        criterion=f"above 0 at every reading; Spearman's rank correlation with t below -0.9 ({_FEW} readings at least)",
        numbers=f"above 0 at {positive} of {count} readings, rank correlation {rho:.3f}",
        verdict="undecided" if count < _FEW else "reproduced" if holds else "not reproduced",
    )


def _smallest(read: ce.Extremes) -> Finding:
    count, negative = len(read.steps), int((read.smallest < 0).sum())
    return Finding(
        claim="Some directions shrink throughout training: the smallest finite-time exponent is negative",
        where="section 4.2",
        criterion=f"below 0 at every reading ({_FEW} at least)",
        numbers=f"below 0 at {negative} of {count} readings",
        verdict="undecided" if count < _FEW else "reproduced" if negative == count else "not reproduced",
    )


def _signs(spec: ce.FiniteTimeSpectrum) -> Finding:
    chaotic = int((~spec.neutral & (spec.exponents > 0)).sum())
    stable = int((~spec.neutral & (spec.exponents < 0)).sum())
    return Finding(
        claim="Few of the directions are chaotic over a whole training, most are not",
        where="section 4.2",
        criterion="more exponents below 0 than above, beyond the neutral ones; not decided of a restricted map",
        numbers=f"{chaotic} above 0, {int(spec.neutral.sum())} neutral, {stable} below 0 of {len(spec.exponents)}",
        verdict="undecided" if spec.is_restricted else "reproduced" if chaotic < stable else "not reproduced",
    )
