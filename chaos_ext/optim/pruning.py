"""What a CGD step takes out of the gradient: the options, the selection, the part removed, and how it is described."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..base.parameters import Group, ParameterSpace
from ..chaos import Threshold, chaotic_threshold, check_selection, select
from ..curvature.basis import Basis
from ..errors import UnsupportedError
from ..spectra import dominant
from ..spectra.options import check_options
from ..spectra.spectrum import Spectrum


@dataclass(frozen=True)
class Pruning:
    """The options of CGD that SGD does not have; see ``CGD`` for their meaning.

    Raises:
        ValueError, TypeError: an option outside its range.
    """

    prune: str | None = "chaotic"
    k: int | None = None
    order: str = "top_abs"
    start: int = 0
    stop: int | None = None
    mix: float = 1.0
    noise: float | None = None
    spectrum: Spectrum | None = None
    zero_tol: float | None = None
    spectrum_dtype: torch.dtype | None = None
    threshold: str = "paper"

    def __post_init__(self) -> None:
        check_selection(self.prune, self.k, self.order)
        if self.threshold not in ("paper", "optimizer"):
            raise ValueError(f"threshold: expected 'paper' or 'optimizer', got {self.threshold!r}")
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 0:
            raise ValueError(f"start: expected an int >= 0, got {self.start!r}")
        if self.stop is not None and (not isinstance(self.stop, int) or self.stop < self.start):
            raise ValueError(f"stop: expected an int >= start = {self.start} or None, got {self.stop!r}")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix: expected 0 <= mix <= 1, got {self.mix!r}")
        if self.noise is not None and not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise: expected a finite standard deviation >= 0 or None, got {self.noise!r}")
        if self.spectrum is not None and not isinstance(self.spectrum, Spectrum):
            raise TypeError(f"spectrum: expected a Spectrum, got {type(self.spectrum).__name__}")
        check_options(self.spectrum_dtype or torch.float64, self.zero_tol)

    def check_size(self, size: int) -> None:
        """Raises ValueError for more directions than parameters, or fixed directions of another number of them."""
        check_selection(self.prune, self.k, self.order, size)
        if self.spectrum is not None and self.spectrum.size != size:
            raise ValueError(f"spectrum: expected one of P = {size} like the parameters, got P = {self.spectrum.size}")

    def acts_at(self, step: int) -> bool:
        """Whether step t prunes: a set is chosen, t is in start..stop, and mix or noise is not zero."""
        in_time = self.start <= step and (self.stop is None or step < self.stop)
        return self.prune is not None and self.k != 0 and in_time and (self.mix != 0 or bool(self.noise))

    def projects_at(self, step: int) -> bool:
        """Whether step t takes out a part of the gradient: noise alone does not."""
        return self.acts_at(step) and self.mix != 0

    @property
    def is_random(self) -> bool:
        """Whether the pruned gradient is more than a function of theta."""
        return bool(self.noise) or self.draws_directions

    @property
    def draws_directions(self) -> bool:
        """Whether which directions are pruned is drawn at random."""
        return self.k is not None and self.order == "random"

    @property
    def keeps(self) -> bool:
        """Whether the directions selected are those that are kept: all else is taken out."""
        return self.prune == "bulk"

    def require_columns(self) -> None:
        """Raises UnsupportedError where what is pruned is more than columns of a spectrum."""
        if self.keeps:
            raise UnsupportedError(
                "selection: prune='bulk' takes out all but the dominant directions, H's null space included; "
                "select(spec, lr, 'dominant', k) is what it keeps"
            )

    def select(self, spec: Spectrum, groups: Sequence[Group], generator: torch.Generator | None) -> Tensor:
        """What an optimizer with these parameter groups prunes of a spectrum (of "bulk": keeps), a mask [r]."""
        if self.prune in dominant.SETS:
            return select(spec, 0.0, "dominant", self.k)
        chaotic = self.prune == "chaotic"
        t = chaotic_threshold(groups, self.threshold) if chaotic else Threshold(1.0, float("inf"))
        return select(spec, t.lr, self.prune, self.k, self.order, generator, upper=t.upper, sign=t.sign, shift=t.shift)


def option(name: str) -> Any:
    """An option of an optimizer's ``pruning`` as an attribute of its own; setting it checks it like a new one."""

    def read(self: Any) -> Any:
        return getattr(self.pruning, name)

    def write(self: Any, value: Any) -> None:
        self.pruning = replace(self.pruning, **{name: value})

    return property(read, write)


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
        options: Pruning,
        generator: torch.Generator | None,
    ) -> Pruned:
        """From V^T g [r], g, ||g||^2 and the mask [r] of the selected directions; draws the noise."""
        inside = coefficients * mask
        share = torch.nan_to_num(inside.double().square().sum() / norm_squared)
        if options.keeps:
            return cls._all_but(spec, mask, inside, gradient, share, options, generator)
        removed = options.mix * inside
        if options.noise:
            removed = removed - options.noise * _gauss(inside, generator) * mask
        return cls(spec, removed, int(mask.sum()), share)

    @classmethod
    def _all_but(
        cls,
        spec: Spectrum,
        mask: Tensor,
        inside: Tensor,
        gradient: Tensor,
        share: Tensor,
        options: Pruning,
        generator: torch.Generator | None,
    ) -> Pruned:
        """g - mix (g - V V^T g) + noise (xi - V V^T xi), with xi [P] isotropic."""
        count = spec.size - int(mask.sum())
        base, removed = (1 - options.mix) * gradient, -options.mix * inside
        if options.noise:
            xi = _gauss(gradient, generator)
            base = base.add_(xi, alpha=options.noise)
            removed = removed + options.noise * spec.coefficients(xi.to(spec.dtype)) * mask
        outside = (1 - share).clamp(min=0) if bool(gradient.any()) else share
        return cls(spec, removed, count, outside, base if count else None)


