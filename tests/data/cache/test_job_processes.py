"""Several processes at one cache, and processes that are killed, write the bytes of one undisturbed process."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from distill.config.schema import CacheConfig
from distill.data.cache.job import CacheJob, build_cache
from distill.data.cache.verify import verify_cache
from distill.data.shards.index import ShardIndex
from distill.errors import CacheError
from distill.models.teacher import Teacher
from tests.fixtures.caches import contents

NUM_KILLS = 16
STALE_SECONDS = 3.0  # for a process that is killed right before it writes into its lease

# Forked children have the parent's teacher, so that a kill hits their work and not their imports.
CONTEXT = multiprocessing.get_context("fork")


def work(teacher: Teacher, index: ShardIndex, config: CacheConfig, rank: int, world_size: int) -> None:
    job = CacheJob(teacher, index, config, stale_seconds=STALE_SECONDS)
    job.prepare()
    job.run(rank=rank, world_size=world_size)
    job.finish()


def start(teacher: Teacher, index: ShardIndex, config: CacheConfig, world_size: int) -> list[BaseProcess]:
    processes = [
        CONTEXT.Process(target=work, args=(teacher, index, config, rank, world_size)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def end(processes: list[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


@pytest.fixture
def index(photo_shards) -> ShardIndex:
    return photo_shards(23, 2)


@pytest.fixture
def expected(tiny_teacher, index, tmp_path: Path) -> dict[str, bytes]:
    """Return what one undisturbed process writes."""
    build_cache(tiny_teacher, index, CacheConfig(dir=str(tmp_path / "undisturbed")))
    return contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_write_one_cache(tiny_teacher, index, expected, tmp_path, world_size):
    config = CacheConfig(dir=str(tmp_path / "cache"))
    assert end(start(tiny_teacher, index, config, world_size)) == [0] * world_size
    assert contents(tmp_path / "cache") == expected


def test_two_jobs_share_a_directory(tiny_teacher, index, expected, tmp_path):
    """Run two jobs that do not know of each other: both are rank 0 of 1, and both end when all shards are there."""
    config = CacheConfig(dir=str(tmp_path / "cache"))
    processes = [*start(tiny_teacher, index, config, 1), *start(tiny_teacher, index, config, 1)]
    assert end(processes) == [0, 0]
    assert contents(tmp_path / "cache") == expected


def test_killed_at_random_moments(tiny_teacher, index, expected, tmp_path):
    """Kill some or all of one to three processes by SIGKILL, and start another number of them again."""
    rng = random.Random(0)
    num_kills = num_finished = num_partial = 0
    directory = tmp_path / "cache0"
    while num_kills < NUM_KILLS:
        config = CacheConfig(dir=str(directory))
        processes = start(tiny_teacher, index, config, rng.randint(1, 3))
        time.sleep(rng.uniform(0, 0.6))
        for process in rng.sample(processes, rng.randint(1, len(processes))):
            process.kill()
        num_kills += sum(code != 0 for code in end(processes))
        done = {name for name in contents(directory) if name.endswith(".tar")} if directory.exists() else set()
        num_partial += 0 < len(done) < len(index.shards)
        if (directory / "manifest.json").exists() and not verify_cache(directory):
            assert contents(directory) == expected
            num_finished += 1
            directory = tmp_path / f"cache{num_finished}"
    assert end(start(tiny_teacher, index, CacheConfig(dir=str(directory)), 2)) == [0, 0]
    assert contents(directory) == expected
    assert num_partial > 0


def test_two_recipes_at_once(tiny_teacher, index, tmp_path):
    """Start two jobs of different recipes: one builds the cache, and the other is refused."""
    configs = [CacheConfig(dir=str(tmp_path / "cache"), codec=codec) for codec in ("fp16", "int8")]
    results = CONTEXT.SimpleQueue()

    def build(config: CacheConfig) -> None:
        try:
            work(tiny_teacher, index, config, 0, 1)
            results.put("done")
        except CacheError as error:
            results.put(str(error))

    processes = [CONTEXT.Process(target=build, args=(config,)) for config in configs]
    for process in processes:
        process.start()
    assert end(processes) == [0, 0]
    answers = sorted((results.get(), results.get()), key=len)
    assert answers[0] == "done" and "codec (cache.codec): " in answers[1]
    assert verify_cache(tmp_path / "cache") == []
