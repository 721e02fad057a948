"""Builds chaos_ext's CPU library under AddressSanitizer and UndefinedBehaviorSanitizer: python sanitize.py FOLDER

FOLDER/chaos_ext becomes a copy of the package with that library in place of the installed one; put FOLDER first on
PYTHONPATH. A process that loads it must preload the sanitizer's runtime: .ci/sanitize does it all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from build import CSRC, SANITIZE, compiler

ROOT = CSRC.parent
# The macro of setup.py that selects the stable ABI; -O1 keeps the reports readable and compiling short.
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000"]


def build(folder: Path) -> Path:
    """Compiles csrc/**/*.cpp and copies the package around it."""
    import torch

    gxx, torch_root = compiler(), Path(torch.__file__).parent
    if gxx is None:
        raise SystemExit("sanitize: expected g++, found none")
    package, objects = folder / "chaos_ext", []
    shutil.copytree(ROOT / "chaos_ext", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for source in sorted(CSRC.rglob("*.cpp")):
        objects.append(folder / f"{source.stem}.o")
        include = f"-isystem{torch_root / 'include'}"
        subprocess.run([gxx, *FLAGS, *SANITIZE, "-w", include, "-c", source, "-o", objects[-1]], check=True)
    libraries = [f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    library = package / "_C.abi3.so"
    subprocess.run([gxx, *SANITIZE, "-shared", *objects, *libraries, "-o", library], check=True)
    return library


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
