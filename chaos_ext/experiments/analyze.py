"""The command ``chaos-ext analyze``: a model of the user's own, trained and looked at step by step."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import chaos_ext as ce

from ..base.files import atomic_write
from ..base.progress import Progress
from . import report
from .analyze_figure import figure_analysis
from .analyze_options import NAME
from .arguments import require_figures
from .command import command_of
from .output import METRICS, OutputFolder, UsageError
from .settings import Recorded
from .study import write_figure


@dataclass(frozen=True, kw_only=True)
class AnalyzeSettings(Recorded):
    """Settings of ``chaos-ext analyze``."""

    model: str
    data: str
    loss: str
    optimizer: str
    lr: float
    momentum: float
    steps: int
    every: int
    what: tuple[str, ...]
    k: int
    seeds: tuple[int, ...]


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Trains, records, draws.

    Args:
        args: as ``analyze_options`` has them parsed.
        parser: of these.

    Returns:
        The exit status: 0, or 1 if training diverged; the records until then are kept.

    Raises:
        UsageError: a module that cannot be imported, a name that is not what it should be, batches that run out,
            matplotlib is missing, the output folder is not one to work in.
        ChaosExtError: what the model or its loss is refused for.
        Interrupted: Ctrl-C or SIGTERM came; records until then are kept.
    """
    require_figures()
    if "exponents" not in args.what and args.k != 1:
        parser.error(f"argument --k: only with --what exponents, got {args.k}")
    torch.manual_seed(args.seed)
    for option, text in (("--model", args.model), ("--data", args.data), ("--loss", args.loss)):
        _named(option, text)  # a module may draw when it is imported, which is once
    torch.manual_seed(args.seed)
    model, batches, loss_fn = _made(args)
    opt = _optimizer(args, model)
    out = OutputFolder(args.out)
    with out.claimed(False):
        manifest = out.begin(NAME, _settings(args))
        out.parts.rmdir()
        records: list[dict[str, Any]] = []
        failure = None
        try:
            failure = _train(args, model, opt, loss_fn, batches, records)
        finally:  # Ctrl-C, too
            _write(out.path / METRICS, records)
        if records:
            title = f"{args.model}, {args.optimizer}, lr {args.lr:g}"
            write_figure(out.path / "figure", figure_analysis(records, title))
        settings = _settings(args)
        status = {"status": "failed" if failure else "complete", "failure": failure, "records": len(records)}
        own = {"command": command_of(NAME, args, parser).replace("reproduce ", ""), "findings": []}
        out.write_manifest({**manifest, **status, **own, **report.environment(settings, 1)})
    print(f"written to {out.path}: {', '.join(sorted(p.name for p in out.path.iterdir()))}")
    if failure:
        print(f"chaos-ext: training diverged at step {failure['step']}: {failure['error']}", file=sys.stderr)
    return 1 if failure else 0


def _settings(args: argparse.Namespace) -> AnalyzeSettings:
    copied = ("model", "data", "loss", "optimizer", "lr", "momentum", "steps", "every", "what", "k")
    return AnalyzeSettings(
        **{name: getattr(args, name) for name in copied},
        seeds=(args.seed,),
        device="cpu",
        threads=torch.get_num_threads(),
        chaos_ext=ce.__version__,
        torch=str(torch.__version__),
    )


def _made(args: argparse.Namespace) -> tuple[nn.Module, Iterable[Any], Callable[..., torch.Tensor]]:
    model = _called("--model", args.model)
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {args.model}: expected it to return a torch.nn.Module, got {type(model).__name__}")
    loss_fn = _called("--loss", args.loss)
    if not callable(loss_fn):
        raise UsageError(f"--loss {args.loss}: expected it to return loss_fn(output, y), got {type(loss_fn).__name__}")
    data = _named("--data", args.data)
    batches = data if isinstance(data, Iterable) and not isinstance(data, type) else _called("--data", args.data)
    if not isinstance(batches, Iterable):
        raise UsageError(f"--data {args.data}: expected batches (x, y), got {type(batches).__name__}")
    return model, batches, loss_fn


def _named(option: str, text: str) -> Any:
    """What MODULE:NAME names; the current folder is looked in first, as with ``python -m``."""
    module, _, name = text.partition(":")
    if not module or not name:
        raise UsageError(f"{option} {text}: expected MODULE:NAME, such as my_module:build")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UsageError(f"{option} {text}: cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    return found


def _called(option: str, text: str) -> Any:
    function = _named(option, text)
    if not callable(function):
        raise UsageError(f"{option} {text}: expected a function, got {type(function).__name__}")
    try:
        return function()
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"{option} {text}: calling it failed ({type(error).__name__}: {error})") from error


def _optimizer(args: argparse.Namespace, model: nn.Module) -> Optimizer:
    if args.optimizer == "sgd":
        return SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    return (Adam if args.optimizer == "adam" else AdamW)(model.parameters(), lr=args.lr)


def _train(
    args: argparse.Namespace,
    model: nn.Module,
    opt: Optimizer,
    loss_fn: Callable[..., torch.Tensor],
    batches: Iterable[Any],
    records: list[dict[str, Any]],
) -> dict[str, Any] | None:
    """Appends a record every so many steps; the step at which training diverged, and why, or None."""
    rec = ce.Recorder(model, opt, records.append, args.every, args.what, args.k)
    with Progress(args.steps, lines=NAME) as progress:
        for step, (x, y) in enumerate(itertools.islice(_endless(args.data, batches), args.steps)):
            try:
                rec.update(ce.HessianOperator(model, loss_fn, x, y))
            except ce.NonFiniteError as error:
                return {"step": step, "error": f"{type(error).__name__}: {error}"}
            opt.zero_grad()
            loss_fn(model(x), y).backward()
            opt.step()
            progress.report(1, False)
    return None


def _endless(name: str, batches: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Epoch after epoch.

    Raises:
        UsageError: there are none, they cannot be walked again, or they are no pairs.
    """
    for epoch in itertools.count():
        seen = 0
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise UsageError(f"--data {name}: expected batches (x, y), got {type(batch).__name__}")
            seen += 1
            yield batch[0], batch[1]
        if not seen:
            again = "they ran out after one epoch and cannot be walked again; return a list or a DataLoader"
            raise UsageError(f"--data {name}: {again if epoch else 'expected at least one batch, got none'}")


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    if records:
        names = dict.fromkeys(name for record in records for name in record)
        writer = csv.DictWriter(text, fieldnames=list(names), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    atomic_write(path, text.getvalue())
