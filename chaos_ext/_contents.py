"""The public names of the package, each from where it is defined; ``chaos_ext`` gives them when they are first used."""

from . import chaos, data, errors, figures, metrics, models, systems
from ._build_info import build_info
from ._version import __version__
from .chaos import SpectralSummary, local_lyapunov_exponents, select, spectral_summary
from .curvature.compressed import CompressedHessian
from .curvature.dataset import DatasetHessian
from .curvature.eigenvalue_gradient import EigenvalueGradient
from .curvature.fisher import FisherOperator
from .curvature.ggn import GGNOperator
from .curvature.hessian import HessianOperator
from .curvature.plan import LayerReport
from .curvature.shortcut import hessian
from .distributed.ranks import Ranks
from .dynamics.analyzer import LyapunovAnalyzer
from .dynamics.covariant import CovariantVectors
from .dynamics.covariant_maps import covariant_vectors
from .dynamics.custom import register_tangent
from .dynamics.exponents import Signs, count_signs, kaplan_yorke_dimension, sum_of_positive_exponents
from .dynamics.finite_time.result import FiniteTimeSpectrum
from .dynamics.finite_time.run import Extremes
from .dynamics.maps import lyapunov_spectrum
from .dynamics.perturb import perturb
from .dynamics.perturbation import perturbation
from .dynamics.result import History, LyapunovResult
from .dynamics.tangent_map import TangentMap
from .ensemble.ensemble import Ensemble
from .ensemble.readings import Evaluation
from .errors import (
    ChaosExtError,
    CheckpointError,
    DatasetNotFoundError,
    IndefiniteError,
    MemoryBudgetError,
    NonFiniteError,
    NotConvergedError,
    RankFailedError,
    RanksDisagreeError,
    StaleOperatorError,
    TornStateError,
    UnsupportedError,
)
from .metrics import (
    Alignment,
    BatchSharpness,
    Coefficients,
    DirectionAlignment,
    DivergenceFit,
    DivergenceLaw,
    Estimate,
    SharpnessDimension,
    Similarity,
    StabilityMargin,
    batch_sharpness,
    batch_sharpness_over,
    direction_alignment,
    distance_to_threshold,
    fit_divergence,
    gradient_alignment,
    gradient_cosine,
    lle_spectrum,
    preconditioned_sharpness,
    sharpness_dimension,
    subspace_similarity,
)
from .optim.cgd import CGD
from .optim.pruning import StepInfo
from .recorder import Recorder
from .rules.rule import Leaf, Rule
from .rules.table import register_rule, unregister_rule
from .spectra.decompose import directions, spectrum
from .spectra.density import SpectralDensity, spectral_density
from .spectra.invariants import MatrixEstimate, frobenius_norm, trace
from .spectra.per_layer import spectra_per_layer
from .spectra.solve import Solution, solve
from .spectra.spectrum import Spectrum
from .systems import System

__all__: list[str] = [
    "CGD",
    "Alignment",
    "BatchSharpness",
    "ChaosExtError",
    "CheckpointError",
    "Coefficients",
    "CompressedHessian",
    "CovariantVectors",
    "DatasetHessian",
    "DatasetNotFoundError",
    "DirectionAlignment",
    "DivergenceFit",
    "DivergenceLaw",
    "EigenvalueGradient",
    "Ensemble",
    "Estimate",
    "Evaluation",
    "Extremes",
    "FiniteTimeSpectrum",
    "FisherOperator",
    "GGNOperator",
    "HessianOperator",
    "History",
    "IndefiniteError",
    "LayerReport",
    "Leaf",
    "LyapunovAnalyzer",
    "LyapunovResult",
    "MatrixEstimate",
    "MemoryBudgetError",
    "NonFiniteError",
    "NotConvergedError",
    "RankFailedError",
    "Ranks",
    "RanksDisagreeError",
    "Recorder",
    "Rule",
    "SharpnessDimension",
    "Signs",
    "Similarity",
    "Solution",
    "SpectralDensity",
    "SpectralSummary",
    "Spectrum",
    "StabilityMargin",
    "StaleOperatorError",
    "StepInfo",
    "System",
    "TangentMap",
    "TornStateError",
    "UnsupportedError",
    "__version__",
    "batch_sharpness",
    "batch_sharpness_over",
    "build_info",
    "chaos",
    "count_signs",
    "covariant_vectors",
    "data",
    "direction_alignment",
    "directions",
    "distance_to_threshold",
    "errors",
    "figures",
    "fit_divergence",
    "frobenius_norm",
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
    "perturbation",
    "preconditioned_sharpness",
    "register_rule",
    "register_tangent",
    "select",
    "sharpness_dimension",
    "solve",
    "spectra_per_layer",
    "spectral_density",
    "spectral_summary",
    "spectrum",
    "subspace_similarity",
    "sum_of_positive_exponents",
    "systems",
    "trace",
    "unregister_rule",
]
