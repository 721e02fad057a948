"""Twins of a training run

Ninety-eight twins of one small network: displaced along the direction that this very training stretches most (the
first right singular vector of the product of its tangent maps), or along random ones; all see the same batches. The
dashed line is what linear theory says, the product of the Jacobians of every step on the way; the dotted one its end,
$\\sigma_1$.

Displacements of 1e-7 stay linear throughout; one of 0.3 does not, and its law is another one.
"""

import torch
from matplotlib.figure import Figure

import chaos_ext as ce

STEPS, LR, TINY, LARGE = 700, 0.2, 1e-7, 0.3


def batches():
    data = ce.data.load("digits")
    x = torch.nn.functional.avg_pool2d(data.x_train, 4).flatten(1).double()  # 16 inputs
    draws = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        index = torch.randint(len(x), (8,), generator=draws)
        yield x[index], data.y_train[index]


def model_at_start() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10)).double()


def main() -> Figure:
    loss_fn, model = torch.nn.CrossEntropyLoss(), model_at_start()
    opt = torch.optim.SGD(model.parameters(), lr=LR)
    analyzer = ce.LyapunovAnalyzer(model, opt, method="svd", every=10)
    for x, y in batches():
        analyzer.update(ce.HessianOperator(model, loss_fn, x, y))
        opt.zero_grad()
        loss_fn(model(x), y).backward()
        opt.step()
    first = ce.perturbation(analyzer, "max_chaotic")
    result = analyzer.finite_time()

    P, draws = len(first), torch.Generator().manual_seed(1)
    random = torch.nn.functional.normalize(torch.randn(P, 48, dtype=torch.float64, generator=draws), dim=0)
    deltas = torch.cat([TINY * first.unsqueeze(1), LARGE * first.unsqueeze(1), TINY * random, LARGE * random], 1)
    model = model_at_start()
    twins = ce.Ensemble.around(model, loss_fn, torch.optim.SGD(model.parameters(), lr=LR), deltas)
    distances = []
    for x, y in batches():
        twins.step(x, y)
        distances.append(twins.distances()[1:])
    return draw(torch.stack(distances), result)


def draw(distances: torch.Tensor, result: ce.FiniteTimeSpectrum) -> Figure:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = torch.arange(1, STEPS + 1)
    extremes = result.extremes
    left.plot(t, distances[:, 0] / TINY, color="#D55E00", linewidth=1.8, label="along the most stretched direction")
    _band(left, t, distances[:, 2:50] / TINY, "#0072B2", "48 random directions: mean, range")
    bound = torch.exp(extremes.largest * extremes.steps)
    dashed = {"color": "black", "linewidth": 1.2, "linestyle": (0, (4, 2))}
    left.plot(extremes.steps, bound, label="$\\sigma_1$ of the product", **dashed)
    sigma = float(torch.exp(result.exponents[0] * result.steps))
    left.axhline(sigma, color="0.4", linewidth=0.8, linestyle=(0, (1, 1.5)))
    left.set_title(f"displaced by {TINY:.0e}: linear", fontsize="medium")
    right.plot(t, distances[:, 1] / LARGE, color="#D55E00", linewidth=1.8, label="along the most stretched direction")
    _band(right, t, distances[:, 50:] / LARGE, "#0072B2", "48 random directions: mean, range")
    fit = ce.fit_divergence(t, distances[:, 50:], errors="relative")
    law = fit.offset.distance(t) / LARGE
    right.plot(t, law, color="black", linewidth=1.2, linestyle=(0, (4, 2)), label="fit √(αt² + βt + ε²) of their rms")
    right.set_title(f"displaced by {LARGE}: not linear any more", fontsize="medium")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("optimizer step")
        ax.set_ylabel("distance over displacement")
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.legend(frameon=False, fontsize="small", loc="upper left")
        ax.set_ylim(0.7, 400)
    print(f"sigma_1 = {sigma:.4f}; the twin of {TINY:.0e} was stretched by {float(distances[-1, 0]) / TINY:.4f}")
    print(f"the twin of {LARGE} by {float(distances[-1, 1]) / LARGE:.2f}")
    print(fit.table())
    return figure


def _band(ax, t: torch.Tensor, values: torch.Tensor, color: str, label: str) -> None:
    ax.plot(t, values.mean(1), color=color, linewidth=1.6, linestyle=(0, (5, 1.5)), label=label)
    ax.fill_between(t, values.amin(1), values.amax(1), color=color, alpha=0.2, linewidth=0)


if __name__ == "__main__":
    main().savefig("twins.png", dpi=150)
