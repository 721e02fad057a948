"""``python python_tests/kill_studies.py [--times 20] [--seed 0]``: studies that are killed at random and resumed.

Each study is run once with ``--quick`` and left alone. Then one drawn at random is killed at a random moment (SIGKILL
to it and its workers: no handler runs), resumed, and has to give the same CSV files byte for byte, again and again.
Exits with 1 if one does not. It takes minutes, so that it is no test of its own; tests kill each study at chosen steps.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDIES = {
    "fig1": ["--controls", "rank,energy", "--jobs", "2"],
    "fig2": ["--jobs", "2"],
    "spectrum": [],
    "axes": ["--jobs", "2"],
    "exponents": [],
    "subspace": ["--epochs", "2"],
    "generalisation": ["--jobs", "2"],
    "finite-time": [],
    "magnitude": [],
    "epsilon": [],
    "bounds": [],
    "global-prune": [],
    "random-walk": [],
    "init-distance": [],
}


def command(study: str, out: Path, *more: str) -> list[str]:
    every = [] if study in ("random-walk", "init-distance") else ["--checkpoint-every", "0.3"]
    own = [*STUDIES[study], *every, "--quick", "--out", str(out), *more]
    return [sys.executable, "-m", "chaos_ext", "reproduce", study, *own]


def run(words: list[str]) -> float:
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return time.monotonic() - began


def killed(words: list[str], after: float) -> bool:
    """Whether it still ran then."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def tables(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.csv"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, wrong, kills = random.Random(args.seed), [], 0
    with tempfile.TemporaryDirectory() as name:
        whole: dict[str, tuple[float, dict[str, bytes]]] = {}
        while kills < args.times:
            study = draw.choice(list(STUDIES))
            if study not in whole:
                took = run(command(study, Path(name) / study))
                whole[study] = took, tables(Path(name) / study)
            took, expected = whole[study]
            out, moments = Path(name) / f"{study}-{kills}", 0
            while moments < 2 and killed(command(study, out, "--resume"), draw.uniform(0.3, 1.0) * took):
                moments += 1
            kills += moments
            run(command(study, out, "--resume"))
            same = tables(out) == expected
            wrong += [] if same else [study]
            print(f"{study}: killed {moments} times, {'the same' if same else 'ANOTHER'} CSV", flush=True)
    print(f"{kills} kills; not the same: {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
