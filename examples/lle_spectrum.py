"""The local Lyapunov exponents ln|1 - lr lambda| of every direction during ordinary SGD training.

python examples/lle_spectrum.py
"""

import torch

import chaos_ext as ce


def main(steps: int = 20, lr: float = 0.05) -> list[int]:
    data = ce.data.load("digits")
    model = ce.models.paper_mlp(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss_fn = torch.nn.CrossEntropyLoss()
    chaotic = []
    for step in range(steps):
        x, y = data.x_train[8 * step : 8 * step + 8], data.y_train[8 * step : 8 * step + 8]
        spec = ce.spectrum(ce.HessianOperator(model, loss_fn, x, y), spectrum_dtype=torch.float64)
        exponents = ce.local_lyapunov_exponents(spec.eigenvalues, lr)
        chaotic.append(int((exponents > 0).sum()))
        print(f"step {step}: {chaotic[-1]} chaotic, {spec.nullity} neutral, largest exponent {exponents.max():.2e}")
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    return chaotic


if __name__ == "__main__":
    main()
