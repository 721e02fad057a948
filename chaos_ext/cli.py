"""The command ``chaos-ext``.

Exit status: 0 success, 1 a run failed, 2 the command cannot start as given, 130 interrupted (Ctrl-C),
143 terminated (SIGTERM).

What takes long to import, torch above all, is imported when a command runs: help and usage errors come at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ._version import __version__
from .experiments import (
    analyze_options,
    axes_options,
    bounds_options,
    doctor_options,
    epsilon_options,
    everything_options,
    exponents_options,
    fig1_options,
    fig2_options,
    fig3_options,
    finite_time_options,
    generalisation_options,
    global_prune_options,
    init_distance_options,
    magnitude_options,
    random_walk_options,
    report_options,
    spectrum_options,
    subspace_options,
)
from .experiments.interruption import Interrupted, handled

# The module that runs NAME is ``experiments.NAME``, with underscores.
_EXPERIMENTS = (
    fig1_options,
    fig2_options,
    fig3_options,
    finite_time_options,
    spectrum_options,
    axes_options,
    exponents_options,
    subspace_options,
    generalisation_options,
    init_distance_options,
    magnitude_options,
    epsilon_options,
    bounds_options,
    random_walk_options,
    global_prune_options,
    everything_options,
)
_MODULES = {everything_options.NAME: "everything", report_options.NAME: "write_report"}  # that have other names


_OVERVIEW = f"""chaos-ext {__version__}: chaos in neural network training, exactly

Your model
  chaos-ext analyze --model my_module:build --data my_module:loader
                            trains it; exponents, spectrum and stability of every step, and their figure

The paper (Herrmann, Granz, Landgraf, NeurIPS 2022), on an embedded data set
  chaos-ext reproduce fig1 --quick          rehearse Figure 1 in ten seconds
  chaos-ext reproduce fig1                  Figure 1: training without chaotic directions, in minutes
  chaos-ext reproduce --help                all studies
  chaos-ext report FOLDER                   one page of figures and verdicts of studies that were run

This installation
  chaos-ext doctor          are its numbers right? what is missing?
  chaos-ext info            what was built, and what is usable

From Python
  import chaos_ext as ce
  op = ce.HessianOperator(model, loss_fn, x, y)    # your torch.nn.Module, loss and batch
  spec = ce.spectrum(op)                           # all nonzero eigenpairs, exact
  ce.figures.plot_lle(spec.eigenvalues, lr=0.1).figure.savefig("figure.png")

Options of a command: chaos-ext COMMAND --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns the exit status; bad options end in SystemExit(2), as argparse does it."""
    given = sys.argv[1:] if argv is None else argv
    if not given:
        print(_OVERVIEW)
        return 0
    args = _parser().parse_args(given)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="chaos-ext: %(message)s")
    try:
        status: int = args.command(args)
        return status
    except KeyboardInterrupt:
        return _say_interrupted(Interrupted(signal.SIGINT))
    except Interrupted as interrupted:
        return _say_interrupted(interrupted)


def _say_interrupted(by: Interrupted) -> int:
    what = "terminated" if by.signum == signal.SIGTERM else "interrupted"
    saved = f"; a checkpoint was written ({by.saved})" if by.saved else ""
    print(f"\nchaos-ext: {what}{saved}; the same command with --resume continues", file=sys.stderr)
    return 128 + by.signum


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos-ext", description="Chaos in neural network training, exactly.")
    verbose = ("-v", "--verbose")
    parser.add_argument(*verbose, action="store_true", help="log more")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="what was built, what is loaded and what is usable")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(command=_info)
    commands_with_options = [info]

    reproduce = commands.add_parser("reproduce", help="run an experiment of the paper and draw its figure")
    figures = reproduce.add_subparsers(required=True, metavar="FIGURE")
    for experiment in _EXPERIMENTS:
        sub = figures.add_parser(experiment.NAME, help=experiment.HELP, description=experiment.HELP)
        experiment.add_arguments(sub)
        sub.set_defaults(command=lambda args, e=experiment.NAME, p=sub: _reproduce(args, e, p))
        commands_with_options.append(sub)
    for own in (analyze_options, report_options, doctor_options):
        sub = commands.add_parser(own.NAME, help=own.HELP, description=own.HELP)
        own.add_arguments(sub)
        sub.set_defaults(command=lambda args, e=own.NAME, p=sub: _reproduce(args, e, p))
        commands_with_options.append(sub)
    for sub in commands_with_options:  # without a default, which would undo a -v before the command
        sub.add_argument(*verbose, action="store_true", default=argparse.SUPPRESS, help="log more")
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"chaos-ext {__version__}")
        parser.exit()


def _reproduce(args: argparse.Namespace, name: str, parser: argparse.ArgumentParser) -> int:
    from .errors import ChaosExtError, DatasetNotFoundError
    from .experiments.output import UsageError, WorkerError

    module = _MODULES.get(name, name.replace("-", "_"))
    experiment = importlib.import_module(f".experiments.{module}", __package__)
    try:
        with handled():
            return _run(experiment, args, parser)
    except (UsageError, DatasetNotFoundError) as error:
        print(f"chaos-ext: error: {error}", file=sys.stderr)
        return 2
    except (ChaosExtError, WorkerError) as error:
        print(f"chaos-ext: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that vanished: what is on disk is still good
        print(f"chaos-ext: error: {error}; the same command with --resume continues", file=sys.stderr)
        return 1


def _run(experiment: Any, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """The experiment itself, or on another rank of torchrun than 0 what that one hands out."""
    from .experiments import fleet

    if not fleet.is_launched():
        return int(experiment.run(args, parser))
    with fleet.joined() as ranks:
        if ranks.rank:
            ranks.serve()
            return 0
        args.resume = ranks.restarted or getattr(args, "resume", False)
        return int(experiment.run(args, parser))


def _info(args: argparse.Namespace) -> int:
    from ._build_info import build_info

    info = build_info()
    if args.json:
        print(json.dumps(info, indent=1, default=str))
        return 0
    width = max(map(len, info))
    for key, value in info.items():
        print(f"{key:<{width}}  {_readable(value)}")
    return 0


def _readable(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_readable(v)}" for k, v in value.items()) or "none"
    return "none" if value is None else str(value)
