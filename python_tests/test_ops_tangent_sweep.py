"""tangent_product and tangent_update_ against their twins, which form every product as a matrix."""

from collections.abc import Callable

import pytest
import torch
from sweeps import KINDS, PROGRAMS, parameters, program, slots
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only

from chaos_ext import _ops, reference

COLUMNS = [1, 3, 16, 40, 130, 1100]


def _lists(name: str, device: torch.device, dtype: torch.dtype) -> tuple[int, tuple]:
    P, (operands, *rest) = program(name, dtype)
    return P, ([t.to(device) for t in operands], *rest)


def _wide(args: tuple) -> tuple:
    """Lists with their tensors in float64 on the CPU."""
    return tuple([x.double().cpu() if isinstance(x, Tensor) else x for x in a] for a in args)


def _close(result: Tensor, expected: Tensor) -> None:
    limit = 1e-12 if result.dtype == torch.float64 else 1e-5
    assert (result.double().cpu() - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("k", COLUMNS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_product(name: str, k: int, device: torch.device, dtype: torch.dtype) -> None:
    P, lists = _lists(name, device, dtype)
    Y = torch.randn(P, k).to(device, dtype)
    kept = Y.clone()
    result = _ops.tangent_product(Y, *lists)
    assert torch.equal(Y, kept)
    _close(result, reference.tangent_product(Y.double().cpu(), *_wide(lists)))


@pytest.mark.parametrize("k", COLUMNS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["MLP", "residual"])
@pytest.mark.parametrize("given", [False, True])
def test_update(name: str, kind: str, given: bool, k: int, device: torch.device, dtype: torch.dtype) -> None:
    P, lists = _lists(name, device, dtype)
    S, (vectors, *rest) = slots(kind, P, parameters(lists[2], lists[0]), dtype)
    Y, HY = torch.randn(S, k).to(device, dtype), torch.randn(P, k).to(device, dtype) if given else None
    last = ([v.to(device) for v in vectors], *rest)
    expected = Y.double().cpu().clone()
    wanted = reference.tangent_update_(expected, None if HY is None else HY.double().cpu(), *_wide(lists), *_wide(last))
    squares = _ops.tangent_update_(Y, HY, *(([], [], [], []) if given else lists), *last)
    _close(Y, expected)
    _close(squares.sum(0, keepdim=True), wanted)


@pytest.mark.parametrize("of", ["a group", "a parameter"])
@pytest.mark.parametrize("k", [1, 16])
def test_long_sums_of_a_norm_in_float32(of: str, k: int, device: torch.device) -> None:
    """Of numbers of one sign: added one by one, rounding would be a hundred times larger."""
    R, O = 1 << 13, 32
    layout, C = ((1, 1, R * O), O) if of == "a group" else ((R, 1, O), 1)
    share = 1.0 if of == "a group" else float(O)
    xh, delta = torch.rand(layout) + 0.5, torch.rand(layout) + 0.5
    linear = [torch.rand(R, 1), torch.rand(O, 1), torch.rand(R, O)]
    operands = [*linear, xh, torch.ones(1), torch.ones(C), delta, torch.empty(0)]
    nodes = [*_ops.NodeRecord(_ops.LINEAR, -1, out=0, row_w=0)]
    nodes += [*_ops.NodeRecord(_ops.NORM, 0, out=1, row_w=O, row_b=O + C), *_ops.NodeRecord(_ops.DIAGONAL, 1)]
    rest = [R * O] * 2, nodes, [1.0, 1.0, float(of == "a group"), share, 1e-3, 1.0]
    Y = torch.rand(O + 2 * C, k)
    result = _ops.tangent_product(Y.to(device), [t.to(device) for t in operands], *rest).cpu()
    expected = reference.tangent_product(Y.double(), [t.double() for t in operands], *rest)
    for part in (slice(O), slice(O, O + C), slice(O + C, None)):
        assert (result[part] - expected[part]).abs().max() <= 1e-5 * expected[part].abs().max()


def test_columns_of_a_wider_matrix(device: torch.device, dtype: torch.dtype) -> None:
    """Rows may be apart; what lies beside the columns stays as it is."""
    P, lists = _lists("MLP", device, dtype)
    S, last = slots("momentum", P, parameters(lists[2], lists[0]), dtype)
    whole = torch.randn(S, 50).to(device, dtype)
    part, beside = whole[:, 3:40], whole.clone()
    alone = part.clone()
    assert torch.equal(_ops.tangent_product(part[:P], *lists), _ops.tangent_product(alone[:P], *lists))
    assert torch.equal(
        _ops.tangent_update_(part, None, *lists, *last), _ops.tangent_update_(alone, None, *lists, *last)
    )
    assert torch.equal(whole[:, 3:40], alone)
    assert torch.equal(whole[:, :3], beside[:, :3])
    assert torch.equal(whole[:, 40:], beside[:, 40:])


def test_one_column_of_which_only_one_lies_together(device: torch.device, dtype: torch.dtype) -> None:
    """Y or HY alone a column of a wider matrix."""
    P, lists = _lists("MLP", device, dtype)
    S, last = slots("momentum", P, parameters(lists[2], lists[0]), dtype)
    wide, given = torch.randn(S, 4).to(device, dtype), torch.randn(P, 4).to(device, dtype)
    results = []
    for apart in ((False, False), (False, True), (True, False), (True, True)):
        Y, HY = wide.clone()[:, 1:2], given[:, 2:3]
        Y, HY = (t if own else t.contiguous() for t, own in zip((Y, HY), apart))
        squares = _ops.tangent_update_(Y, HY, [], [], [], [], *last)
        results.append(torch.cat([Y, squares]))
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_column_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    """Bit for bit, whatever the blocks and threads: whole vectors, columns one by one, and padded ones."""
    P, lists = program("piecewise linear", dtype)
    Y = torch.randn(P, 1255).to(dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(_ops.tangent_product(Y, *lists))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for part in (slice(0, 16), slice(32, 1255), slice(1120, 1136), slice(1152, 1255)):
        assert torch.equal(_ops.tangent_product(Y[:, part].contiguous(), *lists), results[0][:, part])
    odd = Y[:, :17].contiguous()
    assert torch.equal(
        _ops.tangent_product(odd, *lists)[:, 16:], _ops.tangent_product(Y[:, 16:17].contiguous(), *lists)
    )


def test_no_columns(device: torch.device) -> None:
    P, lists = _lists("MLP", device, torch.float64)
    _, last = slots("plain", P, parameters(lists[2], lists[0]), torch.float64)
    Y = torch.empty(P, 0, dtype=torch.float64, device=device)
    assert _ops.tangent_product(Y, *lists).shape == (P, 0)
    assert _ops.tangent_update_(Y, None, *lists, *last).shape == (1, 0)


@pytest.mark.parametrize("fake", [False, True])
def test_broken_lists_are_refused(fake: bool) -> None:
    """By the real kernel and by the fake one, with the same message."""
    P, (operands, values, nodes, factors) = program("MLP")
    S, (vectors, numbers, coefficients) = slots("mixed", P, parameters(nodes, operands), torch.float64)
    Y = torch.randn(S, 3, dtype=torch.float64)
    theta = Y[:P]

    def changed(items: list, at: int, value: object) -> list:
        return [value if i == at else x for i, x in enumerate(items)]

    mode = FakeTensorMode()

    def on(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args: operator(*tree_map_only(Tensor, mode.from_tensor, args)) if fake else operator(*args)

    product, update = on(_ops.tangent_product), on(_ops.tangent_update_)
    lists = (operands, values, nodes, factors)
    last = (vectors, numbers, coefficients)
    for match, call in (
        ("kinds in", lambda: product(theta, operands, values, changed(nodes, 0, 9), factors)),
        ("2 factors each", lambda: product(theta, operands, values, nodes, factors[:-1])),
        ("expected more than 9 operands", lambda: product(theta, operands[:-1], values, nodes, factors)),
        ("expected 10 operands", lambda: product(theta, [*operands, operands[0]], values, nodes, factors)),
        (
            r"operand 2 of shape \[4, 7\], got \[8, 7\]",
            lambda: product(theta, changed(operands, 0, operands[0][:4]), *lists[1:]),
        ),
        (
            r"operand 2 of shape \[8, 7\], got \[7, 8\]",
            lambda: product(theta, changed(operands, 2, operands[2].T.contiguous()), *lists[1:]),
        ),
        ("the output", lambda: product(theta, operands, changed(values, 0, 5), nodes, factors)),
        ("at least", lambda: product(theta, operands, values, changed(nodes, 4, 90), factors)),
        ("own all", lambda: product(Y, *lists)),
        ("reach the loss", lambda: product(theta, operands[:8], values, nodes[:18], factors[:6])),
        ("dtype of Y", lambda: product(theta.float(), *lists)),
        ("contiguous rows", lambda: product(theta.T.contiguous().T, *lists)),
        ("slot kinds", lambda: update(Y, None, *lists, vectors, changed(numbers, 0, 0), coefficients)),
        ("within Y's", lambda: update(Y, None, *lists, vectors, changed(numbers, 3, S), coefficients)),
        (
            "slots of the nodes' parameters",
            lambda: update(Y, None, *lists, vectors, changed(numbers, 2, 62), coefficients),
        ),
        ("3 slots", lambda: update(Y, None, *lists, [], numbers[:10], coefficients[:14])),
        ("three vectors", lambda: update(Y, None, *lists, vectors[:2], numbers, coefficients)),
        ("no nodes", lambda: update(Y, theta.clone(), *lists, *last)),
        ("HY with at least", lambda: update(Y, theta[:50].clone(), [], [], [], [], *last)),
    ):
        before = Y.clone()
        with pytest.raises(RuntimeError, match=match):
            call()
        assert torch.equal(Y, before), match
