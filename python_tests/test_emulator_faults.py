"""The emulator finds kernels that are wrong, and so do the sanitizers, under which .ci/sanitize runs these tests."""

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from emulator import build
from emulator.ops import thread_order


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        ("early_return_kernel", r"__syncthreads at .*faults.cuh:\d+ reached by 63 of 64 threads in block \(0, 0\)"),
        ("two_barriers_kernel", r"__syncthreads at .* reached by 32 of 64 threads"),
        ("half_warp_kernel", r"__shfl_down_sync at .* reached by 16 of 32 lanes"),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_partial_barriers_are_found(kernel: str, what: str, backwards: bool, emulated_kernels: ModuleType) -> None:
    with thread_order(emulated_kernels, backwards), pytest.raises(RuntimeError, match=what):
        getattr(emulated_kernels.faults, kernel)(np.zeros(64, np.float32))


def test_a_missing_barrier_shows_in_one_of_the_orders(emulated_kernels: ModuleType) -> None:
    wrong = []
    for backwards, start in ((False, 100.0), (True, 200.0)):
        out = np.zeros(32, np.float32)
        with thread_order(emulated_kernels, backwards):
            emulated_kernels.faults.missing_barrier_kernel(out, start)
        wrong.append((out != start + (np.arange(32) + 1) % 32).any())
    assert any(wrong)


@pytest.mark.parametrize(("grid", "threads"), [(0, 32), (1, 0), (1, 1025)])
def test_impossible_launches_are_refused(grid: int, threads: int, emulated_kernels: ModuleType) -> None:
    z = np.zeros(3)
    with pytest.raises(ValueError, match="launch: expected at least one block of 1 to 1024 threads"):
        emulated_kernels.mse_kernel(z, z, 1.0, z.copy(), z.copy(), grid, threads)


@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("global_overrun_kernel(np.zeros(64, 'f4'))", "heap-buffer-overflow"),
        ("shared_overrun_kernel(np.zeros(32, 'f4'))", "global-buffer-overflow"),
        ("local_overrun_kernel(np.zeros(32, 'f4'))", "stack-buffer-overflow"),
        ("overflow_kernel(np.zeros(32, 'f4'), 2**30)", "signed integer overflow"),
    ],
)
def test_the_sanitizers_are_awake(call: str, report: str, emulated_kernels: ModuleType) -> None:
    if not emulated_kernels.is_sanitized():
        pytest.skip("not compiled with -fsanitize; run .ci/sanitize")
    program = f"""
import sys; sys.path.insert(0, {str(build.HERE.parent)!r})
from pathlib import Path; from emulator import build; import numpy as np
build.load(Path({emulated_kernels.__file__!r})).faults.{call}"""  # in a process of its own: a report ends it
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0
    assert report in done.stderr
