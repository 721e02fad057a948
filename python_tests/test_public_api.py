"""What users may rely on: public_api.txt lists every public name, signature and option, and none may change unseen.

Written by ``CHAOS_EXT_WRITE_API=1 pytest python_tests/test_public_api.py``. A line that changes or goes breaks
somebody's code; new lines are welcome.
"""

import argparse
import inspect
import os
import types
from collections.abc import Iterator
from pathlib import Path

import chaos_ext
from chaos_ext import cli

LIST = Path(__file__).with_name("public_api.txt")
OPERATORS = ("__init__", "__matmul__", "__len__", "__iter__", "__getitem__")


def _signature(function: object) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"


def _members(name: str, cls: type) -> Iterator[str]:
    own = [vars(base) for base in reversed(cls.__mro__) if base.__module__.startswith("chaos_ext")]
    for key, value in sorted({key: value for of_one in own for key, value in of_one.items()}.items()):
        if key.startswith("_") and key not in OPERATORS:
            continue
        value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if isinstance(value, property) or not callable(value):
            yield f"{name}.{key}"
        elif not (key == "__init__" and (issubclass(cls, Exception) or getattr(cls, "_is_protocol", False))):
            yield f"{name}.{key}{_signature(value)}"


def _described(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        fields = getattr(value, "__annotations__", {})
        yield f"class {name}({', '.join(b.__name__ for b in value.__bases__)})"
        for key, kind in sorted(fields.items()):
            if not key.startswith("_"):
                yield f"{name}.{key}: {getattr(kind, '__forward_arg__', kind)}"
        yield from (line for line in _members(name, value) if line.split(".")[-1] not in fields)
    elif callable(value):
        yield f"{name}{_signature(value)}"
    else:
        yield name


def _own(module: types.ModuleType) -> dict[str, object]:
    """What a public module defines: its functions and classes, or what it says in __all__, and its constants."""
    named = getattr(module, "__all__", None) or [
        k
        for k, v in vars(module).items()
        if getattr(v, "__module__", None) == module.__name__ or (k.isupper() and isinstance(v, (str, tuple, dict)))
    ]
    return {k: getattr(module, k) for k in named if not k.startswith("_")}


def _names() -> Iterator[str]:
    for name in sorted(chaos_ext.__all__):
        value = getattr(chaos_ext, name)
        if isinstance(value, types.ModuleType):
            yield f"module {name}"
            for key, own in sorted(_own(value).items()):
                yield from _described(f"{name}.{key}", own)
        else:
            yield from _described(name, value)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _options(sub)
        elif not isinstance(action, argparse._HelpAction):
            flags = ", ".join(action.option_strings) or action.dest
            choices = None if action.choices is None else sorted(map(str, action.choices))
            yield f"{parser.prog}: {flags} default={action.default!r} nargs={action.nargs!r} choices={choices}"


def test_public_names_signatures_and_options_are_those_of_the_list():
    now = [*_names(), *_options(cli._parser())]
    if os.environ.get("CHAOS_EXT_WRITE_API"):
        LIST.write_text("".join(f"{line}\n" for line in now))
    known = LIST.read_text().splitlines()
    missing, new = [line for line in known if line not in now], [line for line in now if line not in known]
    assert not missing, "gone or changed:\n" + "\n".join(missing)
    assert not new, "new, so write the list again:\n" + "\n".join(new)
