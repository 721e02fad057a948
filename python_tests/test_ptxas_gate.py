"""The gate on registers and memory of the CUDA kernels (.ci/ptxas): what it reads, and what it refuses."""

import importlib.util
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "ptxas"

REPORT = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_ZN9chaos_ext10mse_kernelIdEEvPKT_S3_S1_lPS1_Pd' for 'sm_90'
ptxas info    : Function properties for _ZN9chaos_ext10mse_kernelIdEEvPKT_S3_S1_lPS1_Pd
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 29.077 ms
ptxas info    : Compiling entry function '_ZN9chaos_ext17activation_kernelIfEEvPKT_' for 'sm_90'
ptxas info    : Function properties for _ZN9chaos_ext17activation_kernelIfEEvPKT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 0 barriers
"""
GOOD = {"stack": 0, "stores": 0, "loads": 0, "registers": 32, "shared": 256}
SLACK = 4


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("no .ci/ptxas: not a clone of the repository")
    loader = SourceFileLoader("ptxas_gate", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def table(gate: ModuleType) -> dict:
    return gate.parse(REPORT.format(**GOOD))


def test_a_report_is_read(gate: ModuleType, table: dict) -> None:
    mse, activation = table.values()
    assert mse == {"sm_90": gate.Usage(registers=32, shared=256, stack=0, spill_stores=0, spill_loads=0)}
    assert activation == {"sm_90": gate.Usage(28, 0, 0, 0, 0)}
    assert gate.compare(table, table, SLACK) == []


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        ({"stack": 16, "stores": 8, "loads": 12}, "spills, 8 bytes stored, 12 loaded"),
        ({"stack": 16}, "16 bytes of local memory"),
        ({"registers": 37}, "37 registers, expected at most 32 + 4"),
        ({"shared": 512}, "512 bytes of shared memory, expected 256"),
    ],
)
def test_what_got_worse_is_refused(gate: ModuleType, table: dict, worse: dict[str, int], reason: str) -> None:
    (problem,) = gate.compare(gate.parse(REPORT.format(**GOOD | worse)), table, SLACK)
    assert "mse_kernel" in problem
    assert "sm_90" in problem
    assert reason in problem


def test_spills_are_refused_even_if_the_table_has_them(gate: ModuleType) -> None:
    spilled = gate.parse(REPORT.format(**GOOD | {"stores": 4}))
    assert len(gate.compare(spilled, spilled, SLACK)) == 1


def test_a_few_more_registers_pass(gate: ModuleType, table: dict) -> None:
    assert gate.compare(gate.parse(REPORT.format(**GOOD | {"registers": 36})), table, SLACK) == []


def test_table_and_sources_hold_the_same_kernels(gate: ModuleType, table: dict) -> None:
    name = next(iter(table))
    fewer = {kernel: archs for kernel, archs in table.items() if kernel != name}
    assert gate.compare(table, fewer, SLACK) == [f"{name}, sm_90: not in the table"]
    assert gate.compare(fewer, table, SLACK) == [f"{name}: in the table, not in the sources"]


def test_an_unknown_format_is_an_error(gate: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected stack frame and registers"):
        gate.parse(REPORT.format(**GOOD).replace("spill stores", "stores spilt"))


def test_the_table_is_written_and_read(
    gate: ModuleType, table: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "TABLE", tmp_path / "ptxas.json")
    gate.write_table("13.0", table)
    assert gate.read_table() == ("13.0", table)


def test_names_areshort_name(gate: ModuleType) -> None:
    signature = "void chaos_ext::activation_kernel<(chaos_ext::Activation)3, double>(double const*, long)"
    assert gate.short_name(signature) == "activation_kernel<(chaos_ext::Activation)3, double>"


def test_without_nvcc_the_gate_says_so(
    gate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert gate.main([]) == 0
    assert "skipped, no /nowhere/bin/nvcc" in capsys.readouterr().out


def test_every_kernel_of_the_table_is_clean(gate: ModuleType) -> None:
    kernels = json.loads(gate.TABLE.read_text())["kernels"]
    for archs in kernels.values():
        assert set(archs) == set(gate.ARCHS)
        for usage in archs.values():
            assert usage["stack"] == usage["spill_stores"] == usage["spill_loads"] == 0
