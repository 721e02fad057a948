"""Whether torch's derivatives of a loss are to be believed: once for each program, or each time where they may fail.

The two ways to H u, ``jvp`` of ``grad`` and double backward, are compared with each other and with differences of
gradients, which share no formula for second derivatives with either. A gradient that is stopped on purpose (``detach``,
``no_grad``) is not seen by differences: there, only the two ways are compared.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ..errors import ChaosExtError, NonFiniteError, UnsupportedError
from .differences import Derivative, along, directions, is_linear
from .examination import Differentiable, Program, limits, warn_once
from .inspection import PADDING, Seen

log = logging.getLogger("chaos_ext")

JVP_OF_GRAD, DOUBLE_BACKWARD = "jvp of grad", "double backward"


def choose_path(engine: Differentiable, program: Program) -> str:
    """The way that gives the engine's products rightly.

    Raises:
        UnsupportedError: torch refuses the second derivative.
        NonFiniteError: it is NaN or inf.
        ChaosExtError: it is wrong.
    """
    seen = engine.seen
    if seen is None:
        return engine.path
    if program.path is not None and not seen.fragile:
        return program.path
    if seen.once_differentiable:
        names = ", ".join(seen.once_differentiable)
        why = f"{names} is once_differentiable"
        raise UnsupportedError(f"model, loss_fn: autograd cannot differentiate the loss twice: {why}")
    judge = engine.twin()
    program.path = path = _judged(judge, program, engine.model)
    if judge is not engine:  # and in the engine's own dtype the formula that was found right
        engine.path = path
        path = _Comparison(engine, "").decide()
    return path


def _judged(engine: Differentiable, program: Program, model: nn.Module) -> str:
    comparison = _Comparison(engine, program.stops)
    if program.doubt is None:
        path = comparison.decide()
        if program.stops not in (None, PADDING) and not comparison.follows_the_gradient(path):
            program.apart = program.stops
            warn_once(
                model,
                f"to H, what forward takes out of the graph ({program.stops}) is a constant; the gradient changes with "
                "it, so that H is not the derivative of the gradient, which training follows",
            )
        return path
    right = [path for path in (engine.path, DOUBLE_BACKWARD) if comparison.follows_the_gradient(path)]
    if not right:
        raise UnsupportedError(
            f"hessian: the gradient is not the derivative of the loss ({program.doubt}), as with a straight-through "
            "estimator, a reversed or a clipped gradient, and neither has torch's second derivative of it a meaning: "
            f"{comparison.findings()}; op.gradient and CGD(prune=None) work; for H use a differentiable forward"
        )
    warn_once(
        model,
        f"the gradient is not the derivative of the loss ({program.doubt}); H is the derivative of the gradient, which "
        "training follows, and not the loss's Hessian",
    )
    return right[0]


def differences(engine: Differentiable, v: Tensor) -> Derivative | None:
    """The derivative of the gradient along v by differences, or None where there is no such derivative."""
    theta = engine.theta()
    u, v = directions(len(theta), theta, 1)[0], v.to(theta)
    found = along(engine.gradient_at, theta, v)
    return found if found is not None and is_linear(engine.gradient_at, theta, u, v) else None


def moves_held_rows(engine: Differentiable) -> bool:
    """Whether an embedding's row without a gradient (``padding_idx``) is moved by what else uses it, as a tied decoder.

    A row that nothing moves is as good as a constant, also to what follows training: among coordinates that move, H is
    the derivative of the gradient then.
    """
    theta, path = engine.theta(), engine.path
    pair = torch.stack(directions(len(theta), theta))
    products = engine.product(pair, path)
    if products is None:
        return False
    v = pair[0] * ((engine.gradient != 0) | (products != 0).any(0))
    product, found = engine.product(v.unsqueeze(0), path), along(engine.gradient_at, theta, v)
    return product is not None and found is not None and not found.agrees(product[0], limits(theta.dtype)[1])


class _Comparison:
    """Products H u and H v of one engine on each way that torch offers, and differences.

    Args:
        engine: in float64 where that is possible.
        stops: a reason not to take differences, or None.
    """

    def __init__(self, engine: Differentiable, stops: str | None) -> None:
        self._engine, self._stops, self._theta = engine, stops, engine.theta()
        self._pair = torch.stack(directions(len(self._theta), self._theta))
        self._near, self._far, self._rounding = limits(self._theta.dtype)
        self._refusal: UnsupportedError | None = None
        self._products = self._all_products()

    def _all_products(self) -> dict[str, Tensor]:
        found = {path: self._product(path) for path in dict.fromkeys((self._engine.path, DOUBLE_BACKWARD))}
        return {path: p for path, p in found.items() if p is not None}

    def _product(self, path: str, theta: Tensor | None = None) -> Tensor | None:
        try:
            return self._engine.product(self._pair, path, theta)
        except UnsupportedError as e:
            self._refusal = e
            return None

    def decide(self) -> str:
        if not self._products:
            raise self._refusal or UnsupportedError("model, loss_fn: autograd cannot differentiate the loss twice")
        sound = [path for path, p in self._products.items() if torch.isfinite(p).all()]
        if not sound:
            raise NonFiniteError("hessian: torch's second derivatives are NaN or inf on this batch")
        expected = self._expected()
        if expected is not None:
            right = [path for path in sound if expected.agrees(self._products[path][0], self._far)]
            right = [path for path in right if self._is_symmetric(path)]
            if right:
                return self._chosen(right[0], "differs from differences of gradients")
            if not is_linear(self._engine.gradient_at, self._theta, *self._pair):
                expected = None  # no derivative exists here: what torch gives by convention is accepted
        if expected is None and len(sound) == len(self._products) and self._agree(sound):
            return sound[0]
        if self._stops is not None and DOUBLE_BACKWARD in sound and self._is_symmetric(DOUBLE_BACKWARD):
            return self._chosen(DOUBLE_BACKWARD, f"it sees past {self._stops or 'rounding'}")
        return self._rounding_only(sound, expected)

    def _expected(self) -> Derivative | None:
        return None if self._stops is not None else along(self._engine.gradient_at, self._theta, self._pair[0])

    def follows_the_gradient(self, path: str) -> bool:
        """Whether the products on this way are symmetric, and are what differences of torch's gradient give."""
        if path not in self._products or not self._is_symmetric(path):
            return False
        expected = [along(self._engine.gradient_at, self._theta, v) for v in self._pair]
        pairs = zip(expected, self._products[path], strict=True)
        return all(e is not None and e.agrees(product, self._far) for e, product in pairs)

    def _is_symmetric(self, path: str, floor: float = 0.0) -> bool:
        products = self._products[path]
        gap = (self._pair[0] @ products[1] - self._pair[1] @ products[0]).abs()
        limit = 1e-3 if gap.dtype == torch.float32 else 1e-8
        return bool(gap <= max(float(limit * products.norm()), floor) * self._pair[0].norm())

    def _agree(self, paths: list[str], floor: float = 0.0) -> bool:
        """Whether the products on these ways are symmetric, and the same."""
        first, *others = [self._products[path] for path in paths]
        same = all(float((p - first).norm()) <= max(self._near * float(first.norm()), floor) for p in others)
        return same and all(self._is_symmetric(path, floor) for path in paths)

    def _chosen(self, path: str, why: str) -> str:
        if path != self._engine.path and self._engine.path in self._products:
            log.warning("%s is wrong here (%s); using %s", self._engine.path, why, path)
        return path

    def _rounding_only(self, sound: list[str], expected: Derivative | None) -> str:
        """On a fitted batch, and of ineffective parameters, H is rounding; a wrong formula is wrong by more than that.

        Raises:
            ChaosExtError: this one is.
        """
        eps = torch.finfo(self._theta.dtype).eps
        floor = max(self._rounding * self._scale_nearby(sound[0]), 30 * eps * float(self._engine.loss.abs()))
        fits = [p for p in sound if expected is None or expected.agrees(self._products[p][0], self._far, floor)]
        if fits and len(sound) == len(self._products) and self._agree(fits, floor):
            log.warning("the Hessian on this batch is at the level of torch's rounding; its symmetric part is used")
            return fits[0]
        raise ChaosExtError(
            f"hessian: torch's second derivatives of this model and loss are wrong here: {self._findings(expected)}"
            f"{_suspects(self._engine.seen)}; check them with torch.autograd.gradgradcheck"
        )

    def _scale_nearby(self, path: str) -> float:
        """How large products are at other parameters."""
        noise = directions(len(self._theta), self._theta, 3)[2]
        shifted = (0.3 * noise, self._theta + 0.1 * self._theta.abs() * noise)
        found = [self._product(path, theta) for theta in shifted]
        return max((float(p.norm()) for p in found if p is not None and torch.isfinite(p).all()), default=0.0)

    def findings(self) -> str:
        """What is wrong with each way."""
        return self._findings(along(self._engine.gradient_at, self._theta, self._pair[0]))

    def _findings(self, expected: Derivative | None) -> str:
        return "; ".join(f"{path} {self._finding(path, expected)}" for path in self._products)

    def _finding(self, path: str, expected: Derivative | None) -> str:
        product = self._products[path]
        if not torch.isfinite(product).all():
            return "gives NaN or inf"
        symmetry = "is symmetric" if self._is_symmetric(path) else "is not symmetric"
        if expected is None:
            return f"{symmetry}, and differs from the other where differences of gradients do not settle"
        gap = float((product[0] - expected.value).norm())
        return (
            f"{symmetry}, and off by {gap:.2g} where differences of gradients give {float(expected.value.norm()):.2g}"
        )


def _suspects(seen: Seen | None) -> str:
    if seen is None or not (seen.functions or seen.fragile):
        return ""
    custom = f"the backward of {seen.names}" if seen.functions else ""
    return f" (look at {' and '.join(filter(None, (custom, ', '.join(seen.fragile))))})"
