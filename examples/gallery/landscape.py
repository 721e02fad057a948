"""A loss landscape, its eigenvectors, and a training path

A network with two parameters, $f(x) = w_2 \\tanh(w_1 x)$, so that nothing has to be projected: the plane *is*
parameter space. The path is gradient descent from near the saddle at the origin. The crosses are the eigenvectors of
the Hessian along it, orange where the direction is locally chaotic, $\\lambda < 0$ or $\\lambda > 2/\\eta$, blue
where it contracts.

The hatched regions have a chaotic direction: around the saddle and behind the ridges curvature is negative, where the
loss is steep it is too large for the learning rate. The path leaves the saddle along a chaotic direction, and ends in
a valley where both directions contract, one of them hardly.
"""

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import chaos_ext as ce

LR, STEPS, SIDE = 0.3, 80, 45


class Two(torch.nn.Module):
    """f(x) = w2 tanh(w1 x)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.25, -0.4], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w[1] * torch.tanh(self.w[0] * x)


x = torch.linspace(-2, 2, 30, dtype=torch.float64).unsqueeze(1)
y = 1.5 * torch.tanh(1.2 * x)
loss_fn = torch.nn.MSELoss()


def spectrum_at(model: Two, w: torch.Tensor) -> tuple[ce.HessianOperator, ce.Spectrum]:
    model.w.data.copy_(w)
    op = ce.HessianOperator(model, loss_fn, x, y)
    return op, ce.spectrum(op)


def landscape(model: Two) -> tuple[torch.Tensor, ...]:
    """Axis [SIDE], and over the plane the loss and whether an eigenvalue is negative, or above 2/LR [SIDE, SIDE]."""
    axis = torch.linspace(-2.6, 2.6, SIDE, dtype=torch.float64)
    loss, negative, beyond = torch.zeros(3, SIDE, SIDE)
    for i, w2 in enumerate(axis):
        for j, w1 in enumerate(axis):
            op, spec = spectrum_at(model, torch.stack([w1, w2]))
            loss[i, j] = op.loss
            negative[i, j], beyond[i, j] = (spec.eigenvalues < 0).any(), (spec.eigenvalues > 2 / LR).any()
    return axis, loss, negative, beyond


def path(model: Two) -> tuple[list[torch.Tensor], list[ce.Spectrum]]:
    points, spectra = [model.w.detach().clone()], []
    for _ in range(STEPS):
        op, spec = spectrum_at(model, points[-1])
        spectra.append(spec)
        points.append(points[-1] - LR * op.gradient)
    return points, spectra


def main() -> Figure:
    model = Two()
    points, spectra = path(model)
    axis, loss, negative, beyond = landscape(model)
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    ax = figure.subplots()
    levels = torch.logspace(-3, 1, 17).tolist()
    contours = ax.contourf(
        axis.numpy(), axis.numpy(), loss.clamp(1.001e-3, 9.99).numpy(), levels, norm="log", cmap="Greys", alpha=0.7
    )
    figure.colorbar(contours, ax=ax, label="mean squared error", ticks=[1e-3, 1e-2, 1e-1, 1, 10])
    for mask, hatch in ((negative, "///"), (beyond, "ooo")):
        ax.contourf(axis.numpy(), axis.numpy(), mask.numpy(), [0.5, 1.5], colors="none", hatches=[hatch])
    for t in (0, 3, 5, 7, 79):
        _cross(ax, points[t], spectra[t])
    ax.plot(*torch.stack(points).T.numpy(), "-o", color="black", markersize=3, linewidth=1.2, zorder=4)
    ax.set_xlabel("$w_1$, inner weight")
    ax.set_ylabel("$w_2$, outer weight")
    ax.set_aspect("equal")
    handles = [
        Line2D([], [], color="black", marker="o", markersize=3, label=f"gradient descent, learning rate {LR}"),
        Line2D([], [], color="#D55E00", linewidth=2.5, label="eigenvector, locally chaotic"),
        Line2D([], [], color="#0072B2", linewidth=2.5, linestyle=(0, (2, 1)), label="eigenvector, contracting"),
        Patch(fill=False, hatch="///", label="negative curvature, $\\lambda < 0$"),
        Patch(fill=False, hatch="ooo", label="overshooting, $\\lambda > 2/\\eta$"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    print(f"loss {float(spectra[0].loss):.3f} -> {float(spectra[-1].loss):.5f}")
    print(f"eigenvalues at the start {spectra[0].eigenvalues.tolist()}, at the end {spectra[-1].eigenvalues.tolist()}")
    return figure


def _cross(ax, point: torch.Tensor, spec: ce.Spectrum) -> None:
    for value, v in zip(spec.eigenvalues, spec.eigenvectors().T, strict=True):
        chaotic = bool(ce.local_lyapunov_exponents(value, LR) > 0)
        ends = torch.stack([point - 0.22 * v, point + 0.22 * v]).numpy()
        look = {"color": "#D55E00"} if chaotic else {"color": "#0072B2", "linestyle": (0, (2, 1))}
        ax.plot(*ends.T, linewidth=2.5, zorder=5, **look)


if __name__ == "__main__":
    main().savefig("landscape.png", dpi=150)
