"""The edge of stability: 2/λ crossed

Full-batch gradient descent on 100 digits, at three learning rates. Sharpness, the largest eigenvalue of the Hessian,
grows (*progressive sharpening*). At the two larger rates it passes $2/\\eta$, where the step overshoots along its
eigenvector: the local exponent there becomes positive. Training does not diverge; the loss has a spike, sharpness
falls back to the threshold and stays near it (Cohen et al. 2021). At the smallest rate the edge is not reached in
these steps.

The eigenvalue is exact, by Lanczos that starts from the eigenvector of the step before, and `distance_to_threshold`
knows where the edge is for the optimizer in use, momentum and Adam included.
"""

import torch
from matplotlib.figure import Figure

import chaos_ext as ce

RATES, STEPS, EVERY = (0.16, 0.2, 0.26), 700, 3
LOOKS = {0.16: ("#0072B2", "-"), 0.2: ("#D55E00", (0, (5, 1.5))), 0.26: ("#000000", (0, (1.5, 1)))}


def train(lr: float) -> dict[str, list[float]]:
    torch.manual_seed(1)
    data = ce.data.load("digits")
    x = torch.nn.functional.avg_pool2d(data.x_train[:100], 2).double()
    x = x - x.mean(0)  # the mean image would give one large eigenvalue from the start
    y = torch.nn.functional.one_hot(data.y_train[:100], 10).double()
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
    ).double()
    loss_fn = torch.nn.MSELoss(reduction="sum")
    opt = torch.optim.SGD(model.parameters(), lr=lr / len(x))  # of the sum: lr of the mean over samples
    seen: dict[str, list[float]] = {"step": [], "loss": [], "sharpness": []}
    spec = None
    for step in range(STEPS):
        op = ce.HessianOperator(model, loss_fn, x, y)
        if step % EVERY == 0:
            spec = ce.spectrum(op, k=1, which="largest", start=spec)
            margin = ce.distance_to_threshold(spec, opt)
            seen["step"].append(step)
            seen["loss"].append(float(op.loss) / len(x))
            seen["sharpness"].append(margin.sharpness / len(x))
        opt.zero_grad()
        loss_fn(model(x), y).backward()
        opt.step()
    return seen


def main() -> Figure:
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for lr in RATES:
        seen = train(lr)
        color, style = LOOKS[lr]
        top.plot(
            seen["step"], seen["sharpness"], color=color, linestyle=style, linewidth=1.6, label=f"learning rate {lr}"
        )
        top.axhline(2 / lr, color=color, linestyle=style, linewidth=0.8, alpha=0.6)
        top.annotate(f"2/{lr} = {2 / lr:.3g}", (1, 2 / lr), xytext=(4, 0), xycoords=("axes fraction", "data"),
                     textcoords="offset points", va="center", color=color, fontsize="small")  # fmt: skip
        bottom.plot(seen["step"], seen["loss"], color=color, linestyle=style, linewidth=1.6)
        above = next((s for s, v in zip(seen["step"], seen["sharpness"], strict=True) if v > 2 / lr), None)
        print(
            f"learning rate {lr}: 2/lr is passed at step {above}; at the end {seen['sharpness'][-1] * lr / 2:.2f} of it"
        )
    top.set_ylabel("sharpness $\\lambda_{max}$ of the mean loss")
    top.legend(frameon=False, loc="lower right")
    bottom.set_yscale("log")
    bottom.set_ylabel("squared error a sample")
    bottom.set_xlabel("step of full-batch gradient descent")
    for ax in (top, bottom):
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.margins(x=0.01)
    return figure


if __name__ == "__main__":
    main().savefig("edge_of_stability.png", dpi=150)
