"""Repair writes only what is damaged, and leaves foreign files alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from distill.config.schema import CacheConfig
from distill.data.cache.job import CacheJob, build_cache
from distill.data.cache.repair import find_damage, repair_cache
from distill.data.cache.verify import verify_cache
from distill.errors import CacheError
from tests.fixtures.caches import contents


@pytest.fixture
def job(tiny_teacher, photo_shards, tmp_path: Path) -> CacheJob:
    """Return the job of a finished cache of three shards."""
    config = CacheConfig(dir=str(tmp_path / "cache"))
    index = photo_shards(8)
    build_cache(tiny_teacher, index, config)
    return CacheJob(tiny_teacher, index, config)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def test_nothing_to_repair(job: CacheJob):
    before = contents(job.directory)
    assert find_damage(job) == [] and repair_cache(job, []) == []
    assert contents(job.directory) == before


@pytest.mark.parametrize("names", [("sa_000000.tar",), ("sa_000001.json",), ("sa_000000.tar", "sa_000002.json")])
def test_only_the_damaged_shards_are_written(job: CacheJob, names: tuple[str, ...]):
    before = contents(job.directory)
    for name in names:
        flip(job.directory / name)
    times = {path.name: path.stat().st_mtime_ns for path in job.directory.glob("*.tar")}
    problems = find_damage(job)
    assert [problem.file for problem in problems] == sorted(names)
    assert repair_cache(job, problems) == []
    assert contents(job.directory) == before and not verify_cache(job.directory)
    stems = {name.partition(".")[0] for name in names}
    written = {path.name for path in job.directory.glob("*.tar") if path.stat().st_mtime_ns != times[path.name]}
    assert written == {f"{stem}.tar" for stem in stems}


def test_missing_shards_and_leftovers(job: CacheJob):
    before = contents(job.directory)
    (job.directory / "sa_000000.tar").unlink()
    (job.directory / "sa_000001.json").unlink()
    (job.directory / "sa_000002.tar.0123abcd.tmp").touch()
    (job.directory / "sa_000002.tar.claim0").touch()
    assert repair_cache(job, find_damage(job)) == []
    assert contents(job.directory) == before


def test_a_damaged_manifest_is_made_again(job: CacheJob):
    before = contents(job.directory)
    flip(job.directory / "manifest.json")
    flip(job.directory / "sa_000001.tar")
    problems = find_damage(job)
    assert [problem.file for problem in problems] == ["manifest.json", "sa_000001.tar"]
    assert repair_cache(job, problems) == []
    assert contents(job.directory) == before


def test_foreign_files_stay_unless_told(job: CacheJob, tiny_teacher, tmp_path: Path):
    before = contents(job.directory)
    build_cache(tiny_teacher, job.index, CacheConfig(dir=str(tmp_path / "other"), codec="bf16"))
    for suffix in ("tar", "json"):
        shutil.copy(tmp_path / "other" / f"sa_000001.{suffix}", job.directory)
    flip(job.directory / "sa_000002.tar")
    (job.directory / "notes.txt").write_text("mine")
    (job.directory / "folder").mkdir()
    other = (job.directory / "sa_000001.tar").read_bytes()

    left = repair_cache(job, find_damage(job))
    assert {problem.file for problem in left} == {"sa_000001.tar", "notes.txt", "folder"}
    assert (job.directory / "sa_000001.tar").read_bytes() == other and (job.directory / "notes.txt").exists()
    assert (job.directory / "sa_000002.tar").read_bytes() == before["sa_000002.tar"]

    left = repair_cache(job, find_damage(job), remove_foreign=True)
    assert [problem.file for problem in left] == ["folder"]
    (job.directory / "folder").rmdir()
    assert contents(job.directory) == before


def test_what_cannot_be_repaired(job: CacheJob, tiny_teacher, monkeypatch: pytest.MonkeyPatch):
    before = contents(job.directory)
    other = CacheJob(tiny_teacher, job.index, CacheConfig(dir=str(job.directory), codec="int8"))
    with pytest.raises(CacheError, match="fp16 in the cache, int8 in the recipe"):
        find_damage(other)
    with pytest.raises(CacheError, match="no embedding cache there"):
        find_damage(CacheJob(tiny_teacher, job.index, CacheConfig(dir=f"{job.directory}_none")))
    assert contents(job.directory) == before
