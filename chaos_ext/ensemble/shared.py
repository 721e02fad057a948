"""``Ensemble`` of several ranks: each steps a part of the members, and all know of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base import memory
from ..base.arguments import require_int
from ..base.files import read_or_previous, write_keeping_previous
from ..curvature.agreement import said
from ..distributed.shares import shares
from ..errors import ChaosExtError, RankFailedError, UnsupportedError
from ..optim.pruning import StepInfo
from ..spectra.spectrum import Spectrum
from . import arguments, checkpoint, readings
from .division import Division, batch_said, divided, own_columns, part_of, tensor_said
from .ensemble import Ensemble
from .members import Members
from .options import with_options
from .pruner import FAILURES, raise_together
from .stream import MemberStream


class SharedEnsemble(Ensemble):
    """B members, of which this rank has some; arguments and errors as of ``Ensemble``.

    What ``super()`` does with its members, it does here with this rank's; the methods put the parts together.
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
        generators: Sequence[torch.Generator] | None = None,
        group: Any = None,
        **options: Any,
    ) -> None:
        ranks = shares(group).ranks
        assert ranks is not None
        self._ranks = ranks = ranks.named("ensemble")
        with ranks.together("the making of an Ensemble"):
            require_int("every", every, 1)
            rows = {"csv": csv is not None, "every": every}
            division, own = divided(ranks, model, loss_fn, opt, thetas, generators, options, rows)
            self._division: Division = division
            self._first = division.own.start
            Ensemble.__init__(self, model, loss_fn, opt, own.pop("thetas"), **own)
            self._every = None if csv is None else every
            self._rows = MemberStream(csv, len(self), every) if csv is not None and not ranks.rank else None
        self._of_all = {**self._fingerprint, "members": len(self)}
        self._members.before_writing = self._meet
        self._batch: object = None
        self._moving = False
        if self._members.pruner is not None:
            self._members.pruner.number = self._first

    def __len__(self) -> int:
        return len(self._division)

    def _meet(self) -> None:
        """Before a step is written: nobody moves unless all do, on the same batch."""
        self._ranks.agree("the step", {"number": self.steps, "batch": self._batch})
        self._moving = True

    def step(self, x: Any, y: Any, *, batched: bool = False) -> Tensor:
        self._moving = False
        try:
            with self._ranks.together("a step of an Ensemble", meets=True):
                losses = self._division.gather(self._own_step(x, y, batched), "the losses of all members")
        except BaseException as e:
            self._members.torn |= self._moving
            if isinstance(e, Exception):
                self._raise_of_members(e)
            raise
        if self._every is not None and self.steps % self._every == 0:
            self._write_row(losses)
        return losses

    def _own_step(self, x: Any, y: Any, batched: bool) -> Tensor:
        if batched:
            arguments.checked_batch(x, y, len(self))
        self._batch = [batched, *batch_said(x, y)]
        own = self._division.own
        return super().step(*((x[own], y[own]) if batched else (x, y)), batched=batched)

    def _raise_of_members(self, error: Exception) -> None:
        """Where members have failed, every rank raises the same, of those of all ranks; all are here then."""
        try:
            failed = self._division.failures(error)
        except ChaosExtError:  # the group is broken, as the error says
            return
        if isinstance(error, (*FAILURES, RankFailedError)):
            raise_together(failed)

    def _write_row(self, losses: Tensor) -> None:
        distances = self.distances()
        with self._ranks.together("csv"):
            if self._rows is not None:
                self._rows.append(self.steps, [*losses.tolist(), *distances.tolist()])

    def leave_out(self, members: Sequence[int]) -> None:
        with self._ranks.together("leave_out"):
            chosen = [readings.member(self, i, "members") for i in members]
            self._ranks.agree("members", chosen)
            own = self._division.own
            super().leave_out([i - own.start for i in chosen if own.start <= i < own.stop])

    def set_options(self, **options: Any) -> None:
        recurrence = self._whole().recurrence
        before = recurrence.groups, dict(recurrence.buffers), recurrence.steps, recurrence.started
        try:
            with self._ranks.together("set_options"):
                with_options(recurrence.groups, options, len(self), recurrence.layout.space)
                self._ranks.agree("options", said(options))
                super().set_options(**{n: part_of(v, self._division.own) for n, v in options.items()})
        except BaseException:
            recurrence.restore(*before)
            raise

    @property
    def thetas(self) -> Tensor:
        with self._ranks.together("thetas", meets=True):
            self._require_room(self._whole(), 1, "thetas")
            return self._division.gather(super().thetas, "thetas")

    @property
    def diverged(self) -> Tensor:
        with self._ranks.together("diverged", meets=True):
            return self._division.gather(super().diverged, "diverged")

    @property
    def buffers(self) -> dict[str, Tensor]:
        with self._ranks.together("buffers", meets=True):
            return {n: self._division.gather(b, f"buffer {n}") for n, b in super().buffers.items()}

    @property
    def last_step(self) -> list[StepInfo | None]:
        with self._ranks.together("last_step", meets=True):
            parts = self._ranks.gather_objects(super().last_step, "last_step")
            return [info for part in parts for info in part]

    def distances(self, to: int | Tensor = 0) -> Tensor:
        with self._ranks.together("distances", meets=True):
            d = self._differences(to)
            return self._division.gather(d.norm(dim=1), _name("distances", to))

    def along(self, V: Tensor, to: int | Tensor = 0) -> Tensor:
        with self._ranks.together("along", meets=True):
            d = readings.along(self._whole(), V, self._reference(to))
            return self._division.gather(d, f"{_name('along', to)} {tensor_said(V)}")

    def nonlinearity(self, predicted: Tensor, to: int = 0) -> Tensor:
        with self._ranks.together("nonlinearity", meets=True):
            i = readings.member(self, to, "to")
            columns = readings.predictions(predicted, self._members.layout.space.size, len(self) - 1)
            own = self._division.own
            others = [j for j in range(own.start, own.stop) if j != i]
            d = self._differences(i)
            errors = d.new_zeros(len(d))
            places = [j - own.start for j in others]
            errors[places] = readings.relative_errors(d[places], columns[:, own_columns(others, i)])
            found = self._division.gather(errors, f"nonlinearity {tensor_said(columns)}")
            return torch.cat([found[:i], found[i + 1 :]])

    def _differences(self, to: int | Tensor) -> Tensor:
        return readings.differences(self._whole(), self._reference(to))

    def _reference(self, to: int | Tensor) -> Tensor:
        """A vector as it is; of a member its parameters [P]."""
        return to if isinstance(to, Tensor) else self._theta_of(readings.member(self, to, "to"))

    def _theta_of(self, i: int) -> Tensor:
        members, own = self._whole(), self._division.own
        here = members.theta[i - own.start : i - own.start + 1] if own.start <= i < own.stop else None
        row = None if here is None else members.layout.unpack(here)[0]
        return self._division.send(row, i, "parameters", members.theta)

    def evaluate(self, x: Any, y: Any) -> readings.Evaluation:
        with self._ranks.together("evaluate", meets=True):
            found = super().evaluate(x, y)
            what = f"on a batch with checksums {batch_said(x, y)}"
            loss = self._division.gather(found.loss, f"losses {what}")
            accuracy = found.accuracy
            return readings.Evaluation(
                loss, None if accuracy is None else self._division.gather(accuracy, f"accuracies {what}")
            )

    def load_into(self, model: nn.Module, i: int) -> None:
        with self._ranks.together("load_into"):
            i, members, own = readings.member(self, i), self._whole(), self._division.own
            readings.require_like(members, model)
            theta = members.layout.zeros(1)
            members.layout.pack_(theta, self._theta_of(i).unsqueeze(0))
            place = i - own.start if own.start <= i < own.stop else None
            buffers = {
                n: self._division.send(None if place is None else b[place], i, n, b).unsqueeze(0)
                for n, b in members.buffers.items()
            }
        readings.load_into(Members(members.layout, theta, buffers, members.recurrence), model, 0)

    def spectrum(self, x: Any, y: Any, **options: Any) -> list[Spectrum | None]:
        _refuse("spectrum")

    def directions(self, x: Any, y: Any, **options: Any) -> list[Spectrum | None]:
        _refuse("directions")

    def state_dict(self) -> dict[str, Any]:
        with self._ranks.together("state_dict", meets=True):
            members = self._whole()
            self._require_room(members, 1 + len(members.recurrence.buffers), "state_dict")
            state = super().state_dict()
            self._ranks.agree("the members", [state[n] for n in ("steps", "parameter_steps", "started")])
            whole = checkpoint.each_of_members(state, lambda t: self._division.gather(t, "state_dict"))
        return {**whole, "fingerprint": dict(self._of_all)}

    def _require_room(self, members: Members, rows: int, what: str) -> None:
        need = rows * len(self) * members.layout.space.size * members.theta.element_size()
        memory.require(need, members.theta.device, f"{what} of {len(self)} members", "read single ones with load_into")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with self._ranks.together("load_state_dict"):
            part = checkpoint.part_of(state, self._division.own, self._of_all)
            checkpoint.require_fit(part, self._members, self._fingerprint)
            self._ranks.agree("state", {"steps": state["steps"], "values": said(state)})
        with self._ranks.together("csv"):
            if self._rows is not None:
                self._rows.resume(state["steps"])
        try:
            with self._ranks.together("load_state_dict"):
                super().load_state_dict(part)
        except BaseException:
            self._members.torn = True
            raise

    def save(self, path: str | os.PathLike[str]) -> None:
        with self._ranks.together("save"):
            state = self.state_dict()
            if not self._ranks.rank:
                write_keeping_previous(Path(path), state)

    def load(self, path: str | os.PathLike[str]) -> None:
        with self._ranks.together("load"):
            self.load_state_dict(read_or_previous(Path(path)))


def _name(what: str, to: int | Tensor) -> str:
    return f"{what} to {tensor_said(to) if isinstance(to, Tensor) else f'member {to}'}"


def _refuse(what: str) -> NoReturn:
    raise UnsupportedError(
        f"{what}: not of an Ensemble with group, whose members are on several ranks; load_into a model and take "
        f"ce.{what}(ce.HessianOperator(model, loss_fn, x, y)), or make an Ensemble without group of some members"
    )
