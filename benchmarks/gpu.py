"""``python benchmarks/gpu.py``: on a machine with a GPU, checks every operator, then times it against its floor.

1. Every native operator, in float32 and float64 and at odd sizes, against its pure-torch twin in float64; then dense
   Hessians, spectra and CGD steps against the CPU. What is wrong is not timed, and the exit status is then 1.
2. Every operator at a size beyond the caches. Its floor is the larger of bytes / bandwidth and flops / rate, both
   measured in the same run: the bandwidth by a copy, the rate by a matrix product (TF32 off).

Writes results/gpu.json. ``--device cpu`` does the first part on the CPU, to test this script where there is no GPU.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import problems
import torch
from gpu_large import is_timed, large_cases
from gpu_operators import OPERATORS, Operator, small_cases
from torch import Tensor

import chaos_ext as ce
from chaos_ext import _ops, reference

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
LR = 0.5

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: validation only")
    args = parser.parse_args()
    if args.device == "cuda" and (reason := _no_gpu()) is not None:
        print(f"gpu.py: {reason}; `--device cpu` runs its validation without a GPU", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(args.device)
    wrong = wrong_operators(device)
    sound = package_is_right(device) and not wrong
    print("every check passed" if sound else f"THERE ARE WRONG RESULTS {sorted(wrong)}: they are not timed")
    if device.type == "cuda":
        started = report.environment()
        rows = time_operators(device, wrong) + (time_package(device) if sound else [])
        print("wrote", report.write("gpu", rows, started))
    return 0 if sound else 1


def _no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    if _ops.CUDA_ERROR is not None:
        return f"the CUDA kernels are not loaded: {_ops.CUDA_ERROR}"
    return None


def wrong_operators(device: torch.device) -> set[str]:
    """Prints a line a check; the operators with a wrong result, or with none."""
    wrong = set()
    for dtype in TOLERANCE:
        for op in OPERATORS:
            own = torch.device("cpu") if op.cpu_only else device
            for label, args in small_cases(op, dtype):
                if not _say(f"{op.name} {label} {dtype}", _error_of(op, _moved(args, own)), TOLERANCE[dtype]):
                    wrong.add(op.name)
    return wrong


def _error_of(op: Operator, args: tuple) -> float:
    """NaN where the operator does not run."""
    try:
        return operator_error(op, args)
    except RuntimeError as error:
        print(f"{op.name}: {error}")
        return float("nan")


def package_is_right(device: torch.device) -> bool:
    """Prints a line a check; whether all are right."""
    good = True
    for dtype in TOLERANCE:
        for name, problem in problems.CASES.items():
            if problem.P <= 6000:
                for what, error in package_errors(problem, dtype, device).items():
                    limit = 0.0 if what == "asymmetry" else 10 * TOLERANCE[dtype]
                    good &= _say(f"({name}) {what} {dtype}", error, limit)
    return good


def _say(what: str, error: float, limit: float) -> bool:
    good = error <= limit  # False for NaN
    print(f"{'ok   ' if good else 'WRONG'} {what}: error {error:.1e}, limit {limit:.0e}")
    return good


def _moved(args: tuple, device: torch.device, dtype: torch.dtype | None = None) -> tuple:
    return tuple(_moved_one(a, device, dtype) for a in args)


def _moved_one(a: object, device: torch.device, dtype: torch.dtype | None) -> object:
    if isinstance(a, list):
        return [_moved_one(x, device, dtype) for x in a]
    if not isinstance(a, Tensor):
        return a
    return a.to(device, dtype if a.is_floating_point() else None, copy=True)


def operator_error(op: Operator, args: tuple) -> float:
    """max |ours - twin| / max |twin| over results and over arguments written in place."""
    twin_args = _moved(args, args[0].device, torch.float64)
    ours, twin = getattr(_ops, op.name)(*args), getattr(reference, op.name)(*twin_args)
    ours = [*_compared(op, ours), *(args[i] for i in op.written if args[i] is not None)]
    twin = [*_compared(op, twin), *(twin_args[i] for i in op.written if twin_args[i] is not None)]
    if len(ours) != len(twin):
        return float("nan")
    return max(relative(a, b) for a, b in zip(ours, twin, strict=True))


def _compared(op: Operator, result: Tensor | tuple[Tensor, ...] | None) -> list[Tensor]:
    """Those of its results that have one right value."""
    tensors = () if result is None else (result,) if isinstance(result, Tensor) else result
    chosen = [t for i, t in enumerate(tensors) if op.results is None or i in op.results]
    return [t.sum(0) for t in chosen] if op.summed else chosen


def relative(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("nan")
    if not b.numel():
        return 0.0
    return float((a.double() - b.to(a.device)).abs().max() / b.abs().max().clamp_min(1e-300))


def package_errors(problem: problems.Problem, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Dense H against double backward; extreme eigenvalues and a CGD step against the CPU in float64."""
    H = ce.HessianOperator(*_build(problem, dtype, device)).dense()
    rows, expected = problems.reference_rows(problem)
    theta, values = cgd_step(problem, dtype, device)
    theta64, values64 = cgd_step(problem, torch.float64, torch.device("cpu"))
    return {
        "dense H": relative(H.cpu()[rows], expected),
        "asymmetry": float((H - H.T).abs().max()),
        "extreme eigenvalues": relative(values, values64),
        "CGD step": relative(theta, theta64),
    }


