"""conv_lanes_: every product of a convolution with columns, against torch's own convolutions one column at a time."""

import pytest
import torch
from emulator.ops import EmulatedOps
from torch import Tensor

from chaos_ext import _ops, reference

ROLES = ("ZXW", "ZWX", "XZW", "XWZ", "WZX", "WXZ")  # out, lanes, scalars of each kind

# N, C, H, W, O, kh, kw, stride, padding, dilation, groups
SHAPES = {
    "plain": (2, 4, 5, 6, 6, 3, 2, (1, 1), (0, 0), (1, 1), 1),
    "stride padding groups": (3, 4, 6, 5, 6, 3, 3, (2, 1), (1, 2), (1, 1), 2),
    "dilation depthwise": (2, 3, 7, 7, 3, 2, 3, (1, 2), (2, 1), (2, 2), 3),
    "one-dimensional": (1, 1, 1, 9, 2, 1, 4, (1, 3), (0, 2), (1, 1), 1),
    "many channels": (3, 8, 4, 4, 13, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "padding beyond the input": (1, 2, 2, 2, 2, 3, 3, (1, 1), (4, 4), (2, 2), 1),
    "stride beyond the kernel": (2, 2, 9, 7, 3, 2, 1, (4, 3), (0, 0), (1, 1), 1),
    "no place reaches the third tap": (2, 2, 2, 2, 3, 5, 5, (3, 3), (3, 3), (1, 1), 1),
    "taps 0, 1 and 4 of a depthwise row": (1, 3, 9, 3, 3, 1, 5, (1, 5), (1, 9), (1, 1), 3),
    "taps 0 and 1, 3 and 4 of both": (1, 2, 2, 2, 2, 7, 5, (5, 3), (5, 3), (1, 1), 1),
}


def _operands(name: str, kind: int, k: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], tuple, tuple]:
    n, c, h, w, o, kh, kw, *options = SHAPES[name]
    stride, padding, dilation, groups = options
    reach = [s + 2 * p - d * (q - 1) - 1 for s, p, d, q in zip((h, w), padding, dilation, (kh, kw))]
    sizes = {
        "X": (n, c, h, w),
        "W": (o, c // groups, kh, kw),
        "Z": (n, o, *(r // s + 1 for r, s in zip(reach, stride))),
    }
    out, lanes, scalars = ROLES[kind]
    tensors = {
        out: torch.randn(*sizes[out], k, dtype=dtype),
        lanes: torch.randn(*sizes[lanes], k, dtype=dtype),
        scalars: torch.randn(sizes[scalars], dtype=dtype),
    }
    return tensors, (list(stride), list(padding), list(dilation), groups), (sizes["X"], sizes["W"])


def _expected(tensors: dict[str, Tensor], kind: int, sizes: tuple, options: tuple, accumulate: bool) -> Tensor:
    out = ROLES[kind][0]
    wide = {role: None if role == out else t.double().cpu() for role, t in tensors.items()}
    result = reference.conv_lanes(wide["X"], wide["W"], wide["Z"], sizes, *options)
    return result + tensors[out].double().cpu() if accumulate else result


def _close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    assert (result.double().cpu() - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("k", [1, 3, 16, 40, 130])
@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("name", SHAPES)
def test_against_torch(name: str, kind: int, k: int, device: torch.device, dtype: torch.dtype) -> None:
    tensors, options, sizes = _operands(name, kind, k, dtype)
    for accumulate in (False, True):
        expected = _expected(tensors, kind, sizes, options, accumulate)
        out, lanes, scalars = (tensors[role].clone().to(device) for role in ROLES[kind])
        _ops.conv_lanes_(out, scalars, lanes, kind, *options, accumulate)
        _close(out, expected, dtype)


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("name", SHAPES)
def test_cuda_kernels_on_the_emulator(name: str, kind: int, emulated: EmulatedOps, dtype: torch.dtype) -> None:
    tensors, options, sizes = _operands(name, kind, 3, dtype)
    for accumulate in (False, True):
        expected = _expected(tensors, kind, sizes, options, accumulate)
        out, lanes, scalars = (tensors[role].clone() for role in ROLES[kind])
        emulated.conv_lanes_(out, scalars, lanes, kind, *options, accumulate)
        _close(out, expected, dtype)


@pytest.mark.parametrize("kind", range(6))
def test_large_batches_are_unfolded_in_parts(kind: int) -> None:
    """More samples than fit into one block of rows: sums go on where the last block stopped."""
    torch.manual_seed(kind)
    SHAPES["large"] = (70, 3, 5, 5, 4, 3, 3, (1, 1), (1, 1), (1, 1), 1)
    tensors, options, sizes = _operands("large", kind, 20, torch.float64)
    del SHAPES["large"]
    expected = _expected(tensors, kind, sizes, options, False)
    out, lanes, scalars = (tensors[role] for role in ROLES[kind])
    _ops.conv_lanes_(out, scalars, lanes, kind, *options, False)
    _close(out, expected, torch.float64)


@pytest.mark.parametrize("kind", range(6))
def test_bits_do_not_depend_on_the_number_of_threads(kind: int, dtype: torch.dtype) -> None:
    tensors, options, _ = _operands("many channels", kind, 200, dtype)
    out, lanes, scalars = (tensors[role] for role in ROLES[kind])
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        _ops.conv_lanes_(out, scalars, lanes, kind, *options, False)
        results.append(out.clone())
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_nothing_to_sum(device: torch.device) -> None:
    out, W, X = torch.ones(0, 3, 2, 2, 4), torch.ones(3, 2, 1, 1), torch.ones(0, 2, 2, 2, 4)
    _ops.conv_lanes_(out.to(device), W.to(device), X.to(device), 0, [1, 1], [0, 0], [1, 1], 1, False)
    grad, Z, empty = torch.ones(3, 2, 1, 1, 4), torch.ones(0, 3, 2, 2), torch.ones(0, 2, 2, 2, 4)
    grad = grad.to(device)
    _ops.conv_lanes_(grad, Z.to(device), empty.to(device), 5, [1, 1], [0, 0], [1, 1], 1, True)
    assert bool((grad == 1).all())
    _ops.conv_lanes_(grad, Z.to(device), empty.to(device), 5, [1, 1], [0, 0], [1, 1], 1, False)
    assert bool((grad == 0).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 6}, "expected kind in 0..5, got 6"),
        ({"stride": [0, 1]}, r"expected stride of two numbers >= 1 and < 2\^30, got \[0, 1\]"),
        ({"padding": [1]}, r"expected padding of two numbers >= 0 and < 2\^30, got \[1\]"),
        ({"groups": 3}, "expected groups that divide"),
        ({"lanes": torch.ones(2, 4, 5, 6, 2)}, "expected lanes with 3 columns like out, got 2"),
        ({"scalars": torch.ones(6, 4, 3, 2).double()}, "expected scalars of the dtype of out"),
        ({"lanes": torch.ones(3, 4, 5, 6, 3)}, "expected an output of 3 samples"),
        ({"scalars": torch.ones(4, 6, 3, 2).transpose(0, 1)}, "expected scalars contiguous"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    good = {
        "out": torch.ones(2, 6, 3, 5, 3),
        "scalars": torch.ones(6, 4, 3, 2),
        "lanes": torch.ones(2, 4, 5, 6, 3),
        "kind": 0,
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "accumulate": False,
    }
    with pytest.raises(RuntimeError, match=message):
        _ops.conv_lanes_(**{**good, **change})


def test_opcheck() -> None:
    tensors, options, _ = _operands("plain", 0, 3, torch.float64)
    out, lanes, scalars = (tensors[role] for role in ROLES[0])
    torch.library.opcheck(torch.ops.chaos_ext.conv_lanes_.default, (out, scalars, lanes, 0, *options, False))
