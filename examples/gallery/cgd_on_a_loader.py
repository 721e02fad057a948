"""CGD on a loader of your own, with the control that it needs

Three runs over the same batches of a `DataLoader`: plain SGD, SGD without the directions of negative curvature, and
SGD without as many *random* directions. The last is the control: a run with less gradient is slower whatever was
removed, so pruning says something about negative curvature only where it does more than chance.
"""

import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, TensorDataset

import chaos_ext as ce
from chaos_ext.figures import plot_training

EPOCHS, LR = 3, 0.02


def batches(epoch: int) -> DataLoader:
    data = ce.data.load("digits")
    order = torch.Generator().manual_seed(epoch)
    return DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=8, shuffle=True, generator=order)


def train(kind: str) -> tuple[list[float], list[float]]:
    """Loss of every step, and the share of |g|^2 that was taken out."""
    model = ce.models.paper_mlp(seed=0)
    loss_fn = torch.nn.CrossEntropyLoss()
    opt = ce.CGD(model.parameters(), lr=LR, prune="negative" if kind == "negative" else None)
    draws = torch.Generator().manual_seed(0)
    losses, shares = [], []
    for epoch in range(EPOCHS):
        for x, y in batches(epoch):
            op = ce.HessianOperator(model, loss_fn, x, y)
            if kind == "random":
                loss, share = _without_random(model, op, draws)
            else:
                loss = opt.step(op)
                share = opt.last_step.share if kind == "negative" else 0.0
            losses.append(float(loss))
            shares.append(share)
    return losses, shares


def _without_random(model: torch.nn.Module, op: ce.HessianOperator, draws: torch.Generator) -> tuple[float, float]:
    """A step without as many random directions of the Hessian's range as it has negative ones."""
    spec = ce.spectrum(op)
    count = int((spec.eigenvalues < 0).sum())
    mask = torch.zeros(len(spec.eigenvalues), dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=draws)[:count]] = True
    pruned = spec.project(op.gradient, mask)
    with torch.no_grad():
        theta = torch.nn.utils.parameters_to_vector(model.parameters())
        torch.nn.utils.vector_to_parameters(theta - LR * (op.gradient - pruned), model.parameters())
    return float(op.loss), float(pruned.norm() ** 2 / op.gradient.norm() ** 2)


def main() -> Figure:
    runs = {kind: train(kind) for kind in ("sgd", "negative", "random")}
    labels = {"random": "as many random directions pruned"}
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_training({k: v[0] for k, v in runs.items()}, left, window=40, labels=labels, raw=False)
    pruned = {k: v[1] for k, v in runs.items() if k != "sgd"}
    plot_training(pruned, right, metric="share of |g|² that was pruned", window=40, labels=labels, raw=False)
    right.set_ylim(0, 1)
    left.set_ylim(0, 3.3)
    for kind, (losses, shares) in runs.items():
        print(
            f"{kind}: final loss {sum(losses[-100:]) / 100:.3f}, "
            f"pruned {sum(shares) / len(shares):.0%} of |g|^2 in the mean"
        )
    return figure


if __name__ == "__main__":
    main().savefig("cgd_on_a_loader.png", dpi=150)
