"""chaos_ext: exact Hessians, their spectra at every training step, and the chaos of neural-network training.

batch -> HessianOperator -> spectrum -> CGD step; see the README for two short examples.
"""

from . import chaos, errors
from ._build_info import __version__, build_info
from .cgd import CGD, StepInfo
from .chaos import SpectralSummary, local_lyapunov_exponents, select, spectral_summary
from .compressed import CompressedHessian
from .errors import (
    ChaosExtError,
    CheckpointError,
    DatasetNotFoundError,
    MemoryBudgetError,
    NonFiniteError,
    NotConvergedError,
    StaleOperatorError,
    UnsupportedError,
)
from .hessian import HessianOperator, LayerReport, hessian
from .perturb import perturb
from .spectrum import Spectrum, spectrum

__all__ = [
    "CGD",
    "ChaosExtError",
    "CheckpointError",
    "CompressedHessian",
    "DatasetNotFoundError",
    "HessianOperator",
    "LayerReport",
    "MemoryBudgetError",
    "NonFiniteError",
    "NotConvergedError",
    "SpectralSummary",
    "Spectrum",
    "StaleOperatorError",
    "StepInfo",
    "UnsupportedError",
    "__version__",
    "build_info",
    "chaos",
    "errors",
    "hessian",
    "local_lyapunov_exponents",
    "perturb",
    "select",
    "spectral_summary",
    "spectrum",
]
