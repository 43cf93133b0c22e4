from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from distill.batch import ImageBatch
from distill.data.loading.loader import EpochLoader, EpochSampler
from distill.data.loading.samples import PhotoBatches
from distill.data.shards.index import ShardIndex
from distill.errors import DataError

NUM_PHOTOS = 11


@pytest.fixture
def shards(tmp_path: Path, make_shards) -> Path:
    return make_shards(tmp_path / "shards", NUM_PHOTOS, samples_per_shard=3)


def make_loader(directory: Path, *, num_workers: int = 0, max_bad_share: float = 0.0, context=None, **sampling):
    index = ShardIndex.open(directory)
    photos = PhotoBatches(index, image_size=32, embedding_size=4, seed=3, max_instances=2)
    sampling = {"seed": 3, "batch_size": 2, "shuffle": True, **sampling}
    sampler = EpochSampler(index.shard_sizes, **sampling)
    return EpochLoader(
        photos, sampler, num_workers=num_workers, max_bad_share=max_bad_share, multiprocessing_context=context
    )


def keys_of(loader: EpochLoader) -> list[list[str]]:
    return [batch.keys for batch in loader]


def same(a: ImageBatch, b: ImageBatch) -> bool:
    return a.keys == b.keys and torch.equal(a.pixels, b.pixels) and torch.equal(a.boxes_xyxy, b.boxes_xyxy)


def test_epochs_follow_each_other(shards: Path) -> None:
    loader = make_loader(shards)
    epochs = [keys_of(loader) for _ in range(3)]
    assert len(loader) == len(epochs[0]) == 6
    for epoch in epochs:
        assert sorted(key for batch in epoch for key in batch) == sorted(ShardIndex.open(shards).keys())
    assert epochs[0] != epochs[1] != epochs[2]
    assert keys_of(make_loader(shards)) == epochs[0]


def test_lightning_s_epoch_decides(shards: Path) -> None:
    epochs = [keys_of(loader) for loader in [make_loader(shards)] for _ in range(3)]
    loader = make_loader(shards)
    iterator = iter(loader)  # Lightning makes the iterator first and names the epoch then
    loader.sampler.set_epoch(2)
    assert [batch.keys for batch in iterator] == epochs[2]


def test_an_epoch_that_was_cut_short_is_over(shards: Path) -> None:
    epochs = [keys_of(loader) for loader in [make_loader(shards)] for _ in range(2)]
    loader = make_loader(shards)
    iterator = iter(loader)
    assert [next(iterator).keys for _ in range(2)] == epochs[0][:2]
    loader.sampler.set_epoch(1)
    assert keys_of(loader) == epochs[1]


@pytest.mark.parametrize(("num_workers", "context"), [(1, None), (2, "fork"), (2, "spawn"), (2, "forkserver")])
def test_workers_change_nothing(shards: Path, num_workers: int, context: str | None) -> None:
    alone = make_loader(shards)
    loader = make_loader(shards, num_workers=num_workers, context=context)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == 6 and all(same(a, b) for a, b in zip(batches, alone, strict=True))
    loader.close()
    assert list(loader) == []


@pytest.mark.parametrize("taken", range(7))
def test_the_very_next_batch_comes_after_resuming(shards: Path, taken: int) -> None:
    whole = make_loader(shards)
    expected = list(whole) + list(whole)
    interrupted = make_loader(shards, num_workers=2)
    iterator = iter(interrupted)
    for _ in range(taken):
        next(iterator)
    state = interrupted.state_dict()
    interrupted.close()
    resumed = make_loader(shards, num_workers=1)
    resumed.load_state_dict(state)
    assert len(resumed) == 6  # of a whole epoch, as Lightning counts
    rest = list(resumed) if taken < 6 else []
    rest += list(resumed)
    assert len(rest) == 12 - taken and all(same(a, b) for a, b in zip(rest, expected[taken:], strict=True))


