"""CGD: stochastic gradient descent that prunes chaotic, negative or positive Hessian directions from the gradient.

    d = g - V (mix * V^T g - noise * xi),   then torch's SGD recurrence with d in place of g,

with V the eigenvectors of H(theta) selected at this step (Herrmann, Granz, Landgraf, NeurIPS 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..base.guards import commit_running_stats, refuse_autocast
from ..base.parameters import FLOAT_DTYPES, ParameterSpace
from ..chaos import Threshold, chaotic_threshold, check_selection, select
from ..curvature.hessian import HessianOperator
from ..errors import CheckpointError, NonFiniteError, UnsupportedError
from ..spectra.decompose import check_options, directions, spectrum_of_matrix
from ..spectra.spectrum import Spectrum
from .pruning import Pruned, StepInfo, check_fixed, check_pruning, factors, frozen_projection, norm_squared
from .sgd import Update, check_group

Source = HessianOperator | Spectrum | Tensor


class CGD(Optimizer):
    """SGD (torch.optim.SGD's recurrence) on a gradient from which Hessian eigen-directions are pruned.

    ``step`` takes a HessianOperator or a Spectrum made from one (the gradient is theirs; ``.grad`` is neither read nor
    written), a dense Hessian [P, P] in the order of the optimizer's parameters (``.grad`` is required and used), or a
    closure that returns one of these. With fixed directions (``spectrum=``) it also takes nothing, and uses ``.grad``.
    Where nothing is pruned the step is bit-identical to ``torch.optim.SGD(foreach=False, fused=False)``.

    Args:
        params: parameters or parameter groups, as for torch.optim.SGD.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD, per group.
        prune: "chaotic" (lambda < 0 or lambda > 2 / lr), "negative", "positive" or None.
        k: prune at most k directions per step; None: all of the set.
        order: which k: "top_abs" or "random" (without replacement); see ``select``.
        start, stop: prune on steps start <= t < stop (stop None: for ever).
        mix: 1 prunes fully, 0 not at all: d = g - mix V V^T g.
        noise: absolute standard deviation of Gaussian noise put on each pruned direction; None: no noise.
        spectrum: a Spectrum whose directions are used at every step instead of the current ones (global pruning).
        zero_tol, spectrum_dtype: of the spectrum that ``step`` computes; see ``spectrum()``.
        generator: for random order and noise; default: torch's global one.
        threshold: of "chaotic": "paper", lambda < 0 or lambda > 2 / lr; "optimizer", a companion root of this
            optimizer's recurrence (momentum, weight decay) outside the unit circle. Under ``maximize`` -lambda takes
            lambda's place.

    Attributes:
        last_step: StepInfo of the last step, or None.
        steps: number of steps done.

    Raises:
        ValueError, TypeError: arguments outside their range, parameters that are not float32 or float64, k > P.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        prune: str | None = "chaotic",
        k: int | None = None,
        order: str = "top_abs",
        start: int = 0,
        stop: int | None = None,
        mix: float = 1.0,
        noise: float | None = None,
        spectrum: Spectrum | None = None,
        zero_tol: float | None = None,
        spectrum_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
        threshold: str = "paper",
    ) -> None:
        check_selection(prune, k, order)
        check_pruning(start, stop, mix, noise, threshold)
        check_options(spectrum_dtype or torch.float64, zero_tol)
        self.prune, self.k, self.order, self.threshold = prune, k, order, threshold
        self.start, self.stop, self.mix, self.noise = start, stop, float(mix), noise
        self.fixed, self.zero_tol, self.spectrum_dtype, self.generator = spectrum, zero_tol, spectrum_dtype, generator
        self.steps = 0
        self.last_step: StepInfo | None = None
        self._drawn: tuple[str, Spectrum, Tensor] | None = None
        self._places: dict[Tensor, tuple[torch.device, torch.dtype]] = {}
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nesterov": nesterov, "maximize": maximize})
        size = sum(p.numel() for p in self._trained())
        if not size:
            raise ValueError("params: expected at least one parameter with requires_grad=True, got none")
        check_selection(prune, k, order, size)
        check_fixed(spectrum, size)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as torch.optim.SGD does; pruning options hold for the whole optimizer and are refused here."""
        unknown = set(param_group) - set(self.defaults) - {"params", "param_names", "initial_lr"}
        if unknown:
            raise ValueError(
                f"param_groups: unknown options {sorted(unknown)}; pruning options belong to CGD(...) itself"
            )
        check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dtype not in FLOAT_DTYPES:
                self.param_groups.pop()
                raise TypeError(f"params: expected float32 or float64 parameters, got {p.dtype}")
            self._places[p] = (p.device, p.dtype)

    @torch.no_grad()
    def step(self, source: Source | Callable[[], Source] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step from theta(t) to theta(t + 1).

        Args:
            source: HessianOperator, Spectrum, dense Hessian [P, P], or a closure that returns one of these.

        Returns:
            The detached loss at theta(t); None where it is not known (a dense Hessian, or ``.grad`` alone).

        Raises:
            StaleOperatorError: the parameters changed since the operator was made.
            ValueError: an operator of another model, a Hessian of another shape, ``.grad`` missing where it is
            required. NonFiniteError: NaN or infinity in gradient or Hessian.
            UnsupportedError: "chaotic" with groups of different lr; parameters moved or replaced after ``CGD(...)``.

        After an exception, parameters and optimizer state are as they were.
        """
        if source is not None and not isinstance(source, (HessianOperator, Spectrum, Tensor)):
            source = _call(source)
        space = self._space(source)
        gradient, loss = self._gradient(source, space)
        pruned = self._prune(source, space, gradient) if self.is_pruning() else None
        updates = self._updates(space, gradient, pruned)
        info = self._info(loss, pruned)
        if isinstance(source, (HessianOperator, Spectrum)) and source.origin is not None:
            commit_running_stats(source.origin.model, source.origin.x)
        for update in updates:
            update.apply_()
        self.last_step, self._drawn = info, None
        self.steps += 1
        return loss

    def is_pruning(self) -> bool:
        """Whether the next step prunes: a set is chosen, t is in start..stop, and mix or noise is not zero."""
        in_time = self.start <= self.steps and (self.stop is None or self.steps < self.stop)
        return self.prune is not None and self.k != 0 and in_time and (self.mix != 0 or bool(self.noise))

    def selection(self, spec: Spectrum) -> Tensor:
        """What the next step prunes of this spectrum, a mask [r]. Drawn once per step and spectrum: looking is free."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        key = repr((self.steps, self.prune, self.k, self.order, self.threshold, groups))
        if self._drawn is not None and self._drawn[0] == key and self._drawn[1] is spec:
            return self._drawn[2]
        mask = self._select(spec)
        self._drawn = (key, spec, mask)
        return mask

    def _select(self, spec: Spectrum) -> Tensor:
        chaotic = self.prune == "chaotic"
        t = chaotic_threshold(self.param_groups, self.threshold) if chaotic else Threshold(1.0, float("inf"))
        return select(
            spec, t.lr, self.prune, self.k, self.order, self.generator, upper=t.upper, sign=t.sign, shift=t.shift
        )

    def tangent_projection(self, op: HessianOperator) -> Callable[[Tensor], None] | None:
        """The projector I - mix V V^T of the next step, in place on a block [P, k]; None where it prunes nothing.

        The protocol by which ``TangentMap`` learns the frozen tangent map I - lr (I - mix V V^T) H of this step.
        """
        self._space(op)
        if not self.is_pruning() or self.mix == 0:
            return None
        spec = self._directions(op)
        return frozen_projection(spec, self.selection(spec), self.mix)

    def tangent_direction(self, op: HessianOperator) -> tuple[Tensor, int]:
        """The pruned gradient [P] at the operator's theta, and how many directions were taken out.

        Raises:
            UnsupportedError: random order or noise, for which it is not a function of theta.
        """
        if self.noise or (self.k is not None and self.order == "random"):
            raise UnsupportedError("jacobian='true': noise and order='random' make no differentiable map of theta")
        if not self.is_pruning() or self.mix == 0:
            return op.gradient, 0
        spec = self._directions(op)
        mask = self._select(spec)
        direction = op.gradient.clone().unsqueeze(1)
        frozen_projection(spec, mask, self.mix)(direction)
        return direction.squeeze(1), int(mask.sum())

    def _directions(self, op: HessianOperator) -> Spectrum:
        return self.fixed or directions(op, zero_tol=self.zero_tol, spectrum_dtype=self.spectrum_dtype)

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.SGD's, with steps and generator under "chaos_ext". Fixed directions are not part of it."""
        generator = None if self.generator is None else self.generator.get_state()
        return {**super().state_dict(), "chaos_ext": {"steps": self.steps, "generator": generator}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores ``state_dict()``, or the state of a torch.optim.SGD.

        Raises:
            CheckpointError: a damaged step count. ValueError: other parameter groups.
        """
        rest = dict(state_dict)
        own = rest.pop("chaos_ext", {"steps": 0})
        steps = own.get("steps") if isinstance(own, dict) else own
        if not isinstance(steps, int) or steps < 0:
            raise CheckpointError(f"state_dict: expected a step count >= 0, got {steps!r}")
        if not {"state", "param_groups"} <= set(rest):
            raise CheckpointError(f"state_dict: expected 'state' and 'param_groups', got {sorted(rest)}")
        super().load_state_dict(rest)
        if self.generator is not None and own.get("generator") is not None:
            self.generator.set_state(own["generator"].cpu())
        self.steps, self._drawn, self.last_step = steps, None, None

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: torch's Optimizer keeps only its own three fields."""
        own = ("prune", "k", "order", "threshold", "start", "stop", "mix", "noise", "fixed", "zero_tol")
        names = (*own, "spectrum_dtype", "generator", "steps", "last_step")
        return {**super().__getstate__(), **{n: getattr(self, n) for n in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._drawn = None
        self._places = {p: (p.device, p.dtype) for g in self.param_groups for p in g["params"]}

    def _trained(self) -> list[Tensor]:
        return [p for g in self.param_groups for p in g["params"] if p.requires_grad]

    def _space(self, source: Source | None) -> ParameterSpace:
        """The order of theta for this step, checked against the optimizer's parameters."""
        trained = self._trained()
        refuse_autocast(trained[0].device)
        for p in trained:
            if (p.device, p.dtype) != self._places[p]:
                raise UnsupportedError(
                    f"params: a parameter moved from {self._places[p]} to {(p.device, p.dtype)} after CGD(...); "
                    "make the optimizer after model.to(...)"
                )
        known = source if isinstance(source, (HessianOperator, Spectrum)) else self.fixed
        if isinstance(source, Spectrum) and source.origin is None:
            raise ValueError(
                "spectrum: it was loaded from a file; use it as CGD(..., spectrum=...) with another source"
            )
        if known is None or known.origin is None:
            self._check_order(source, trained)
            return ParameterSpace((f"params[{i}]", p) for i, p in enumerate(trained))
        if isinstance(source, (HessianOperator, Spectrum)):
            known.origin.snapshot.require_fresh()
        space = known.origin.snapshot.space
        if {id(p) for p in trained} != set(space.index):
            raise ValueError(
                "operator: its model's trainable parameters are not this optimizer's (another model, a replaced "
                "parameter, or a parameter left out: set requires_grad=False on what is not trained)"
            )
        return space

    def _check_order(self, source: Source | None, trained: list[Tensor]) -> None:
        """Without an operator, theta is taken in the optimizer's order: refused where that cannot be the model's."""
        shapes = [tuple(p.shape) for p in trained]
        size = sum(p.numel() for p in trained)
        if isinstance(source, Tensor) and tuple(source.shape) != (size, size):
            raise ValueError(f"step: expected a dense Hessian of shape [{size}, {size}], got {tuple(source.shape)}")
        if isinstance(source, Tensor) and len(self.param_groups) > 1:
            raise UnsupportedError(
                "step: a dense Hessian with several parameter groups has no agreed order; pass a HessianOperator"
            )
        if self.fixed is not None and self.fixed.shapes is not None and self.fixed.shapes != shapes:
            raise ValueError(
                f"spectrum: its parameters have shapes {self.fixed.shapes}, the optimizer's, in order, {shapes}; give "
                "CGD the parameters in model.parameters() order, or step with a HessianOperator"
            )

    def _gradient(self, source: Source | None, space: ParameterSpace) -> tuple[Tensor, Tensor | None]:
        if isinstance(source, (HessianOperator, Spectrum)):
            assert source.gradient is not None
            return source.gradient, source.loss
        if source is None and self.fixed is None:
            raise ValueError(
                "step: expected a HessianOperator, a Spectrum or a dense Hessian; none is only for spectrum="
            )
        missing = [n for n, p in zip(space.names, space.params, strict=True) if p.grad is None]
        if missing:
            raise ValueError(f"step: .grad is required and missing for {', '.join(missing)}; call backward() first")
        gradient = space.flatten([p.grad for p in space.params])  # type: ignore[misc]
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteError("step: .grad has NaN or inf")
        return gradient, None

    def _prune(self, source: Source | None, space: ParameterSpace, gradient: Tensor) -> Pruned:
        if self.fixed is not None:
            spec = self.fixed
            c = spec.coefficients(gradient.to(spec.dtype))
        else:
            spec = self._spectrum(source, space, gradient)
            c = spec.gradient_coefficients()
        mask = self.selection(spec)
        kept = c * mask
        share = kept.double().square().sum() / norm_squared(spec, gradient, self.fixed is not None)
        removed = self.mix * kept
        if self.noise:
            xi = torch.randn(c.shape, generator=self.generator, dtype=torch.float64, device=_device(self.generator, c))
            removed = removed - self.noise * xi.to(c) * mask
        return Pruned(spec, removed, int(mask.sum()), torch.nan_to_num(share))

    def _spectrum(self, source: Source | None, space: ParameterSpace, gradient: Tensor) -> Spectrum:
        if isinstance(source, Spectrum):
            return source
        if isinstance(source, HessianOperator):
            return self._directions(source)
        assert isinstance(source, Tensor)
        if source.dtype != space.dtype or source.device != space.device:
            raise TypeError(f"step: expected a {space.dtype} Hessian on {space.device}, got {source.dtype}")
        return spectrum_of_matrix(
            source, gradient, zero_tol=self.zero_tol, spectrum_dtype=self.spectrum_dtype, form=False
        )

    def _updates(self, space: ParameterSpace, gradient: Tensor, pruned: Pruned | None) -> list[Update]:
        removed: Sequence[tuple[Tensor, Tensor] | None] = [None] * len(space.params)
        if pruned is not None and pruned.count:
            removed = factors(space, pruned)
        groups = {p: g for g in self.param_groups for p in g["params"]}
        return [
            Update(p, gradient[space.slice(i)].view(p.shape), removed[i], groups[p], self.state[p])
            for i, p in enumerate(space.params)
        ]

    def _info(self, loss: Tensor | None, pruned: Pruned | None) -> StepInfo:
        value = None if loss is None else float(loss)
        if pruned is None:
            return StepInfo(self.steps, value)
        values, zero = pruned.spec.eigenvalues, pruned.spec.zero_threshold
        ends = (float(values[0]), float(values[-1])) if len(values) else (None, None)
        negative, positive = int((values < -zero).sum()), int((values > zero).sum())
        return StepInfo(self.steps, value, pruned.count, float(pruned.share), negative, positive, *ends)


def _call(closure: object) -> Source:
    if not callable(closure):
        raise TypeError(f"step: expected a HessianOperator, Spectrum, Tensor or closure, got {type(closure).__name__}")
    with torch.enable_grad():
        source = closure()
    if not isinstance(source, (HessianOperator, Spectrum, Tensor)):
        raise TypeError(f"step: the closure returned {type(source).__name__}, expected a HessianOperator or Spectrum")
    return source


def _device(generator: torch.Generator | None, like: Tensor) -> torch.device:
    return like.device if generator is None else generator.device
