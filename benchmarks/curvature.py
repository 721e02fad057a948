"""Curvature beyond a batch's H v: exact diagonals, an exact Gauss-Newton spectrum, k pairs of a whole data set.

    python benchmarks/curvature.py [--threads 2] [--entries 200] [--cases NAME,...] [--root FOLDER] \\
        [--small] [--out NAME]

Each row is a process of its own: seconds of the clock and of the processor from the model and the batch on, for the
first call after one on a tiny problem, and for the fastest of five where that took less than ten; the peak of its
resident memory, and what it was before; and how far the result is from what shares no code with it, which is found
afterwards. Rivals follow where they have the quantity. Without the USPS files (--root, or CHAOS_EXT_DATA) its rows say
so; a rival that is not installed, or refuses, has a row with its reason.

- ``resnet18 diagonal, C classes``: of torchvision's, eval mode, 8 images of 32 x 32, float32; random entries by double
  backward in float64.
- ``residual BatchNorm diagonal``: of the network (e) of ``networks``, in training mode; likewise.
- ``MLP diagonal``: of 256-20-10, 128 samples; BackPACK has it, too.
- ``GGN spectrum``: all of 784-512-512-10, 128 samples; residuals of pairs with products by jvp and vjp.
- ``USPS pairs, batches of n``: 20 at both ends of the Hessian of all training images under the paper's MLP; residuals
  with products by double backward. curvlinops with scipy's ARPACK is the rival.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
import itertools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from networks import BLOCK
from peak import peak_bytes
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

import chaos_ext as ce
from chaos_ext import data, models

CE = nn.CrossEntropyLoss()
Batches = list[tuple[Tensor, Tensor]]
Result = dict[str, Any]
OURS = "chaos_ext"


def resnet18(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    from torchvision.models import resnet18 as make

    torch.manual_seed(0)
    model = make(num_classes=classes).eval()
    return model, torch.randn(8, 3, 32, 32), torch.randint(classes, (8,))


def residual() -> tuple[nn.Module, Tensor, Tensor]:
    model, _, x, y = BLOCK["e"].build()
    return model, x, y


def perceptron(*widths: int, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), torch.randn(n, widths[0]), torch.randint(widths[-1], (n,))


def usps(args: argparse.Namespace, size: int) -> tuple[nn.Module, Batches]:
    """The paper's MLP, and the whole training set in batches."""
    found = data.load("usps", root=args.root).to(torch.float32)
    count = 64 if args.small else len(found.x_train)
    x, y = found.x_train[:count], found.y_train[:count]
    return models.paper_mlp(seed=0, dtype=torch.float32), list(zip(x.split(size), y.split(size), strict=True))


def measured(call: Callable[[], Any]) -> tuple[Any, Result]:
    """What it returns, and what it took."""
    before, clock, processor = peak_bytes(), time.perf_counter(), time.process_time()
    found = call()
    took = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
    took |= {"peak_bytes": peak_bytes(), "bytes_before": before}
    if took["seconds"] < 10:
        took["fastest_seconds"], _ = report.best_of(call, seconds=10, least=4, most=4, timer=time.perf_counter)
    return found, took


def warm_up() -> None:
    """Loads what the measured call will use, on a tiny problem."""
    model, x, y = perceptron(6, 5, 4, n=3)
    ce.HessianOperator(model, CE, x, y).diagonal()
    ce.spectrum(ce.GGNOperator(model, CE, x, y))
    ce.spectrum(ce.DatasetHessian(model, CE, [(x, y)]), k=2)


