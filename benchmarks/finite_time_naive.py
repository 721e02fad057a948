"""How many exponents the eigenvalues of (1/2t) ln(Y^T Y) get wrong at the end of a run of ``reproduce finite-time``.

    chaos-ext reproduce finite-time ... --out DIR --keep-checkpoint
    python benchmarks/finite_time_naive.py DIR

The matrix Y_t is put together from the run's factors, exact to rounding of its largest singular value, so this is the
best case of the method: a Y_t that was itself multiplied up in the dtype has errors of its own on top.
"""

import argparse
import csv
import json
from pathlib import Path

import torch

from chaos_ext.base.files import atomic_write, read_sealed

TOLERANCES = (0.01, 0.1, 1.0)  # of ln sigma


def product(folder: Path) -> torch.Tensor:
    """Y_t [S, k], float64."""
    state = read_sealed(folder / "parts" / "analyzer.ckpt")["run"]["product"]
    U = state["U"]
    U *= state["l"].exp().unsqueeze(1)
    return state["Y"] @ U


def wrong(Y: torch.Tensor, logs: torch.Tensor, dtype: torch.dtype) -> dict[str, float]:
    """How the naive ln sigma compare with the right ones, each in descending order."""
    Y = Y.to(dtype)
    try:
        values = torch.linalg.eigvalsh(Y.mT @ Y).flip(0).double()
    except torch.linalg.LinAlgError:  # overflow
        values = torch.full_like(logs, float("nan"))
    naive = values.log() / 2  # NaN of negative eigenvalues
    gap = (naive - logs).abs()
    counts = {f"off by more than {t}": int((~(gap <= t)).sum()) for t in TOLERANCES}
    return {"not a number": int((~(values > 0)).sum()), **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with (folder / "exponents.csv").open(newline="") as f:
        exponents = torch.tensor([float(row["exponent"]) for row in csv.DictReader(f)], dtype=torch.float64)
    logs = exponents * json.loads((folder / "manifest.json").read_text())["steps"]
    Y = product(folder)
    found = {str(dtype): wrong(Y, logs, dtype) for dtype in (torch.float32, torch.float64)}
    text = json.dumps({"exponents": len(logs), **found}, indent=1) + "\n"
    atomic_write(folder / "naive.json", text)
    print(text, end="")


if __name__ == "__main__":
    main()
