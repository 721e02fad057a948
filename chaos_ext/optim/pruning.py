"""What a CGD step takes out of the gradient: the options, the selection, and how a step is described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..base.arguments import require_int, require_number
from ..base.contents import is_int
from ..base.parameters import Group
from ..chaos import Threshold, chaotic_threshold, check_selection, select
from ..errors import UnsupportedError
from ..spectra import dominant
from ..spectra.options import check_options
from ..spectra.sets import Rule, pick
from ..spectra.spectrum import Spectrum
from .removal import How, Pruned


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
    refresh_every: int | None = None
    refresh_tol: float | None = None
    switch_share: float | None = None
    switch_decay: float = 0.9

    def __post_init__(self) -> None:
        check_selection(self.prune, self.k, self.order)
        for name in ("mix", "noise", "refresh_tol", "switch_share", "switch_decay"):
            value = getattr(self, name)
            if value is not None or name in ("mix", "switch_decay"):
                require_number(name, value, finite=False)
        if self.threshold not in ("paper", "optimizer"):
            raise ValueError(f"threshold: expected 'paper' or 'optimizer', got {self.threshold!r}")
        require_int("start", self.start, 0)
        if self.stop is not None and (not is_int(self.stop) or self.stop < self.start):
            raise ValueError(f"stop: expected an int >= start = {self.start} or None, got {self.stop!r}")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix: expected 0 <= mix <= 1, got {self.mix!r}")
        if self.noise is not None and not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise: expected a finite standard deviation >= 0 or None, got {self.noise!r}")
        if self.spectrum is not None and not isinstance(self.spectrum, Spectrum):
            raise TypeError(f"spectrum: expected a Spectrum, got {type(self.spectrum).__name__}")
        check_options(self.spectrum_dtype or torch.float64, self.zero_tol)
        self._check_refresh()
        if not 0 <= self.switch_decay < 1:
            raise ValueError(f"switch_decay: expected 0 <= switch_decay < 1, got {self.switch_decay!r}")
        if self.switch_share is not None and not 0 <= self.switch_share < 1:
            raise ValueError(f"switch_share: expected 0 <= switch_share < 1 or None, got {self.switch_share!r}")
        if self.switch_share is not None and self.prune not in (None, *dominant.SETS):
            raise ValueError(
                f"switch_share: expected prune='dominant' or 'bulk': it is the dominant share, got {self.prune!r}"
            )

    def _check_refresh(self) -> None:
        every, tol = self.refresh_every, self.refresh_tol
        if tol is not None and not 0 < tol < 1:
            raise ValueError(f"refresh_tol: expected 0 < refresh_tol < 1 or None, got {tol!r}")
        if every is None:
            return
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"refresh_every: expected an int >= 1 or None, got {every!r}")
        if self.prune is not None and (not self.k or self.order != "top_abs"):
            raise ValueError("refresh_every: expected k >= 1 and order='top_abs': k directions by size are followed")
        if self.spectrum is not None or self.spectrum_dtype is not None:
            raise ValueError(
                "refresh_every: expected spectrum=None and spectrum_dtype=None: directions are found anew, in the "
                "dtype of the parameters"
            )

    def check_parameters(self, params: Sequence[Tensor]) -> None:
        """Raises ValueError for none, or fewer than directions, and what ``require_numbers`` does of the fixed ones."""
        size = sum(p.numel() for p in params)
        if not size:
            raise ValueError("params: expected at least one parameter with requires_grad=True, got none")
        check_selection(self.prune, self.k, self.order, size)
        if self.spectrum is not None:
            require_numbers(self.spectrum, params, "spectrum")

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
    def how(self) -> How:
        """How much of the directions selected is taken out, or of all others."""
        return How(self.mix, self.noise, self.prune == "bulk")

    def require_columns(self) -> None:
        """Raises UnsupportedError where what is pruned is more than columns of a spectrum."""
        if self.how.keeps:
            raise UnsupportedError(
                "selection: prune='bulk' takes out all but the dominant directions, H's null space included; "
                "select(spec, lr, 'dominant', k) is what it keeps"
            )

    def select(self, spec: Spectrum, groups: Sequence[Group], generator: torch.Generator | None) -> Tensor:
        """What an optimizer with these parameter groups prunes of a spectrum (of "bulk": keeps), a mask [r].

        Raises ValueError for a partial spectrum that may lack some of it, unless it is the fixed one.
        """
        if self.prune in dominant.SETS:
            return select(spec, 0.0, "dominant", self.k)
        chaotic = self.prune == "chaotic"
        t = chaotic_threshold(groups, self.threshold) if chaotic else Threshold(1.0, float("inf"))
        if self.prune is not None and spec is self.spectrum:
            return pick(spec, Rule(self.prune, *astuple(t)), self.k, self.order, generator)
        return select(spec, t.lr, self.prune, self.k, self.order, generator, upper=t.upper, sign=t.sign, shift=t.shift)


def require_numbers(spec: Spectrum, params: Sequence[Tensor], name: str) -> None:
    """Refuses a spectrum that is none of these parameters, in whatever order.

    Raises:
        ValueError: other shapes, another device. TypeError: less precision than the parameters have.
    """
    size, like = sum(p.numel() for p in params), params[0]
    if spec.size != size:
        raise ValueError(f"{name}: expected a spectrum of P = {size} like the parameters, got P = {spec.size}")
    shapes = sorted(tuple(p.shape) for p in params)
    if spec.shapes is not None and sorted(spec.shapes) != shapes:
        raise ValueError(f"{name}: its parameters have shapes {spec.shapes}, those that are trained {shapes}")
    device = spec.parts()[0].device
    if device != like.device:
        raise ValueError(
            f"{name}: expected a spectrum on {like.device} like the parameters, got {device}; load it with map_location"
        )
    if torch.finfo(spec.dtype).eps > torch.finfo(like.dtype).eps:
        raise TypeError(f"{name}: expected a spectrum of {like.dtype} like the parameters, got {spec.dtype}")


def option(name: str) -> Any:
    """An option of an optimizer's ``pruning`` as an attribute of its own; setting it checks it like a new one."""

    def read(self: Any) -> Any:
        return getattr(self.pruning, name)

    def write(self: Any, value: Any) -> None:
        self.pruning = replace(self.pruning, **{name: value})

    return property(read, write)


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
        age: with ``refresh_every``, for how many steps the directions have been kept; 0: refreshed at this step.
        residual: of these directions when they were refreshed, the largest ||H v - lambda v|| / max|lambda|.
        products: Hessian-vector products of that refresh.
        running_share: with ``switch_share``, the decaying average of the dominant share, this step's included.
    """

    step: int
    loss: float | None
    pruned: int = 0
    share: float = 0.0
    n_negative: int | None = None
    n_positive: int | None = None
    lambda_min: float | None = None
    lambda_max: float | None = None
    age: int | None = None
    residual: float | None = None
    products: int | None = None
    running_share: float | None = None

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
