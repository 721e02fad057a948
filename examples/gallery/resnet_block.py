"""The spectrum of a residual block over training

A residual network with BatchNorm in training mode: batch statistics are part of the function, and of H. Every reading
is the complete spectrum of the Hessian of one fixed batch of 64 images, all eigenvalues of all parameters, while the
network trains on others.

The largest eigenvalues grow over the first fifty steps and stay; there is no gap behind them, not after as many
eigenvalues as classes either. The negative side hardly changes while the loss falls: there is negative curvature at
every reading.
"""

import torch
from matplotlib.figure import Figure
from torch import nn

import chaos_ext as ce

STEPS, EVERY, LR = 240, 16, 0.1


class Block(nn.Module):
    """x + BN(conv(relu(BN(conv(x))))), then relu."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def main() -> Figure:
    torch.manual_seed(0)
    data = ce.data.load("digits")
    pool = nn.AvgPool2d(2)
    x_train, y_train = pool(data.x_train), data.y_train
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), Block(6), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 10)
    )
    loss_fn, opt = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=LR)
    steps, values, losses = [], [], []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            op = ce.HessianOperator(model, loss_fn, x_train[-64:], y_train[-64:])
            steps.append(step)
            values.append(torch.linalg.eigvalsh(op.dense().double()))
            losses.append(float(op.loss))
        batch = torch.randint(len(x_train) - 64, (16,))
        opt.zero_grad()
        loss_fn(model(x_train[batch]), y_train[batch]).backward()
        opt.step()
    print(f"{len(values[0])} parameters; loss of the batch {losses[0]:.2f} -> {losses[-1]:.2f}")
    for name, i in (("largest", -1), ("smallest", 0)):
        print(f"{name} eigenvalue {values[0][i]:.2f} -> {values[-1][i]:.2f}")
    return draw(steps, torch.stack(values))


def draw(steps: list[int], values: torch.Tensor) -> Figure:
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    ax = figure.subplots()
    lines = (
        (-1, "#D55E00", "-", "largest"),
        (-2, "#E69F00", (0, (5, 1.5)), "second largest"),
        (-10, "#009E73", (0, (1.5, 1)), "tenth largest, as many as classes"),
        (0, "#0072B2", (0, (4, 1.5, 1, 1.5)), "smallest"),
    )
    for column in values.T[10:-10:8]:
        ax.plot(steps, column.numpy(), color="0.6", linewidth=0.4, alpha=0.5)
    for index, color, style, label in lines:
        ax.plot(steps, values[:, index].numpy(), color=color, linestyle=style, linewidth=1.8, label=label)
    ax.plot([], [], color="0.6", linewidth=1, label="the others, every eighth")
    ax.set_yscale("symlog", linthresh=1e-2)
    ax.set_ylim(1.6 * float(values.min()), 3 * float(values.max()))
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("Hessian eigenvalue (linear below 0.01)")
    ax.margins(x=0.01)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


if __name__ == "__main__":
    main().savefig("resnet_block.png", dpi=150)
