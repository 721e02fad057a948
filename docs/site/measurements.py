"""Tables and plots of benchmarks/results for the page about them: made at every build, never pasted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import numpy as np
import table

from chaos_ext.figures import new_axes

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
# Okabe and Ito's colours, each with a marker and a grey of its own.
LOOKS = [("#000000", "o"), ("#D55E00", "^"), ("#0072B2", "s"), ("#009E73", "D"), ("#CC79A7", "v"), ("#E69F00", "P"),
         ("#56B4E9", "X"), ("#999999", "*"), ("#444444", "d")]  # fmt: skip


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of results/NAME.json."""
    return table.load(RESULTS, name)[1]


def _with_origin(make: Callable[[list[dict[str, Any]]], str], name: str) -> str:
    env, found = table.load(RESULTS, name)
    return f"{make(found)}\n\n*{table.provenance(env)}*"


def _networks(found: list[dict[str, Any]]) -> str:
    return f"{table.networks_table(found)}\n\n{table.network_step_table(found)}"


TABLES: dict[str, Callable[[], str]] = {
    "dense": lambda: _with_origin(table.dense_table, "dense_hessian"),
    "threads": lambda: _with_origin(table.threads_table, "dense_hessian"),
    "step": lambda: _with_origin(table.step_table, "cgd_step"),
    "memory": lambda: _with_origin(table.memory_table, "memory"),
    "networks": lambda: _with_origin(_networks, "networks"),
    "update": lambda: _with_origin(table.update_table, "tangent"),
    "training": lambda: _with_origin(table.training_table, "tangent"),
    "ensemble": lambda: _with_origin(table.ensemble_table, "ensemble"),
    "dominant": lambda: _with_origin(table.dominant_table, "dominant"),
    "large": lambda: _with_origin(table.large_table, "large"),
    "curvature": lambda: _with_origin(table.curvature_table, "curvature"),
    "distributed": lambda: _with_origin(table.distributed_table, "distributed"),
    "cgd-ensemble": lambda: _with_origin(table.ensemble_table, "ensemble-cgd"),
    "grid": lambda: _with_origin(table.grid_table, "grid-float32-1"),
}


def plot_dense() -> Any:
    """Every method against every problem, seconds on a logarithmic axis."""
    timed = [r for r in rows("dense_hessian") if r["clock"] == "CPU" and "seconds" in r]
    problems, methods = table.unique(timed, "problem"), table.unique(timed, "method")
    ax = new_axes((8.6, 4.6))
    for i, method in enumerate(methods):
        own = [r for r in timed if r["method"] == method]
        at = [problems.index(r["problem"]) + 0.07 * (i - len(methods) / 2) for r in own]
        color, marker = LOOKS[i]
        ax.plot([r["seconds"] for r in own], at, marker, color=color, markersize=7, label=method)
    ax.set_xscale("log")
    ax.set_yticks(range(len(problems)), [p.replace(", P", "\nP") for p in problems])
    ax.invert_yaxis()
    ax.set_xlabel("CPU seconds of one thread, from batch to H (less is better)")
    return _finish(ax, "method")


def plot_scaling() -> Any:
    """A CGD step as the batch grows, for networks of 1e3 to 1e5 parameters."""
    grid = [r for r in rows("scaling") if r["table"] == "grid" and "seconds" in r["cgd_step"]]
    ax = new_axes((7.2, 4.4))
    for (color, marker), problem in zip(LOOKS, table.unique(grid, "problem"), strict=False):
        own = [r for r in grid if r["problem"] == problem]
        times = [r["cgd_step"]["seconds"] for r in own]
        ax.plot([r["N"] for r in own], times, "-" + marker, color=color, label=f"{problem}, P = {own[0]['P']}")
        dense = [(r["N"], s) for r, s in zip(own, times, strict=True) if r["chosen"] == "dense"]
        ax.plot(*zip(*dense, strict=True), "o", markersize=12, mfc="none", color=color) if dense else None
    ax.plot([], [], "o", markersize=12, mfc="none", color="0.3", label="taken from the dense matrix")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sorted({r["N"] for r in grid}), sorted({r["N"] for r in grid}))
    ax.set_xlabel("batch size N (samples)")
    ax.set_ylabel("one CGD step (CPU seconds, one thread)")
    return _finish(ax, "network")


def plot_switch() -> Any:
    """The compressed over the dense route, against the ratio of their sizes."""
    found = [r for r in rows("scaling") if r["table"] == "switch"]
    ax = new_axes((6.4, 4.0))
    for (color, marker), problem in zip(LOOKS, table.unique(found, "problem"), strict=False):
        own = [r for r in found if r["problem"] == problem]
        ratio = [r["dense"]["seconds"] / r["compressed"]["seconds"] for r in own]
        ax.plot([r["n"] / r["P"] for r in own], ratio, "-" + marker, color=color, label=f"{problem}, P = {own[0]['P']}")
    ax.axhline(1, color="0.4", linewidth=0.9)
    ax.set_yscale("log")
    ax.set_xlabel("n / P, rows of S over rows of H")
    ax.set_ylabel("time of the dense spectrum over the compressed")
    return _finish(ax, "network")


def plot_grid() -> Any:
    """The best of torch's ways over ours, of every cell, by the number of columns."""
    found = rows("grid-float32-1")
    columns = sorted({r["k"] for r in found})
    ax = new_axes((7.2, 4.4))
    for i, ((color, marker), norm) in enumerate(zip(LOOKS[1:], table.unique(found, "norm"), strict=False)):
        own = [r for r in found if r["norm"] == norm and r["best"]]
        at = np.array([columns.index(r["k"]) for r in own]) + 0.22 * (i - 1)
        label = {"none": "MLP", "": "other networks"}.get(norm, f"MLP with {norm}")
        ax.plot(at, [r["ratio"] for r in own], marker, color=color, alpha=0.7, markersize=5, label=label)
    ax.axhline(1, color="0.2", linewidth=1)
    ax.text(-0.45, 0.97, "torch is faster below", va="top", fontsize="small", color="0.2")
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.5)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_xlabel("columns k of V in H V")
    ax.set_ylabel("time of torch's best way over ours")
    return _finish(ax, None)


def plot_ensemble() -> Any:
    """A step of every member, by the ways to do it."""
    found = [r for r in rows("ensemble") if r["dtype"] == "float64"]
    ax = new_axes((7.6, 3.8))
    cases = list(dict.fromkeys((r["optimizer"], r["members"]) for r in found))
    for i, ((color, marker), method) in enumerate(zip(LOOKS, table.unique(found, "method"), strict=False)):
        own = [r for r in found if r["method"] == method]
        at = [cases.index((r["optimizer"], r["members"])) + 0.1 * (i - 2) for r in own]
        ax.plot([1e6 * r["seconds"] / r["members"] for r in own], at, marker, color=color, markersize=7, label=method)
    ax.set_xscale("log")
    ax.set_yticks(range(len(cases)), [f"{o}, {b} members" for o, b in cases])
    ax.invert_yaxis()
    ax.set_xlabel("microseconds a member and step, 256-20-10, N = 8, float64, one thread (less is better)")
    return _finish(ax, None)


def _finish(ax: Any, title: str | None) -> Any:
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(frameon=False, fontsize="small", title=title, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax.figure


PLOTS = {"dense": plot_dense, "scaling": plot_scaling, "switch": plot_switch, "grid": plot_grid,
         "ensemble": plot_ensemble}  # fmt: skip