def entries(model: nn.Module, x: Tensor, y: Tensor, diagonal: Tensor, count: int) -> Result:
    """The largest error of random entries, over the largest entry, by double backward in float64."""
    model, x = model.double(), x.double()
    params = list(model.parameters())
    parts = torch.autograd.grad(CE(model(x), y), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in parts])
    starts = torch.tensor([0, *(p.numel() for p in params)]).cumsum(0)
    chosen = torch.randperm(len(flat), generator=torch.Generator().manual_seed(1))[:count]
    wrong = 0.0
    for i in chosen.tolist():
        slot = int(torch.searchsorted(starts, i, right=True)) - 1
        (row,) = torch.autograd.grad(flat[i], params[slot], retain_graph=True)
        wrong = max(wrong, abs(float(row.reshape(-1)[i - int(starts[slot])] - diagonal[i])))
    return {"P": len(flat), "entries": len(chosen), "error": wrong / float(diagonal.abs().max())}


def diagonal_of(model: nn.Module, x: Tensor, y: Tensor, count: int) -> Result:
    found, cost = measured(lambda: ce.HessianOperator(model, CE, x, y).diagonal())
    return {**cost, **entries(model, x, y, found, count)}


def backpack_diagonal(model: nn.Module, x: Tensor, y: Tensor, count: int) -> Result:
    import backpack
    from backpack.extensions import DiagHessian

    extended, loss_fn = backpack.extend(model), backpack.extend(nn.CrossEntropyLoss())

    def call() -> Tensor:
        with backpack.backpack(DiagHessian()):
            loss_fn(extended(x), y).backward()
        return torch.cat([p.diag_h.reshape(-1) for p in extended.parameters()])

    found, cost = measured(call)
    plain = perceptron(*(m.in_features for m in model if isinstance(m, nn.Linear)), len(found[-10:]), n=len(x))[0]
    plain.load_state_dict(model.state_dict())
    return {**cost, **entries(plain, x, y, found, count)}


def ggn_products(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """J^T C J v for v [P, k] in float64, column by column: C is that of the mean cross-entropy."""
    theta, shapes = {n: p.detach() for n, p in model.named_parameters()}, [p.shape for p in model.parameters()]
    out = []
    for column in v.T:
        parts = [t.view(s) for t, s in zip(column.split([s.numel() for s in shapes]), shapes, strict=True)]
        z, dz = jvp(lambda p: functional_call(model, p, (x,)), (theta,), (dict(zip(theta, parts, strict=True)),))
        p = z.softmax(1)
        back = vjp(lambda p: functional_call(model, p, (x,)), theta)[1]
        cotangent = (p * dz - p * (p * dz).sum(1, keepdim=True)) / len(x)
        out.append(torch.cat([t.reshape(-1) for t in back(cotangent)[0].values()]))
    return torch.stack(out, 1)


def ggn_spectrum(model: nn.Module, x: Tensor, y: Tensor) -> Result:
    """All pairs, and the residuals of the two ends."""
    spec, cost = measured(lambda: ce.spectrum(ce.GGNOperator(model, CE, x, y)))
    ends = [0, len(spec.eigenvalues) // 2, -1]
    V, values = spec.eigenvectors(ends).double(), spec.eigenvalues[ends].double()
    gap = ggn_products(model.double(), x.double(), V) - V * values
    return {**cost, "P": spec.size, "rank": len(spec.eigenvalues), "error": float(gap.norm(dim=0).max() / values[-1])}


def hessian_products(model: nn.Module, batches: Batches, V: Tensor) -> Tensor:
    """H V of the mean over all samples, in float64."""
    model, total = model.double(), sum(len(y) for _, y in batches)
    params, out = list(model.parameters()), torch.zeros_like(V)
    for x, y in batches:
        loss = nn.functional.cross_entropy(model(x.double()), y, reduction="sum") / total
        flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params, create_graph=True)])
        for i, v in enumerate(V.T):
            out[:, i] += torch.cat([t.reshape(-1) for t in torch.autograd.grad(flat, params, v, retain_graph=True)])
    return out


def residuals(model: nn.Module, batches: Batches, values: Tensor, V: Tensor) -> Result:
    """Of the pairs, over the largest eigenvalue; 256 images at a time, whatever the batches were."""
    together = [torch.cat(part) for part in zip(*batches, strict=True)]
    wide = list(zip(*(t.split(256) for t in together), strict=True))
    gap = hessian_products(model, wide, V.double()) - V.double() * values.double()
    scale = float(values.abs().max())
    return {"P": len(V), "N": len(together[1]), "k": len(values), "error": float(gap.norm(dim=0).max()) / scale}


