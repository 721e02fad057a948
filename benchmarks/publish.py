"""``python -m benchmarks.publish RUNS...``: what is kept of finished studies in results/paper, and the report on it.

Of each study its manifest, its figures and its tables; of a table of more than ``LIMIT`` bytes the rows of a few steps,
evenly spaced. The command in each manifest makes the rest again.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

from chaos_ext.experiments.output import MANIFEST
from chaos_ext.experiments.page import collect, write_page

KEPT = Path(__file__).resolve().parent / "results" / "paper"
LIMIT = 100_000  # bytes of a table


def publish(folder: Path, place: Path) -> None:
    """Makes ``place`` anew from the folder of a study."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in (folder / MANIFEST, *sorted(folder.glob("*.png"))):
        shutil.copy(path, place / path.name)
    for path in sorted(folder.glob("*.csv")):
        if path.stat().st_size <= LIMIT:
            shutil.copy(path, place / path.name)
        else:
            (place / f"{path.stem}-thinned.csv").write_text("".join(thinned(path)))


def thinned(path: Path) -> list[str]:
    """Lines of a table, at as many of its steps as fit, the first and the last among them."""
    steps = sorted({int(row["step"]) for row in rows(path)})
    for readings in (101, 51, 21, 11, 5, 2):
        wanted = {steps[round(i * (len(steps) - 1) / (readings - 1))] for i in range(readings)}
        lines = [line for line, step in numbered(path) if step is None or step in wanted]
        if sum(map(len, lines)) <= LIMIT:
            return lines
    raise SystemExit(f"{path}: two steps of it are more than {LIMIT} bytes")


def rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as f:
        yield from csv.DictReader(f)


def numbered(path: Path) -> Iterator[tuple[str, int | None]]:
    """Each line with its step; the header's is None."""
    with path.open() as f:
        head = next(f)
        column = head.rstrip().split(",").index("step")
        yield head, None
        for line in f:
            yield line, int(line.split(",")[column])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="--out of studies; without any only the report is made anew")
    parser.add_argument("--out", type=Path, default=KEPT, help="where to (default: %(default)s)")
    args = parser.parse_args()
    for section in collect(args.runs):
        publish(section.folder, args.out / section.folder.name)
    write_page([args.out], args.out / "report.html")


if __name__ == "__main__":
    main()
