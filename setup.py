"""Builds chaos_ext's two native libraries against libtorch's stable ABI.

``_C``       operator schemas and CPU kernels; always built.
``_C_cuda``  CUDA kernels; built if CHAOS_EXT_CUDA says so:
    auto  (default) if the torch of the build environment has CUDA and a matching nvcc exists
    1     always; without a usable nvcc the build fails and says what to do
    0     never

nvcc is looked for in CUDA_HOME (or CUDA_PATH), else in /usr/local/cuda. TORCH_CUDA_ARCH_LIST chooses the architectures,
"8.0;9.0+PTX" by default. Whether a GPU is present at build time does not matter.

What was built is written to chaos_ext/_build_config.json, which chaos_ext.build_info() reads.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "8.0;9.0+PTX"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10


class CudaDecision(NamedTuple):
    build: bool
    reason: str


def find_cuda_home(env: Mapping[str, str], default: str = "/usr/local/cuda") -> str | None:
    """The CUDA toolkit to build with: the environment's, else the default folder if it holds bin/nvcc."""
    named = env.get("CUDA_HOME") or env.get("CUDA_PATH")
    if named:
        return named
    return default if (Path(default) / "bin" / "nvcc").exists() else None


def nvcc_version(cuda_home: str | None) -> str | None:
    """The release of cuda_home's nvcc ("13.0"), or None where it is missing or does not run."""
    if cuda_home is None or not (Path(cuda_home) / "bin" / "nvcc").exists():
        return None
    try:
        text = subprocess.run([str(Path(cuda_home) / "bin" / "nvcc"), "--version"], capture_output=True, text=True)
    except OSError:
        return None
    match = re.search(r"release (\d+\.\d+)", text.stdout)
    return match.group(1) if match else None


def decide_cuda(setting: str, torch_cuda: str | None, nvcc: str | None) -> CudaDecision:
    """Whether to build _C_cuda, from CHAOS_EXT_CUDA, torch.version.cuda and nvcc's release; impossible 1 raises."""
    if setting not in ("auto", "0", "1"):
        raise ValueError(f"CHAOS_EXT_CUDA: expected auto, 0 or 1, got {setting!r}")
    if setting == "0":
        return CudaDecision(False, "CHAOS_EXT_CUDA=0")
    if torch_cuda is None:
        missing = "the build environment's torch has no CUDA"
        remedy = "install a CUDA build of torch and build with --no-build-isolation"
    elif nvcc is None:
        missing = "no nvcc in CUDA_HOME or /usr/local/cuda"
        remedy = "install the CUDA toolkit and set CUDA_HOME to the folder that holds bin/nvcc"
    elif nvcc.split(".")[0] != torch_cuda.split(".")[0]:
        missing = f"nvcc is CUDA {nvcc}, torch was built with CUDA {torch_cuda}"
        remedy = f"set CUDA_HOME to a CUDA {torch_cuda.split('.')[0]} toolkit, or build with --no-build-isolation"
    else:
        return CudaDecision(True, f"nvcc {nvcc}, torch CUDA {torch_cuda}")
    if setting == "1":
        raise RuntimeError(f"CHAOS_EXT_CUDA=1, but {missing}: {remedy}, or use CHAOS_EXT_CUDA=0 for a CPU-only build")
    return CudaDecision(False, f"{missing}: to have it, {remedy}")


def parse_archs(arch_list: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST as torch.cuda.get_arch_list() names it: "8.0;9.0+PTX" -> sm_80, sm_90, compute_90."""
    archs: list[str] = []
    for entry in arch_list.replace(",", ";").replace(" ", ";").split(";"):
        number = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", entry)
        if number:
            digits = number.group(1) + number.group(2)
            archs.append(f"sm_{digits}")
            if number.group(3):
                archs.append(f"compute_{digits}")
        elif entry:
            archs.append(entry)  # a family name such as Ampere
    return archs


def missing_compiler(env: Mapping[str, str]) -> str | None:
    """None if there is a C++ compiler, else what is missing and what to do."""
    named = shlex.split(env.get("CXX", ""))[:1]
    if any(shutil.which(name, path=env.get("PATH")) for name in named or ("c++", "g++")):
        return None
    what = f"CXX={named[0]} is not there" if named else "there is none (neither c++ nor g++ on the PATH)"
    return (
        f"chaos_ext needs a C++ compiler, and {what}. Install one, then run the same command again: apt install g++, "
        "dnf install gcc-c++, or conda install gxx; or name one in the variable CXX."
    )


def compiler_version() -> str:
    command = (os.environ.get("CXX") or "c++").split()
    try:
        text = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return "unknown"
    return text.splitlines()[0] if text else "unknown"


def sources(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob(pattern))


def extensions(cuda: bool) -> list[Any]:
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    # Neither of the -fno flags changes a result: nobody reads errno or the exception flags of floating point.
    vectorise = ["-fno-math-errno", "-fno-trapping-math"]
    cxx = ["-O3", *vectorise, "-g0", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", STABLE_ABI]
    nvcc = ["-O3", "-Xcompiler=-fvisibility=hidden", "--expt-relaxed-constexpr", "--extended-lambda", STABLE_ABI]
    modules = [
        CppExtension("chaos_ext._C", sources("*.cpp"), extra_compile_args={"cxx": cxx}, py_limited_api=True),
    ]
    if cuda:
        flags = {"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": [*nvcc, "-DUSE_CUDA"]}
        modules.append(
            CUDAExtension("chaos_ext._C_cuda", sources("*.cu"), extra_compile_args=flags, py_limited_api=True)
        )
    return modules


def main() -> None:
    cuda_home = find_cuda_home(os.environ)
    if cuda_home is not None:
        os.environ["CUDA_HOME"] = cuda_home  # read by cpp_extension when it is imported
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS)

    import torch
    from setuptools import setup
    from setuptools.errors import CompileError
    from torch.utils.cpp_extension import BuildExtension

    setting = os.environ.get("CHAOS_EXT_CUDA", "auto").strip().lower()
    nvcc = nvcc_version(cuda_home)
    cuda = decide_cuda(setting, torch.version.cuda, nvcc)
    print(
        f"chaos_ext: {'building' if cuda.build else 'not building'} the CUDA library ({cuda.reason})", file=sys.stderr
    )
    config = {
        "torch_build": torch.__version__,
        "cuda_built": cuda.build,
        "cuda_reason": cuda.reason,
        "cuda_archs": parse_archs(os.environ["TORCH_CUDA_ARCH_LIST"]) if cuda.build else [],
        "nvcc": nvcc if cuda.build else None,
        "compiler": compiler_version(),
    }

    class Build(BuildExtension):  # type: ignore[misc]
        """BuildExtension that leaves a record of the build beside the libraries."""

        def run(self) -> None:
            if (missing := missing_compiler(os.environ)) is not None:
                raise CompileError(missing)  # before torch's check, which speaks of an ABI
            super().run()
            folder = Path(self.get_ext_fullpath("chaos_ext._C")).parent
            if not cuda.build:  # of an earlier build in place
                (folder / "_C_cuda.abi3.so").unlink(missing_ok=True)
            (folder / "_build_config.json").write_text(json.dumps(config, indent=2) + "\n")

    setup(
        ext_modules=extensions(cuda.build),
        cmdclass={"build_ext": Build},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


if __name__ == "__main__":
    main()