def cgd_step(problem: problems.Problem, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """theta after one step, and the extreme eigenvalues. Pruned is the largest eigenvalue: it is well separated,
    so that both precisions prune the same one."""
    model, loss_fn, x, y = _build(problem, dtype, device)
    op = ce.HessianOperator(model, loss_fn, x, y)
    values = ce.spectrum(op).eigenvalues
    ce.CGD(model.parameters(), lr=LR, prune="positive", k=1).step(op)
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return theta.cpu(), torch.stack([values[0], values[-1]]).cpu()


def _build(problem: problems.Problem, dtype: torch.dtype, device: torch.device) -> tuple:
    model, loss_fn, x, y = problem.build(dtype)
    return model.to(device), loss_fn, x.to(device), y.to(device)


def best_time(run: Callable[[], object], seconds: float = 1.0) -> float:
    """Minimum over single runs between two events, after a few runs that do not count."""
    for _ in range(3):
        run()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < deadline:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return min(times)


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a device-to-device copy, reads and writes counted."""
    a = torch.empty(1 << 28, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / best_time(lambda: b.copy_(a))


def flop_rate(dtype: torch.dtype, device: torch.device, n: int = 8192) -> float:
    a = torch.randn(n, n, dtype=dtype, device=device)
    out = torch.empty_like(a)
    return 2 * n**3 / best_time(lambda: torch.mm(a, a, out=out))


def time_operators(device: torch.device, wrong: set[str]) -> list[Row]:
    copy = bandwidth(device)
    print(f"\ncopy: {copy / 1e9:.0f} GB/s")
    rows: list[Row] = [{"operator": "copy", "bytes_per_second": copy}]
    for dtype in TOLERANCE:
        rate = flop_rate(dtype, device)
        print(f"matrix product, {dtype}: {rate / 1e12:.1f} TFLOP/s")
        rows.append({"operator": "matrix product", "dtype": str(dtype)[6:], "flops_per_second": rate})
        for op in OPERATORS:
            if op.name in wrong or not is_timed(op):
                continue
            for label, make, moved, flops in large_cases(op, dtype):
                run = functools.partial(getattr(_ops, op.name), *make(device))
                rows.append(_row(op.name, label, dtype, best_time(run), max(moved / copy, flops / rate), moved, flops))
                del run
    return rows


def _row(name: str, label: str, dtype: torch.dtype, best: float, floor: float, moved: float, flops: float) -> Row:
    row = {"operator": name, "case": label, "dtype": str(dtype)[6:], "seconds": best, "floor_seconds": floor}
    row |= {"of_floor": best / floor, "bytes": moved, "flops": flops}
    print(f"{name} {label} {row['dtype']}: {best * 1e6:.1f} us, {best / floor:.2f} x floor", flush=True)
    return row


def time_package(device: torch.device) -> list[Row]:
    """Dense Hessian in a reused buffer against a fill of H, and a CGD step, launches and host work included."""
    rows = []
    for name, problem in problems.CASES.items():
        model, loss_fn, x, y = _build(problem, torch.float32, device)
        H = torch.empty(problem.P, problem.P, device=device)
        fill = best_time(H.zero_)
        best = best_time(functools.partial(ce.hessian, model, loss_fn, x, y, out=H))
        rows.append(_row("hessian, out=", f"({name}) {problem.title}", H.dtype, best, fill, H.nbytes, 0))
        if problem.P > 6000:
            continue
        opt = ce.CGD(model.parameters(), lr=1e-3)
        closure = functools.partial(ce.HessianOperator, model, loss_fn, x, y)
        best = best_time(functools.partial(opt.step, closure))
        rows.append({"operator": "CGD step", "case": f"({name}) {problem.title}", "dtype": "float32", "seconds": best})
        print(f"CGD step ({name}) {problem.title} float32: {best * 1e3:.2f} ms", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