@dataclass(frozen=True)
class StepInfo:
    """What one step did.

    Attributes:
        step: index of the step, from 0.
        loss: the loss before the step, None where it is not known.
        pruned: number of directions removed.
        share: their part of ||g||^2, ||V^T g||^2 / ||g||^2 of a set (0 where nothing was pruned).
        n_negative, n_positive: eigenvalues beyond the zero tolerance; None where no spectrum, or a partial one, was
            needed.
        lambda_min, lambda_max: extreme eigenvalues beyond the tolerance; None where there is none, or where they were
            not needed.
    """

    step: int
    loss: float | None
    pruned: int = 0
    share: float = 0.0
    n_negative: int | None = None
    n_positive: int | None = None
    lambda_min: float | None = None
    lambda_max: float | None = None

    @classmethod
    def of(cls, step: int, loss: Tensor | None, pruned: Pruned | None) -> StepInfo:
        """From what the step is about to do."""
        value = None if loss is None else float(loss)
        if pruned is None:
            return cls(step, value)
        return cls(step, value, pruned.count, float(pruned.share), *_counts(pruned.spec), *_extremes(pruned.spec))


def _counts(spec: Spectrum) -> tuple[int | None, int | None]:
    """Negative and positive eigenvalues of H."""
    if spec.nullity is None:
        return None, None
    values, zero = spec.eigenvalues, spec.zero_threshold
    return int((values < -zero).sum()), int((values > zero).sum())


def _extremes(spec: Spectrum) -> tuple[float | None, float | None]:
    """The smallest and the largest eigenvalue of H."""
    values, known = spec.eigenvalues, spec.ends or (0, 0)
    low, high = (len(values) > 0,) * 2 if spec.nullity is not None else (known[0] > 0, known[1] > 0)
    return float(values[0]) if low else None, float(values[-1]) if high else None


def _gauss(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent standard normal numbers."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device=device).to(like)


def factors(space: ParameterSpace, pruned: Pruned) -> list[tuple[Tensor, Tensor] | None]:
    """V c' of each parameter as L [O, q] times R [q, I]: low-rank for a compressed spectrum, a column otherwise."""
    spec, dtype = pruned.spec, space.dtype
    Z, basis = spec.parts()
    c = Z @ pruned.coefficients
    if not isinstance(basis, Basis):
        one = torch.ones(1, 1, dtype=dtype, device=space.device)
        flat = basis.lift(c.unsqueeze(1)).to(dtype)
        return [(flat[space.slice(i)].contiguous(), one) for i in range(len(space.params))]
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


def frozen_projection(spec: Spectrum, mask: Tensor, options: Pruning) -> Callable[[Tensor], None]:
    """I - mix V V^T of the selected directions, or I - mix (I - V V^T) where these are kept, as a function that acts
    in place on a block [P, k]."""

    def project_(block: Tensor) -> None:
        inside = spec.project(block.to(spec.dtype), mask).to(block.dtype)
        if options.keeps:
            block.mul_(1 - options.mix).add_(inside, alpha=options.mix)
        else:
            block.sub_(inside, alpha=options.mix)

    return project_
