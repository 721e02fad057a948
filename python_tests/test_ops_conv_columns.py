"""conv_lanes_ at every number of columns, against its definition: a sum over pairs of an output position and a tap.

The columns of one call are the first of the widest one's: what k columns give is what each gives.
"""

import pytest
import torch
from torch import Tensor

from chaos_ext import _ops

ROLES = ("ZXW", "ZWX", "XZW", "XWZ", "WZX", "WXZ")  # out, lanes, scalars of each kind
MOST = 33

# N, C, H, W, O, kh, kw, OH, OW, stride, padding, dilation, groups
SHAPES = {
    "plain": (2, 4, 5, 6, 5, 3, 2, 3, 5, (1, 1), (0, 0), (1, 1), 1),
    "padding, stride": (2, 3, 6, 5, 7, 3, 3, 3, 5, (2, 1), (1, 1), (1, 1), 1),
    "dilation": (2, 3, 7, 7, 3, 2, 3, 9, 4, (1, 2), (2, 2), (2, 2), 1),
    "groups": (3, 6, 4, 5, 4, 3, 3, 4, 5, (1, 1), (1, 1), (1, 1), 2),
    "depthwise": (2, 5, 6, 6, 5, 3, 3, 3, 3, (2, 2), (1, 1), (1, 1), 5),
    "one pixel": (3, 9, 1, 1, 8, 3, 3, 1, 1, (1, 1), (1, 1), (1, 1), 1),
    "two by two": (2, 5, 2, 2, 13, 3, 3, 2, 2, (1, 1), (1, 1), (1, 1), 1),
    "one tap": (3, 5, 4, 4, 14, 1, 1, 4, 4, (1, 1), (0, 0), (1, 1), 1),
    "pixels that no output reaches": (2, 2, 9, 7, 3, 2, 1, 2, 3, (4, 3), (0, 0), (1, 1), 1),
    "taps that lead far away": (2, 3, 3, 2, 4, 2, 2, 43, 42, (1, 1), (40, 40), (40, 40), 1),
    "all outside but one": (1, 2, 2, 2, 2, 3, 3, 6, 6, (1, 1), (4, 4), (2, 2), 1),
    "outputs beyond the image": (2, 3, 4, 4, 2, 3, 3, 4, 5, (2, 2), (1, 1), (1, 1), 1),
    "one-dimensional": (2, 2, 1, 19, 3, 1, 4, 1, 17, (1, 1), (0, 1), (1, 1), 1),
    "many rows": (2, 64, 3, 3, 40, 3, 3, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "many places": (3, 1, 17, 20, 2, 3, 3, 17, 20, (1, 1), (1, 1), (1, 1), 1),
}


def _operands(name: str, kind: int, k: int) -> tuple[dict[str, Tensor], tuple]:
    n, c, h, w, o, kh, kw, oh, ow, stride, padding, dilation, groups = SHAPES[name]
    sizes = {"X": (n, c, h, w), "W": (o, c // groups, kh, kw), "Z": (n, o, oh, ow)}
    torch.manual_seed(kind)
    tensors = {r: torch.randn(*sizes[r], k, dtype=torch.float64) for r in ROLES[kind][:2]}
    tensors[ROLES[kind][2]] = torch.randn(*sizes[ROLES[kind][2]], 1, dtype=torch.float64)
    return tensors, (list(stride), list(padding), list(dilation), groups)


def _by_definition(tensors: dict[str, Tensor], kind: int, options: tuple) -> Tensor:
    """The sum over taps and positions, a product over samples and channels each."""
    (sh, sw), (ph, pw), (dh, dw), groups = options
    out = torch.zeros_like(tensors[ROLES[kind][0]])
    # Axes with groups g apart: X [N, g, c, H, W, k], W [g, o, c, kh, kw, k], Z [N, g, o, OH, OW, k].
    view = lambda role, t: t.unflatten(0 if role == "W" else 1, (groups, -1))  # noqa: E731
    axes = {"X": "ngcx", "W": "gocx", "Z": "ngox"}
    result, lanes, scalars = ROLES[kind]
    formula = f"{axes[lanes]},{axes[scalars].replace('x', 'y')}->{axes[result]}"
    X, W, Z = (view(r, out if r == result else tensors[r]) for r in "XWZ")
    for i, j in torch.cartesian_prod(torch.arange(W.shape[3]), torch.arange(W.shape[4])).tolist():
        for oh, ow in torch.cartesian_prod(torch.arange(Z.shape[3]), torch.arange(Z.shape[4])).tolist():
            h, w = oh * sh - ph + i * dh, ow * sw - pw + j * dw
            if 0 <= h < X.shape[3] and 0 <= w < X.shape[4]:
                at = {"X": X[:, :, :, h, w], "W": W[:, :, :, i, j], "Z": Z[:, :, :, oh, ow]}
                at[result] += torch.einsum(formula, at[lanes], at[scalars])
    return out


def _call(tensors: dict[str, Tensor], kind: int, options: tuple, k: int, dtype: torch.dtype, onto: bool) -> Tensor:
    out, lanes, scalars = (tensors[r].to(dtype) for r in ROLES[kind])
    out, lanes = out[..., :k].contiguous(), lanes[..., :k].contiguous()
    _ops.conv_lanes_(out, scalars.squeeze(-1).contiguous(), lanes, kind, *options, onto)
    return out.double()


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("name", SHAPES)
def test_every_number_of_columns(name: str, kind: int, dtype: torch.dtype) -> None:
    tensors, options = _operands(name, kind, MOST)
    expected = _by_definition(tensors, kind, options)
    start = tensors[ROLES[kind][0]]
    limit = (1e-13 if dtype == torch.float64 else 4e-6) * expected.abs().max()
    for k in range(1, MOST + 1):
        for onto in (False, True):
            wanted = (expected + start if onto else expected)[..., :k]
            assert (_call(tensors, kind, options, k, dtype, onto) - wanted).abs().max() <= limit, (k, onto)


@pytest.mark.parametrize("k", [34, 47, 48, 63, 65, 100, 127, 128, 129])
@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("name", ["padding, stride", "two by two", "many rows"])
def test_many_columns(name: str, kind: int, k: int, dtype: torch.dtype) -> None:
    tensors, options = _operands(name, kind, k)
    expected = _by_definition(tensors, kind, options)
    limit = (1e-13 if dtype == torch.float64 else 4e-6) * expected.abs().max()
    assert (_call(tensors, kind, options, k, dtype, False) - expected).abs().max() <= limit


@pytest.mark.parametrize("k", [1, 5, 16, 20, 40])
@pytest.mark.parametrize("kind", range(6))
def test_nothing_outside_the_operands_is_touched(kind: int, k: int, dtype: torch.dtype) -> None:
    """Neighbours of the result keep what they have; those of the operands are not read: they are NaN."""
    tensors, options = _operands("padding, stride", kind, k)
    expected = _by_definition(tensors, kind, options)
    out, lanes, scalars = (_among_nans(tensors[r].to(dtype)) for r in ROLES[kind])
    _ops.conv_lanes_(out, scalars.squeeze(-1), lanes, kind, *options, False)
    assert (out.double() - expected).abs().max() <= 4e-6 * expected.abs().max()
    whole = torch.as_strided(out, (out.numel() + 128,), (1,), 0)
    assert bool(whole[:64].isnan().all())
    assert bool(whole[-64:].isnan().all())


def _among_nans(t: Tensor) -> Tensor:
    memory = t.new_full((t.numel() + 128,), float("nan"))
    own = memory[64:-64].view(t.shape)
    return own.copy_(t)


@pytest.mark.parametrize("k", [2, 7, 20, 33])
@pytest.mark.parametrize("kind", range(6))
def test_bits_do_not_depend_on_the_number_of_threads(kind: int, k: int, dtype: torch.dtype) -> None:
    tensors, options = _operands("many rows", kind, k)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(_call(tensors, kind, options, k, dtype, False))
    torch.set_num_threads(before)
    assert torch.equal(*results)
