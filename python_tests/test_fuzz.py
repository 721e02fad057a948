"""The fuzzer of the native operators: it knows all of them, finds nothing, and finds what is there."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import judge as judging
from fuzz import supervisor
from fuzz.calls import GENERATORS, registered
from fuzz.judge import judge, operator
from fuzz.supervisor import Supervisor, arguments_of, described
from torch import Tensor

REGISTRATION = Path(__file__).resolve().parents[1] / "csrc" / "registration.cpp"


def test_every_registered_operator_is_fuzzed() -> None:
    assert sorted(GENERATORS) == registered()
    if REGISTRATION.exists():
        schemas = re.findall(r'm\.def\(\s*"(\w+)\(', REGISTRATION.read_text())
        assert sorted(schemas) == registered()


def test_no_findings() -> None:
    """A few calls of each; .ci/sanitize makes more, under the sanitizers."""
    run = Supervisor(registered(), seed=7, calls=60)
    run.run()
    assert run.findings == []
    total = 60 * len(GENERATORS)
    assert total / 10 < run.accepted < total * 0.9


def test_a_call_is_made_again() -> None:
    for name in GENERATORS:
        for call in (0, 1, 17):
            (one, valid), (two, _) = (arguments_of(name, 3, call) for _ in range(2))
            assert valid == (call == 0)
            assert re.sub("0x[0-9a-f]+", "", described(one)) == re.sub("0x[0-9a-f]+", "", described(two))


class _Planted:
    """mse, and something else."""

    def __init__(self, fault: Callable[..., Any]) -> None:
        self._real, self._fault = operator("mse"), fault
        self._schema = self._real._schema

    def __call__(self, z: Tensor, y: Tensor, scale: float) -> Any:
        results = self._real(z, y, scale)
        return results if z.is_meta else self._fault(z, y, results)


def _raise(error: BaseException) -> Callable[..., Any]:
    def fault(*_: Any) -> None:
        raise error

    return fault


def _writes(z: Tensor, y: Tensor, results: Any) -> Any:
    y.add_(1)
    return results


def _writes_beside(z: Tensor, y: Tensor, results: Any) -> Any:
    z.as_strided((1,), (1,), z.numel()).add_(1)
    return results


def _writes_and_raises(z: Tensor, y: Tensor, results: Any) -> Any:
    z.add_(1)
    raise RuntimeError("mse: expected something else")


def _takes_memory(z: Tensor, y: Tensor, results: Any) -> Any:
    # What counts is the peak of the process, which other tests may have pushed far above what it uses now.
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    unnoticed = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - now, 0)
    torch.ones(unnoticed + (320 << 20), dtype=torch.uint8)
    return results


FAULTS: dict[str, tuple[Callable[..., Any], str]] = {
    "an operand is written": (_writes, "changed memory that is not of an operand"),
    "memory beside an operand is written": (_writes_beside, "changed memory that is not of an operand"),
    "written, and refused": (_writes_and_raises, "changed memory and then raised"),
    "a result is wrong": (lambda z, y, results: (results[0], results[1] + 1), "result 1: 6 of 6 numbers are wrong"),
    "a result is not written": (
        lambda z, y, results: (results[0], torch.full_like(z, float("nan"))),
        "result 1: 6 of 6 numbers are wrong",
    ),
    "another shape": (lambda z, y, results: (results[0], results[1][0]), "the fake kernel makes"),
    "an unclear error": (_raise(RuntimeError("something is wrong")), "does not name the operator"),
    "an error of another class": (_raise(KeyError("mse: expected")), "raised KeyError"),
    "too much memory is wanted": (
        _raise(RuntimeError("can't allocate memory: 9 GB")),
        "tried to allocate too much",
    ),
    "too much memory is used": (_takes_memory, "took "),
    "silence of the fake": (_raise(RuntimeError("mse: expected more")), "the fake kernel accepts what raised"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, what = FAULTS[name]
    planted = _Planted(fault)
    monkeypatch.setattr(judging, "operator", lambda _: planted)
    z = torch.rand(9, dtype=torch.float64)[:6].view(2, 3)
    _, found = judge("mse", [z, torch.rand(2, 3, dtype=torch.float64), 0.5])
    assert found is not None
    assert what in found


def test_a_refused_valid_call_is_found() -> None:
    _, found = judge("mse", [torch.rand(3), torch.rand(4), 0.5], must_accept=True)
    assert found is not None
    assert found.startswith("a valid call is refused: RuntimeError: mse: expected y of the shape of z")


CRASHES = """
import os, sys, time
sys.path.insert(0, {folder!r})
from fuzz import supervisor
import fuzz_operators

def judge(name, arguments, must_accept):
    calls = seen.setdefault(name, [0])
    calls[0] += 1
    if name == "mse" and calls[0] == 3:
        {fault}
    return True, None

seen = {{}}
supervisor.judge = judge
sys.exit(fuzz_operators.main())
"""


@pytest.mark.parametrize(
    ("fault", "what"),
    [("os.abort()", "ended the process (exit status -6)"), ("time.sleep(600)", "did not return within 2 s")],
)
def test_a_call_that_does_not_come_back(fault: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and the calls behind it are made."""
    script = tmp_path / "crashes.py"
    script.write_text(CRASHES.format(folder=str(Path(__file__).parent), fault=fault))
    monkeypatch.setattr(supervisor, "SCRIPT", script)
    monkeypatch.setattr(supervisor, "HANGS", 2.0)
    run = Supervisor(["activation", "mse", "tridiagonalise"], seed=0, calls=5)
    run.run()
    assert run.findings == [("mse", 2, what)]
    assert run.accepted == 14
