"""The plan of an epoch: which rank reads which sample, in which order. All functions here are pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Samples are shuffled inside a window of this many shards, so that few files are read at a time.
SHUFFLE_WINDOW_SHARDS = 8


def epoch_order(shard_sizes: Sequence[int], *, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Return every sample once, int64 (N,).

    With `shuffle`, shards are shuffled first, and then samples inside windows of shards. Without it, the order is the
    stored one.
    """
    first = np.cumsum([0, *shard_sizes])
    if not shuffle:
        return np.arange(first[-1])
    rng = np.random.default_rng([seed, epoch])
    shards = rng.permutation(len(shard_sizes))
    windows = []
    for start in range(0, len(shards), SHUFFLE_WINDOW_SHARDS):
        window = shards[start : start + SHUFFLE_WINDOW_SHARDS]
        windows.append(rng.permutation(np.concatenate([np.arange(first[i], first[i + 1]) for i in window])))
    return np.concatenate(windows)


def num_batches(num_samples: int, *, world_size: int, batch_size: int) -> int:
    """Count the batches of an epoch, the same on every rank; the last one may be smaller."""
    return math.ceil(num_samples / (world_size * batch_size))


def epoch_plan(
    shard_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    world_size: int,
    rank: int,
    batch_size: int,
    shuffle: bool,
    first_batch: int = 0,
) -> list[list[int]]:
    """Return the batches that one rank reads in one epoch, as positions in the index of the shards.

    In each step, all ranks together read the next world_size x batch_size samples of one order, and the ranks take them
    in turns. So two ranks read per step what one rank with twice the batch would read. No sample is left out. All ranks
    get the same number of batches, and batches of a step have the same number of samples. To make this possible, the
    last step reads up to world_size - 1 samples from the start of the order again.

    Args:
        shard_sizes: samples of each shard.
        batch_size: samples per rank and step.
        first_batch: the batch with which an interrupted epoch goes on.
    """
    assert 0 <= rank < world_size and batch_size > 0
    order = epoch_order(shard_sizes, seed=seed, epoch=epoch, shuffle=shuffle)
    even = math.ceil(len(order) / world_size) * world_size
    mine = np.resize(order, even)[rank::world_size]  # np.resize repeats from the start
    starts = range(first_batch * batch_size, len(mine), batch_size)
    return [mine[start : start + batch_size].tolist() for start in starts]
