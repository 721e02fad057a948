"""Compiles the emulated kernels into a Python module, once for each state of the sources."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
MODULE = "emulated_kernels"
# -O1: most of the time goes into compiling. No contraction of a * b + c: the same bits on every machine.
FLAGS = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off"]
# vptr would look for the type information of libraries that have none.
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]


def sanitizing() -> bool:
    """Whether this process runs under the sanitizers (see sanitize.py)."""
    return os.environ.get("CHAOS_EXT_SANITIZE") == "1"


def compiler() -> str | None:
    return shutil.which("g++")


def missing() -> str | None:
    """Why the emulator cannot be built here, or None."""
    if compiler() is None:
        return "the emulator needs g++"
    if importlib.util.find_spec("pybind11") is None:
        return "the emulator needs pybind11 (pip install pybind11)"
    if not CSRC.is_dir():
        return "the emulator needs the sources of csrc/"
    return None


def command() -> list[str]:
    """The compiler call, without its output."""
    import sysconfig

    import pybind11

    gxx = compiler()
    assert gxx is not None
    includes = [f"-I{HERE}", f"-I{CSRC}", f"-isystem{pybind11.get_include()}"]
    includes.append(f"-isystem{sysconfig.get_paths()['include']}")
    flags = [*FLAGS, *(SANITIZE if sanitizing() else [])]
    return [gxx, *flags, *includes, "-shared", "-fPIC", "-fvisibility=hidden", str(HERE / "binding.cpp")]


def digest() -> str:
    """Changes with the sources, the compiler, its flags, Python and pybind11."""
    import pybind11

    gxx = compiler()
    assert gxx is not None
    version = subprocess.run([gxx, "--version"], capture_output=True, text=True, check=True).stdout
    state = hashlib.sha256(repr((command(), version, sys.version, pybind11.__version__)).encode())
    for path in sorted([*CSRC.rglob("*.*h"), *CSRC.rglob("*.inl"), *HERE.glob("*.*")]):
        state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()[:16]


def module(folder: Path) -> ModuleType:
    """The module, compiled into ``folder`` unless that has it."""
    library = folder / f"{MODULE}-{'sanitized' if sanitizing() else 'plain'}-{digest()}.so"
    if not library.exists():
        for old in folder.glob(f"{library.name.rsplit('-', 1)[0]}-*"):
            old.unlink(missing_ok=True)
        own = library.with_suffix(f".{os.getpid()}")  # another process may compile the same
        # A sanitizer's runtime that is preloaded into this process is nothing for the compiler.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        done = subprocess.run([*command(), "-o", str(own)], capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise RuntimeError(f"the emulated kernels do not compile:\n{done.stderr}")
        own.replace(library)
    return load(library)


def load(library: Path) -> ModuleType:
    loader = ExtensionFileLoader(MODULE, str(library))
    spec = importlib.util.spec_from_file_location(MODULE, library, loader=loader)
    assert spec is not None
    loaded = importlib.util.module_from_spec(spec)
    loader.exec_module(loaded)
    return loaded
