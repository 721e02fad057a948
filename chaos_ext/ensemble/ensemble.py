"""Many models of one architecture, trained at once: ``Ensemble``."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..base import memory
from ..base.files import read_or_previous, write_keeping_previous
from ..base.guards import no_autograd, refuse_autocast, without_autograd
from ..base.optimizers import refuse_gradient_hooks
from ..base.parameters import ParameterSpace
from ..errors import TornStateError
from . import arguments, checkpoint, readings
from .choice import Choice
from .layout import Layout
from .members import Members
from .options import is_adam
from .recurrence import Recurrence
from .stream import MemberStream
from .twin import Twin

log = logging.getLogger("chaos_ext")


class Ensemble:
    """B models of one architecture, each with parameters and optimizer state of its own, stepped together.

    Every member does what torch's optimizer would do to it alone, to rounding; members that are equal and see equal
    batches stay equal bit for bit. Linear layers, convolutions and what usually stands between them run as batched
    products, every other model through ``torch.func.vmap``. The ensemble works on copies: the model, the loss and the
    optimizer are left as they are, and changing them afterwards changes nothing here. Modules keep the mode (training
    or not) that they had; buffers, such as running statistics, are each member's own.

    A member whose loss or parameters are no longer finite is marked in ``diverged``; the others go on.

    Example:
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> twins = ce.Ensemble.around(model, loss_fn, opt, 1e-6 * torch.randn(83, 4))
        >>> losses = twins.step(x, y)
        >>> twins.distances().shape
        torch.Size([5])

    Args:
        model: gives architecture, buffers and modes.
        loss_fn: ``loss_fn(model(x), y)`` is the scalar that each member minimises.
        opt: torch.optim.SGD, Adam or AdamW, or ``CGD(prune=None)``, of this model; every member takes over its options
            and its state.
        thetas: [B, P], the members' parameters, in the model's dtype and on its device.
        csv: stream losses (before the step) and distances to member 0 (after it) to this file.
        every: a row of the file at every multiple of this many steps.
        options: of the optimizer, by name, to replace those of ``opt`` in all parameter groups: a number for all
            members, or a tensor [B] with one for each. For SGD lr, momentum, dampening, weight_decay; for Adam lr,
            betas, eps, weight_decay.

    Raises:
        ValueError, TypeError: thetas of another shape or dtype, an optimizer of another model, options out of range.
        NonFiniteError: NaN or infinity in thetas. MemoryBudgetError: B members do not fit.
        UnsupportedError: another optimizer, gradient or step hooks, a model that cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        opt: Optimizer,
        thetas: Tensor,
        *,
        csv: str | os.PathLike[str] | None = None,
        every: int = 1,
        **options: Any,
    ) -> None:
        adam, space = is_adam(opt), ParameterSpace.of(model)
        arguments.check_thetas(thetas, space, every)
        refuse_gradient_hooks(space)
        b, layout = len(thetas), Layout(space)
        need = (5 if adam else 3) * b * layout.width * space.dtype.itemsize
        memory.require(need, space.device, f"Ensemble of {b} members", "take fewer members")
        modes = no_autograd()
        with modes, modes:
            recurrence = Recurrence(opt, layout, b, options)
            theta = layout.zeros(b)
            layout.pack_(theta, thetas.detach())
            self._twin = Twin(model, loss_fn)
            buffers = {n: t.expand(b, *t.shape).clone() for n, t in self._twin.buffers().items()}
            self._members = Members(layout, theta, buffers, recurrence)
        self._choice = Choice(self._twin)
        self._fingerprint = checkpoint.fingerprint(self._members, "Adam" if adam else "SGD")
        self._stream = None if csv is None else MemberStream(csv, b, every)

    @classmethod
    def around(
        cls, model: nn.Module, loss_fn: Callable[..., Tensor], opt: Optimizer, deltas: Tensor, **options: Any
    ) -> Ensemble:
        """Twins: member 0 is the model itself, member i its parameters plus ``deltas[:, i - 1]``.

        Args:
            model, loss_fn, opt: as of ``Ensemble``.
            deltas: [P, m], one displacement a column.
            options: as of ``Ensemble``, ``csv`` and ``every`` included.

        Raises:
            ValueError: deltas of another shape; a displacement that rounding swallows: displacements near 1e-8 need a
                model in float64.
            NonFiniteError: NaN or infinity in deltas, or in the sum.
        """
        space = ParameterSpace.of(model)
        return cls(model, loss_fn, opt, readings.displaced(space, deltas), **options)

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

    @without_autograd
    def step(self, x: Any, y: Any, *, batched: bool = False) -> Tensor:
        """One step of every member.

        Args:
            x: the batch [N, ...] that all members see; with ``batched``, [B, N, ...]: each member's own.
            y: its targets, shared or not as x is.
            batched: whether x and y have a first axis of length B.

        Returns:
            The losses [B] before the step; nan or inf for members that have diverged.

        Raises:
            ValueError: no sample; not one batch for each member; a forward or loss that fails. NonFiniteError: NaN or
            infinity in x or y. UnsupportedError: autocast; a forward that draws random numbers (dropout in training
            mode), writes to attributes, or cannot be vectorised because its control flow depends on data; a loss that
            reads parameters by itself. TornStateError: an earlier step was broken off by an exception that another
            thread raised in it. OSError: the row of this step could not be written to the CSV file; the step itself
            is done.

        After any other exception all is as it was, also after Ctrl-C.
        """
        members = self._whole()
        refuse_autocast(members.theta.device)
        x, y = arguments.checked_batch(x, y, len(self) if batched else None)
        way, before = self._choice.way(members, x, y, batched), members.diverged.clone()
        losses = members.advance(*way, x, y, batched)
        self._report(before)
        if self._stream is not None and members.steps % self._stream.every == 0:
            self._stream.append(members.steps, [*losses.tolist(), *self.distances().tolist()])
        return losses

    def _report(self, before: Tensor) -> None:
        if new := (self._members.diverged != before).nonzero().squeeze(1).tolist():
            log.warning("Ensemble: member %s diverged at step %d", ", ".join(map(str, new)), self._members.steps)

    def set_options(self, **options: Any) -> None:
        """Replaces options of the optimizer for the steps to come: a schedule.

        Args:
            options: as of ``Ensemble``.

        Raises:
            TypeError: an option that there is not. ValueError: out of range, or not one for each member.
            UnsupportedError: momentum for a member that had none while others had it.
        """
        self._whole().recurrence.set_options(options)

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

    def state_dict(self) -> dict[str, Any]:
        """What a bit-identical continuation needs, beside the same model, loss and optimizer class."""
        return checkpoint.pack(self._whole(), copy.deepcopy(self._fingerprint))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict()``, options included. A CSV stream goes on after the rows up to its step.

        Raises:
            CheckpointError: the state of another kind of run, or incomplete. The ensemble is then as it was.
        """
        checkpoint.require_fit(state, self._members, self._fingerprint)
        if self._stream is not None:
            self._stream.resume(state["steps"])
        modes = no_autograd()
        with modes, modes:
            checkpoint.restore(state, self._members)
        self._choice.forget()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``state_dict()`` to a file, whole or not at all; the previous one is kept as ``<name>.previous``."""
        write_keeping_previous(Path(path), self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restores what ``save`` wrote; where the file is damaged or missing, the previous one, with a warning logged.

        Args:
            path: as of ``save``.

        Raises:
            FileNotFoundError: there is no file. CheckpointError: no whole one, or another run's.
        """
        self.load_state_dict(read_or_previous(Path(path)))

    def _whole(self) -> Members:
        if self._members.torn:
            raise TornStateError(
                "Ensemble: a step was broken off while it wrote; load a saved state, or make a new ensemble"
            )
        return self._members