def pairs(model: nn.Module, batches: Batches, k: int) -> Result:
    spec, cost = measured(lambda: ce.spectrum(ce.DatasetHessian(model, CE, batches), k=k))
    return {**cost, **residuals(model, batches, spec.eigenvalues, spec.eigenvectors())}


def curvlinops_pairs(model: nn.Module, batches: Batches, k: int) -> Result:
    """By ARPACK with the tolerance that ours has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    def call() -> tuple[Any, Any]:
        op = HessianLinearOperator(model, CE, list(model.parameters()), batches, check_deterministic=False)
        values, vectors = eigsh(op.to_scipy(), k=k, which="BE", tol=1e-5)
        return values, vectors

    (values, vectors), cost = measured(call)
    order = values.argsort()
    own = torch.from_numpy(values[order].copy()), torch.from_numpy(vectors[:, order].copy())
    return {**cost, **residuals(model, batches, *own)}


Case = Callable[[argparse.Namespace], Result]
CASES: dict[tuple[str, str], Case] = {
    ("resnet18 diagonal, 10 classes", OURS): lambda a: diagonal_of(*resnet18(10), a.entries),
    ("resnet18 diagonal, 1000 classes", OURS): lambda a: diagonal_of(*resnet18(20 if a.small else 1000), a.entries),
    ("residual BatchNorm diagonal", OURS): lambda a: diagonal_of(*residual(), a.entries),
    ("MLP diagonal", OURS): lambda a: diagonal_of(*perceptron(256, 20, 10, n=128), a.entries),
    ("MLP diagonal", "BackPACK"): lambda a: backpack_diagonal(*perceptron(256, 20, 10, n=128), a.entries),
    ("GGN spectrum", OURS): lambda a: ggn_spectrum(*perceptron(784, *((32, 32) if a.small else (512, 512)), 10, n=128)),
    ("USPS pairs, batches of 256", OURS): lambda a: pairs(*usps(a, 256), a.k),
    ("USPS pairs, batches of 256", "curvlinops"): lambda a: curvlinops_pairs(*usps(a, 256), a.k),
    ("USPS pairs, batches of 8", OURS): lambda a: pairs(*usps(a, 8), a.k),
}


def row_of(name: str, method: str, args: argparse.Namespace) -> Result:
    """The row of one case, in this process."""
    torch.set_num_threads(args.threads)
    head = {"case": name, "method": method, "dtype": "float32", "threads": args.threads}
    warm_up()
    try:
        return {**head, **CASES[name, method](args)}
    except (ImportError, ce.DatasetNotFoundError, NotImplementedError) as e:
        return {**head, "skipped": f"{type(e).__name__}: {e}".splitlines()[0]}


def rows(names: Iterable[tuple[str, str]], argv: list[str]) -> Iterable[Result]:
    """Each from a process of its own."""
    for name, method in names:
        command = [sys.executable, __file__, *argv, "--only", json.dumps([name, method])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        yield json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Writes the results as JSON, and a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("threads", 2), ("entries", 200), ("k", 20)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--cases", help="those whose name holds one of these, separated by commas")
    parser.add_argument("--root", help="the folder of the data sets")
    parser.add_argument("--small", action="store_true", help="to try it out")
    parser.add_argument("--out", default="curvature", help="NAME of benchmarks/results/NAME.json")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(row_of(*json.loads(args.only), args)))
        return
    wanted = [c for c in CASES if not args.cases or any(part in c[0] for part in args.cases.split(","))]
    started, found = report.environment(), []
    for row in rows(wanted, sys.argv[1:]):
        print(json.dumps(row), flush=True)
        found.append(row)
    print(report.write(args.out, found, started))


if __name__ == "__main__":
    main()
