"""A command line as it has to be given again, without what belongs to one machine."""

from __future__ import annotations

import argparse
import shlex

# Folders, processes, how a run was continued: none of them decides a number.
_LEFT_OUT = ("root", "out", "jobs", "resume", "checkpoint_every", "keep_checkpoint", "baselines", "verbose", "command")


def command_of(name: str, args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """``chaos-ext reproduce NAME`` with the options that are not the defaults."""
    words = ["chaos-ext", "reproduce", name]
    for option, value in vars(args).items():
        if option in _LEFT_OUT or value == parser.get_default(option):
            continue
        words.append("--" + option.replace("_", "-"))
        if isinstance(value, tuple):
            words.append(",".join(map(str, value)) or "none")
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)
