"""Many models of one architecture, trained at once: ``Ensemble``."""

from __future__ import annotations

import copy
import importlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base import memory
from ..base.files import read_or_previous, write_keeping_previous
from ..base.guards import no_autograd, refuse_autocast, without_autograd
from ..base.optimizers import refuse_gradient_hooks
from ..base.parameters import ParameterSpace
from ..distributed.shares import shares
from ..errors import UnsupportedError
from . import arguments, checkpoint, readings
from .choice import Choice
from .directing import Directing
from .layout import Layout
from .members import Members
from .options import is_adam
from .pruner import pruner_of
from .readable import Readable
from .recurrence import Recurrence
from .stream import MemberStream
from .twin import Twin

log = logging.getLogger("chaos_ext")


class Ensemble(Readable):
    """B models of one architecture, each with parameters and optimizer state of its own, stepped together.

    Every member does what torch's optimizer would do to it alone, to rounding; members that are equal and see equal
    batches stay equal bit for bit. Linear layers, convolutions and what usually stands between them run as batched
    products, every other model through ``torch.func.vmap``. The ensemble works on copies: the model, the loss and the
    optimizer are left as they are, and changing them afterwards changes nothing here. Modules keep the mode (training
    or not) that they had; buffers, such as running statistics, are each member's own.

    A member whose loss or parameters are no longer finite is marked in ``diverged``; the others go on. With a CGD that
    prunes every member loses its own directions at every step, as ``opt.step(HessianOperator(...))`` of that member
    would have it; members for which that cannot be done are named by an exception, and no member has moved then. With
    ``noise`` that is so in distribution: it is drawn along eigenvectors, whose signs the last digit decides.

    Example:
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> twins = ce.Ensemble.around(model, loss_fn, opt, 1e-6 * torch.randn(83, 4))
        >>> losses = twins.step(x, y)
        >>> twins.distances().shape
        torch.Size([5])

    Args:
        model: gives architecture, buffers and modes.
        loss_fn: ``loss_fn(model(x), y)`` is the scalar that each member minimises.
        opt: torch.optim.SGD, Adam or AdamW, or chaos_ext.CGD, of this model; every member takes over its options and
            its state.
        thetas: [B, P], the members' parameters, in the model's dtype and on its device.
        csv: stream losses (before the step) and distances to member 0 (after it) to this file.
        every: a row of the file at every multiple of this many steps.
        generators: one for each member, of a CGD that draws (noise, ``order="random"``); they are copied. Default: a
            copy of CGD's own for each, so that all draw alike.
        group: a process group of torch.distributed, or ``Ranks``: each rank steps B / ranks of the members. All ranks
            give everything in full, batches included, and make the same calls, reads of attributes as well; what they
            get is of all members, the same bits on all of them. None: this process alone. See docs/scale.md.
        options: of the optimizer, by name, to replace those of ``opt`` in all parameter groups: a number for all
            members, or a tensor [B] with one for each. For SGD lr, momentum, dampening, weight_decay; for Adam lr,
            betas, eps, weight_decay.

    Raises:
        ValueError, TypeError: thetas of another shape or dtype, an optimizer of another model, options out of range.
        NonFiniteError: NaN or infinity in thetas. MemoryBudgetError: B members do not fit.
        UnsupportedError: another optimizer, gradient or step hooks, a model that cannot be copied, CGD with
            ``refresh_every`` or ``switch_share``, or of a part of the parameters; with ``group``, ``spectrum`` and
            ``directions``.
        RanksDisagreeError, RankFailedError: with ``group``, here and in every method: ranks do not give the same; one
            has raised, was lost or did not come. No member of any rank has moved then, or all ranks raise
            TornStateError afterwards.
    """

    _first = 0  # the number of the first of these members, for messages

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        opt: Optimizer,
        thetas: Tensor,
        *,
        csv: str | os.PathLike[str] | None = None,
        every: int = 1,
        generators: Sequence[torch.Generator] | None = None,
        group: Any = None,
        **options: Any,
    ) -> None:
        if group is not None:
            given = {"csv": csv, "every": every, "generators": generators, "group": group, **options}
            self._become_shared((model, loss_fn, opt, thetas), given)
            return
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
            pruner = pruner_of(opt, recurrence, generators)
            self._members = Members(layout, theta, buffers, recurrence, pruner)
        self._choice = Choice(self._twin)
        self._directing = Directing(self._twin, self._choice)
        kind = "Adam" if adam else "SGD" if pruner is None else "CGD"
        self._fingerprint = checkpoint.fingerprint(self._members, kind)
        self._stream = None if csv is None else MemberStream(csv, b, every)

    def _become_shared(self, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """What this is from here on, is made of an ensemble: it cannot be imported above."""
        self.__class__ = importlib.import_module(f"{__package__}.shared").SharedEnsemble
        self.__init__(*args, **options)  # type: ignore[misc]

    @classmethod
    def around(
        cls, model: nn.Module, loss_fn: Callable[..., Tensor], opt: Optimizer, deltas: Tensor, **options: Any
    ) -> Ensemble:
        """Twins: member 0 is the model itself, member i its parameters plus ``deltas[:, i - 1]``.

        Args:
            model, loss_fn, opt: as of ``Ensemble``.
            deltas: [P, m], one displacement a column.
            options: as of ``Ensemble``, ``csv``, ``every``, ``generators`` and ``group`` included.

        Raises:
            ValueError: deltas of another shape; a displacement that rounding swallows: displacements near 1e-8 need a
                model in float64.
            NonFiniteError: NaN or infinity in deltas, or in the sum.
        """
        with shares(options.get("group")).together("the making of twins", meets=True):
            space = ParameterSpace.of(model)
            return cls(model, loss_fn, opt, readings.displaced(space, deltas), **options)

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
            infinity in x or y; with a CGD that prunes also, as NotConvergedError, of members, which are named.
            UnsupportedError: autocast; a forward that draws random numbers (dropout in training
            mode), writes to attributes, or cannot be vectorised because its control flow depends on data; a loss that
            reads parameters by itself. TornStateError: an earlier step was broken off by an exception that another
            thread raised in it. OSError: the row of this step could not be written to the CSV file; the step itself
            is done.

        After any other exception all is as it was, also after Ctrl-C.
        """
        members = self._whole()
        refuse_autocast(members.theta.device)
        x, y = arguments.checked_batch(x, y, len(members) if batched else None)
        before, pruner = members.diverged.clone(), members.pruner
        acts = pruner is not None and pruner.acts_at(members.steps)
        source: Choice | Directing = self._directing if acts else self._choice
        engine, parts = source.way(members, x, y, batched)
        losses = members.advance(engine, parts, x, y, batched)
        self._report(before)
        if self._stream is not None and members.steps % self._stream.every == 0:
            self._stream.append(members.steps, [*losses.tolist(), *self.distances().tolist()])
        return losses

    def _report(self, before: Tensor) -> None:
        if new := (self._members.diverged != before).nonzero().squeeze(1).tolist():
            names = ", ".join([str(self._first + i) for i in new])
            log.warning("Ensemble: member %s diverged at step %d", names, self._members.steps)

    def leave_out(self, members: Sequence[int]) -> None:
        """Takes members out of all further steps of a CGD that prunes: they stay where they are.

        ``diverged`` has the number of steps done as theirs; losses of later steps are NaN.

        Args:
            members: their numbers, as an exception of ``step`` names them.

        Raises:
            UnsupportedError: an optimizer that does not prune, with which members that diverge hold nobody up.
            ValueError: no such member.
        """
        own = self._whole()
        if own.pruner is None:
            raise UnsupportedError("leave_out: only for a CGD that prunes; members that diverge hold nobody up here")
        chosen = [readings.member(own, i, "members") for i in members]
        own.diverged[chosen] = own.diverged[chosen].where(own.diverged[chosen] >= 0, own.steps)

    def set_options(self, **options: Any) -> None:
        """Replaces options of the optimizer for the steps to come: a schedule.

        Args:
            options: as of ``Ensemble``.

        Raises:
            TypeError: an option that there is not. ValueError: out of range, or not one for each member.
            UnsupportedError: momentum for a member that had none while others had it.
        """
        self._whole().recurrence.set_options(options)

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
        self._directing.forget()

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