def test_another_split_of_the_global_batch_goes_on(shards: Path) -> None:
    loader = make_loader(shards, batch_size=4)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    rest = [set(batch.keys) for batch in iterator]
    ranks = [make_loader(shards, batch_size=2, world_size=2, rank=rank) for rank in (0, 1)]
    for rank in ranks:
        rank.load_state_dict(state)
    steps = [set(a.keys) | set(b.keys) for a, b in zip(*ranks, strict=True)]
    assert steps[:-1] == rest[:-1] and steps[-1] >= rest[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "1"},
        {"epoch": -1},
        {"position": 7},
        {"position": 1 << 70},
        {"position": 1.5},
        {"num_batches": None},
        {"seed": float("nan")},
        {"images": ["a"]},
        {"global_batch_size": True},
    ],
)
def test_a_state_that_no_loader_writes_is_refused(shards: Path, change: dict) -> None:
    loader = make_loader(shards)
    state = loader.state_dict()
    lacking = {key: value for key, value in state.items() if key not in change}
    for wrong in (state | change, lacking, list(state)):
        with pytest.raises(DataError, match="the loader's state in the checkpoint: .*another checkpoint"):
            loader.load_state_dict(wrong)


@pytest.mark.parametrize("change", [{"batch_size": 3}, {"seed": 4}, {"world_size": 2}])
def test_another_epoch_is_not_resumed_in_its_middle(shards: Path, change: dict) -> None:
    loader = make_loader(shards)
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(DataError, match=r"in the middle of an epoch \(batch 1 of 6\).*then.*now.*global batch"):
        make_loader(shards, **change).load_state_dict(state)
    list(loader)
    make_loader(shards, **change).load_state_dict(loader.state_dict())  # between epochs nothing is lost


def test_held_out_batches_are_the_same_every_time(shards: Path) -> None:
    loader = make_loader(shards, shuffle=False, positions=[8, 2, 5])
    loader.sampler.shard_sizes = [3]
    first = list(loader)
    assert [batch.keys for batch in first] == [["photo_008", "photo_002"], ["photo_005"]]
    next(iter(loader))
    loader.sampler.set_epoch(5)
    assert all(same(a, b) for a, b in zip(loader, first, strict=True))


def test_corrupt_photos_are_logged_once_and_counted(tmp_path: Path, make_shards, caplog) -> None:
    directory = make_shards(tmp_path / "bad", 12, bad=(3, 7))
    loader = make_loader(directory, num_workers=1, max_bad_share=0.2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert sum(len(batch.keys) for batch in loader) == 10
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and all("skipped" in line for line in lines)
    assert sum("photo_003" in line for line in lines) == 1


def test_too_many_corrupt_photos_end_the_run(tmp_path: Path, make_shards) -> None:
    directory = make_shards(tmp_path / "bad", 12, bad=(3, 7, 8))
    loader = make_loader(directory, num_workers=2, max_bad_share=0.2)
    with pytest.raises(
        DataError, match=r"3 of the 12 photos.*data\.max_bad_share=0\.2.*photo_003, photo_007, photo_008"
    ):
        list(loader)


def test_a_lost_shard_ends_the_run_with_one_clear_line(shards: Path) -> None:
    loader = make_loader(shards, num_workers=2)
    (shards / "sa_000001.tar").unlink()
    with pytest.raises(DataError) as error:
        list(loader)
    assert str(error.value).endswith("restore the shard and start again") and "\n" not in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_deleted_while_reading_end_the_run_with_one_clear_line(
    tmp_path: Path, make_shards, num_workers: int
) -> None:
    """Read more shards than stay open. The data of those that are open stay valid."""
    directory = make_shards(tmp_path / "many", 40, samples_per_shard=1)
    loader = make_loader(directory, num_workers=num_workers)
    batches = iter(loader)
    assert next(batches).keys
    for tar in directory.glob("*.tar"):
        tar.unlink()
    with pytest.raises(DataError, match=r"sa_0000\d\d\.tar: cannot be read \(No such file") as error:
        list(batches)
    assert "\n" not in str(error.value)
    loader.close()


def test_reading_leaves_the_global_generator_alone(shards: Path) -> None:
    before = torch.get_rng_state()
    list(make_loader(shards, num_workers=1))
    assert torch.equal(before, torch.get_rng_state())
