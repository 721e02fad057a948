"""Convolutional networks: the dense Hessian, blocks of Hessian-vector products, and a CGD step of the paper's CNN."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import rivals
import torch
from networks import BLOCK, COLUMNS, DENSE, Network, reference_products
from torch import Tensor
from torch.func import grad, jvp, vmap

import chaos_ext as ce

OURS = "chaos_ext"
METHODS: dict[str, Callable[..., rivals.Run]] = {
    "jvp(grad), vmapped, chunk 512": lambda *a: rivals.jvp_grad(*a, chunk=512),
    "jvp(grad), triangular, chunk 512": rivals.triangular,
    "curvlinops @ I": rivals.curvlinops,
}


def dense_ours(network: Network) -> rivals.Run:
    model, loss_fn, x, y = network.build()
    out = torch.empty(network.P, network.P)
    return lambda: ce.hessian(model, loss_fn, x, y, out=out)


def block_run(method: str, network: Network, v: Tensor) -> rivals.Run:
    """H v for v [P, k], from model and batch."""
    model, loss_fn, x, y = network.build()
    if method == OURS:
        return lambda: ce.HessianOperator(model, loss_fn, x, y) @ v
    if method == "curvlinops @ V":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(model, loss_fn, list(model.parameters()), [(x, y)], check_deterministic=False)
        return lambda: operator @ v
    loss = rivals._FlatLoss(model, loss_fn, x, y)
    rows = v.T.contiguous()
    products = vmap(lambda t: jvp(grad(loss), (loss.theta,), (t,))[1])
    return lambda: products(rows).T


def wrong_by(result: Tensor, expected: Tensor) -> float | None:
    """The relative error where a result is not the right one."""
    error = float((result.double() - expected).norm() / expected.norm())
    return None if error <= 1e-4 else error


def validate(error: float | None, record: Callable[..., None], row: dict[str, object]) -> None:
    """Only right results are timed: a wrong one of ours fails, a rival's is reported as such."""
    if error is None:
        return
    if row["method"] == OURS:
        raise AssertionError(f"differs from float64 double backward by {error:.2g}")
    reason = f"wrong by {error:.2g}"
    record(**row, threads=1, clock="CPU", skipped=reason)
    pytest.skip(reason)


@pytest.mark.parametrize("method", [OURS, *METHODS])
@pytest.mark.parametrize("case", DENSE)
def test_dense(case: str, method: str, benchmark, record, measure) -> None:
    network, benchmark.group = DENSE[case], f"({case}) {DENSE[case].title}, 1 thread, CPU seconds"
    row = {"case": case, "problem": network.title, "P": network.P, "method": method, "dtype": "float32"}
    if reason := rivals.missing(method):
        record(**row, threads=1, clock="CPU", skipped=reason)
        pytest.skip(reason)
    run = dense_ours(network) if method == OURS else METHODS[method](*network.build())
    v = torch.randn(network.P, 3, generator=torch.Generator().manual_seed(1))
    validate(wrong_by(run() @ v, reference_products(network, v)), record, row)
    measure(run, what="dense", **row)


@pytest.mark.parametrize("method", [OURS, "jvp(grad), vmapped", "curvlinops @ V"])
@pytest.mark.parametrize("case", BLOCK)
def test_block_of_products(case: str, method: str, benchmark, record, measure) -> None:
    network, benchmark.group = BLOCK[case], f"({case}) {BLOCK[case].title}, {COLUMNS} columns, 1 thread, CPU seconds"
    v = torch.randn(network.P, COLUMNS, generator=torch.Generator().manual_seed(1))
    title = f"{network.title}, {COLUMNS} columns"
    row = {"case": case, "problem": title, "P": network.P, "method": method, "dtype": "float32"}
    if method.startswith("curvlinops") and (reason := rivals.missing("curvlinops @ I")):
        record(**row, threads=1, clock="CPU", skipped=reason)
        pytest.skip(reason)
    run = block_run(method, network, v)
    validate(wrong_by(run()[:, :3], reference_products(network, v[:, :3])), record, row)
    measure(run, what="block", **row)


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cgd_step(dtype: str, threads: str, record) -> None:
    """From model and batch to new parameters; wall seconds on a machine with nothing else to do."""
    command = [sys.executable, str(Path(__file__).with_name("cnn_step.py")), dtype, threads]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    times = {k: round(v, 7) for k, v in json.loads(done.stdout).items()}
    row = {"what": "step", "case": "c", "problem": DENSE["c"].title, "P": DENSE["c"].P, "method": OURS}
    record(**row, dtype=dtype, threads=int(threads), clock="wall", **times)
