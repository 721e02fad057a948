"""What researchers plot beside exponents: alignment, edge of stability, sharpness, how far twins part."""

from .alignment import (
    Alignment,
    DirectionAlignment,
    Similarity,
    direction_alignment,
    gradient_alignment,
    gradient_cosine,
    subspace_similarity,
)
from .divergence import fit_divergence
from .divergence_fit import Coefficients, DivergenceFit, DivergenceLaw
from .intervals import Estimate
from .preconditioned import preconditioned_sharpness
from .sharpness import (
    BatchSharpness,
    SharpnessDimension,
    batch_sharpness,
    batch_sharpness_over,
    lle_spectrum,
    sharpness_dimension,
)
from .stability import StabilityMargin, distance_to_threshold

__all__ = [
    "Alignment",
    "BatchSharpness",
    "Coefficients",
    "DirectionAlignment",
    "DivergenceFit",
    "DivergenceLaw",
    "Estimate",
    "SharpnessDimension",
    "Similarity",
    "StabilityMargin",
    "batch_sharpness",
    "batch_sharpness_over",
    "direction_alignment",
    "distance_to_threshold",
    "fit_divergence",
    "gradient_alignment",
    "gradient_cosine",
    "lle_spectrum",
    "preconditioned_sharpness",
    "sharpness_dimension",
    "subspace_similarity",
]
