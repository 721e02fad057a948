"""What is read off an ensemble: parameters, distances, components, losses, spectra, and what CGD did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..base.guards import refuse_autocast, without_autograd
from ..errors import TornStateError
from ..optim.pruning import StepInfo
from ..spectra.spectrum import Spectrum
from . import arguments, readings
from .directing import Directing
from .members import Members
from .twin import Twin


class Readable:
    """Members that can be read, whatever steps them."""

    _members: Members
    _twin: Twin
    _directing: Directing

    def __len__(self) -> int:
        return len(self._members)

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return self._whole().steps

    @property
    def thetas(self) -> Tensor:
        """The members' parameters [B, P], as a copy."""
        return self._members.layout.unpack(self._whole().theta)

    @property
    def diverged(self) -> Tensor:
        """int64 [B]: after which step a member's loss or parameters were not finite for the first time; -1: never."""
        return self._whole().diverged.clone()

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The members' buffers by name, each [B, ...], as copies."""
        return {n.removeprefix("model."): b.clone() for n, b in self._whole().buffers.items()}

    def distances(self, to: int | Tensor = 0) -> Tensor:
        """||theta_i - theta_to||, float64 [B].

        Args:
            to: a member, or a vector [P].
        """
        return readings.differences(self._whole(), to).norm(dim=1)

    def along(self, V: Tensor, to: int | Tensor = 0) -> Tensor:
        """Components V^T (theta_i - theta_to) of the members along given directions, float64 [B, k].

        Args:
            V: [P, k] or [P], columns of length one for lengths.
            to: a member, or a vector [P].

        Raises:
            ValueError: directions or a vector of another shape, no such member.
        """
        return readings.along(self._whole(), V, to)

    def nonlinearity(self, predicted: Tensor, to: int = 0) -> Tensor:
        """How far twins have left the linear regime: ||dtheta - predicted|| / ||dtheta||, float64 [B - 1].

        dtheta = theta_i - theta_to for every other member i, in their order. 0 means that the tangent map says where
        the twin is, 1 that it says nothing. 0 / 0 counts as 0.

        Example:
            >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> twins = ce.Ensemble.around(model, loss_fn, opt, 1e-6 * torch.randn(83, 4))
            >>> tangent, Y = ce.TangentMap(opt), (twins.thetas[1:] - twins.thetas[0]).T.contiguous()
            >>> op = ce.HessianOperator(model, loss_fn, x, y)
            >>> _ = tangent.apply_(op, Y)
            >>> losses = twins.step(x, y)
            >>> bool((twins.nonlinearity(Y) < 1e-2).all())
            True

        Args:
            predicted: [P, B - 1], the displacements eps Y w by the tangent map, one column for each other member; [P]
                where there is one. Of a map with buffers the first P rows.
            to: the member that the tangent map was taken along.

        Raises:
            ValueError: another shape, no such member.
        """
        return readings.nonlinearity(self._whole(), predicted, to)

    def evaluate(self, x: Any, y: Any) -> readings.Evaluation:
        """Loss and accuracy of every member on the same data, in evaluation mode (no dropout, running statistics).

        Args:
            x: [N, ...].
            y: its targets.

        Returns:
            ``Evaluation(loss [B], accuracy [B] or None)``; accuracies exist where y holds a class index for each row.

        Raises:
            ValueError: a forward or loss that fails.
        """
        x, y = arguments.checked_batch(x, y, None)
        return readings.evaluate(self._twin, self._whole(), x, y)

    def load_into(self, model: nn.Module, i: int) -> None:
        """Writes member i's parameters and buffers to a model, in place.

        Args:
            model: of this architecture, dtype and any device.
            i: the member.

        Raises:
            ValueError: parameters or buffers of other names, shapes or dtypes; no such member. Nothing is written then.
        """
        readings.load_into(self._whole(), model, i)

    @property
    def last_step(self) -> list[StepInfo | None]:
        """Of each member what CGD's last step did; None of one that was left out, or where CGD has done no step."""
        members = self._whole()
        return [None] * len(members) if members.pruner is None else list(members.pruner.infos)

    def spectrum(
        self,
        x: Any,
        y: Any,
        *,
        batched: bool = False,
        zero_tol: float | None = None,
        spectrum_dtype: torch.dtype | None = None,
    ) -> list[Spectrum | None]:
        """All nonzero eigenpairs of the Hessian of each member, at its parameters now.

        Example:
            >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> twins = ce.Ensemble.around(model, loss_fn, opt, 1e-6 * torch.randn(83, 2))
            >>> [len(spec.eigenvalues) + spec.nullity for spec in twins.spectrum(x, y)]
            [83, 83, 83]

        Args:
            x, y, batched: as of ``step``.
            zero_tol, spectrum_dtype: as of ``chaos_ext.spectrum``.

        Returns:
            What ``chaos_ext.spectrum`` gives of an operator of that member alone, to rounding, with loss and gradient,
            as after ``Spectrum.load``: without a model. None of members that have diverged.

        Raises:
            NonFiniteError, NotConvergedError: of members, which are named. Others: as of ``step`` and
            ``chaos_ext.spectrum``.
        """
        return self._spectra(x, y, batched, True, zero_tol=zero_tol, spectrum_dtype=spectrum_dtype)

    def directions(
        self,
        x: Any,
        y: Any,
        *,
        batched: bool = False,
        zero_tol: float | None = None,
        spectrum_dtype: torch.dtype | None = None,
    ) -> list[Spectrum | None]:
        """The same for projections, as ``chaos_ext.directions``: on the CPU no eigenvector is formed.

        A step of CGD on the same batch that follows at once takes these, and solves no eigenproblem of its own.

        Args:
            x, y, batched, zero_tol, spectrum_dtype: as of ``spectrum``.
        """
        return self._spectra(x, y, batched, False, zero_tol=zero_tol, spectrum_dtype=spectrum_dtype)

    @without_autograd
    def _spectra(self, x: Any, y: Any, batched: bool, form: bool, **options: Any) -> list[Spectrum | None]:
        members = self._whole()
        refuse_autocast(members.theta.device)
        x, y = arguments.checked_batch(x, y, len(self) if batched else None)
        return self._directing.spectra(members, x, y, batched, form, options)

    def _whole(self) -> Members:
        if self._members.torn:
            raise TornStateError(
                "Ensemble: a step was broken off while it wrote; load a saved state, or make a new ensemble"
            )
        return self._members
