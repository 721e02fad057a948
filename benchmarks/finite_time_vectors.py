"""What all singular vectors take at the end of a run of ``reproduce finite-time``, and whether they are right.

chaos-ext reproduce finite-time ... --out DIR --keep-checkpoint
python benchmarks/finite_time_vectors.py DIR
"""

import argparse
import functools
import json
import resource
import time
from pathlib import Path

import torch

from chaos_ext.base.files import atomic_write, read_sealed
from chaos_ext.dynamics.finite_time.run import FiniteTime, Shape
from chaos_ext.dynamics.finite_time.storage import restore
from chaos_ext.dynamics.start import start_block


def measured(folder: Path) -> dict[str, float]:
    """Seconds, memory, and errors of the vectors against the product itself, at its largest values."""
    state = read_sealed(folder / "parts" / "analyzer.ckpt")["run"]
    size, k = state["product"]["Y"].shape
    dtype = state["product"]["Y"].dtype
    start = functools.partial(start_block, size, k, dtype, torch.device("cpu"), 0)
    run = FiniteTime(Shape(size, k, size, dtype, torch.device("cpu")), start, None, 0)
    restore(run, state, copy=False)
    began = time.perf_counter()
    right = run.singular_vectors("right")
    seconds = time.perf_counter() - began
    left, logs = run.singular_vectors("left"), run.exponents() * run.measured
    product = run.product
    assert product is not None
    few = right[:, :20].double()
    moved = product.Y.double() @ (product.l.exp().unsqueeze(1) * (product.U @ (start().double().mT @ few)))
    expected = left[:, :20].double() * logs[:20].exp()
    return {
        "seconds": seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
        "orthonormal to": float((right.mT @ right - torch.eye(k, dtype=dtype)).abs().max()),
        "Y v = sigma u of 20, relative to sigma_1": float((moved - expected).norm(dim=0).max() / logs[0].exp()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    text = json.dumps(measured(folder), indent=1) + "\n"
    atomic_write(folder / "vectors.json", text)
    print(text, end="")


if __name__ == "__main__":
    main()
