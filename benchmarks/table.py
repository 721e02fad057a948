"""``python -m benchmarks.table``: the speed tables of results/*.json, as Markdown; the site has them made at build."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OURS, MAIN_RIVAL, FLOOR = "chaos_ext, out=", "jvp(grad), vmapped, chunk 1024", "memset of H"

Row = dict[str, Any]


def load(results: Path, name: str) -> tuple[dict[str, Any], list[Row]]:
    path = results / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path}: not there; run `pytest benchmarks/` first")
    content = json.loads(path.read_text())
    return content["environment"], content["rows"]


def seconds(value: float) -> str:
    """Three significant digits, in ms below one second."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def find(rows: list[Row], **wanted: object) -> Row | None:
    return next((r for r in rows if all(r.get(k) == v for k, v in wanted.items())), None)


def unique(rows: list[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(r[key] for r in rows))


def provenance(env: dict[str, Any]) -> str:
    load = " ".join(f"{v:.1f}" for v in env["load_average"])
    return (
        f"{env['cpu']}, {env['cores']} cores, {env['cpu_capability']}; torch {env['torch']}; commit {env['commit']}; "
        f"{env['date']}; load average at the start {load}."
    )


def dense_table(rows: list[Row]) -> str:
    """Methods down, problems across; each cell the CPU seconds of one thread and the multiple of ours."""
    timed = [r for r in rows if r["clock"] == "CPU"]
    cases = unique(timed, "case")
    head = ["dense Hessian, float32, 1 thread"] + [f"({c}) {find(timed, case=c)['problem']}" for c in cases]
    return markdown(head, [[m, *(dense_cell(timed, c, m) for c in cases)] for m in unique(timed, "method")])


def dense_cell(rows: list[Row], case: str, method: str) -> str:
    row, ours = find(rows, case=case, method=method), find(rows, case=case, method=OURS)
    if row is None or ours is None:
        return "not measured"
    if "skipped" in row:
        return "does not fit" if "GB" in row["skipped"] else "not installed"
    if method == OURS:
        return f"**{seconds(row['seconds'])}**"
    times = row["seconds"] / ours["seconds"]
    return f"{seconds(row['seconds'])} ({times:.0f}x)" if times >= 10 else f"{seconds(row['seconds'])} ({times:.2g}x)"


def threads_table(rows: list[Row]) -> str:
    timed = [r for r in rows if r["clock"] == "wall"]
    lines = []
    for case in unique(timed, "case"):
        cells = [f"({case}) {find(timed, case=case)['problem']}"]
        for method in (OURS, MAIN_RIVAL):
            one, two = (find(timed, case=case, method=method, threads=t) for t in (1, 2))
            cells += [seconds(one["seconds"]), seconds(two["seconds"])] if one and two else ["-", "-"]
        lines.append(cells)
    head = ["wall time", "chaos_ext, 1 thread", "2 threads", f"{MAIN_RIVAL}, 1 thread", "2 threads"]
    return markdown(head, lines)


def step_table(rows: list[Row]) -> str:
    lines = []
    for method in unique(rows, "method"):
        found = [find(rows, method=method, dtype=d) for d in ("float32", "float64")]
        lines.append([method, *("-" if r is None else seconds(r["seconds"]) for r in found)])
    return markdown([f"{rows[0]['problem']}, CPU seconds of 1 thread", "float32", "float64"], lines)


def networks_table(rows: list[Row]) -> str:
    """Dense Hessians and blocks of products: CPU seconds and the multiple of ours."""
    timed = [r for r in rows if r["clock"] == "CPU"]
    lines = []
    for case in unique(timed, "case"):
        own = [r for r in timed if r["case"] == case]
        for r in own:
            if "skipped" in r:
                cell = r["skipped"]
            elif r["method"] == "chaos_ext":
                cell = f"**{seconds(r['seconds'])}**"
            else:
                cell = f"{seconds(r['seconds'])} ({r['seconds'] / own[0]['seconds']:.2g}x)"
            lines.append([f"({case}) {r['problem']}" if r is own[0] else "", r["method"], cell])
    return markdown(["networks, float32, CPU seconds of 1 thread", "method", "time"], lines)


def network_step_table(rows: list[Row]) -> str:
    steps = [r for r in rows if r["clock"] == "wall"]
    cells = [f"{seconds(r['seconds'])} ({r['dtype']}, {r['threads']} thread{'s' * (r['threads'] > 1)})" for r in steps]
    return f"One exact CGD step of {steps[0]['problem']}, wall time: {', '.join(cells)}."


def update_table(rows: list[Row]) -> str:
    """The tangent map of the whole of Y: wall time, and the multiple of an in-place pass in the same run."""
    updates = [r for r in rows if r["what"] == "update"]
    lines = []
    for method in unique(updates, "method"):
        cells = []
        for threads in (1, 2):
            row = find(updates, method=method, threads=threads)
            one_pass = find(updates, method="an in-place pass over Y", threads=threads)
            cells.append(f"{seconds(row['seconds'])} ({row['seconds'] / one_pass['seconds']:.3g}x)")
        lines.append([f"**{method}**" if method.startswith("chaos_ext") else method, *cells])
    n = updates[0]["problem"].split("P = ")[1]
    return markdown([f"Y <- J Y of SGD, Y [{n}, {n}], float32, wall time", "1 thread", "2 threads"], lines)


def training_table(rows: list[Row]) -> str:
    steps = [r for r in rows if r["what"] == "training"]
    plain = steps[0]["seconds"]
    lines = [[r["method"], f"{1e6 * r['seconds'] / r['steps']:.3g} us", f"{r['seconds'] / plain:.2g}x"] for r in steps]
    return markdown([f"one training step, {steps[0]['problem']}, CPU seconds of 1 thread", "time", ""], lines)


def memory_table(rows: list[Row]) -> str:
    lines = []
    for case in unique(rows, "case"):
        found = [find(rows, case=case, method=m) for m in unique(rows, "method")]
        size = f"{found[0]['bytes_of_H'] / 1e6:.4g} MB"
        lines.append([found[0]["problem"], size, *(f"{r['ratio']:.2f} H" for r in found)])
    return markdown(["peak memory of one dense Hessian", "H", *unique(rows, "method")], lines)


def ensemble_table(rows: list[Row]) -> str:
    """One step of all members, by optimizer and number of members; in brackets the multiple of ours."""
    cases = list(dict.fromkeys((r["optimizer"], r["dtype"], r["members"]) for r in rows))
    methods = unique(rows, "method")
    lines = []
    for optimizer, dtype, members in cases:
        found = [find(rows, optimizer=optimizer, dtype=dtype, members=members, method=m) for m in methods]
        ours = next(r["seconds"] for r in found if r is not None and r["method"] == "chaos_ext")
        cells = ["-" if r is None else f"{seconds(r['seconds'])} ({r['seconds'] / ours:.2g}x)" for r in found]
        lines.append([f"{optimizer}, {dtype}, {members} members", *cells])
    return markdown([f"one step of all members, {rows[0]['problem']}, CPU seconds of 1 thread", *methods], lines)


def grid_table(rows: list[Row]) -> str:
    """How often, and by how much, torch's best way is faster than ours; by network."""
    lines = []
    for net in unique(rows, "net"):
        own = [r for r in rows if r["net"] == net and r["best"]]
        if not own:  # torch has no way
            continue
        ratios = sorted(r["ratio"] for r in own)
        slower = sum(v < 1 for v in ratios)
        anew = sum(r["ratio, new operator"] < 1 for r in own)
        middle = f"{ratios[len(ratios) // 2]:.2g}"
        lines.append([net, str(len(own)), str(slower), str(anew), f"{ratios[0]:.2f}", middle, f"{ratios[-1]:.2g}"])
    head = ["network", "cells", "torch is faster", "of a new operator", "least ratio", "median", "largest"]
    return markdown(head, lines)


def dominant_table(rows: list[Row]) -> str:
    """Steps of CGD with dominant directions, in plain training steps of the same network."""
    lines = [
        [
            f"P = {r['P']:,}, {r['directions']}, {r['tolerance']:g}",
            seconds(r["plain_ms"] / 1e3),
            f"{r['refresh']:.3g}",
            str(r["products"]),
            f"{r['between']:.3g}",
            f"{r['amortised']:.3g}",
        ]
        for r in rows
    ]
    what = f"N = {rows[0]['N']}, k = {rows[0]['k']}; directions of, tolerance"
    head = [what, "a plain step", "a refresh", "its products", "a step between", f"mean of {rows[0]['every']}"]
    return markdown(head, lines)


def large_table(rows: list[Row]) -> str:
    """What a step of each kind takes on large networks."""
    lines = []
    for r in rows:
        name = f"{r['network']}, P = {r['P']:,}: {r['task']}" if "P" in r else f"{r['network']}: {r['task']}"
        if "failed" in r:
            lines.append([name, "did not fit", "", ""])
        else:
            later = "-" if r["seconds"] is None else seconds(r["seconds"])
            lines.append([name, seconds(r["first_s"]), later, f"{(r['peak_bytes'] - r['start_bytes']) / 1e9:.2f} GB"])
    return markdown([f"wall time, {rows[0]['threads']} threads", "the first", "later ones", "peak memory"], lines)


def curvature_table(rows: list[Row]) -> str:
    """What is exact beyond a batch's H v: the first call from model and data on, and how far it is off."""
    lines = []
    for r in rows:
        method = f"**{r['method']}**" if r["method"] == "chaos_ext" else r["method"]
        if "skipped" in r:
            lines.append([r["case"], method, r["skipped"], "", "", ""])
            continue
        again = seconds(r["fastest_seconds"]) if "fastest_seconds" in r else ""
        peak = f"{(r['peak_bytes'] - r['bytes_before']) / 1e9:.2f} GB"
        lines.append([r["case"], method, seconds(r["seconds"]), again, peak, f"{r['error']:.1g}"])
    head = [f"float32, wall time, {rows[0]['threads']} threads", "", "the first", "later ones", "peak memory", "error"]
    return markdown(head, lines)


def distributed_table(rows: list[Row]) -> str:
    """One process and several, with one thread each."""
    lines = [
        [f"{r['what']}, {r['problem']}", str(r["processes"])]
        + [seconds(r[n]["wall: both"]) for n in ("one", "several")]
        + [f"{r['ratio'][clock]:.2f}" for clock in ("wall", "CPU")]
        for r in rows
    ]
    head = ["", "processes", "one, wall time", "several", "ratio", "ratio of CPU time"]
    return markdown(head, lines)


def everything(results: Path) -> str:
    """All tables, one after the other, each with where it was measured."""
    made = (
        ("dense_hessian", dense_table),
        ("dense_hessian", threads_table),
        ("cgd_step", step_table),
        ("memory", memory_table),
        ("networks", networks_table),
        ("networks", network_step_table),
        ("tangent", update_table),
        ("tangent", training_table),
        ("ensemble", ensemble_table),
        ("dominant", dominant_table),
        ("large", large_table),
        ("curvature", curvature_table),
        ("distributed", distributed_table),
    )
    parts = []
    for name, make in made:
        env, rows = load(results, name)
        parts += [make(rows), provenance(env)]
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    print(everything(parser.parse_args().results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
