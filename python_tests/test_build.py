"""The build: what build_info() tells, and setup.py's decisions, which are plain functions."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import chaos_ext
from chaos_ext import _ops

SETUP = Path(__file__).resolve().parent.parent / "setup.py"


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    if not SETUP.exists():
        pytest.skip("setup.py is not beside the tests")
    spec = importlib.util.spec_from_file_location("chaos_ext_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_info() -> None:
    info = chaos_ext.build_info()
    assert info["version"] == chaos_ext.__version__ == importlib.metadata.version("chaos-ext")
    assert info["torch"] == torch.__version__
    assert re.match(r"\d+\.\d+", info["torch_build"])
    assert info["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert isinstance(info["cuda"], bool)
    assert info["cuda"] == (info["cuda_error"] is None) == (_ops.CUDA_ERROR is None)
    assert info["cuda_built"] or not info["cuda"]
    assert info["cuda_devices"] == torch.cuda.device_count()
    assert all(isinstance(arch, str) for arch in info["cuda_archs"])
    assert bool(info["cuda_archs"]) == info["cuda_built"]


@pytest.mark.parametrize(("error", "devices"), [(None, 0), (None, 1), ("not built", 2)])
def test_cuda_is_usable_only_with_kernels_and_a_device(
    monkeypatch: pytest.MonkeyPatch, error: str | None, devices: int
) -> None:
    monkeypatch.setattr(_ops, "CUDA_ERROR", error)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    info = chaos_ext.build_info()
    assert (info["cuda"], info["cuda_devices"]) == (error is None, devices)
    assert info["cuda_usable"] == (error is None and devices > 0)


def test_cuda_is_loaded_only_where_torch_has_it() -> None:
    if torch.version.cuda is None:
        assert not chaos_ext.build_info()["cuda"]
        assert "has no CUDA" in _ops.CUDA_ERROR or "not built" in _ops.CUDA_ERROR


@pytest.mark.parametrize(
    ("setting", "torch_cuda", "nvcc", "build"),
    [
        ("auto", "13.0", "13.0", True),
        ("auto", "13.0", "13.2", True),
        ("1", "12.8", "12.6", True),
        ("auto", None, "13.0", False),
        ("auto", "13.0", None, False),
        ("auto", "13.0", "12.8", False),
        ("0", "13.0", "13.0", False),
    ],
)
def test_cuda_decision(
    setup_py: ModuleType, setting: str, torch_cuda: str | None, nvcc: str | None, build: bool
) -> None:
    decision = setup_py.decide_cuda(setting, torch_cuda, nvcc)
    assert decision.build is build
    assert decision.reason


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "remedy"),
    [
        ("13.0", None, "set CUDA_HOME"),
        (None, "13.0", "--no-build-isolation"),
        ("13.0", "12.8", "CUDA_HOME to a CUDA 13 toolkit"),
    ],
)
def test_forced_cuda_without_the_means_is_an_error(
    setup_py: ModuleType, torch_cuda: str | None, nvcc: str | None, remedy: str
) -> None:
    with pytest.raises(RuntimeError, match=remedy):
        setup_py.decide_cuda("1", torch_cuda, nvcc)


def test_unknown_setting_is_an_error(setup_py: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected auto, 0 or 1, got 'yes'"):
        setup_py.decide_cuda("yes", "13.0", "13.0")


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("8.0;9.0+PTX", ["sm_80", "sm_90", "compute_90"]),
        ("7.5 8.6", ["sm_75", "sm_86"]),
        ("9.0a;10.0f", ["sm_90a", "sm_100f"]),
        ("Ampere", ["Ampere"]),
        ("", []),
    ],
)
def test_arch_list(setup_py: ModuleType, text: str, archs: list[str]) -> None:
    assert setup_py.parse_archs(text) == archs


def test_cuda_home(setup_py: ModuleType, tmp_path: Path) -> None:
    assert setup_py.find_cuda_home({"CUDA_HOME": "/a", "CUDA_PATH": "/b"}) == "/a"
    assert setup_py.find_cuda_home({"CUDA_PATH": "/b"}) == "/b"
    assert setup_py.find_cuda_home({}, str(tmp_path)) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert setup_py.find_cuda_home({}, str(tmp_path)) == str(tmp_path)


def test_a_missing_compiler_is_named_with_the_remedy(setup_py: ModuleType, tmp_path: Path) -> None:
    empty = {"PATH": str(tmp_path)}
    assert "apt install g++" in setup_py.missing_compiler(empty)
    assert "CXX=clang++-99 is not there" in setup_py.missing_compiler({**empty, "CXX": "clang++-99 -stdlib=libc++"})
    compiler = tmp_path / "g++"
    compiler.touch(0o755)
    assert setup_py.missing_compiler(empty) is None
    assert setup_py.missing_compiler({**empty, "CXX": f"'{compiler}' -O2"}) is None
    assert setup_py.missing_compiler({**empty, "CXX": "nowhere/g++"}) is not None


def test_nvcc_version(setup_py: ModuleType, tmp_path: Path) -> None:
    assert setup_py.nvcc_version(None) is None
    assert setup_py.nvcc_version(str(tmp_path)) is None
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.61'\n")
    nvcc.chmod(0o755)
    assert setup_py.nvcc_version(str(tmp_path)) == "12.8"


def test_sources_never_collide(setup_py: ModuleType) -> None:
    """foo.cpp and foo.cu would both become foo.o."""
    stems = [Path(p).with_suffix("") for p in setup_py.sources("*.cpp") + setup_py.sources("*.cu")]
    assert len(set(stems)) == len(stems)
