"""Fixtures shared by all tests: devices and dtypes, the emulator, and what tests of fig1 need."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import installed  # noqa: F401 -- first: it decides which chaos_ext the others import
import pytest
import torch
from data_files import write_fashion_mnist, write_usps
from emulator import build
from emulator.ops import EmulatedOps, thread_order

from chaos_ext import _ops, data
from chaos_ext.experiments import fig1, study


def _cuda_missing() -> str | None:
    if _ops.CUDA_ERROR is not None:
        return f"CUDA kernels not loaded: {_ops.CUDA_ERROR}"
    if not torch.cuda.is_available():
        return "no GPU"
    return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """cpu always; cuda (``pytest -m cuda``) where there is a GPU, else skipped with the reason."""
    if request.param == "cuda" and (reason := _cuda_missing()) is not None:
        pytest.skip(reason)
    return torch.device(request.param)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True, scope="session")
def _outside_the_source_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the processes of tests start: ``python -c`` looks there first, and would find the sources unbuilt."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("start"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _torchs_settings() -> Iterator[None]:
    """A test that leaves the process without gradients, say, would make all that follow fail."""

    def settings() -> tuple[object, ...]:
        onednn, deterministic = torch.backends.mkldnn.enabled, torch.are_deterministic_algorithms_enabled()
        modes = torch.overrides._get_current_function_mode_stack()  # a default device is one, even that of the CPU
        return torch.is_grad_enabled(), torch.get_default_dtype(), modes, onednn, deterministic

    before = settings()
    yield
    after = settings()
    torch.set_grad_enabled(True)
    assert after == before


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """Python's own handler, which a process that was started in the background of a shell does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def emulated_kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The CUDA kernels compiled for the CPU emulator (10 s, unless pytest's cache has them)."""
    if (reason := build.missing()) is not None:
        pytest.skip(reason)
    cache = getattr(request.config, "cache", None)
    return build.module(cache.mkdir("emulator") if cache else tmp_path_factory.mktemp("emulator"))


@pytest.fixture(params=["forwards", "backwards"])
def emulated(request: pytest.FixtureRequest, emulated_kernels: ModuleType) -> Iterator[EmulatedOps]:
    """The operators on the emulator, the threads of a block taking turns in both orders.

    The second order gets other random numbers: shared memory still holds what the first one left.
    """
    backwards = request.param == "backwards"
    torch.manual_seed(int(backwards))
    with thread_order(emulated_kernels, backwards):
        yield EmulatedOps(emulated_kernels)


@pytest.fixture(scope="session")
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def digits_cache(_cache_folder: Path) -> Iterator[None]:
    """Parsed data are cached once for all tests that ask for this, and not where the user's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(_cache_folder))
        data.load("digits")
        yield


@pytest.fixture
def fake_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of everything but the figures, which take most of the time of so short a run."""
    monkeypatch.setattr(fig1.Fig1, "draw", lambda *_: None)
    monkeypatch.setattr(
        study, "write_figure", lambda path, _: [path.with_suffix(f".{k}").touch() for k in ("png", "pdf")]
    )


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody reads or fills the user's cache of data sets, and nobody downloads."""

    def offline(folder: Path) -> None:
        raise OSError("no network in tests")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CHAOS_EXT_DATA", raising=False)
    monkeypatch.setattr(data.sources, "download_usps", offline)
    monkeypatch.setattr(data.sources, "download_fashion_mnist", offline)
    return tmp_path / "cache" / "chaos_ext"


@pytest.fixture
def usps_root(tmp_path: Path) -> Path:
    """A small root with usps/."""
    return write_usps(tmp_path / "root")


@pytest.fixture
def fashion_root(tmp_path: Path) -> Path:
    """A small root with FashionMNIST/."""
    return write_fashion_mnist(tmp_path / "root")
