"""What was built, and what of it is usable in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from . import _ops
from ._version import __version__


def build_info() -> dict[str, Any]:
    """The build and its state here, for bug reports and for choosing a device.

    version         of chaos_ext
    torch           running torch;  torch_build: the one whose headers compiled the extension
    cuda            bool: the CUDA kernels are built and loaded;  cuda_usable: and there is a device
    cuda_built      bool: they were built;  cuda_archs: for which architectures, e.g. ["sm_80", "sm_90", "compute_90"]
    cuda_error      why they are not loaded, or None;  cuda_devices: how many devices torch sees
    nvcc, compiler  what compiled the libraries
    cpu_capability  the vector instructions the CPU kernels use: "DEFAULT", "AVX2" or "AVX512"
    """
    config = _ops.BUILD_CONFIG
    built = Path(__file__).with_name("_C_cuda.abi3.so").exists()
    loaded, devices = _ops.CUDA_ERROR is None, torch.cuda.device_count()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "torch_build": config.get("torch_build", "unknown"),
        "cuda": loaded,
        "cuda_usable": loaded and devices > 0,
        "cuda_built": built,
        "cuda_archs": list(config.get("cuda_archs", [])) if built else [],
        "cuda_error": _ops.CUDA_ERROR,
        "cuda_devices": devices,
        "nvcc": config.get("nvcc") if built else None,
        "compiler": config.get("compiler", "unknown"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
