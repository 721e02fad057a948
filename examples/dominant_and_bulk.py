"""Does SGD happen in tiny subspaces? Train without the dominant directions of the Hessian, and along them alone.

    python examples/dominant_and_bulk.py                              # digits, embedded in scikit-learn; half a minute
    python examples/dominant_and_bulk.py --data fashion_mnist --samples 5000 --steps 4000

Song, Ahn and Yun (ICLR 2025) found that most of the gradient of SGD lies in the space of the k largest eigenvalues of
the training loss (k: the number of classes), and that this part does not train: leave it out (Bulk-SGD) and training
goes on as well, keep nothing else (Dom-SGD) and it stops. As there, the runs part where the running share of the
gradient in that space passes a threshold, here 0.5: everything before is plain SGD, the same for all.

Directions of the training set and of the single mini-batch are compared: what holds for one need not hold for the
other. As it is run here, the losses at the end are 0.035 (SGD), 0.051 (without the dominant directions of the training
set), 0.32 (along them alone), and 0.094 and 0.36 with those of the mini-batch: along them alone training stops in both
cases; without them it goes on, nearly as well as SGD with the training set's and visibly slower with the mini-batch's.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import chaos_ext as ce

K, BATCH, EVERY = 10, 50, 10
RUNS = ("sgd", "dominant", "bulk")
LABELS = {"sgd": "SGD", "dominant": "without the dominant directions", "bulk": "along the dominant directions alone"}


def load(name: str, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first training samples, as float32."""
    data = ce.data.load(name).to(torch.float32, "cpu")
    return data.x_train[:samples].flatten(1), data.y_train[:samples]


def train(prune: str, whole: bool, x, y, steps: int, lr: float) -> tuple[list[float], list[float], int | None]:
    """Losses on all samples, shares of the gradient in the dominant space, and the step at which pruning began."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 40), nn.Tanh(), nn.Linear(40, 10))
    loss_fn, generator = nn.CrossEntropyLoss(), torch.Generator().manual_seed(1)
    batches = list(zip(x.split(256), y.split(256), strict=True))
    options = {"k": K, "refresh_every": EVERY if whole else 1, "switch_share": 0.5}
    opt = ce.CGD(
        model.parameters(), lr=lr, prune=None if prune == "sgd" else prune, **(options if prune != "sgd" else {})
    )
    losses, shares, began = [], [], None
    for t in range(steps):
        index = torch.randint(len(x), (BATCH,), generator=generator)
        op = ce.HessianOperator(model, loss_fn, x[index], y[index])
        opt.step(op, curvature=(lambda: ce.DatasetHessian(model, loss_fn, batches)) if whole else None)
        if began is None and opt.last_step.pruned:
            began = t
        shares.append(opt.last_step.running_share or float("nan"))
        if t % 10 == 9:
            with torch.no_grad():
                losses.append(loss_fn(model(x), y).item())
    return losses, shares, began


def main(data: str = "digits", samples: int = 400, steps: int = 400, lr: float = 0.1, out: str | None = None) -> dict:
    """Trains all runs; returns the last loss of each by (directions, run)."""
    x, y = load(data, samples)
    curves, last = {}, {}
    for whole in (True, False):
        where = "training set" if whole else "mini-batch"
        for run in RUNS:
            if run == "sgd" and not whole:  # the same one
                curves[where, run], last[where, run] = curves["training set", run], last["training set", run]
                continue
            losses, shares, began = train(run, whole, x, y, steps, lr)
            curves[where, run], last[where, run] = losses, losses[-1]
            since = "" if began is None else f", pruned from step {began} on, running share {shares[-1]:.2f}"
            print(f"directions of the {where}, {LABELS[run]}: loss {losses[-1]:.4f}{since}")
    if out:
        draw(curves, data, out)
    return last


def draw(curves: dict, data: str, out: str) -> None:
    """Training loss of all runs, one panel for each kind of directions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    for ax, where in zip(figure.subplots(1, 2, sharey=True), ("training set", "mini-batch"), strict=True):
        for run in RUNS:
            losses = curves[where, run]
            ax.plot(range(10, 10 * len(losses) + 1, 10), losses, label=LABELS[run])
        ax.set(yscale="log", xlabel="step", title=f"{data}: directions of the {where}")
    figure.axes[0].set_ylabel("loss on the training set")
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=("digits", "usps", "fashion_mnist"))
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--out", default="dominant_and_bulk.png")
    main(**vars(parser.parse_args()))
