"""CGD: stochastic gradient descent that prunes Hessian directions from the gradient: chaotic, negative, positive or
dominant ones, or all but the dominant ones.

    d = g - V (mix * V^T g - noise * xi),   then torch's SGD recurrence with d in place of g,

with V the eigenvectors of H(theta) selected at this step (Herrmann, Granz, Landgraf, NeurIPS 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..base.guards import commit_forward
from ..base.parameters import FLOAT_DTYPES
from ..base.signals import Deferred
from ..base.torch_internals import without_grad
from ..curvature.hessian import HessianOperator
from ..spectra.spectrum import Spectrum
from . import state as own_state
from .draws import Draw, draw, state_before
from .elsewhere import Curvature, refuse_other_map
from .finding import Finder, pruned_gradient
from .pruning import Pruned, Pruning, StepInfo, frozen_projection, option
from .sgd import SGD_OPTIONS, Update, check_group, check_loaded, in_place, only_makes_state
from .source import Resolved, Source, called, resolve
from .transaction import Transaction, unchanged_on_failure
from .updates import updates_of


class CGD(Optimizer):
    """SGD (torch.optim.SGD's recurrence) on a gradient from which Hessian eigen-directions are pruned.

    ``step`` takes a HessianOperator or a Spectrum made from one (the gradient is theirs; ``.grad`` is neither read nor
    written), a dense Hessian [P, P] in the order of the optimizer's parameters (``.grad`` is required and used), or a
    closure that returns one of these. Where no directions are to be found (they are fixed by ``spectrum=``, the step
    does not prune, or ``.grad`` is zero) it also takes nothing, and uses ``.grad``.
    Where nothing is pruned the step is bit-identical to ``torch.optim.SGD(foreach=False, fused=False)``: parameters
    that this loss does not depend on are left alone (no weight decay, no momentum), as SGD leaves those without grad.

    Example:
        >>> opt = ce.CGD(model.parameters(), lr=0.1, prune="negative")
        >>> loss = opt.step(ce.HessianOperator(model, loss_fn, x, y))
        >>> opt.last_step.pruned == opt.last_step.n_negative
        True

    Args:
        params: parameters or parameter groups, as for torch.optim.SGD.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD, per group.
        prune: "chaotic" (lambda < 0 or lambda > 2 / lr), "negative", "positive" or None; "dominant", the k
            algebraically largest eigenvalues of H (Bulk-SGD), or "bulk", all but these (Dom-SGD: V V^T g remains).
        k: prune at most k directions per step; None: all of the set. "dominant" and "bulk" need it, and take exactly k.
        order: which k: "top_abs" or "random" (without replacement); see ``select``.
        start, stop: prune on steps start <= t < stop (stop None: for ever).
        mix: 1 prunes fully, 0 not at all: d = g - mix V V^T g; of "bulk" d = g - mix (g - V V^T g).
        noise: absolute standard deviation of Gaussian noise put on each pruned direction (of "bulk": on each direction
            of the complement, isotropic noise without its dominant part); None: no noise.
        spectrum: a Spectrum whose directions are used at every step instead of the current ones (global pruning).
        zero_tol, spectrum_dtype: of the spectrum that ``step`` computes; see ``spectrum()``.
        generator: for random order and noise; default: torch's global one.
        threshold: of "chaotic": "paper", lambda < 0 or lambda > 2 / lr; "optimizer", a companion root of this
            optimizer's recurrence (momentum, weight decay) outside the unit circle. Under ``maximize`` -lambda takes
            lambda's place.

    Attributes:
        pruning: the pruning options of the next step; each is also an attribute of its own name, to be read and set.
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
        self.pruning = Pruning(
            prune, k, order, start, stop, float(mix), noise, spectrum, zero_tol, spectrum_dtype, threshold
        )
        self.generator = generator
        self.steps = 0
        self.last_step: StepInfo | None = None
        self._drawn: Draw | None = None
        self._mapped: int | None = None  # the last step that a tangent map was taken of
        self._places: dict[Tensor, tuple[torch.device, torch.dtype]] = {}
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nesterov": nesterov, "maximize": maximize, own_state.KEY: None})
        size = sum(p.numel() for p in self._trained())
        if not size:
            raise ValueError("params: expected at least one parameter with requires_grad=True, got none")
        self.pruning.check_size(size)

    prune, k, order, threshold = option("prune"), option("k"), option("order"), option("threshold")
    start, stop, mix, noise = option("start"), option("stop"), option("mix"), option("noise")
    spectrum, zero_tol, spectrum_dtype = option("spectrum"), option("zero_tol"), option("spectrum_dtype")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as torch.optim.SGD does.

        Args:
            param_group: ``params`` and any of lr, momentum, dampening, weight_decay, nesterov, maximize. Keys of one's
                own (``name``) are kept; ``foreach`` and ``fused`` have no effect.

        Raises:
            ValueError: an option that SGD refuses, or a pruning option: these hold for the whole optimizer.
            UnsupportedError: ``differentiable=True``.
            TypeError: parameters that are not float32 or float64. The optimizer is then as it was.
        """
        check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dtype not in FLOAT_DTYPES:
                self.param_groups.pop()
                raise TypeError(f"params: expected float32 or float64 parameters, got {p.dtype}")
            self._places[p] = (p.device, p.dtype)

    @without_grad
    def step(  # type: ignore[override]
        self,
        source: Source | Callable[[], Source] | None = None,
        closure: Callable[[], Source] | None = None,
        *,
        curvature: Curvature | None = None,
    ) -> Tensor | None:
        """One step from theta(t) to theta(t + 1).

        Args:
            source: HessianOperator, DatasetHessian, Spectrum, dense Hessian [P, P], or a closure that returns one.
            closure: the same by the name that torch's optimizers know: a function that returns a source.
            curvature: where the directions come from, instead of the source, whose gradient, loss and running
                statistics remain: a HessianOperator, DatasetHessian or GGNOperator at this theta, a Spectrum of any
                theta (of an older step, or loaded), or a function that returns one, called where directions are
                needed. Without a source, ``.grad`` is used.

        Returns:
            The detached loss at theta(t); None where it is not known (a dense Hessian, or ``.grad`` alone).

        Raises:
            StaleOperatorError: the parameters changed since the operator was made.
            ValueError: an operator of another model, a Hessian of another shape, ``.grad`` missing where it is
            required, directions from two places. TypeError: two sources; a closure that returns something else, such
            as the loss.
            NonFiniteError: NaN or infinity in gradient or Hessian.
            UnsupportedError: "chaotic" with groups of different lr; parameters moved or replaced after ``CGD(...)``;
            gradient hooks on parameters, unless the step uses ``.grad``; ``curvature`` in a step that a tangent map was
            taken of, which knows the operator's own directions only.

        After an exception all is as it was; Ctrl-C comes before the step or after it (``steps`` says which).
        Without a source, with zero gradients and lr = 0, as torch.distributed.checkpoint calls it, it is no step, and
        only makes momentum buffers of zeros.
        """
        given = called(source, closure)
        resolved = self._resolve(given, curvature)
        if given is None and curvature is None and only_makes_state(self, resolved.gradient):
            return None
        if curvature is not None and self._mapped == self.steps:
            refuse_other_map()
        with self._transaction(resolved) as transaction:
            pruned = self._prune(resolved) if self._needs_directions(resolved) else None
            updates = self._updates(resolved, pruned)
            info = StepInfo.of(self.steps, resolved.loss, pruned)
            if resolved.origin is not None and resolved.origin.one_batch:
                commit_forward(resolved.origin.snapshot.tree, resolved.origin.x, resolved.origin.loss)
            with Deferred():
                for update in updates:
                    update.apply_()
                vars(self).update(last_step=info, _drawn=None, steps=self.steps + 1)
                transaction.close()
        return resolved.loss

    def _needs_directions(self, resolved: Resolved) -> bool:
        """Of a zero gradient nothing is left, whatever is taken out: none are needed, where none are given."""
        return self.is_pruning() and (resolved.has_directions or bool(self.noise) or bool(resolved.gradient.any()))

    def _transaction(self, resolved: Resolved) -> Transaction:
        generators = [self.generator] if self.pruning.is_random and self.is_pruning() else []
        return Transaction(self, ("steps", "last_step", "_drawn"), resolved.space.params, resolved.origin, generators)

    def is_pruning(self) -> bool:
        """Whether the next step prunes: a set is chosen, t is in start..stop, and mix or noise is not zero."""
        return self.pruning.acts_at(self.steps)

    def selection(self, spec: Spectrum) -> Tensor:
        """What the next step prunes of this spectrum.

        Drawn once per step: looking is free, and the step that follows takes the same, with a new operator, too.

        Args:
            spec: a spectrum at the theta of the next step.

        Returns:
            A bool mask [r] over its eigenvalues, free to be edited.

        Raises:
            UnsupportedError: "chaotic" with groups of different lr; "bulk", which keeps ``select(..., "dominant", k)``.
            StaleOperatorError: the spectrum was edited.
        """
        self.pruning.require_columns()
        return self._selected(spec).clone()

    def _selected(self, spec: Spectrum) -> Tensor:
        spec.require_unedited()
        groups = [[g[name] for name in SGD_OPTIONS] for g in self.param_groups]
        key = (self.steps, self.pruning, repr(groups))
        with Deferred():
            self._drawn = draw(self._drawn, key, spec, self.pruning, self.param_groups, self.generator)
        return self._drawn.mask

    def tangent_projection(self, op: HessianOperator) -> Callable[[Tensor], None] | None:
        """The projection of the step with ``op``, such as I - mix V V^T, in place on a block [P, k]; None if it prunes
        nothing."""
        if not self.pruning.projects_at(self.steps):
            self._in_place()
            return None
        spec = self._resolve(op).find().spec
        self._mapped = self.steps
        return frozen_projection(spec, self._selected(spec), self.pruning)

    def tangent_direction(self, op: HessianOperator) -> tuple[Tensor, int]:
        """The pruned gradient [P] at the operator's theta, and how many directions were taken out.

        Raises:
            UnsupportedError: random order or noise, for which it is not a function of theta.
        """
        return pruned_gradient(op, self.pruning, self.steps, self.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.SGD's, with steps and generator under "chaos_ext". Fixed directions are not part of it."""
        generator = None if self.generator is None else state_before(self._drawn, self.steps, self.generator)
        return own_state.joined(super().state_dict(), self.steps, generator)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores ``state_dict()``, or the state of a torch.optim.SGD.

        Raises:
            CheckpointError: damaged. ValueError: other parameter groups or buffers. The optimizer is then as it was.
        """
        with unchanged_on_failure(self, self.generator):
            rest, steps, generator = own_state.split(state_dict)
            super().load_state_dict(rest)
            check_loaded(self)
            if self.generator is not None and generator is not None:
                self.generator.set_state(generator.cpu())
            vars(self).update(steps=steps, _drawn=None, _mapped=None, last_step=None)

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: torch's Optimizer keeps only its own three fields."""
        names = ("pruning", "generator", "steps", "last_step", "_mapped")
        drawn = None if self._drawn is None else self._drawn.forgotten()
        return {**super().__getstate__(), **{n: getattr(self, n) for n in names}, "_drawn": drawn}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_drawn": None, "_mapped": None, **state})
        for group in self.param_groups:
            group.setdefault(own_state.KEY, None)
        self._places = {p: (p.device, p.dtype) for g in self.param_groups for p in g["params"]}

    def _trained(self) -> list[Tensor]:
        return [p for g in self.param_groups for p in g["params"] if p.requires_grad]

    def _resolve(self, source: Source | None, curvature: Curvature | None = None) -> Resolved:
        return resolve(source, self._in_place(), len(self.param_groups), Finder(self.pruning), curvature)

    def _in_place(self) -> list[Tensor]:
        """The trained parameters, which must still be where they were, with options that make sense."""
        return in_place(self.param_groups, self._trained(), self._places)

    def _prune(self, resolved: Resolved) -> Pruned:
        found = resolved.find()
        c, norm_squared = resolved.coefficients(found), resolved.norm_squared(found)
        mask, g = self._selected(found.spec), resolved.gradient
        return Pruned.of(found.spec, mask, c, g, norm_squared, self.pruning, self.generator)

    def _updates(self, resolved: Resolved, pruned: Pruned | None) -> list[Update]:
        return updates_of(self, resolved, pruned)
