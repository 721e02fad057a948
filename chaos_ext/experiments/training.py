"""One model in training on the batches of a seed: what studies of training share, and a checkpoint holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base.contents import UnfitError, count, number, parts, require
from ..data import BatchOrder, Dataset, batch_hash
from ..data.batches import derive_seed
from ..errors import NonFiniteError, NotConvergedError
from ..models import MODELS
from .rows import format_row, roll
from .settings import Settings, Unit

_EVALUATION_CHUNK = 2048


def build_model(settings: Settings, seed: int) -> nn.Sequential:
    """The model at theta(0), the same for all runs of a seed."""
    make = MODELS[settings.model]
    # A seed of its own: with the batches' seed, initial weights and first permutation would share random bits.
    init = derive_seed("init", seed)
    dtype = getattr(torch, settings.dtype)
    own = settings.model_options
    return make(activation=settings.activation, seed=init, dtype=dtype, device=settings.device, **own)


def step_along(model: nn.Module, optimizer: Optimizer, direction: Tensor) -> None:
    """The optimizer's step with this [P] for the gradient."""
    params = list(model.parameters())
    for p, own in zip(params, direction.split([p.numel() for p in params]), strict=True):
        p.grad = own.view_as(p)
    optimizer.step()
    optimizer.zero_grad()


class Training:
    """A ``Work`` that trains; a study says by which optimizer, and what is measured and done at each step.

    Attributes:
        step: number of optimizer steps taken; theta(step) are the model's parameters now.
        epoch_hashes: one hash of all batch hashes for each epoch that was finished or left.
        failure: None, or the step at which training could not go on and why.
        plain: names of the attributes that are numbers or lists of them, and belong to state and record.
    """

    plain: tuple[str, ...] = ("epoch_hashes", "failure", "seconds", "fastest")

    def __init__(self, settings: Settings, unit: Unit, data: Dataset) -> None:
        self.settings, self.unit, self.data = settings, unit, data
        self.batch_data = data.to(getattr(torch, settings.dtype), settings.device)
        self.order = BatchOrder(len(data.y_train), settings.batch_size, unit.seed)
        self.total = settings.steps(len(data.y_train))
        self.model = build_model(settings, unit.seed)
        self.loss_fn = nn.CrossEntropyLoss()
        self.generator = torch.Generator().manual_seed(derive_seed("prune", unit.seed, unit.run))
        self.step = 0
        self.epoch_hashes: list[str] = []
        self.failure: dict[str, Any] | None = None
        self.seconds, self.fastest = 0.0, float("inf")
        self._batches: tuple[Tensor, ...] = ()
        self._hashes: list[str] = []
        self.optimizer = self.make_optimizer()

    def make_optimizer(self) -> Optimizer:
        """For the model, with the generator for what it draws."""
        raise NotImplementedError

    def measure_and_step(self, x: Tensor, y: Tensor) -> Sequence[float | int | None]:
        """Loss, accuracy and what else the study's rows have, at theta(t) on the batch, then the step to theta(t+1)."""
        raise NotImplementedError

    @property
    def rows(self) -> int:
        """One a step."""
        return self.step

    @property
    def taken(self) -> int:
        """Steps of this unit's work that are done, over all its passes."""
        return self.step

    @property
    def done(self) -> bool:
        """Whether no step is left to take, or none can be taken."""
        return self.failure is not None or self.step >= self.total

    def advance(self) -> bytes:
        """Takes one step; returns its row, or nothing if the numbers left the finite ones (see ``failure``)."""
        index = self.next_batch().to(self.settings.device)
        began = time.perf_counter()
        try:
            values = self.measure_and_step(self.batch_data.x_train[index], self.batch_data.y_train[index])
        except (NonFiniteError, NotConvergedError) as error:
            self.fail(error)
            return b""
        return self.stepped(values, time.perf_counter() - began)

    def fail(self, error: Exception) -> None:
        """Training cannot go on."""
        self.failure = {"step": self.step, "error": f"{type(error).__name__}: {error}"}
        self._close_epoch()

    @property
    def is_evaluated_next(self) -> bool:
        """Whether the next step is the last of an epoch, or of the run."""
        step = self.step + 1
        return step % self.order.steps_per_epoch == 0 or step == self.total

    def stepped(self, values: Sequence[float | int | None], seconds: float) -> bytes:
        """Counts a step that was taken, with what was measured before it; returns its row."""
        self.seconds, self.fastest = self.seconds + seconds, min(self.fastest, seconds)
        last = self.is_evaluated_next
        self.step += 1
        val_loss = val_accuracy = None
        if last:
            self._close_epoch()
            val_loss, val_accuracy = self.evaluate()
        return self.lines(values, val_loss, val_accuracy)

    def lines(self, values: Sequence[float | int | None], val_loss: float | None, val_accuracy: float | None) -> bytes:
        """What the step that has just been taken adds to the rows: one line."""
        loss, accuracy, *more = values
        head = (self.unit.run, self.unit.seed, self.step - 1)
        return format_row((*head, loss, accuracy, val_loss, val_accuracy, *more))

    def next_batch(self) -> Tensor:
        """The samples of the step to come; asked for once a step, since their hash is noted."""
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

    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy over the test split at theta(t) now."""
        return self.evaluate_on(self.batch_data.x_test, self.batch_data.y_test)

    def evaluate_on(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy over these samples at theta(t) now."""
        loss, hits = 0.0, 0
        with torch.no_grad():
            chunks = (torch.split(t, _EVALUATION_CHUNK) for t in (inputs, targets))
            for x, y in zip(*chunks, strict=True):
                output = self.model(x)
                loss += nn.functional.cross_entropy(output, y, reduction="sum").item()
                hits += int((output.argmax(1) == y).sum())
        return loss / len(targets), hits / len(targets)

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
        return {name: getattr(self, name) for name in self.plain} | {"steps": self.step, "done": self.done}

    def load(self, state: dict[str, Any]) -> None:
        """Goes back to the ``state`` of a training with the same settings, unit and data.

        Raises:
            UnfitError: it is not one; this one is of no use any more.
        """
        self.check(state)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
        except Exception as error:  # each of them raises several kinds
            raise UnfitError(f"state: {error}") from error
        for name in ("step", *self.plain):
            setattr(self, name, state[name])

    def check(self, state: Any) -> None:
        """Raises UnfitError for what cannot be; model, optimizer and generator check what is theirs."""
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
