"""Data sets of 16 x 16 grey images and the order in which a training run sees them.

``load`` returns images normalised by the global mean and standard deviation of the training split; ``batches`` gives
the mini-batches of an epoch from a seed, and ``batch_hash`` proves that two runs saw the same ones.
"""

from .batches import BatchOrder, batch_hash, batches, tensor_bytes
from .datasets import NAMES, Dataset, load

__all__ = ["NAMES", "BatchOrder", "Dataset", "batch_hash", "batches", "load", "tensor_bytes"]
