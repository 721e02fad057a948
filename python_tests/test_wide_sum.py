"""Sums in float64 of tensors of less precision, and fresh memory of a given layout."""

import pytest
import torch

from chaos_ext.base.tensors import WideSum, add_wide_, fresh_like, room


@pytest.mark.parametrize("size", [1, 1000, (1 << 17) + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_is_that_of_float64(size, dtype):
    terms = [torch.randn(size, 2, dtype=dtype) for _ in range(3)]
    weights = [1.0, 0.3, -2.0]
    total = WideSum(terms[0].shape, terms[0].device)
    for t, w in zip(terms, weights, strict=True):
        total.add(t, w)
    expected = sum(t.double() * w for t, w in zip(terms, weights, strict=True))
    torch.testing.assert_close(total.to(torch.float64), expected, rtol=1e-15, atol=1e-15)
    assert total.to(dtype).dtype == dtype


def test_terms_are_not_written_to():
    first, second = torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    total = WideSum((5,), first.device)
    total.add(first, 1.0)
    total.add(second, 1.0)
    assert total.to(torch.float64).eq(2).all()
    assert first.eq(1).all()
    assert second.eq(1).all()


def test_one_alone_with_another_weight():
    total = WideSum((4,), torch.device("cpu"))
    total.add(torch.full((4,), 3.0), 0.5)
    assert total.to(torch.float32).eq(1.5).all()


def test_columns_in_any_layout_are_added_in_their_places():
    t = torch.randn(7, 3).T
    total = torch.zeros(3, 7, dtype=torch.float64)
    add_wide_(total, t, 2.0)
    assert torch.equal(total, 2 * t.double())


@pytest.mark.parametrize(("rows", "k"), [(5, 3), (5, 1), (1, 4), (1 << 20, 2)])
def test_fresh_memory_keeps_the_layout(rows, k):
    by_rows, by_columns = torch.zeros(rows, k), torch.zeros(k, rows).T
    assert fresh_like(by_rows).is_contiguous()
    made = fresh_like(by_columns)
    assert made.shape == (rows, k)
    assert made.T.is_contiguous()


def test_without_terms_it_is_zero():
    assert torch.equal(WideSum((2, 3), torch.device("cpu")).to(torch.float32), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_many_columns_begin_with_cache_lines(dtype):
    cpu, size = torch.device("cpu"), dtype.itemsize
    for count in (128, 130, 1000, 1024, 5350):
        t = room(3, count, dtype, cpu)
        assert t.shape == (3, count)
        assert t.stride(0) * size % 64 == 0
        assert t.stride(0) * size % 4096
    assert room(3, 5, dtype, cpu).is_contiguous()
