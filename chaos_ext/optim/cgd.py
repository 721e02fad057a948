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
from ..base.signals import Deferred
from ..base.torch_internals import without_grad
from ..curvature.hessian import HessianOperator
from ..spectra.spectrum import Spectrum
from . import state as own_state
from .draws import Draw, draw, state_before
from .elsewhere import Curvature, refuse_other_map
from .finding import Finder, pruned_gradient
from .kept import Kept, taken
from .planning import info_of, look, pruned_of
from .pruning import Pruning, StepInfo, option
from .removal import Pruned, frozen_projection
from .sgd import Update, check_group, check_loaded, in_place, numbers_of, only_makes_state, places_of_last
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
        spectrum: a Spectrum of which the listed directions, few or all, replace the current ones (global pruning).
        zero_tol, spectrum_dtype: of the spectrum that ``step`` computes; see ``spectrum()``.
        generator: for random order and noise; default: torch's global one.
        threshold: of "chaotic": "paper", lambda < 0 or lambda > 2 / lr; "optimizer", a companion root of this
            optimizer's recurrence (momentum, weight decay) outside the unit circle. Under ``maximize`` -lambda takes
            lambda's place.
        refresh_every: keep k directions for so many steps, and refresh them then from the kept ones: one block product,
            more while residuals are above ``refresh_tol``. Steps in between need no operator. What joins the k is found
            at later refreshes. None: directions are found anew at every step.
        refresh_tol: ||H v - lambda v|| / max|lambda| at which a kept direction counts as found; default 1e-2.
        switch_share: of "dominant" and "bulk": prune from the step on at which the running share m of the gradient in
            the dominant space passes this. m(t) = switch_decay m(t - 1) + (1 - switch_decay) s(t), s = ||V^T g||^2 /
            ||g||^2; m = s at the first step in start..stop, steps with g = 0 are left out. switch_decay: in [0, 1).

    Attributes:
        pruning: the pruning options of the next step; each is also an attribute of its own name, to be read and set.
        last_step: StepInfo of the last step, or None.
        steps: number of steps done.

    Raises ValueError or TypeError for arguments outside their range, parameters that are not float32 or float64, k > P.
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
        refresh_every: int | None = None,
        refresh_tol: float | None = None,
        switch_share: float | None = None,
        switch_decay: float = 0.9,
    ) -> None:
        own = (prune, k, order, start, stop, mix, noise, spectrum, zero_tol, spectrum_dtype, threshold)
        self.pruning = Pruning(*own, refresh_every, refresh_tol, switch_share, switch_decay)
        self.generator = generator
        self.steps = 0
        self.last_step: StepInfo | None = None
        self._drawn: Draw | None = None
        self._mapped: int | None = None  # the last step that a tangent map was taken of
        self._kept = Kept()
        self._places: dict[Tensor, tuple[torch.device, torch.dtype]] = {}
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nesterov": nesterov, "maximize": maximize, own_state.KEY: None})
        self.pruning.check_parameters(self._trained())

    prune, k, order, threshold = option("prune"), option("k"), option("order"), option("threshold")
    start, stop, mix, noise = option("start"), option("stop"), option("mix"), option("noise")
    spectrum, zero_tol, spectrum_dtype = option("spectrum"), option("zero_tol"), option("spectrum_dtype")
    refresh_every, refresh_tol = option("refresh_every"), option("refresh_tol")
    switch_share, switch_decay = option("switch_share"), option("switch_decay")

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
        self._places |= places_of_last(self.param_groups)

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
            ValueError: an operator of another model, a Hessian of another shape, ``.grad`` missing where it is needed,
            directions from two places, a partial spectrum that may lack some. TypeError: two sources; another thing.
            NonFiniteError: NaN or infinity in gradient or Hessian.
            UnsupportedError: "chaotic" with groups of different lr; parameters moved or replaced after ``CGD(...)``;
            gradient hooks on parameters, unless the step uses ``.grad``; ``curvature`` in a step that a tangent map was
            taken of, which knows the operator's own directions only.

        After an exception all is as it was; Ctrl-C comes before the step or after it (``steps`` says which). Called
        without a source, with zero gradients and lr = 0, by torch.distributed.checkpoint, it only makes buffers.
        """
        given = called(source, closure)
        resolved = self._resolve(given, curvature)
        if given is None and curvature is None and only_makes_state(self, resolved.gradient):
            return None
        refuse_other_map(curvature, self._mapped == self.steps)
        with self._transaction(resolved) as transaction:
            seen = (
                look(resolved, self._selected, self.pruning, self._kept) if self._needs_directions(resolved) else None
            )
            pruned = pruned_of(resolved, seen, self.pruning, self.generator)
            updates = self._updates(resolved, pruned)
            kept, info = self._kept if seen is None else seen.kept, info_of(self.steps, resolved, seen, pruned)
            if resolved.origin is not None and resolved.origin.one_batch:
                commit_forward(resolved.origin.snapshot.tree, resolved.origin.x, resolved.origin.loss)
            with Deferred():
                for update in updates:
                    update.apply_()
                vars(self).update(last_step=info, _drawn=None, _kept=kept, steps=self.steps + 1)
                transaction.close()
        return resolved.loss

    def _needs_directions(self, resolved: Resolved) -> bool:  # of a zero gradient nothing is left anyway
        return self.is_pruning() and (resolved.has_directions or bool(self.noise) or bool(resolved.gradient.any()))

    def _transaction(self, resolved: Resolved) -> Transaction:
        generators = [self.generator] if self.pruning.is_random and self.is_pruning() else []
        attributes = ("steps", "last_step", "_drawn", "_kept")
        return Transaction(self, attributes, resolved.space.params, resolved.origin, generators)

    def is_pruning(self) -> bool:
        """Whether the next step prunes (``switch_share``: may): a set is chosen, t in start..stop, mix or noise is."""
        return self.pruning.acts_at(self.steps)

    def selection(self, spec: Spectrum) -> Tensor:
        """What the next step prunes of this spectrum.

        Drawn once per step: looking is free, and the step that follows takes the same, with a new operator, too.

        Args:
            spec: a spectrum at the theta of the next step.

        Returns:
            A bool mask [r] over its eigenvalues, free to be edited.

        Raises UnsupportedError for "chaotic" with groups of different lr and for "bulk", which keeps
        ``select(..., "dominant", k)``; StaleOperatorError for an edited spectrum.
        """
        self.pruning.require_columns()
        return self._selected(spec).clone()

    def _selected(self, spec: Spectrum) -> Tensor:
        spec.require_unedited()
        key = (self.steps, self.pruning, numbers_of(self.param_groups))
        with Deferred():
            self._drawn = draw(self._drawn, key, spec, self.pruning, self.param_groups, self.generator)
        return self._drawn.mask

    def tangent_projection(self, op: HessianOperator) -> Callable[[Tensor], None] | None:
        """The projection of the step with ``op``, such as I - mix V V^T, in place on a block [P, k]; None: none."""
        if not self.pruning.projects_at(self.steps):
            self._in_place()
            return None
        found, mask, _, acts = look(self._resolve(op), self._selected, self.pruning, self._kept)
        self._mapped = self.steps
        return frozen_projection(found.spec, mask, self.pruning.how) if acts else None

    def tangent_direction(self, op: HessianOperator) -> tuple[Tensor, int]:
        """The pruned gradient [P] at the operator's theta, and how many directions were taken out.

        Raises UnsupportedError where it is not a function of theta (random order, noise, what earlier steps decide).
        """
        return pruned_gradient(op, self.pruning, self.steps, self.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.SGD's, with steps, generator and switch under "chaos_ext", kept directions (``refresh_every``;
        lost where torch flattens states) in those of the parameters. Fixed directions are not part of it."""
        generator = None if self.generator is None else state_before(self._drawn, self.steps, self.generator)
        parts = self._kept.parts(self._all(), self.pruning)
        return own_state.joined(super().state_dict(), self.steps, generator, self._kept.text(), parts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores ``state_dict()``, or the state of a torch.optim.SGD.

        Raises CheckpointError if it is damaged, ValueError for other groups or buffers: all is then as it was.
        """
        with unchanged_on_failure(self, self.generator):
            rest, steps, generator, text = own_state.split(state_dict)
            super().load_state_dict(rest)
            kept = taken(text, steps, self.state, self._trained())
            check_loaded(self)
            if self.generator is not None and generator is not None:
                self.generator.set_state(generator.cpu())
            vars(self).update(steps=steps, _drawn=None, _mapped=None, _kept=kept, last_step=None)

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: torch's Optimizer keeps only its own three fields."""
        own = {n: getattr(self, n) for n in ("pruning", "generator", "steps", "last_step", "_mapped", "_kept")}
        return {**super().__getstate__(), **own, "_drawn": None if self._drawn is None else self._drawn.forgotten()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_drawn": None, "_mapped": None, "_kept": Kept(), **state})
        for group in self.param_groups:
            group.setdefault(own_state.KEY, None)
        self._places = {p: (p.device, p.dtype) for g in self.param_groups for p in g["params"]}

    def _all(self) -> list[Tensor]:
        return [p for g in self.param_groups for p in g["params"]]

    def _trained(self) -> list[Tensor]:
        return [p for p in self._all() if p.requires_grad]

    def _resolve(self, source: Source | None, curvature: Curvature | None = None) -> Resolved:
        trained = self._in_place()
        finder = Finder(self.pruning, trained, self.steps, self._kept.tracked)
        return resolve(source, trained, len(self.param_groups), finder, curvature)

    def _in_place(self) -> list[Tensor]:
        return in_place(self.param_groups, self._trained(), self._places)

    def _updates(self, resolved: Resolved, pruned: Pruned | None) -> list[Update]:
        return updates_of(self, resolved, pruned)
