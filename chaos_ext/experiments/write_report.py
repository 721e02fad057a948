"""The command ``chaos-ext report``."""

from __future__ import annotations

import argparse

from .output import UsageError
from .page import write_page


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Writes the page; returns the exit status, 0.

    Args:
        args: as ``report_options`` has them parsed.
        parser: of these.

    Raises:
        UsageError: a folder without a study that has ended, or a place that cannot be written.
    """
    if args.out.suffix != ".html":
        parser.error(f"argument --out: expected a name that ends in .html, got {str(args.out)!r}")
    if not args.out.parent.is_dir():
        raise UsageError(f"--out {args.out}: its folder does not exist")
    write_page(args.folders, args.out)
    return 0
