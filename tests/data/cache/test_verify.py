"""Verification finds everything that is not as it was written."""

from __future__ import annotations

import os
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from distill.config.schema import CacheConfig
from distill.data.cache.job import CacheJob, build_cache
from distill.data.cache.verify import verify_cache
from distill.errors import CacheError


@pytest.fixture
def cache_dir(tiny_teacher, photo_shards, tmp_path: Path) -> Path:
    build_cache(tiny_teacher, photo_shards(5), CacheConfig(dir=str(tmp_path / "cache")))
    return tmp_path / "cache"


def found(directory: Path) -> list[tuple[str, str]]:
    return [(problem.file, problem.what) for problem in verify_cache(directory)]


def test_a_sound_cache(cache_dir: Path):
    shards = []
    assert verify_cache(cache_dir, shards.append) == [] and len(shards) == 2


def test_any_flipped_bit(cache_dir: Path):
    """Flip 200 single bits, in every kind of file."""
    rng = random.Random(0)
    files = sorted(cache_dir.iterdir())
    for i in range(200):
        path = files[i % len(files)]
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        if path.name == "manifest.json":
            with pytest.raises(CacheError, match=r"manifest.json: damaged.*delete it and run"):
                verify_cache(cache_dir)
        else:
            assert [name for name, what in found(cache_dir) if what.startswith("damaged")] == [path.name]
        path.write_bytes(data)
    assert not found(cache_dir)


def test_a_cut_tail(cache_dir: Path):
    """Cut the tar at every boundary between two members too, where tar readers see the end of the file."""
    tar = cache_dir / "sa_000000.tar"
    data = tar.read_bytes()
    with tarfile.open(tar) as members:
        boundaries = [member.offset for member in members]
    assert len(boundaries) == 3
    for length in (*boundaries, 512, len(data) - 512, len(data) - 1, len(data) // 2):
        tar.write_bytes(data[:length])
        assert found(cache_dir) == [("sa_000000.tar", f"damaged: {length:,} bytes, and {len(data):,} were written")]
    tar.write_bytes(data + bytes(512))
    assert [name for name, _ in found(cache_dir)] == ["sa_000000.tar"]


def test_missing_unfinished_and_foreign_files(cache_dir: Path):
    os.remove(cache_dir / "sa_000000.tar")
    os.remove(cache_dir / "sa_000001.json")
    (cache_dir / "notes.txt").touch()
    (cache_dir / "sa_000007.tar").touch()
    (cache_dir / "sa_000000.tar.01234567.tmp").touch()
    (cache_dir / "sa_000001.tar.claim0").touch()
    assert found(cache_dir) == [
        ("sa_000000.tar", "missing"),
        ("sa_000001.tar", "unfinished: it has no sa_000001.json"),
        ("notes.txt", "foreign: not part of this cache"),
        ("sa_000000.tar.01234567.tmp", "left over from a killed job, or in use by a running one"),
        ("sa_000001.tar.claim0", "left over from a killed job, or in use by a running one"),
        ("sa_000007.tar", "foreign: not part of this cache"),
    ]


def test_a_shard_of_another_cache(cache_dir: Path, tiny_teacher, photo_shards, tmp_path: Path):
    build_cache(tiny_teacher, photo_shards(5, name="again"), CacheConfig(dir=str(tmp_path / "other"), codec="bf16"))
    for suffix in ("tar", "json"):
        shutil.copy(tmp_path / "other" / f"sa_000001.{suffix}", cache_dir)
    assert found(cache_dir) == [("sa_000001.tar", "foreign: of another cache, or of another image shard")]


def test_swapped_shards(cache_dir: Path):
    for suffix in ("tar", "json"):
        shutil.copy(cache_dir / f"sa_000000.{suffix}", cache_dir / f"sa_000001.{suffix}")
    assert found(cache_dir) == [("sa_000001.tar", "foreign: of another cache, or of another image shard")]


def test_a_job_that_was_stopped(tiny_teacher, photo_shards, tmp_path: Path):
    job = CacheJob(tiny_teacher, photo_shards(5), CacheConfig(dir=str(tmp_path / "cache")))
    job.prepare()
    job.run(only=["sa_000000.tar"])
    assert found(job.directory) == [("sa_000001.tar", "missing")]
    job.run()
    assert found(job.directory) == [("manifest.json", "has no totals: the job was stopped before its end")]
