"""The page about the command line, from the help of the command itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from chaos_ext import cli

_HEAD = """# The command line

`chaos-ext` without a command shows what it can do. `python -m chaos_ext` is the same. Exit status: 0 success, 1 a run
failed, 2 the command cannot start as given, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM). A study that was killed
or interrupted goes on with `--resume`, and gives the same numbers.
"""


def page() -> str:
    """Every command and its options, as Markdown."""
    parser = cli._parser()
    return "\n".join([_HEAD, *(_section(p) for p in _commands(parser))])


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in dict.fromkeys(action.choices.values()):
                nested = list(_commands(sub))
                yield from nested or [sub]


def _section(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=100)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    for group in parser._action_groups:
        formatter.start_section(group.title)
        formatter.add_arguments(group._group_actions)
        formatter.end_section()
    return f"## {parser.prog}\n\n{parser.description or ''}\n\n```text\n{formatter.format_help().strip()}\n```\n"
