"""Lyapunov exponents of Hénon's map, Lorenz' system and a recurrent network

The machinery that follows a training takes any map. Left and middle: running exponents of two systems with published
values, which are the thin horizontal lines. Right: the hidden state of a random recurrent network, whose largest
exponent passes zero near a gain of one: the edge of chaos (Sompolinsky, Crisanti and Sommers 1988). No tangent was
written down for it: the step is linearised by torch.func and held against differences.
"""

import torch
from matplotlib.figure import Figure

import chaos_ext as ce

COLORS = ("#D55E00", "#000000", "#0072B2")
STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))
UNITS = 60


def running(ax, system: ce.System, steps: int, title: str, unit: str) -> None:
    per_step = system.time
    result = ce.lyapunov_spectrum(system.step, system.tangent, system.x0, steps=steps, transient=500, full_output=True)
    at, history = result.history
    for i, color in enumerate(COLORS[: len(result.exponents)]):
        value, error = (float(v[i]) / per_step for v in (result.exponents, result.errors))
        ax.plot((at - 500).numpy(), history[:, i].numpy() / per_step, color=color, linestyle=STYLES[i], linewidth=1.4,
                label=f"$\\lambda_{i + 1}$ = {value:+.3f} ± {error:.3f}")  # fmt: skip
    for known in system.exponents or ():
        ax.axhline(known, color="0.5", linewidth=0.7, zorder=0)
    ax.set_xscale("log")
    ax.set_title(title, fontsize="medium")
    ax.set_xlabel("steps")
    ax.set_ylabel(f"exponents so far (nats per {unit})")
    ax.legend(frameon=False, fontsize="small")
    values = [round(float(v) / per_step, 4) for v in result.exponents]
    print(f"{title}: {values}, Kaplan-Yorke {result.kaplan_yorke_dimension:.3f}")


def rnn_exponent(gain: float) -> tuple[float, float]:
    torch.manual_seed(3)
    W = gain * torch.randn(UNITS, UNITS, dtype=torch.float64) / UNITS**0.5
    h0 = torch.randn(UNITS, dtype=torch.float64)
    result = ce.lyapunov_spectrum(lambda h: torch.tanh(W @ h), x0=h0, steps=400, k=1, transient=200, full_output=True)
    return float(result.exponents[0]), float(result.errors[0])


def main() -> Figure:
    figure = Figure(figsize=(12, 4.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    running(left, ce.systems.henon(), 20_000, "Hénon's map, a = 1.4, b = 0.3", "step")
    running(middle, ce.systems.lorenz63(dt=0.01), 20_000, "Lorenz 1963, σ = 10, ρ = 28, β = 8/3", "unit of time")
    gains = torch.linspace(0.6, 2.4, 10).tolist()
    values, errors = zip(*(rnn_exponent(g) for g in gains), strict=True)
    right.errorbar(gains, values, yerr=errors, color="black", marker="o", markersize=4, linewidth=1, capsize=2)
    right.axhline(0, color="0.4", linewidth=0.8)
    right.axvline(1, color="0.4", linewidth=0.8, linestyle=(0, (4, 3)))
    right.set_title(f"recurrent network, {UNITS} units, one draw of W", fontsize="medium")
    right.set_xlabel("gain g of h ← tanh(W h), W ~ N(0, g²/n)")
    right.set_ylabel("largest exponent (nats per step)")
    for ax in (left, middle, right):
        ax.grid(alpha=0.25, linewidth=0.5)
    return figure


if __name__ == "__main__":
    main().savefig("exponents_of_maps.png", dpi=150)
