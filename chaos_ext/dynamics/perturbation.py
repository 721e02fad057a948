"""The paper's five ways to displace a model before training: along what its training will stretch, or shrink."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..errors import UnsupportedError

STRATEGIES = ("max_chaotic", "max_nonchaotic", "chaotic", "nonchaotic", "random")


class FiniteTime(Protocol):
    """What is asked of an analyzer: finite-time exponents, and the initial directions that they belong to."""

    def exponents(self) -> Tensor:
        """float64 [k], descending."""

    def singular_vectors(self, side: str = "right") -> Tensor:
        """[S, k], orthonormal columns by exponent; "right": initial directions."""

    @property
    def neutral(self) -> Tensor:
        """bool [k]: the exponents that are zero within their tolerance."""


def perturbation(an: FiniteTime, strategy: str, generator: torch.Generator | None = None) -> Tensor:
    """A direction of length one in which to displace the model at the beginning of an analysed run.

    Exponents within their tolerance of zero are neutral, neither chaotic nor non-chaotic: no strategy but "random"
    takes anything of their directions.

    Example:
        >>> an = ce.LyapunovAnalyzer(model, opt, method="svd")  # doctest: +SKIP
        >>> ce.perturb(model, ce.perturbation(an, "max_chaotic"), eps=1e-6)  # doctest: +SKIP

    Args:
        an: an analyzer of finite-time exponents of theta, ``LyapunovAnalyzer(..., method="svd")``, after its run.
        strategy: "max_chaotic": the direction of the largest exponent, which must be above zero; "max_nonchaotic": of
            the smallest, which must be below; "chaotic", "nonchaotic": uniformly drawn among the directions of all
            exponents above, or below zero; "random": among all.
        generator: of the draws; default: torch's global one.

    Returns:
        [P], of length one; the sign of a singular vector means nothing.

    Raises:
        ValueError: no such strategy; no exponents of that kind. TypeError: an analyzer without singular vectors.
        UnsupportedError: one of the full state (theta, buffers), whose directions displace the buffers, too.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if not all(hasattr(an, name) for name in ("exponents", "singular_vectors", "neutral")):
        raise TypeError(f"an: expected an analyzer with method='svd', got {type(an).__name__}")
    exponents, neutral = an.exponents(), an.neutral
    V = an.singular_vectors(side="right")
    _check(an, exponents, neutral, V)
    if strategy == "random":
        return _drawn(None, len(V), V, generator)
    growing = not strategy.endswith("nonchaotic")
    kind = exponents > 0 if growing else exponents < 0
    chosen = (kind & ~neutral.to(kind.device)).nonzero().squeeze(1)
    if not len(chosen):
        sign = "above" if growing else "below"
        raise ValueError(f"strategy: {strategy!r} needs an exponent {sign} zero by more than its tolerance, got none")
    if strategy.startswith("max_"):
        return _unit(V[:, int(chosen[exponents[chosen].abs().argmax()])].clone())
    return _drawn(V[:, chosen.to(V.device)], len(chosen), V, generator)


def _check(an: FiniteTime, exponents: Tensor, neutral: Tensor, V: Tensor) -> None:
    if not V.shape[1] == len(exponents) == len(neutral):
        raise ValueError(
            f"an: expected as many singular vectors and signs as exponents, got {V.shape[1]} and {len(neutral)} for "
            f"{len(exponents)}"
        )
    model = getattr(an, "model", None)
    size = None if model is None else sum(p.numel() for p in model.parameters() if p.requires_grad)
    if size is not None and len(V) != size:
        raise UnsupportedError(
            f"an: its directions [{len(V)}] are those of theta and buffers together, theta has {size}; use "
            "state='theta' for perturbations of theta alone"
        )


def _drawn(basis: Tensor | None, count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform on the unit sphere of the span of basis [P, count]; without a basis, of everything."""
    device = "cpu" if generator is None else generator.device
    xi = torch.randn(count, dtype=torch.float64, device=device, generator=generator).to(like.device, like.dtype)
    return _unit(xi if basis is None else basis @ xi)


def _unit(v: Tensor) -> Tensor:
    return v / v.norm()
