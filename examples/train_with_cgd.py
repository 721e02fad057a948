"""Train a model of your own with CGD on a DataLoader, and see what each step pruned.

python examples/train_with_cgd.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import chaos_ext as ce


def spirals(n: int) -> TensorDataset:
    """Three interleaved spirals in the plane."""
    label = torch.arange(n) % 3
    radius = torch.rand(n)
    angle = 2.1 * label + 5 * radius + 0.1 * torch.randn(n)
    return TensorDataset(torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label)


def main(epochs: int = 5) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 3))
    loss_fn = nn.CrossEntropyLoss()
    opt = ce.CGD(model.parameters(), lr=0.2, momentum=0.9, prune="negative")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs)
    for epoch in range(epochs):
        losses, shares = [], []
        for x, y in DataLoader(spirals(240), batch_size=16, shuffle=True):
            loss = opt.step(ce.HessianOperator(model, loss_fn, x, y))
            losses.append(loss.item())
            shares.append(opt.last_step.share)
        schedule.step()
        mean, share = sum(losses) / len(losses), sum(shares) / len(shares)
        print(f"epoch {epoch}: loss {mean:.3f}, pruned {share:.1%} of |g|^2")
    return mean


if __name__ == "__main__":
    main()
