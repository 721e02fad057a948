"""chaos_ext: exact Hessians, their spectra at every training step, and the chaos of neural-network training.

batch -> HessianOperator -> spectrum -> CGD step or tangent map -> exponents; see the README for two short examples.
"""

from . import chaos, data, errors, figures, metrics, models, systems
from ._build_info import __version__, build_info
from .analyzer import LyapunovAnalyzer
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
from .exponents import Signs, count_signs, kaplan_yorke_dimension, sum_of_positive_exponents
from .hessian import HessianOperator, LayerReport, hessian
from .layer_table import register_rule, unregister_rule
from .lyapunov import History, LyapunovResult, lyapunov_spectrum
from .metrics import (
    Alignment,
    Similarity,
    StabilityMargin,
    batch_sharpness,
    distance_to_threshold,
    gradient_alignment,
    gradient_cosine,
    lle_spectrum,
    subspace_similarity,
)
from .perturb import perturb
from .pruning import StepInfo
from .rule import Leaf, Rule
from .spectrum import directions, spectrum
from .systems import System
from .tangent import TangentMap, register_tangent

__all__ = [
    "CGD",
    "Alignment",
    "ChaosExtError",
    "CheckpointError",
    "CompressedHessian",
    "DatasetNotFoundError",
    "HessianOperator",
    "History",
    "LayerReport",
    "Leaf",
    "LyapunovAnalyzer",
    "LyapunovResult",
    "MemoryBudgetError",
    "NonFiniteError",
    "NotConvergedError",
    "Rule",
    "Signs",
    "Similarity",
    "SpectralSummary",
    "Spectrum",
    "StabilityMargin",
    "StaleOperatorError",
    "StepInfo",
    "System",
    "TangentMap",
    "UnsupportedError",
    "__version__",
    "batch_sharpness",
    "build_info",
    "chaos",
    "count_signs",
    "data",
    "directions",
    "distance_to_threshold",
    "errors",
    "figures",
    "gradient_alignment",
    "gradient_cosine",
    "hessian",
    "kaplan_yorke_dimension",
    "lle_spectrum",
    "local_lyapunov_exponents",
    "lyapunov_spectrum",
    "metrics",
    "models",
    "perturb",
    "register_rule",
    "register_tangent",
    "select",
    "spectral_summary",
    "spectrum",
    "subspace_similarity",
    "sum_of_positive_exponents",
    "systems",
    "unregister_rule",
]
