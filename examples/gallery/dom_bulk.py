"""Dominant and bulk directions

The Hessian of a classifier's loss over a data set has a few large eigenvalues, about as many as classes, and much of
the gradient soon lies in their span. Yet training goes on without them: Bulk-SGD removes the dominant part of every
gradient (`CGD(prune="dominant")`), Dom-SGD (`prune="bulk"`), which stalls, keeps only that (Song, Ahn and Yun 2025).
The eigenspace is that of the Hessian of the *data set*; with that of the mini-batch results are others.

Left: the spectrum after training, exact. Middle: the share of the mini-batch's squared gradient norm in the span of
the ten largest eigenvalues. Right: the loss.
"""

import torch
from matplotlib.figure import Figure

import chaos_ext as ce

STEPS, EVERY, LR, TOP = 300, 10, 0.1, 10
PRUNE = {"SGD": None, "Bulk-SGD": "dominant", "Dom-SGD": "bulk"}
LOOKS = {"SGD": ("#000000", "-"), "Bulk-SGD": ("#0072B2", (0, (5, 1.5))), "Dom-SGD": ("#D55E00", (0, (1.5, 1)))}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    digits = ce.data.load("digits")
    return torch.nn.functional.avg_pool2d(digits.x_train[:600], 2).flatten(1).double(), digits.y_train[:600]


def train(kind: str) -> tuple[torch.nn.Module, list[float], list[float]]:
    """The model, its loss over the data set, and the share of |g|^2 in the dominant space, at every reading."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10)).double()
    loss_fn, (x, y) = torch.nn.CrossEntropyLoss(), data()
    whole = [(x[i : i + 300], y[i : i + 300]) for i in (0, 300)]
    opt = ce.CGD(model.parameters(), lr=LR, prune=PRUNE[kind], k=TOP if PRUNE[kind] else None)
    draws, losses, shares, top = torch.Generator().manual_seed(0), [], [], None
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            op = ce.DatasetHessian(model, loss_fn, whole)
            top = ce.spectrum(op, k=TOP, which="largest", start=top)
            losses.append(float(op.loss))
        index = torch.randint(len(x), (50,), generator=draws)
        op = ce.HessianOperator(model, loss_fn, x[index], y[index])
        if step % EVERY == 0:
            V = top.eigenvectors()
            shares.append(float((V.T @ op.gradient).norm() ** 2 / op.gradient.norm() ** 2))
        opt.step(op, curvature=top if PRUNE[kind] else None)
    return model, losses, shares


def main() -> Figure:
    runs = {kind: train(kind) for kind in LOOKS}
    op = ce.DatasetHessian(runs["SGD"][0], torch.nn.CrossEntropyLoss(), [data()])
    values = torch.linalg.eigvalsh(op.dense()).flip(0)
    figure = Figure(figsize=(12, 4.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    rank = torch.arange(1, len(values) + 1)
    left.plot(rank[TOP:], values[TOP:], ".", color="0.4", markersize=3, label="bulk")
    left.plot(rank[:TOP], values[:TOP], "D", color="#D55E00", markersize=5, label=f"the {TOP} largest")
    left.set_xscale("log")
    left.set_yscale("symlog", linthresh=1e-3)
    left.set_ylim(3 * float(values.min()), 3 * float(values.max()))
    left.axhline(0, color="0.3", linewidth=0.8)
    left.set_xlabel(f"rank of {len(values)} eigenvalues")
    left.set_ylabel("eigenvalue (linear below 0.001)")
    left.legend(frameon=False)
    at = range(0, STEPS + 1, EVERY)
    for kind, (color, style) in LOOKS.items():
        look = {"color": color, "linestyle": style, "linewidth": 1.6, "label": kind}
        middle.plot(at, runs[kind][2], **look)
        right.plot(at, runs[kind][1], **look)
        print(f"{kind}: loss {runs[kind][1][-1]:.3f}, share in the dominant space at the end {runs[kind][2][-1]:.0%}")
    middle.set_ylim(0, 1.02)
    middle.set_ylabel("share of |g|² in the dominant space")
    right.set_yscale("log")
    right.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
    right.minorticks_off()
    right.set_ylabel("training loss")
    for ax in (middle, right):
        ax.set_xlabel("optimizer step")
        ax.legend(frameon=False)
    for ax in (left, middle, right):
        ax.grid(alpha=0.25, linewidth=0.5)
    return figure


if __name__ == "__main__":
    main().savefig("dom_bulk.png", dpi=150)
