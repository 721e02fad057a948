"""What researchers plot beside exponents: alignment, edge of stability, sharpness, how far twins part."""

from .alignment import (
    Alignment,
    Similarity,
    gradient_alignment,
    gradient_cosine,
    subspace_similarity,
)
from .divergence import fit_divergence
from .divergence_fit import Coefficients, DivergenceFit, DivergenceLaw
from .intervals import Estimate
from .sharpness import batch_sharpness, lle_spectrum
from .stability import StabilityMargin, distance_to_threshold

__all__ = [
    "Alignment",
    "Coefficients",
    "DivergenceFit",
    "DivergenceLaw",
    "Estimate",
    "Similarity",
    "StabilityMargin",
    "batch_sharpness",
    "distance_to_threshold",
    "fit_divergence",
    "gradient_alignment",
    "gradient_cosine",
    "lle_spectrum",
    "subspace_similarity",
]
