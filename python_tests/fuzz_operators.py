"""Malformed calls of every native operator: memory errors, crashes, silence and unclear errors are findings.

    python fuzz_operators.py                       5,000 calls of each operator, nine in ten of them malformed
    python fuzz_operators.py --calls 200 mse       fewer, of one operator
    python fuzz_operators.py --only 17 mse         one call, described and made in this process

A finding is printed with what makes its call again; the exit status is 1 if there is one. Memory errors are seen for
certain under the sanitizers: .ci/sanitize. Of a call that is accepted, results are compared with the twins.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

from fuzz.calls import GENERATORS, registered
from fuzz.judge import judge
from fuzz.supervisor import Supervisor, arguments_of, described, run_calls


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", help="default: all that are registered")
    parser.add_argument("--calls", type=int, default=5000, help="of each operator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this call of the operator")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, nargs=2, default=(0, 0), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _one(name: str, seed: int, call: int) -> int:
    arguments, valid = arguments_of(name, seed, call)
    print(
        f"{name}, call {call} of seed {seed}, {'valid' if valid else 'malformed'}: {described(arguments)}", flush=True
    )
    accepted, wrong = judge(name, arguments, must_accept=valid)
    print(wrong or f"as it should be, {'accepted' if accepted else 'refused'}")
    return int(wrong is not None)


def main(argv: list[str] | None = None) -> int:
    warnings.filterwarnings("ignore")  # torch's about sparse tensors and the like
    options = _options(argv)
    names = options.operators or registered()
    unknown = sorted(set(names) - set(GENERATORS))
    if unknown:
        print(f"no calls are generated for {', '.join(unknown)}: add them to python_tests/fuzz/calls.py")
        return 1
    if options.only is not None:
        return _one(names[0], options.seed, options.only)
    if options.child is not None:
        run_calls(names, options.seed, options.calls, tuple(options.start), options.child)
        return 0
    started, supervisor = time.monotonic(), Supervisor(names, options.seed, options.calls)
    supervisor.run()
    for name, call, what in supervisor.findings:
        print(f"{name}: {what}\n    again: {Path(__file__).name} --seed {options.seed} --only {call} {name}")
    total = len(names) * options.calls
    print(
        f"{total} calls of {len(names)} operators, seed {options.seed}, {time.monotonic() - started:.0f} s: "
        f"{supervisor.accepted} accepted, {total - supervisor.accepted} refused, {len(supervisor.findings)} findings"
    )
    return int(bool(supervisor.findings))


if __name__ == "__main__":
    sys.exit(main())
