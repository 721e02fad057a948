"""Lyapunov exponents of a training run, while it trains: the tangent map of every step, on 8 deviations.

python examples/lyapunov_exponents.py
"""

from __future__ import annotations

import torch

import chaos_ext as ce


def main(steps: int = 400) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
    loss_fn = torch.nn.CrossEntropyLoss()
    x, y = torch.randn(64, 20, dtype=torch.float64), torch.randint(3, (64,))

    # SGD with momentum: without directions to prune, CGD is torch.optim.SGD, and steps on the operator's gradient. A
    # torch optimizer that steps on .grad does as well: call backward() and opt.step() after the update.
    opt = ce.CGD(model.parameters(), lr=0.5, momentum=0.9, prune=None)
    analyzer = ce.LyapunovAnalyzer(model, opt, k=8, progress=steps)
    for step in range(steps):
        batch = torch.arange(8) + 8 * (step % 8)
        op = ce.HessianOperator(model, loss_fn, x[batch], y[batch])
        analyzer.update(op)  # before the step: J at theta(t)
        opt.step(op)

    exponents, errors = analyzer.exponents(), analyzer.errors()
    for i, (value, error) in enumerate(zip(exponents.tolist(), errors.tolist(), strict=True)):
        print(f"exponent {i + 1}: {value:+.4f} +- {error:.4f} nats per step")
    return exponents


if __name__ == "__main__":
    main()
