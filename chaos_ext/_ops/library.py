"""Loads the extension's libraries: ``_C`` (schemas, CPU kernels) always, ``_C_cuda`` where torch itself has CUDA.

A CUDA library that does not load leaves the CPU operators usable; ``CUDA_ERROR`` holds the reason, ``build_info()``
shows it. A library whose numbers are not those of ``layout`` was compiled from other sources and is refused.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import torch

from . import layout

_FOLDER = Path(__file__).resolve().parents[1]  # the package, where setup.py puts the libraries
_CONFIG_FILE = _FOLDER / "_build_config.json"
BUILD_CONFIG: dict[str, Any] = json.loads(_CONFIG_FILE.read_text()) if _CONFIG_FILE.exists() else {}
_REMEDY = "build it with `pip install .` (or `pip install --no-build-isolation -e .`) in the repository"


def _load_cpu() -> None:
    path = _FOLDER / "_C.abi3.so"
    if not path.exists():
        raise ImportError(f"chaos_ext: the native library {path} is missing: {_REMEDY}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"chaos_ext: {path} does not load with torch {torch.__version__} (needs 2.10 or later): {error}; {_REMEDY}"
        ) from error
    _check_layout(path)


def _load_cuda() -> str | None:
    """None where the CUDA kernels are loaded, else the reason why not."""
    path = _FOLDER / "_C_cuda.abi3.so"
    if not path.exists():
        return f"the CUDA library was not built ({BUILD_CONFIG.get('cuda_reason', 'reason unknown')})"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    built_with = BUILD_CONFIG.get("nvcc") or torch.version.cuda
    if built_with.split(".")[0] != torch.version.cuda.split(".")[0]:
        remedy = "build with --no-build-isolation and a matching CUDA_HOME"
        return f"the CUDA library was built with CUDA {built_with}, torch has CUDA {torch.version.cuda}: {remedy}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return str(error)
    _check_layout(path)
    return None


def _check_layout(path: Path) -> None:
    """Compares what a loaded library was compiled with against ``layout``."""
    function = getattr(ctypes.CDLL(str(path)), "chaos_ext_layout", None)
    if function is None:
        raise ImportError(f"chaos_ext: {path} was compiled from older sources: rebuild it ({_REMEDY})")
    function.restype = ctypes.c_char_p
    wrong = _differences(function().decode())
    if wrong:
        raise ImportError(f"chaos_ext: {path} was compiled from other sources ({wrong}): rebuild it ({_REMEDY})")


def _differences(text: str) -> str:
    """What ``layout`` and a library's description disagree on."""
    compiled = {name: int(value) for name, value in (word.split("=") for word in text.split())}
    own = layout.described()
    names = [name for name in own | compiled if own.get(name) != compiled.get(name)]
    return ", ".join(f"{name} is {own.get(name)} in Python, {compiled.get(name)} compiled" for name in names)


_load_cpu()
CUDA_ERROR: str | None = _load_cuda()
OPS: Any = torch.ops.chaos_ext
