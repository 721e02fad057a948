"""Lyapunov exponents of any discrete map, with its tangent map or linearised by torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from ..base import memory
from ..base.arguments import require_int
from ..base.progress import Progress
from ..errors import NonFiniteError
from .asymptotic import Asymptotic
from .finite_time.result import FiniteTimeSpectrum, check_neutral, spectrum_of
from .finite_time.run import FiniteTime
from .linearised import Jvp, Step, linearised
from .methods import Options, Run, check_options, run_for
from .result import LyapunovResult, result_of
from .start import start_block

After = Callable[[int, int], None]
Result = Callable[[Tensor], object]
# Tangents by differences of step are linear to a few digits only; J instead of J V misses by all of its size.
_LINEAR = 1e-2


@overload
def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor] | None = ...,
    x0: Tensor | None = ...,
    *,
    steps: int,
    k: int | None = ...,
    transient: int = ...,
    full_output: Literal[False] = ...,
    qr_every: int | str = ...,
    gali: bool = ...,
    seed: int = ...,
    progress: bool | Callable[[int, int], None] = ...,
    method: str = ...,
    every: int | None = ...,
    neutral_tol: float | None = ...,
) -> Tensor: ...


@overload
def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor] | None = ...,
    x0: Tensor | None = ...,
    *,
    steps: int,
    k: int | None = ...,
    transient: int = ...,
    full_output: Literal[True],
    qr_every: int | str = ...,
    gali: bool = ...,
    seed: int = ...,
    progress: bool | Callable[[int, int], None] = ...,
    method: Literal["qr"] = ...,
    every: int | None = ...,
    neutral_tol: float | None = ...,
) -> LyapunovResult: ...


@overload
def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor] | None = ...,
    x0: Tensor | None = ...,
    *,
    steps: int,
    k: int | None = ...,
    transient: int = ...,
    full_output: Literal[True],
    qr_every: int | str = ...,
    gali: bool = ...,
    seed: int = ...,
    progress: bool | Callable[[int, int], None] = ...,
    method: Literal["svd"],
    every: int | None = ...,
    neutral_tol: float | None = ...,
) -> FiniteTimeSpectrum: ...


@overload
def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor] | None = ...,
    x0: Tensor | None = ...,
    *,
    steps: int,
    k: int | None = ...,
    transient: int = ...,
    full_output: bool,
    qr_every: int | str = ...,
    gali: bool = ...,
    seed: int = ...,
    progress: bool | Callable[[int, int], None] = ...,
    method: str = ...,
    every: int | None = ...,
    neutral_tol: float | None = ...,
) -> Tensor | LyapunovResult | FiniteTimeSpectrum: ...


def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor] | None = None,
    x0: Tensor | None = None,
    *,
    steps: int,
    k: int | None = None,
    transient: int = 0,
    full_output: bool = False,
    qr_every: int | str = "auto",
    gali: bool = False,
    seed: int = 0,
    progress: bool | Callable[[int, int], None] = False,
    method: str = "qr",
    every: int | None = None,
    neutral_tol: float | None = None,
) -> Tensor | LyapunovResult | FiniteTimeSpectrum:
    """Lyapunov exponents of x <- step(x): asymptotic, by QR (Benettin et al. 1980), or finite-time, by singular values.

    Args:
        step: x [d] -> the next x [d]. A function of x alone; it may write to its argument, which is a copy.
        tangent: (x [d], V [d, k]) -> J(x) V, the Jacobian of ``step`` at x times V. A function of x and V alone, linear
            in V, which is checked at x0; it may write to V. None: ``step`` is linearised by torch.func, and the result
            compared with differences at x0.
        x0: initial state, float64 or float32.
        steps: how many to measure.
        k: number of leading exponents; None: all d.
        transient: first steps, which move the state but are not measured; with "qr" they turn the deviations.
        full_output: return a LyapunovResult, of "svd" a FiniteTimeSpectrum, instead of the exponents.
        qr_every: re-orthonormalise at every multiple of this many steps, and whenever the stretch of the deviations
            nears what the dtype can bear; "auto": only then.
        gali: also follow GALI_1 .. GALI_k.
        seed: of the initial deviations (the identity if k = d and not ``gali``, whose columns must not be special).
        progress: True: a bar on the terminal (needs tqdm); or called with (steps done, steps in all) after every step.
        method: "qr", means of ln R_ii, or "svd", ln sigma_i / t of the product of all tangent maps, to full relative
            accuracy (with k < d of the map restricted to k random directions); see ``LyapunovAnalyzer``.
        every: of "svd", read the largest and smallest exponent at every multiple of this many steps; None: 20.
        neutral_tol: of "svd", exponents with |lambda t| up to this are neutral; None: up to their rounding errors.

    Returns:
        float64 [k], descending, in nats per step, or what ``full_output`` asks for.

    Raises:
        ValueError, TypeError: arguments out of range; ``step`` or ``tangent`` returns something else than it should.
        NonFiniteError: NaN or infinity in state or deviations; names the step, and its ``result`` is the
            result until the last block whose numbers can be trusted (None if nothing was measured until then).
        UnsupportedError: ``tangent=None`` with a step that torch.func cannot differentiate.

    Example:
        >>> henon = ce.systems.henon()
        >>> exponents = ce.lyapunov_spectrum(henon.step, henon.tangent, henon.x0, steps=2000, transient=100)
        >>> round(float(exponents.sum()), 6)  # ln 0.3, at every step
        -1.203973
    """
    options = Options(method, k, qr_every, gali, every, transient, seed)
    check_options(options)
    check_neutral(neutral_tol)
    require_int("steps", steps, 1)
    x = initial_state(x0)
    if method == "svd":  # the deviations are copied for tangent, and a few times more to look at what it does
        need = (13 if tangent is None else 6) * len(x) * (k or len(x)) * x.element_size()
        memory.require(need, x.device, f"the tangents of {k or len(x)} columns", "ask for fewer exponents")
    run = run_for(options, len(x), len(x), "d", x.dtype, x.device)
    tangent = linearised(step, x) if tangent is None else tangent
    _check_tangent(tangent, x, k or len(x))
    total = transient + steps
    result = functools.partial(_result, run, neutral_tol=neutral_tol)
    with Progress(total if progress is True else None, shown=progress is True) as bar:
        after = progress if callable(progress) else lambda done, of: bar.report(1, False)
        if isinstance(run, FiniteTime):
            x = _follow_product(run, step, tangent, x, total, after, result)
        else:
            x = _follow(run, step, tangent, x, total, after)
    return result(x) if full_output else run.exponents()


def _result(run: Run, x: Tensor, neutral_tol: float | None) -> LyapunovResult | FiniteTimeSpectrum:
    return spectrum_of(run, neutral_tol, x) if isinstance(run, FiniteTime) else result_of(run, x)


def _follow_product(
    run: FiniteTime, step: Step, tangent: Jvp, x: Tensor, total: int, after: After, result: Result
) -> Tensor:
    """The state after all steps, of which the product of tangent maps is kept."""
    whole = x  # the state at the end of the last block
    for t in range(total):
        try:
            following = _next(step, x, t)
            run.advance(lambda V, x=x: (_tangent(tangent, x, V.clone()), None))  # type: ignore[misc]
        except NonFiniteError as error:
            run.stop()
            error.result = result(whole) if run.measured else None
            raise
        x = following
        whole = x if run.closed == run.steps else whole
        after(t + 1, total)
    return x


def _follow(run: Asymptotic, step: Step, tangent: Jvp, x: Tensor, total: int, after: After) -> Tensor:
    """The state after all steps."""
    last = x, run.Y
    for t in range(total):
        try:
            # Where a result may need them, the deviations are copied: tangent may write to its argument.
            JV = _tangent(tangent, x, run.Y.clone() if run.is_sound else run.Y)
            x = _next(step, x, t)
            run.advance(lambda V, JV=JV: (JV, None))  # type: ignore[misc]
        except NonFiniteError as error:
            error.result = _kept(run, *last)
            raise
        last = (x, run.Y) if run.is_sound else last
        after(t + 1, total)
    return x


def _next(step: Step, x: Tensor, t: int) -> Tensor:
    following = step(x.clone())
    _check_returned("step", following, x)
    if not bool(torch.isfinite(following).all()):
        raise NonFiniteError(f"step {t}: the state has NaN or infinity; results until then are kept")
    return following.detach().clone()


def _tangent(tangent: Jvp, x: Tensor, V: Tensor) -> Tensor:
    JV = tangent(x.clone(), V)
    _check_returned("tangent", JV, V)
    return V if JV is V else JV.detach().clone()


def _kept(run: Asymptotic, x: Tensor, Q: Tensor) -> LyapunovResult | None:
    """The result of a run that was stopped, at the end of its last block whose numbers can be trusted: x and Q then."""
    sound = run.sound()
    sound.Y = Q
    return result_of(sound, x) if sound.reading().steps else None


def _check_returned(name: str, value: object, like: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype != like.dtype or value.device != like.device:
        got = f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected it to return a {like.dtype} tensor on {like.device}, got {got}")
    if value.shape != like.shape:
        what = "J(x) V, the Jacobian times its second argument" if name == "tangent" else "the next state"
        raise ValueError(
            f"{name}: expected it to return {what}, of shape {tuple(like.shape)}, got shape {tuple(value.shape)}"
        )


def _check_tangent(tangent: Jvp, x: Tensor, k: int) -> None:
    """Refuses what does not act on the columns of V linearly, each alike: J (V M) = (J V) M for any M [k, k].

    Above all a ``tangent`` that returns J(x) whatever V is, but J * V and V J as well.
    """
    V = start_block(len(x), k, x.dtype, x.device, seed=0, generic=True)
    M = 2 * start_block(k, k, x.dtype, x.device, seed=1, generic=True)
    once, mixed = _tangent(tangent, x, V.clone()) @ M, _tangent(tangent, x, V @ M)
    gap, size = float((mixed - once).norm()), float(mixed.norm())
    if math.isfinite(gap) and gap > _LINEAR * size:
        off = gap / size if size else math.inf
        raise ValueError(
            "tangent: expected tangent(x, V) to return J(x) V, the Jacobian times V: it is not linear in V, since at "
            f"x0 tangent(x, V M) and tangent(x, V) M differ by {off:.2g} of their size for a matrix M; where it "
            "returns J(x), or J(x) * V, return J(x) @ V"
        )


def initial_state(x0: Tensor | None) -> Tensor:
    """A copy of x0, since step may write to its argument.

    Raises:
        ValueError, TypeError, NonFiniteError: no state.
    """
    if not isinstance(x0, Tensor) or x0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x0: expected a float32 or float64 tensor, got {getattr(x0, 'dtype', type(x0).__name__)}")
    if x0.dim() != 1 or not len(x0):
        raise ValueError(f"x0: expected shape [d] with d >= 1, got {tuple(x0.shape)}")
    if not bool(torch.isfinite(x0).all()):
        raise NonFiniteError("x0: expected finite values, got NaN or infinity")
    return x0.detach().clone()
