"""Studies that train nothing: they compute, and are made anew if they were cut short."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from . import report
from .arguments import require_figures
from .command import command_of
from .findings import Finding
from .output import OutputFolder
from .settings import Recorded


def run_computed(
    name: str,
    settings: Recorded,
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    folder: str,
    make: Callable[[OutputFolder], list[Finding]],
) -> int:
    """Computes, and writes every result.

    Args:
        name: of the study.
        settings: decide its numbers.
        args: as its options have them parsed.
        parser: of these.
        folder: in which results lie without ``--out``.
        make: writes files and figure, and says what they show.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: matplotlib is missing, or the output folder is not one to work in.
    """
    require_figures()
    out = OutputFolder(args.out or Path("results") / f"{folder}{'-quick' if args.quick else ''}")
    with out.claimed(args.resume):
        manifest = out.begin(name, settings)
        out.parts.rmdir()
        if manifest["status"] == "running":
            findings = make(out)
            out.write_manifest(
                {
                    "experiment": name,
                    "command": command_of(name, args, parser),
                    "status": "complete",
                    "settings": settings.to_json(),
                    "findings": [f.to_json() for f in findings],
                    **report.environment(settings, 1),
                }
            )
            for f in findings:
                print(f"{f.verdict}: {f.claim} ({f.numbers})")
    print(f"written to {out.path}: {', '.join(sorted(p.name for p in out.path.iterdir()))}")
    return 0
