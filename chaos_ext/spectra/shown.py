"""A spectrum in a notebook."""

from __future__ import annotations

from torch import Tensor

from ..base.html import strip, table


def as_html(eigenvalues: Tensor, loss: Tensor | None, size: int, nullity: int | None, zero_threshold: float) -> str:
    """Counts, extremes and a strip of the eigenvalues [r], ascending, as HTML; the rest as of ``Spectrum``."""
    values = eigenvalues.detach().double().cpu()
    zero = "not known: a partial spectrum" if nullity is None else f"{nullity} (|λ| ≤ {zero_threshold:.1e})"
    rows: list[tuple[str, object]] = [
        ("parameters", size),
        ("eigenvalues", len(values)),
        ("negative", int((values < 0).sum())),
        ("zero", zero),
        ("positive", int((values > 0).sum())),
    ]
    if len(values):
        rows += [("smallest", float(values[0])), ("largest", float(values[-1]))]
    if loss is not None:
        rows.append(("loss", float(loss)))
    return table("Spectrum", rows) + strip(values.tolist())
