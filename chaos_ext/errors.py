"""The exceptions of chaos_ext. Plain argument mistakes raise ValueError or TypeError."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch


class ChaosExtError(RuntimeError):
    """Base of every exception that chaos_ext defines.

    Attributes:
        members: raised by an Ensemble of single members: of which, and what each of them would have raised alone.
    """

    members: Mapping[int, Exception] = MappingProxyType({})


class StaleOperatorError(ChaosExtError):
    """Something new was asked of an operator whose parameters, batch, buffers or modes have changed since it was made.

    What it has computed before is returned again, and stays valid for the state at construction: ``loss``,
    ``gradient``, ``output``, ``compressed()``, and the complete spectra of ``spectrum(op)`` and ``directions(op)``.
    Steps and tangent maps always need a fresh operator.
    """


class NonFiniteError(ChaosExtError):
    """A NaN or an infinity in the batch, the loss, the gradient, the Hessian or a trajectory.

    Args:
        message: names what is not finite.
        result: see below.

    Attributes:
        result: of a run that was stopped, what it had until then; else None.
    """

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class NotConvergedError(ChaosExtError):
    """An eigensolver did not reach its tolerance.

    Args:
        message: says which, and what to do.
        residuals: see below.

    Attributes:
        residuals: ``||H v - lambda v||`` of each eigenpair that was sought.
    """

    def __init__(self, message: str, residuals: torch.Tensor | None = None) -> None:
        super().__init__(message)
        self.residuals = residuals


class IndefiniteError(ChaosExtError):
    """A matrix that has to be positive definite is not.

    Args:
        message: says where it was found out, and what to do.
        curvature, direction: see below.

    Attributes:
        curvature: v^T A v along the direction, at most 0 up to rounding.
        direction: unit vector v [n].
    """

    def __init__(self, message: str, curvature: float = 0.0, direction: torch.Tensor | None = None) -> None:
        super().__init__(message)
        self.curvature, self.direction = curvature, direction


class MemoryBudgetError(ChaosExtError):
    """A result would not fit into the memory that is available."""


class UnsupportedError(ChaosExtError):
    """A combination that chaos_ext refuses because it could not be exact."""


class CheckpointError(ChaosExtError):
    """A file that is damaged, or that belongs to another run."""


class TornStateError(ChaosExtError):
    """A state whose parts may be of different steps: its writing was broken off by something that cannot be put off.

    Signals (Ctrl-C) never do this; an exception that another thread or a debugger raises in the middle can. Load a
    saved state, or make the object anew.
    """


class RanksDisagreeError(ChaosExtError):
    """The processes of a group do not hold the same where they have to; every one of them raises this."""


class RankFailedError(ChaosExtError):
    """Another process of the group has raised, was lost, or did not come in time.

    Args:
        message: names the rank, where it was expected, and what it raised if that is known.
        ranks: see below.

    Attributes:
        ranks: those that failed; empty where that cannot be known.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class DatasetNotFoundError(ChaosExtError, FileNotFoundError):
    """The files of a dataset are neither in the given folder nor to be downloaded."""
