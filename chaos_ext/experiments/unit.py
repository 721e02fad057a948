"""Training of one unit (seed, run) that can be killed at any moment and continued to the same bytes.

The rows go to a file that is only ever appended to. A checkpoint holds everything that the next step depends on, and
the length and hash of the rows written before it; it is written after those rows are on disk. To continue, the rows
are cut back to that length. A checkpoint that is missing, damaged, or does not match its rows means starting anew.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import chaos_ext as ce

from ..base.contents import UnfitError, count, number, parts, refusing, require
from ..base.files import read_sealed, write_sealed
from ..data import BatchOrder, Dataset, batch_hash
from ..data.batches import derive_seed
from ..errors import CheckpointError, NonFiniteError, NotConvergedError
from ..models import MODELS
from .interruption import Interrupted, between_steps
from .output import OutputFolder
from .rows import RowFile, format_row, roll
from .settings import Settings, Unit

log = logging.getLogger("chaos_ext")

# report(steps, restored): steps that are done now and were not before; restored ones were done by an earlier process.
Report = Callable[[int, bool], None]
_EVALUATION_CHUNK = 2048


def build_model(settings: Settings, seed: int) -> nn.Sequential:
    """The model at theta(0), the same for all runs of a seed."""
    make = MODELS[settings.model]
    # A seed of its own: with the batches' seed, initial weights and first permutation would share random bits.
    init = derive_seed("init", seed)
    dtype = getattr(torch, settings.dtype)
    return make(activation=settings.activation, seed=init, dtype=dtype, device=settings.device)


class Trainer:
    """The state of one unit: everything that a checkpoint holds, and the step that advances it.

    Attributes:
        step: number of optimizer steps taken; theta(step) are the model's parameters now.
        epoch_hashes: one hash of all batch hashes for each epoch that was finished or left.
        failure: None, or the step at which training could not go on and why.
    """

    def __init__(self, settings: Settings, unit: Unit, data: Dataset) -> None:
        self.settings, self.unit, self.data = settings, unit, data
        self.batch_data = data.to(getattr(torch, settings.dtype), settings.device)
        self.order = BatchOrder(len(data.y_train), settings.batch_size, unit.seed)
        self.total = settings.steps(len(data.y_train))
        self.model = build_model(settings, unit.seed)
        self.loss_fn = nn.CrossEntropyLoss()
        self.generator = torch.Generator().manual_seed(derive_seed("prune", unit.seed, unit.run))
        self.optimizer = self._make_optimizer()
        self.step = 0
        self.epoch_hashes: list[str] = []
        self.failure: dict[str, Any] | None = None
        self.seconds, self.fastest = 0.0, float("inf")
        self.near = [0.0, 0.0]  # sums over steps: eigenvalues near the zero threshold, their share of ||g||^2
        self.zero_tol: float | None = None
        self._batches: tuple[Tensor, ...] = ()
        self._hashes: list[str] = []

    def _make_optimizer(self) -> ce.CGD:
        s, prune = self.settings, None if self.unit.run == "sgd" else self.unit.run
        return ce.CGD(
            self.model.parameters(),
            lr=s.lr,
            momentum=s.momentum,
            prune=prune,
            k=s.k,
            order=s.order,
            generator=self.generator,
        )

    @property
    def done(self) -> bool:
        """Whether no step is left to take, or none can be taken."""
        return self.failure is not None or self.step >= self.total

    def advance(self) -> bytes:
        """Takes one step; returns its row, or nothing if the numbers left the finite ones (see ``failure``)."""
        index = self._next_batch()
        began = time.perf_counter()
        try:
            values = self._measure_and_step(index)
        except (NonFiniteError, NotConvergedError) as error:
            self.failure = {"step": self.step, "error": f"{type(error).__name__}: {error}"}
            self._close_epoch()
            return b""
        elapsed = time.perf_counter() - began
        self.seconds, self.fastest = self.seconds + elapsed, min(self.fastest, elapsed)
        self.step += 1
        val_loss = val_accuracy = None
        if self.step % self.order.steps_per_epoch == 0 or self.step == self.total:
            self._close_epoch()
            val_loss, val_accuracy = self._evaluate()
        loss, accuracy, *spectral = values
        head = (self.unit.run, self.unit.seed, self.step - 1)
        return format_row((*head, loss, accuracy, val_loss, val_accuracy, *spectral))

    def _next_batch(self) -> Tensor:
        epoch, position = divmod(self.step, self.order.steps_per_epoch)
        if not self._hashes:
            self._batches = self.order.epoch(epoch)
            # After a restart in the middle of an epoch the hashes of its first batches are made again.
            self._hashes = [self._hash(index) for index in self._batches[:position]]
        index = self._batches[position]
        self._hashes.append(self._hash(index))
        return index

    def _hash(self, index: Tensor) -> str:
        return batch_hash(self.data.x_train[index], self.data.y_train[index], index)

    def _close_epoch(self) -> None:
        self.epoch_hashes.append(roll(self._hashes))
        self._hashes = []

    def _measure_and_step(self, index: Tensor) -> tuple[float | int, ...]:
        """Loss, accuracy and spectrum at theta(t) on the batch, then the step to theta(t+1)."""
        index = index.to(self.settings.device)
        x, y = self.batch_data.x_train[index], self.batch_data.y_train[index]
        op = ce.HessianOperator(self.model, self.loss_fn, x, y)
        spec = ce.directions(op)
        s = ce.spectral_summary(spec, self.settings.lr)
        assert isinstance(op.output, Tensor)
        loss, accuracy = op.loss.item(), (op.output.argmax(1) == y).double().mean().item()
        self.optimizer.step(spec)
        self.near[0] += s.n_near_threshold
        self.near[1] += 0.0 if math.isnan(s.share_near_threshold) else s.share_near_threshold  # NaN: g = 0
        self.zero_tol = spec.zero_tol
        counts = (s.n_negative, s.n_zero, s.n_positive, s.n_chaotic)
        shares = (s.share_negative, s.share_zero, s.share_positive, s.share_chaotic)
        return (loss, accuracy, *counts, s.lambda_min, s.lambda_max, *shares)

    def _evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy over the test split at theta(t) now."""
        d, loss, hits = self.batch_data, 0.0, 0
        with torch.no_grad():
            chunks = (torch.split(t, _EVALUATION_CHUNK) for t in (d.x_test, d.y_test))
            for x, y in zip(*chunks, strict=True):
                output = self.model(x)
                loss += nn.functional.cross_entropy(output, y, reduction="sum").item()
                hits += int((output.argmax(1) == y).sum())
        return loss / len(d.y_test), hits / len(d.y_test)

    def state(self) -> dict[str, Any]:
        """Everything that ``load`` needs, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            **self.record(),
        }

    def record(self) -> dict[str, Any]:
        """What the report says about this unit."""
        names = ("epoch_hashes", "failure", "seconds", "fastest", "near", "zero_tol")
        return {name: getattr(self, name) for name in names} | {"steps": self.step, "done": self.done}

    def load(self, state: dict[str, Any]) -> None:
        """Goes back to the ``state`` of a trainer with the same settings, unit and data.

        Raises:
            UnfitError: it is not one; the trainer is of no use any more.
        """
        self._check(state)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
        except Exception as error:  # each of them raises several kinds
            raise UnfitError(f"state: {error}") from error
        for name in ("step", "epoch_hashes", "failure", "seconds", "fastest", "near", "zero_tol"):
            setattr(self, name, state[name])

    def _check(self, state: Any) -> None:
        """Plain values only; model, optimizer and generator check what is theirs."""
        parts(state, self.state())
        step, failure, hashes = state["step"], state["failure"], state["epoch_hashes"]
        count("step", step, 0, self.total)
        broke_off = failure is not None
        require(not broke_off or set(parts(failure, ("step", "error"))) == {"step", "error"}, "failure", "two", failure)
        epochs, rest = divmod(step, self.order.steps_per_epoch)
        left = broke_off or (step == self.total and rest > 0)
        whole = isinstance(hashes, list) and all(isinstance(h, str) for h in hashes)
        require(whole and len(hashes) == epochs + left, "epoch_hashes", f"{epochs + left} hashes", hashes)
        number("seconds", state["seconds"])
        fastest = state["fastest"]
        require(isinstance(fastest, float) and (fastest > 0 if step else True), "fastest", "a time", fastest)
        require(isinstance(state["near"], list) and len(state["near"]) == 2, "near", "two numbers", state["near"])
        for value in (*state["near"], *([] if state["zero_tol"] is None else [state["zero_tol"]])):
            number("near, zero_tol", value)


def run_unit(
    settings: Settings, unit: Unit, data: Dataset, out: OutputFolder, every: float, report: Report
) -> dict[str, Any]:
    """Trains a unit to its end, from its checkpoint if there is a good one.

    Args:
        settings: of the experiment.
        unit: which run of it.
        data: the data set, float32 on the CPU.
        out: where rows and checkpoint are.
        every: seconds between checkpoints.
        report: told of steps that are done.

    Returns:
        ``Trainer.record()`` at the end.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; a checkpoint of the last step was written.
    """
    with RowFile(out.rows(unit)) as rows:
        trainer = _restore(settings, unit, data, out, rows)
        report(trainer.step, True)
        saved = time.monotonic()
        with between_steps() as asked_to_end:
            while not trainer.done:
                rows.append(trainer.advance())
                signum = asked_to_end()
                if trainer.done or signum is not None or time.monotonic() - saved >= every:
                    _save(settings, trainer, out, rows)
                    saved = time.monotonic()
                if signum is not None:
                    raise Interrupted(signum, f"{unit.name} at step {trainer.step}")
                report(int(trainer.failure is None), False)
        return trainer.record()


def _save(settings: Settings, trainer: Trainer, out: OutputFolder, rows: RowFile) -> None:
    rows.flush()  # first: a checkpoint must never speak of rows that a kill can still lose
    identity = {"settings": settings.to_json(), "unit": trainer.unit.name}
    write_sealed(out.checkpoint(trainer.unit), {**identity, "rows": rows.mark(), "state": trainer.state()})


def _restore(settings: Settings, unit: Unit, data: Dataset, out: OutputFolder, rows: RowFile) -> Trainer:
    trainer = Trainer(settings, unit, data)
    path = out.checkpoint(unit)
    try:
        content = read_sealed(path)
        with refusing(str(path)):
            parts(content, ("settings", "unit", "rows", "state"))
            own = content["settings"] == settings.to_json() and content["unit"] == unit.name
            require(own, "checkpoint", f"one of {unit.name} with these settings", content["unit"])
            trainer.load(content["state"])
            kept = rows.cut_back(content["rows"])
            require(kept == trainer.step, "rows", f"{trainer.step}, one a step", kept)
        return trainer
    except FileNotFoundError:
        pass
    except CheckpointError as error:
        log.warning("%s; this unit starts anew", error)
    rows.clear()
    return Trainer(settings, unit, data)
