"""Runs the calls in a process of their own, which a memory error may end, and goes on behind the call that did."""

from __future__ import annotations

import json
import mmap
import os
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_map_only

from .calls import Arguments, valid_call
from .judge import judge
from .mutations import mutated

SCRIPT = Path(__file__).resolve().parents[1] / "fuzz_operators.py"
SPACE = 4 << 30  # bytes of address space beyond those of a process that has loaded everything
HANGS = 120.0  # seconds for one call
_PLACE = struct.Struct("qqq")  # operator, call, accepted
_LOADING = -1


class Finding(NamedTuple):
    """What is wrong with a call, which ``--operator``, ``--seed`` and ``--only`` make again."""

    operator: str
    call: int
    what: str


def arguments_of(name: str, seed: int, call: int) -> tuple[Arguments, bool]:
    """The arguments of a call, the same in every process, and whether they are valid: every tenth is."""
    rng = Random(f"{seed} {name} {call}")
    arguments, valid = valid_call(name, rng), call % 10 == 0
    return arguments if valid else mutated(arguments, rng), valid


def described(arguments: Arguments) -> str:
    def text(t: Tensor) -> str:
        try:
            return f"<{t.dtype} {list(t.shape)} strides {list(t.stride())} offset {t.storage_offset()} on {t.device}>"
        except RuntimeError:
            return f"<{t.dtype} {list(t.shape)} {t.layout}>"

    return str(tree_map_only(Tensor, text, arguments)).replace("'<", "<").replace(">'", ">")


def run_calls(names: list[str], seed: int, calls: int, start: tuple[int, int], progress: Path) -> None:
    """All calls from ``start`` on, with findings as lines of JSON; what is under way is in ``progress``."""
    _limit_memory()
    with progress.open("r+b") as file, mmap.mmap(file.fileno(), _PLACE.size) as place:
        accepted = _PLACE.unpack(place[:])[2]
        for n in range(start[0], len(names)):
            for call in range(start[1] if n == start[0] else 0, calls):
                place[:] = _PLACE.pack(n, call, accepted)
                arguments, valid = arguments_of(names[n], seed, call)
                good, wrong = judge(names[n], arguments, must_accept=valid)
                accepted += good
                if wrong is not None:
                    print(json.dumps(Finding(names[n], call, wrong)), flush=True)
        place[:] = _PLACE.pack(len(names), 0, accepted)


def _limit_memory() -> None:
    """Not under AddressSanitizer, whose shadow is most of the address space; there ASAN_OPTIONS limits allocations."""
    if "CHAOS_EXT_SANITIZE" in os.environ:
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))


class Supervisor:
    """Runs ``calls`` of each operator; ``findings`` and ``accepted`` afterwards."""

    def __init__(self, names: list[str], seed: int, calls: int) -> None:
        self.names, self.seed, self.calls = names, seed, calls
        self.findings: list[Finding] = []
        self.accepted = 0

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            progress, start = Path(folder) / "progress", (0, 0)
            while start[0] < len(self.names):
                start = self._run_from(start, progress)

    def _run_from(self, start: tuple[int, int], progress: Path) -> tuple[int, int]:
        """Runs until the end or a crash; where to go on."""
        progress.write_bytes(_PLACE.pack(start[0], _LOADING, self.accepted))
        options = ["--child", str(progress), "--start", *map(str, start)]
        command = [sys.executable, str(SCRIPT), "--seed", str(self.seed), "--calls", str(self.calls), *options]
        # Fresh memory is full of numbers that show where they come out.
        environment = {"MALLOC_PERTURB_": "128", **os.environ}
        process = subprocess.Popen([*command, *self.names], stdout=subprocess.PIPE, text=True, env=environment)
        ended = self._watched(process, progress)
        n, call, self.accepted = _PLACE.unpack(progress.read_bytes())
        if n >= len(self.names):
            return n, 0
        if call == _LOADING:
            raise RuntimeError(f"the fuzzer did not start: {ended}")
        self.findings.append(Finding(self.names[n], call, ended))
        return (n, call + 1) if call + 1 < self.calls else (n + 1, 0)

    def _watched(self, process: subprocess.Popen[str], progress: Path) -> str:
        """Reads the findings; how the process ended."""
        hung = threading.Event()
        watch = threading.Thread(target=_kill_if_hung, args=(process, progress, hung))
        watch.start()
        assert process.stdout is not None
        for line in process.stdout:
            self.findings.append(Finding(*json.loads(line)))
        code = process.wait()
        watch.join()
        return f"did not return within {HANGS:g} s" if hung.is_set() else f"ended the process (exit status {code})"


def _kill_if_hung(process: subprocess.Popen[str], progress: Path, hung: threading.Event) -> None:
    """Ends a process whose call takes too long; loading does not count."""
    last, since = b"", time.monotonic()
    while process.poll() is None:
        now = progress.read_bytes()
        if now != last or _PLACE.unpack(now)[1] == _LOADING:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > HANGS:
            hung.set()
            return process.kill()
        time.sleep(0.2)
    return None
