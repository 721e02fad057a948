"""Figure 1: SGD against SGD with its chaotic, negative or positive curvature directions pruned.

With ``--prune dominant,bulk --k K`` also without the K largest eigenvalues' directions, and along these alone.
Every run of a seed starts from the same parameters and sees the same batches. At each step the Hessian of the
mini-batch is decomposed, and the gradient loses its components along the pruned eigenvectors. Controls
(``pruned``) take as much out of it in random directions.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import Dataset
from ..figures import figure_training
from . import pruned
from .fig1_options import DOMINANT, NAME, QUICK_STEPS
from .findings import Finding, verdict
from .pruned import Pruned, PrunedTraining
from .report import Records
from .series import last_epoch, spread
from .settings import Settings, Unit
from .study import Study, run_study
from .together import USUAL, run_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Fig1Settings(Settings):
    """Settings of ``chaos-ext reproduce fig1``.

    Attributes:
        k: largest number of directions pruned per step, or None for all.
        order: which of them, ``"top_abs"`` or ``"random"``.
        noise: standard deviation of the runs with noise, or None.
        together: how many seeds of a run are trained at once, as one ensemble.
    """

    k: int | None
    order: str
    noise: float | None
    together: int = 1

    def to_json(self) -> dict[str, Any]:
        """As of all settings; runs of before there were ensembles are those of one seed at a time."""
        own = super().to_json()
        return own if self.together > 1 else {n: v for n, v in own.items() if n != "together"}


class Fig1(Study):
    """SGD, SGD with sets of directions pruned, and controls."""

    name, quick_steps = NAME, QUICK_STEPS
    columns, means = pruned.COLUMNS, pruned.MEANS
    shown = "n_chaotic", "n chaotic"

    def refusal(self, args: argparse.Namespace, data: Dataset) -> str | None:
        """Dominant directions without their number."""
        if not set(args.prune) & set(DOMINANT):
            return None
        if args.k is None:
            return "argument --k: expected the number of dominant directions with --prune dominant or bulk"
        if args.order != "top_abs":
            return "argument --order: dominant and bulk go by the k largest eigenvalues; leave it out"
        return None

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """One run of plain SGD, and for each set its own, its controls and its noise."""
        kinds = ("", *(f"-{c}" for c in args.controls), *(("-noise",) if args.noise is not None else ()))
        runs = ("sgd", *(chosen + kind for chosen in args.prune for kind in kinds))
        most = len(common["seeds"])
        usual = 1 if args.model != "mlp" else most if common["device"] != "cpu" else USUAL
        together = min(most, args.together or usual)
        return Fig1Settings(**common, runs=runs, k=args.k, order=args.order, noise=args.noise, together=together)

    def records(self, settings: Settings, run: Callable[..., Records]) -> Records:
        """Several seeds of a run at once, but of controls, which step along gradients of their own."""
        assert isinstance(settings, Fig1Settings)
        return run_together(settings, settings.together, lambda unit: pruned.parsed(unit.run)[1] is None, run)

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> PrunedTraining:
        """A training that prunes what its run is named by."""
        assert isinstance(settings, Fig1Settings)
        s = settings
        return PrunedTraining(s, unit, data, Pruned(s.lr, *pruned.parsed(unit.run), s.k, s.order, s.noise))

    def figures(self, settings: Settings) -> tuple[str, ...]:
        """The paper's, and one for the controls of each set."""
        return ("figure", *sorted({f"controls-{r.partition('-')[0]}" for r in settings.runs if "-" in r}))

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """Accuracy and loss of runs: the paper's, or a set with its controls."""
        chosen = name.partition("-")[2]
        own = [r for r in settings.runs if "-" not in r]
        runs = own if not chosen else ["sgd", *(r for r in settings.runs if r.partition("-")[0] == chosen)]
        return figure_training(metrics, title=title_of(settings), runs=runs, labels={r: pruned.label(r) for r in runs})

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Whether losses are ordered, chaotic is negative, and random directions are something else."""
        loss = last_epoch(metrics, "loss")
        found = [_order(loss), _same(loss)] if {"sgd", *pruned.SETS} <= set(loss) else []
        found += [_dominant(loss)] if {"sgd", *DOMINANT} <= set(loss) else []
        return found + [_told_apart(loss, kind) for kind in ("rank", "energy") if f"negative-{kind}" in loss]

    def describe(self, record: dict[str, Any]) -> dict[str, Any]:
        """How close to the zero tolerance a run came."""
        return pruned.describe(record)

    def remarks(self, records: Records) -> dict[str, Any]:
        """The zero tolerance."""
        return pruned.remarks(records)


def title_of(s: Settings) -> str:
    """What was trained."""
    seeds = f"seed{'s' if len(s.seeds) > 1 else ''} {', '.join(map(str, s.seeds))}"
    more = "".join(f", {n} {what}" for what, n in s.model_options.items())
    return f"{s.data}, {s.model} ({s.activation}{more}), lr {s.lr:g}, batch size {s.batch_size}, {seeds}"


def _order(loss: dict[str, list[float]]) -> Finding:
    runs = ("sgd", "positive", "negative")
    held = [a < b < c for a, b, c in zip(*(loss[r] for r in runs), strict=True)]
    return Finding(
        claim="Pruning negative directions harms training most, pruning positive ones less",
        where="Figure 1",
        criterion="training loss of the last epoch: sgd < positive < negative in every seed (3 at least)",
        numbers=f"{sum(held)} of {len(held)} seeds; "
        + ", ".join(f"{r} {spread(loss[r])}" for r in ("sgd", "positive", "negative")),
        verdict=verdict(held, max(3, len(held))),
    )


def _same(loss: dict[str, list[float]]) -> Finding:
    mean, sd = spread(loss["negative"])
    gap = abs(spread(loss["chaotic"]).mean - mean)
    return Finding(
        claim="Pruning chaotic directions is pruning negative ones: no eigenvalue passes 2 / lr",
        where="Figure 1",
        criterion="mean losses of the last epoch differ by less than 1 standard deviation over seeds (3 at least)",
        numbers=f"difference {gap:.2g}, standard deviation {sd:.2g}, {len(loss['negative'])} seeds",
        verdict="undecided" if len(loss["negative"]) < 3 else "reproduced" if gap < sd else "not reproduced",
    )


def _dominant(loss: dict[str, list[float]]) -> Finding:
    held = [s < b and d - s < 0.1 * (b - s) for s, d, b in zip(*(loss[r] for r in ("sgd", *DOMINANT)), strict=True)]
    return Finding(
        claim="Training goes as well without the dominant directions, and hardly goes on along them alone",
        where="Song, Ahn and Yun (ICLR 2025), there with directions of the training set; here of each mini-batch",
        criterion="training loss of the last epoch: dominant exceeds sgd by less than a tenth of what bulk does, in "
        "every seed (3 at least)",
        numbers=f"{sum(held)} of {len(held)} seeds; " + ", ".join(f"{r} {spread(loss[r])}" for r in ("sgd", *DOMINANT)),
        verdict=verdict(held, max(3, len(held))),
    )


def _told_apart(loss: dict[str, list[float]], kind: str) -> Finding:
    own, control = spread(loss["negative"]), spread(loss[f"negative-{kind}"])
    sd = max(own.sd, control.sd)
    what = "as many random directions" if kind == "rank" else "random directions with as large a part of the gradient"
    apart = own.mean - control.mean > 2 * sd
    return Finding(
        claim=f"It is the negative directions that matter: pruning {what} harms less",
        where="control, not in the paper",
        criterion="last epoch's training loss is higher by more than 2 standard deviations over seeds (3 at least)",
        numbers=f"negative {own}, control {control}, sgd {spread(loss['sgd'])}",
        verdict="undecided" if len(loss["negative"]) < 3 else "reproduced" if apart else "not reproduced",
    )


run = functools.partial(run_study, Fig1())
