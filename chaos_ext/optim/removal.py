"""What a step takes out of its gradient: V c', and how it is applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.parameters import ParameterSpace
from ..curvature.basis import Basis
from ..spectra.spectrum import Spectrum


class How(NamedTuple):
    """Options that say how much is taken out.

    Attributes:
        mix, noise: as of ``CGD``.
        keeps: whether the directions selected are those that are kept: all else is taken out.
    """

    mix: float
    noise: float | None
    keeps: bool


@dataclass(frozen=True)
class Pruned:
    """V c' to be subtracted from the gradient, or from what takes its place.

    Attributes:
        spec: the spectrum whose eigenvectors are V.
        coefficients: c' [r] = mix V^T g - noise xi on the selected directions, 0 elsewhere.
        count: how many directions are pruned.
        share: their part of ||g||^2, in float64.
        base: [P], what V c' is subtracted from; None: the gradient.
    """

    spec: Spectrum
    coefficients: Tensor
    count: int
    share: Tensor
    base: Tensor | None = None

    @classmethod
    def of(
        cls,
        spec: Spectrum,
        mask: Tensor,
        coefficients: Tensor,
        gradient: Tensor,
        norm_squared: Tensor,
        how: How,
        generator: torch.Generator | None,
    ) -> Pruned:
        """From V^T g [r], g, ||g||^2 and the mask [r] of the selected directions; draws the noise."""
        inside = coefficients * mask
        share = torch.nan_to_num(inside.double().square().sum() / norm_squared)
        if how.keeps:
            return cls._all_but(spec, mask, inside, gradient, share, how, generator)
        removed = how.mix * inside
        if how.noise:
            removed = removed - how.noise * _gauss(inside, generator) * mask
        return cls(spec, removed, int(mask.sum()), share)

    @classmethod
    def _all_but(
        cls,
        spec: Spectrum,
        mask: Tensor,
        inside: Tensor,
        gradient: Tensor,
        share: Tensor,
        how: How,
        generator: torch.Generator | None,
    ) -> Pruned:
        """g - mix (g - V V^T g) + noise (xi - V V^T xi), with xi [P] isotropic."""
        count = spec.size - int(mask.sum())
        base, removed = (1 - how.mix) * gradient, -how.mix * inside
        if how.noise:
            xi = _gauss(gradient, generator)
            base = base.add_(xi, alpha=how.noise)
            removed = removed + how.noise * spec.coefficients(xi.to(spec.dtype)) * mask
        outside = (1 - share).clamp(min=0) if bool(gradient.any()) else share
        return cls(spec, removed, count, outside, base if count else None)


def _gauss(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent standard normal numbers."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device=device).to(like)


def factors(space: ParameterSpace, pruned: Pruned) -> list[tuple[Tensor, Tensor] | None]:
    """V c' of each parameter as L [O, q] times R [q, I]: low-rank for a compressed spectrum, a row otherwise."""
    spec, dtype = pruned.spec, space.dtype
    Z, basis = spec.parts()
    c = Z @ pruned.coefficients
    if not isinstance(basis, Basis):
        one = torch.ones(1, 1, dtype=dtype, device=space.device)
        flat = basis.lift(c.unsqueeze(1)).to(dtype).view(1, -1)
        return [(one, flat[:, space.slice(i)]) for i in range(len(space.params))]
    slot = {offset: i for i, offset in enumerate(space.offsets)}
    removed: list[tuple[Tensor, Tensor] | None] = [None] * len(space.params)
    for layer in basis.layers:
        L, R = (t.to(dtype) for t in layer.factors(c))
        L = L.contiguous()
        if layer.weight >= 0:
            removed[slot[layer.weight]] = (L, R[:, : layer.inputs].contiguous())
        if layer.bias >= 0:
            removed[slot[layer.bias]] = (L, R[:, -1:].contiguous())
    return removed


def frozen_projection(spec: Spectrum, mask: Tensor, how: How) -> Callable[[Tensor], None]:
    """I - mix V V^T of the selected directions, or I - mix (I - V V^T) where these are kept, as a function that acts
    in place on a block [P, k]."""

    def project_(block: Tensor) -> None:
        inside = spec.project(block.to(spec.dtype), mask).to(block.dtype)
        if how.keeps:
            block.mul_(1 - how.mix).add_(inside, alpha=how.mix)
        else:
            block.sub_(inside, alpha=how.mix)

    return project_
