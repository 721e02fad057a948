"""``python benchmarks/large.py``: what studies without P x P numbers take on large networks, in time and memory.

torchvision's resnet18 on 32 x 32 images (P = 11.2 M, N = 32) and a network of GPT-2 small's shape (P = 124 M; --gpt),
each with: a training step of torch's own; the operator of a batch; the largest exponent beside training (one
deviation); 8 exponents with QR; k = 10 eigenpairs at the top; a step of CGD with 10 dominant directions, the first
and a warm one. Each in a process of its own, wall time of ``--threads`` threads and peak memory. Writes
results/large.json.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from peak import peak_bytes
from torch import Tensor, nn

import chaos_ext as ce

LR = 1e-3
Step = Callable[[int], None]


class Gpt(nn.Module):
    """A decoder of GPT-2 small's shape that reads the class off its last place, with random tokens as its data."""

    def __init__(
        self, layers: int = 12, width: int = 768, heads: int = 12, tokens: int = 50257, places: int = 64
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Parameter(0.01 * torch.randn(64, width))
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.blocks(self.tokens(x) + self.places[: x.shape[1]])
        return nn.functional.linear(hidden[:, -1], self.tokens.weight)  # tied


def resnet() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    from torchvision.models import resnet18

    return resnet18(num_classes=10), [(torch.randn(32, 3, 32, 32), torch.randint(10, (32,))) for _ in range(4)]


def gpt() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    return Gpt(), [(torch.randint(50257, (4, 64)), torch.randint(50257, (4,))) for _ in range(4)]


NETWORKS = {"resnet18, 32 x 32, N = 32": resnet, "GPT-2 small's shape, N = 4 of 64 tokens": gpt}


class Tasks:
    """Steps of a network, each a function of its number."""

    def __init__(self, network: str) -> None:
        torch.manual_seed(0)
        self.model, self.batches = NETWORKS[network]()
        self.loss = nn.CrossEntropyLoss()

    def _batch(self, t: int) -> tuple[Tensor, Tensor]:
        return self.batches[t % len(self.batches)]

    def _operator(self, t: int) -> ce.HessianOperator:
        return ce.HessianOperator(self.model, self.loss, *self._batch(t))

    def training(self) -> Step:
        opt = torch.optim.SGD(self.model.parameters(), lr=LR)

        def step(t: int) -> None:
            x, y = self._batch(t)
            opt.zero_grad()
            self.loss(self.model(x), y).backward()
            opt.step()

        return step

    def operator(self) -> Step:
        return lambda t: (self._operator(t), None)[1]

    def product(self) -> Step:
        op = self._operator(0)
        v = torch.randn(op.shape[0])
        return lambda t: (op @ v, None)[1]

    def _exponents(self, k: int) -> Step:
        opt = ce.CGD(self.model.parameters(), lr=LR, prune=None)
        analyzer = ce.LyapunovAnalyzer(self.model, opt, k=k, qr_every=1)

        def step(t: int) -> None:
            op = self._operator(t)
            analyzer.update(op)
            opt.step(op)

        return step

    def largest_exponent(self) -> Step:
        return self._exponents(1)

    def eight_exponents(self) -> Step:
        return self._exponents(8)

    def spectrum(self) -> Step:
        return lambda t: (ce.spectrum(self._operator(t), k=10, which="largest", tol=1e-2), None)[1]

    def dominant(self) -> Step:
        opt = ce.CGD(self.model.parameters(), lr=LR, prune="dominant", k=10, refresh_every=1, refresh_tol=0.1)
        op = ce.DatasetHessian(self.model, self.loss, self.batches[:1])

        def step(t: int) -> None:
            nonlocal op
            opt.step(op)
            op = ce.DatasetHessian(self.model, self.loss, self.batches[:1])

        return step


TASKS = {
    "training": "a training step of torch's own",
    "operator": "the operator of a batch",
    "product": "one product H v",
    "largest_exponent": "a step with its largest exponent (k = 1)",
    "eight_exponents": "a step with 8 exponents, QR at each",
    "spectrum": "10 eigenpairs at the top, to 1e-2",
    "dominant": "a CGD step without 10 dominant directions",
}


def measure(network: str, task: str, steps: int) -> dict[str, Any]:
    """Times of the first step and the fastest later one, and the peak of memory."""
    tasks = Tasks(network)
    start, step, times = peak_bytes(), getattr(tasks, task)(), []
    for t in range(steps):
        began = time.perf_counter()
        step(t)
        times.append(time.perf_counter() - began)
    P = sum(p.numel() for p in tasks.model.parameters())
    later = round(min(times[1:]), 4) if len(times) > 1 else None
    return {"P": P, "first_s": round(times[0], 3), "seconds": later, "peak_bytes": peak_bytes(), "start_bytes": start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--gpt", action="store_true", help="the large one as well")
    parser.add_argument("--only", nargs=2, metavar=("NETWORK", "TASK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        print(json.dumps(measure(*args.only, args.steps)))
        return
    started, rows = report.environment(), []
    for network in list(NETWORKS)[: 2 if args.gpt else 1]:
        for task, what in TASKS.items():
            options = ["--threads", str(args.threads), "--steps", str(args.steps), "--only", network, task]
            done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=False)
            found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.stderr[-300:]}
            rows.append({"network": network, "task": what, "threads": args.threads, **found})
            print(rows[-1], flush=True)
    report.write("large", rows, started)


if __name__ == "__main__":
    main()
