"""Covariant Lyapunov vectors of any discrete map that comes with its tangent map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..base import memory
from ..base.arguments import require_int, require_seed
from ..base.progress import Progress
from ..errors import NonFiniteError
from .benettin import Benettin
from .covariant import CovariantVectors, check_spaces, covariant_of
from .factors import Record
from .linearised import Jvp, Step, linearised
from .maps import initial_state, lyapunov_spectrum


def covariant_vectors(
    step: Step,
    tangent: Jvp | None = None,
    x0: Tensor | None = None,
    *,
    steps: int,
    k: int | None = None,
    transient: int = 1000,
    settle: int = 1000,
    every: int = 1,
    expanding: int | None = None,
    neutral: int | None = None,
    tol: float = 1e-6,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> CovariantVectors:
    """Covariant Lyapunov vectors along an orbit of x <- step(x) (Ginelli et al. 2007).

    The map takes vector i at one step into vector i at the next, and its growth averages to exponent i. The orbit goes
    on for ``settle`` steps beyond the window, so that the way back has forgotten its start where the window ends.

    Args:
        step: x [d] -> the next x [d], as of ``lyapunov_spectrum``.
        tangent: (x [d], V [d, k]) -> J(x) V; None: by torch.func. As of ``lyapunov_spectrum``.
        x0: initial state, float64 or float32.
        steps: length of the window in which vectors are wanted.
        k: number of leading vectors, at most 64; None: all d.
        transient: steps before the window, at least 1, in which the frames turn into place.
        settle: steps after it.
        every: vectors at every multiple of this many steps of the window, and at its beginning.
        expanding, neutral: numbers of leading vectors that expand, and of the next ones that do neither (1 for a flow):
            ``angles`` are between the first and those after both. Default: by the signs of the exponents, neutral where
            |lambda t| <= 1e-8.
        tol: what two backward passes from different starts may differ by; beyond it numbers are NaN.
        seed: of the initial deviations and of the backward passes.
        memory_budget: bytes that vectors and factors may take; beyond half of it factors go to a temporary file.
            Default: what is available, 256 MB of it for factors.
        progress: True: a bar on the terminal (needs tqdm); or called with (steps done, steps in all).

    Returns:
        Vectors [d, k] at m steps, growth, angles and exponents; see ``CovariantVectors``.

    Raises:
        ValueError, TypeError: arguments out of range; ``step`` or ``tangent`` returns something else than it should.
        NonFiniteError: NaN or infinity in state or deviations. MemoryBudgetError: the vectors do not fit.
        UnsupportedError: the map is singular: k includes a direction that vanishes; no tangent, and torch.func cannot
            differentiate the step.

    Example:
        >>> henon = ce.systems.henon()
        >>> found = ce.covariant_vectors(henon.step, henon.tangent, henon.x0, steps=500, transient=100, settle=100)
        >>> found[0].shape, len(found)
        (torch.Size([2, 2]), 501)
        >>> V, W = found[0], henon.tangent(found.x[0], found[0])
        >>> bool(torch.allclose(W, found[1] * found.growth[0].exp(), atol=1e-9))  # covariant
        True
    """
    for name, value, least in (
        ("steps", steps, 1),
        ("transient", transient, 1),
        ("settle", settle, 0),
        ("every", every, 1),
    ):
        require_int(name, value, least)
    require_seed("seed", seed)
    memory.check_budget(memory_budget)
    x0 = initial_state(x0)
    check_spaces(k, len(x0), expanding, neutral, tol)
    tangent = linearised(step, x0) if tangent is None else tangent
    first = lyapunov_spectrum(step, tangent, x0, steps=transient, k=k, full_output=True, seed=seed)
    Y = first.directions.contiguous()
    k = Y.shape[1]
    frame = Y.numel() * Y.dtype.itemsize + 2 * k * k * 8
    memory.require(
        (steps // every + 1) * frame,
        Y.device,
        f"{steps // every + 1} frames [{len(x0)}, {k}]",
        "raise every",
        memory_budget,
    )
    record = Record(k, every, budget=None if memory_budget is None else memory_budget // 2)
    run = Benettin(Y, every, transient, record=record)
    run.steps = transient
    record.begin(transient, Y)
    states = _follow(run, step, tangent, first.x, (transient + steps, settle), every, progress)
    found = covariant_of(run, last=transient + steps, expanding=expanding, neutral=neutral, tol=tol, seed=seed + 1)
    return dataclasses.replace(found, x=torch.stack(states))


def _follow(
    run: Benettin,
    step: Step,
    tangent: Jvp,
    x: Tensor,
    end: tuple[int, int],
    every: int,
    progress: bool | Callable[[int, int], None],
) -> list[Tensor]:
    """Takes the run to the end of the window and beyond; the states at the kept steps of the window."""
    start, (last, settle) = run.steps, end
    total = last + settle - start
    states = [x]
    with Progress(total if progress is True else None, shown=progress is True) as bar:
        for done in range(1, total + 1):
            JV = tangent(x.clone(), run.Y.clone())
            run.advance(lambda V, JV=JV: (JV.detach().clone(), None))  # type: ignore[misc]
            x = step(x.clone()).detach().clone()
            if not bool(torch.isfinite(x).all()):
                raise NonFiniteError(f"step {run.steps}: the state has NaN or infinity")
            if done % every == 0 and start + done <= last:
                states.append(x)
            if callable(progress):
                progress(done, total)
            else:
                bar.report(1, False)
    return states
