from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from distill.data.loading.epoch_plan import SHUFFLE_WINDOW_SHARDS, epoch_order, epoch_plan, num_batches


def random_case(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "shard_sizes": rng.integers(1, 30, rng.integers(1, 40)).tolist(),
        "seed": int(rng.integers(100)),
        "epoch": int(rng.integers(100)),
        "world_size": int(rng.integers(1, 9)),
        "batch_size": int(rng.integers(1, 12)),
        "shuffle": bool(rng.integers(2)),
    }


@pytest.mark.parametrize("seed", range(150))
def test_ranks_share_the_samples_evenly(seed: int) -> None:
    case = random_case(seed)
    plans = [epoch_plan(**case, rank=rank) for rank in range(case["world_size"])]
    num_samples, world_size = sum(case["shard_sizes"]), case["world_size"]
    expected = num_batches(num_samples, world_size=world_size, batch_size=case["batch_size"])
    assert {len(plan) for plan in plans} == {expected}
    for step in zip(*plans, strict=True):
        assert len({len(batch) for batch in step}) == 1
        assert 0 < len(step[0]) <= case["batch_size"]
    counts = Counter(position for plan in plans for batch in plan for position in batch)
    assert set(counts) == set(range(num_samples))
    assert sum(counts.values()) - num_samples == -num_samples % world_size  # doubled: only those that even the ranks


@pytest.mark.parametrize("seed", range(50))
def test_a_plan_goes_on_where_it_was_left(seed: int) -> None:
    case = random_case(seed)
    rank = seed % case["world_size"]
    whole = epoch_plan(**case, rank=rank)
    for first_batch in (1, len(whole) // 2, len(whole)):
        assert epoch_plan(**case, rank=rank, first_batch=first_batch) == whole[first_batch:]


@pytest.mark.parametrize("seed", range(50))
def test_two_ranks_read_per_step_what_one_rank_of_twice_the_batch_reads(seed: int) -> None:
    case = {**random_case(seed), "world_size": 2}
    first, second = (epoch_plan(**case, rank=rank) for rank in (0, 1))
    alone = epoch_plan(**{**case, "world_size": 1, "batch_size": 2 * case["batch_size"]}, rank=0)
    assert len(alone) == len(first)
    for a, b, both in zip(first, second, alone, strict=True):
        together = [position for pair in zip(a, b, strict=True) for position in pair]
        assert together[: len(both)] == both and len(together) - len(both) in (0, 1)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sizes = [10] * 10
    orders = {
        (seed, epoch): tuple(epoch_order(sizes, seed=seed, epoch=epoch, shuffle=True))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    assert orders[1, 1] == tuple(epoch_order(sizes, seed=1, epoch=1, shuffle=True))


def test_without_shuffle_samples_come_as_stored() -> None:
    assert epoch_order([3, 4], seed=5, epoch=6, shuffle=False).tolist() == list(range(7))


def test_shuffled_reads_stay_within_a_window_of_shards() -> None:
    size, num_shards = 20, 5 * SHUFFLE_WINDOW_SHARDS
    order = epoch_order([size] * num_shards, seed=0, epoch=0, shuffle=True)
    for window in order.reshape(-1, size * SHUFFLE_WINDOW_SHARDS):
        assert len(set(window // size)) == SHUFFLE_WINDOW_SHARDS
