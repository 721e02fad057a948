"""The fake kernels: shapes, dtypes and refusals of the real ones, without running anything."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import PROGRAMS, parameters, program, slots
from test_ops import BAD, NAMES, _packet, _replaced, _samples
from test_ops_conv import SHAPES as CONVOLUTIONS
from test_ops_conv import _operands
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves, tree_map_only

from chaos_ext import _ops
from chaos_ext._ops import layout, library

CPU = torch.device("cpu")
# What only the numbers inside a tensor tell.
OF_VALUES = ("expected order within", r"expected sweeps \(l", "expected sweeps .*")


def _fake(operator: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        return operator(*tree_map_only(Tensor, lambda t: mode.from_tensor(t, static_shapes=True), args))


def _metadata(result: Any) -> list[tuple[Any, ...]]:
    """Sizes that depend on values, which the fake kernels leave open, as None."""
    tensors = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    return [(t.dtype, t.device, [n if isinstance(n, int) else None for n in t.shape]) for t in tensors]


def _agree(operator: Callable[..., Any], args: tuple[Any, ...]) -> None:
    faked = _metadata(_fake(operator, args))
    real = _metadata(operator(*args))
    assert len(faked) == len(real)
    for (dtype, device, shape), (own_dtype, own_device, own_shape) in zip(faked, real):
        assert (dtype, device) == (own_dtype, own_device)
        assert [own if n is None else n for n, own in zip(shape, own_shape, strict=True)] == own_shape


def _registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.split("::")[1].split(".")[0] for name in names if name.startswith("chaos_ext::")}


def test_every_operator_is_covered() -> None:
    assert {name.split(" ")[0] for name in NAMES} | {"conv_lanes_"} == _registered()
    assert {name.split(" ")[0] for name, *_ in BAD} | {"conv_lanes_"} == _registered()


@pytest.mark.parametrize("name", NAMES)
def test_metadata_of_samples(name: str, dtype: torch.dtype) -> None:
    _agree(_packet(name), _samples(CPU, dtype)[name])


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_metadata_of_convolutions(name: str, kind: int, dtype: torch.dtype) -> None:
    tensors, options, _ = _operands(name, kind, 3, dtype)
    operands = [tensors[role] for role in _ops.CONV_ROLES[kind]]
    _agree(_packet("conv_lanes_"), (operands[0], operands[2], operands[1], kind, *options, False))


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("name", PROGRAMS)
def test_metadata_of_sweeps(name: str, k: int, dtype: torch.dtype) -> None:
    P, lists = program(name, dtype)
    S, last = slots("mixed", P, parameters(lists[2], lists[0]), dtype)
    _agree(_packet("tangent_product"), (torch.randn(P, k).to(dtype), *lists))
    Y, HY = torch.randn(S, k).to(dtype), torch.randn(P, k).to(dtype)
    _agree(_packet("tangent_update_"), (Y, None, *lists, *last))
    _agree(_packet("tangent_update_"), (Y, HY, [], [], [], [], *last))


@pytest.mark.parametrize("n", [0, 1, 16, 33])
def test_metadata_of_the_spectrum(n: int, dtype: torch.dtype) -> None:
    S = torch.randn(n, n).to(dtype)
    _agree(_packet("tridiagonalise"), (S,))
    reflectors, d, e = _ops.tridiagonalise(S)
    _agree(_packet("tridiagonal_ql"), (d, e, 1e-16))
    _, *rotations = _ops.tridiagonal_ql(d, e, 1e-16)
    _agree(_packet("tridiagonal_apply"), (reflectors, *rotations, torch.randn(2, n, dtype=torch.float64), True))


def test_the_spectrum_traced_as_a_whole() -> None:
    """The numbers of sweeps and rotations are not known yet where they are passed on."""

    def whole(S: Tensor) -> Tensor:
        reflectors, d, e = _ops.tridiagonalise(S)
        return _ops.tridiagonal_apply(reflectors, *_ops.tridiagonal_ql(d, e, 1e-16)[1:], S, True)

    assert _fake(whole, (torch.randn(5, 5, dtype=torch.float64),)).shape == (5, 5)


@pytest.mark.parametrize(("given", "sums"), [(False, 1), (True, _ops.UPDATE_CHUNKS)])
def test_partial_sums_on_the_gpu(given: bool, sums: int) -> None:
    P, lists = program("MLP")
    S, last = slots("momentum", P, parameters(lists[2], lists[0]), torch.float64)
    with FakeTensorMode():
        Y, HY = (torch.empty(n, 3, dtype=torch.float64, device="cuda") for n in (S, P))
        operands = [torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in lists[0]]
        nodes = ([], [], [], []) if given else (operands, *lists[1:])
        assert _ops.tangent_update_(Y, HY if given else None, *nodes, *last).shape == (sums, 3)


def _refusals() -> Iterator[Any]:
    for case in BAD:
        if not case[3].startswith(OF_VALUES):
            yield case


@pytest.mark.parametrize(("name", "index", "change", "message"), _refusals())
def test_errors_are_those_of_the_real_kernel(name: str, index: int, change: Callable[[Any], Any], message: str) -> None:
    args = _samples(CPU, torch.float32)[name]
    with pytest.raises(RuntimeError, match=rf"{name.split(' ')[0]}: ({message})"):
        _fake(_packet(name), tuple(_replaced(args, index, change(args[index]))))


@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes_are_refused(name: str) -> None:
    args = tuple(x.half() if isinstance(x, Tensor) else x for x in _samples(CPU, torch.float32)[name])
    with pytest.raises(RuntimeError, match=rf"{name.split(' ')[0]}: expected \w+ of dtype float(32|64).*, got Half"):
        _fake(_packet(name), args)


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = library._FOLDER / "_C.abi3.so"
    library._check_layout(path)
    with pytest.raises(ImportError, match=r"compiled from older sources: rebuild"):
        library._check_layout(Path(torch._C.__file__))
    monkeypatch.setattr(layout, "MAX_SLOTS", 65)
    with pytest.raises(ImportError, match=r"MAX_SLOTS is 65 in Python, 64 compiled\): rebuild"):
        library._check_layout(path)
