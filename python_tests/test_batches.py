"""The order of mini-batches: a function of seed and epoch, and of nothing else."""

import hashlib
import struct

import pytest
import torch

from chaos_ext.data import BatchOrder, batch_hash, batches


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 3), (8, 4), (7291, 8), (5, 9)])
def test_an_epoch_holds_every_sample_once(n, size):
    order = BatchOrder(n, size, seed=3)
    epoch = order.epoch(0)
    assert len(epoch) == order.steps_per_epoch
    assert torch.cat(epoch).sort().values.tolist() == list(range(n))
    assert all(len(b) == size for b in epoch[:-1])
    assert [b.tolist() for b in batches(n, size, 3, 0)] == [b.tolist() for b in epoch]


def test_forty_epochs_of_usps_are_the_papers_36480_steps():
    order = BatchOrder(7291, 8, seed=42)
    assert 40 * order.steps_per_epoch == 36480
    assert len(order.epoch(0)[-1]) == 3  # the incomplete batch is kept


def test_order_depends_on_seed_and_epoch_only():
    def flat(seed, epoch):
        return torch.cat(BatchOrder(100, 8, seed).epoch(epoch)).tolist()

    torch.manual_seed(0)
    first = flat(42, 1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert flat(42, 1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert first != flat(42, 2)
    assert first != flat(43, 1)
    # (seed, epoch) must not collapse into seed + epoch: runs of neighbouring seeds would share epochs.
    assert flat(1, 2) != flat(2, 1)


@pytest.mark.parametrize("field", ["n", "batch_size"])
def test_empty_orders_are_refused(field):
    with pytest.raises(ValueError, match=field):
        BatchOrder(**{"n": 5, "batch_size": 2, "seed": 0, field: 0})


def test_batch_hash_changes_with_every_part_of_a_batch():
    x, y, index = torch.arange(8.0).view(2, 4), torch.tensor([0, 1]), torch.tensor([5, 6])
    other = x.clone()
    other[1, 3] += 1e-6
    seen = [
        batch_hash(x, y),
        batch_hash(x, y, index),
        batch_hash(x, y, index.flip(0)),
        batch_hash(x.double(), y),
        batch_hash(x.view(4, 2), y),
        batch_hash(other, y),
        batch_hash(x, y.flip(0)),
    ]
    assert len(set(seen)) == len(seen)
    assert batch_hash(x.T.contiguous().T, y) == batch_hash(x, y)  # values count, not strides


def test_batch_hash_is_the_documented_sha256():
    x, y = torch.tensor([1.0]), torch.tensor([2])
    expected = hashlib.sha256(b"torch.float32(1,)" + struct.pack("<f", 1) + b"torch.int64(1,)" + struct.pack("<q", 2))
    assert batch_hash(x, y) == expected.hexdigest()[:16]
