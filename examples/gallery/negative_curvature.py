"""Which examples carry negative curvature

The Hessian of a batch is the mean of those of its samples, so an eigenvalue is a mean, too: $\\lambda = \\frac{1}{N}
\\sum_n v^{\\mathsf T} H_n v$ for its eigenvector v. This takes the most negative eigenvector of a batch of digits and
shows what each sample adds. Nearly all of it comes from the three samples that the network gets wrong; samples that
are fitted add next to nothing.
"""

import torch
from matplotlib.figure import Figure

import chaos_ext as ce

N, STEPS, LR = 48, 250, 0.1


def main() -> Figure:
    torch.manual_seed(0)
    data = ce.data.load("digits")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 20), torch.nn.Tanh(), torch.nn.Linear(20, 10))
    model, loss_fn = model.double(), torch.nn.CrossEntropyLoss()
    x_train, y_train = data.x_train.double(), data.y_train
    opt = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(STEPS):
        batch = torch.randint(len(x_train) - N, (16,))
        opt.zero_grad()
        loss_fn(model(x_train[batch]), y_train[batch]).backward()
        opt.step()

    x, y = x_train[-N:], y_train[-N:]
    spec = ce.spectrum(ce.HessianOperator(model, loss_fn, x, y))
    v = spec.eigenvectors([0]).squeeze(1)
    single = [ce.HessianOperator(model, loss_fn, x[n : n + 1], y[n : n + 1]) for n in range(N)]
    shares = torch.stack([v @ (op @ v) for op in single]) / N
    losses = torch.stack([op.loss for op in single])
    assert torch.allclose(shares.sum(), spec.eigenvalues[0])  # the eigenvalue, sample by sample
    print(f"most negative eigenvalue {spec.eigenvalues[0]:.4f}, the sum of {N} samples")
    three = float(shares.sort().values[:3].sum() / shares[shares < 0].sum())
    print(f"three samples add {three:.0%} of what is negative")
    return draw(x, y, model(x).argmax(1), shares.detach(), losses)


def draw(x: torch.Tensor, y: torch.Tensor, said: torch.Tensor, shares: torch.Tensor, losses: torch.Tensor) -> Figure:
    figure = Figure(figsize=(10, 5.0), layout="constrained")
    grid = figure.add_gridspec(2, 8, height_ratios=(2.2, 1))
    ax = figure.add_subplot(grid[0, :])
    wrong = said != y
    for mask, color, marker, label in (
        (~wrong, "#0072B2", "o", "classified right"),
        (wrong, "#D55E00", "^", "classified wrong"),
    ):
        ax.plot(losses[mask], shares[mask], marker, color=color, markersize=6, alpha=0.8, label=label)
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_xlabel("loss of the sample (nats)")
    ax.set_ylabel("what it adds to the most\nnegative eigenvalue")
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(frameon=False)
    order = shares.argsort()
    for i, n in enumerate([*order[:4].tolist(), *shares.abs().argsort()[:4].tolist()]):
        image = figure.add_subplot(grid[1, i])
        image.imshow(x[n, 0].numpy(), cmap="Greys")
        image.set_xticks([])
        image.set_yticks([])
        image.set_title(f"{shares[n]:+.3f}", fontsize="small")
        image.set_xlabel(f"{int(y[n])}, read as {int(said[n])}", fontsize="small")
        if i in (0, 4):
            image.set_ylabel("most negative" if i == 0 else "nearest to zero", fontsize="small")
    return figure


if __name__ == "__main__":
    main().savefig("negative_curvature.png", dpi=150)
