"""chaos_ext: exact Hessians, their spectra at every training step, and the chaos of neural-network training.

batch -> HessianOperator -> spectrum -> CGD step; see the README for two short examples.
"""

from . import chaos, data, errors, figures, models
from ._build_info import __version__, build_info
from .cgd import CGD
from .chaos import SpectralSummary, local_lyapunov_exponents, select, spectral_summary
from .compressed import CompressedHessian
from .eigenpairs import Spectrum
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
from .layer_table import register_rule, unregister_rule
from .perturb import perturb
from .pruning import StepInfo
from .rule import Leaf, Rule
from .spectrum import spectrum

__all__ = [
    "CGD",
    "ChaosExtError",
    "CheckpointError",
    "CompressedHessian",
    "DatasetNotFoundError",
    "HessianOperator",
    "LayerReport",
    "Leaf",
    "MemoryBudgetError",
    "NonFiniteError",
    "NotConvergedError",
    "Rule",
    "SpectralSummary",
    "Spectrum",
    "StaleOperatorError",
    "StepInfo",
    "UnsupportedError",
    "__version__",
    "build_info",
    "chaos",
    "data",
    "errors",
    "figures",
    "hessian",
    "local_lyapunov_exponents",
    "models",
    "perturb",
    "register_rule",
    "select",
    "spectral_summary",
    "spectrum",
    "unregister_rule",
]
