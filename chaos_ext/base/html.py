"""How results look in a notebook: tables and a strip of eigenvalues, in the notebook's own colours."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

_WIDTH, _HEIGHT, _MARGIN = 480, 46, 8
_MOST_TICKS = 400  # of a strip; more cannot be told apart


def table(title: str, rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A table with a caption; every cell is text, numbers with four digits."""
    lines = [f"<tr>{''.join(f'<th>{_text(c)}</th>' for c in head)}</tr>"] if head else []
    lines += ["<tr>" + "".join(f'<td style="text-align:left">{_text(c)}</td>' for c in row) + "</tr>" for row in rows]
    caption = f'<caption style="text-align:left;font-weight:bold">{_text(title)}</caption>'
    return f"<table>{caption}{''.join(lines)}</table>"


def strip(values: Sequence[float]) -> str:
    """Eigenvalues, ascending, as ticks on a line, by the root of their size, with zero marked: an SVG."""
    chosen = [values[i] for i in _spread(len(values))]
    largest = max(map(abs, (*chosen, 0.0)))
    if not chosen or not 0 < largest < math.inf:
        return ""
    half = (_WIDTH - 2 * _MARGIN) / 2
    at = [_WIDTH / 2 + half * math.copysign(math.sqrt(abs(v) / largest), v) for v in chosen]
    ticks = "".join(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="26" stroke-opacity="0.45"/>' for x in at)
    zero = f'<line x1="{_WIDTH / 2}" x2="{_WIDTH / 2}" y1="2" y2="30" stroke-width="2"/>'
    look = 'y="42" fill="currentColor" stroke="none" font-size="11"'
    labels = "".join(
        f'<text x="{x}" text-anchor="{anchor}" {look}>{_text(v)}</text>'
        for x, anchor, v in ((0, "start", -largest), (_WIDTH / 2, "middle", 0), (_WIDTH, "end", largest))
    )
    alt = f"eigenvalues from {values[0]:.4g} to {values[-1]:.4g}"
    return (
        f'<svg role="img" aria-label="{alt}" width="{_WIDTH}" height="{_HEIGHT}" stroke="currentColor">'
        f"{ticks}{zero}{labels}</svg>"
    )


def _spread(n: int) -> list[int]:
    """At most _MOST_TICKS of n indices, both ends among them."""
    if n <= _MOST_TICKS:
        return list(range(n))
    return sorted({round(i * (n - 1) / (_MOST_TICKS - 1)) for i in range(_MOST_TICKS)})


def _text(value: object) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
