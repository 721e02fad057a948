"""The command ``chaos-ext reproduce all``: every study by its own command, then the report."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from . import (
    axes_options,
    bounds_options,
    epsilon_options,
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
    spectrum_options,
    subspace_options,
)
from .page import write_page

# With the options that its place in the report asks for.
STUDIES = (
    (fig1_options, ("--controls", "rank,energy")),
    (fig2_options, ()),
    (fig3_options, ()),
    (spectrum_options, ()),
    (axes_options, ()),
    (exponents_options, ()),
    (subspace_options, ("--epochs", "2", "--checkpoint-every", "300")),
    (generalisation_options, ()),
    (finite_time_options, ()),
    (magnitude_options, ()),
    (epsilon_options, ()),
    (bounds_options, ()),
    (global_prune_options, ()),
    (init_distance_options, ()),
    (random_walk_options, ()),
)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs what is left, and writes report.html and report.md; what is raised is what the studies raise.

    Args:
        args: as ``everything_options`` has them parsed.
        parser: of these.

    Returns:
        The exit status: 0, or 1 if a run of a study diverged.
    """
    out: Path = args.out or Path("results") / f"all-{args.data}{'-quick' if args.quick else ''}"
    statuses = []
    for options, own in STUDIES:
        print(f"== {options.NAME}", flush=True)
        study = argparse.ArgumentParser(prog=f"{parser.prog}: {options.NAME}")
        options.add_arguments(study)
        given = study.parse_args([*_common(args, options.NAME), *own, "--out", str(out / options.NAME)])
        if "baselines" in given:  # the trainings of studies of twins are the same
            given.baselines = out / "baselines"
        module = importlib.import_module(f".{options.NAME.replace('-', '_')}", __package__)
        statuses.append(module.run(given, study))
    write_page([out], out / "report.html")
    return max(statuses)


def _common(args: argparse.Namespace, name: str) -> list[str]:
    words = [flag for flag, on in (("--resume", args.resume), ("--quick", args.quick)) if on]
    if name == random_walk_options.NAME:  # there is no model
        return [*words, "--seed", str(args.seeds[0])]
    words += ["--model", args.model]
    if name == init_distance_options.NAME:  # nothing is trained
        return [*words, "--seed", str(args.seeds[0])]
    words += ["--data", args.data, "--epochs", str(args.epochs), "--checkpoint-every", str(args.checkpoint_every)]
    words += ["--root", args.root] if args.root else []
    if name == finite_time_options.NAME:  # one run, with all threads
        return [*words, "--seed", str(args.seeds[0])]
    return [*words, "--seeds", ",".join(map(str, args.seeds)), "--jobs", str(args.jobs)]
