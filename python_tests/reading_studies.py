"""Studies whose rows are readings, run in this process on few data and small networks, for the tests of them."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from chaos_ext import cli, models
from chaos_ext.data import BatchOrder, Dataset, load
from chaos_ext.data.batches import derive_seed
from chaos_ext.experiments import study, training


def few_digits(name: str = "digits", root: str | None = None) -> Dataset:
    """77 training samples: 10 steps an epoch, the last on 5 samples."""
    d = load(name, root)
    return replace(d, x_train=d.x_train[:77], y_train=d.y_train[:77], x_test=d.x_test[:50], y_test=d.y_test[:50])


def reproduce(made: type[study.Study], out: Path, *options: str, steps: int = 30, hidden: int = 1) -> int:
    """The command with tanh, so many steps and so many hidden units (1: P = 277); its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, made, steps, hidden)
        words = ["reproduce", made.name, "--quick", "--activation", "tanh", "--out", str(out), *options]
        try:
            return cli.main(words)
        except SystemExit as end:
            return int(end.code or 0)


def prepare(patch: pytest.MonkeyPatch, made: type[study.Study], steps: int, hidden: int = 1) -> None:
    """Small networks on few data."""
    patch.setitem(models.MODELS, "mlp", functools.partial(models.paper_mlp, hidden=hidden))
    patch.setattr(made, "quick_steps", steps)
    patch.setattr(study, "load", few_digits)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def trajectory(seed: int, steps: int, lr: float, momentum: float = 0.0, batch_size: int = 8) -> tuple[Any, list[Any]]:
    """The model at theta(0) and theta(0) .. theta(steps) of a plain torch loop, each a state dict, with the batches."""
    d = few_digits().to(torch.float64, "cpu")
    model = models.paper_mlp(
        hidden=1, activation="tanh", seed=derive_seed("init", seed), dtype=torch.float64, device="cpu"
    )
    opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    order, found = BatchOrder(len(d.y_train), batch_size, seed), []
    for t in range(steps + 1):
        epoch, position = divmod(t, order.steps_per_epoch)
        index = order.epoch(epoch)[position]
        x, y = d.x_train[index], d.y_train[index]
        found.append(({k: v.clone() for k, v in model.state_dict().items()}, x, y))
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    return model, found


def hessian_at(
    model: torch.nn.Module, state: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Dense, by torch.func, in the order of the parameters [P, P]."""
    names = [n for n, _ in model.named_parameters()]
    sizes = [state[n].numel() for n in names]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        parts = {n: p.view_as(state[n]) for n, p in zip(names, theta.split(sizes), strict=True)}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, parts, (x,)), y)

    return torch.func.hessian(loss)(torch.cat([state[n].flatten() for n in names]))


def interrupted(made: type[study.Study], after: int, out: Path, *options: str, **sizes: int) -> int:
    """The command, with Ctrl-C at the so-many-th step and checkpoints after every one."""
    taken, advance = [0], training.Training.advance

    def stop(work: training.Training) -> bytes:
        taken[0] += 1
        if taken[0] == after:
            raise KeyboardInterrupt
        return advance(work)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "advance", stop)
        return reproduce(made, out, "--checkpoint-every", "1e-9", *options, **sizes)


_KILLED = """
import os, signal, sys
import pytest, reading_studies
from chaos_ext import cli
from chaos_ext.experiments import {module} as m, training

made, after, advance, taken = m.{made}, int(sys.argv[1]), training.Training.advance, [0]

def stop(work):
    taken[0] += 1
    if taken[0] == after:
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(work)

training.Training.advance = stop
sys.exit(reading_studies.reproduce(made, sys.argv[2], *sys.argv[3:]))
"""


def killed(made: type[study.Study], after: int, out: Path, *options: str) -> int:
    """The command in a process of its own that kills itself in the middle, with a checkpoint of now and then."""
    code = _KILLED.format(module=made.__module__.rpartition(".")[2], made=made.__name__)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", code, str(after), str(out), "--checkpoint-every", "0.02", *options]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.returncode


def write_rows(path: Path, columns: tuple[str, ...], table: list[tuple[Any, ...]]) -> Path:
    """Made-up rows."""
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, r)) for r in table)]) + "\n")
    return path
