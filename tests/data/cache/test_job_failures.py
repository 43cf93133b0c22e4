"""Failures of a caching job: the error is clear, no shard is partial, and the same command goes on afterwards."""

from __future__ import annotations

import copy
import resource
import sys
from pathlib import Path

import pytest
import torch

from distill.config.schema import CacheConfig
from distill.data.cache.checksummed_json import parse_checksummed, write_checksummed
from distill.data.cache.job import CacheJob, build_cache
from distill.data.cache.manifest import Manifest, Sidecar
from distill.data.cache.repair import find_damage
from distill.data.cache.verify import verify_cache
from distill.data.images import decode_image
from distill.data.shards.index import ShardIndex
from distill.errors import CacheError, DataError
from distill.geometry import letterbox
from distill.models.teacher import Teacher
from tests.fixtures.caches import contents


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as a disk that fills up")
def test_a_disk_that_is_full_in_mid_shard(tiny_teacher, photo_shards, config, tmp_path):
    index, directory = photo_shards(9), Path(config.dir)
    build_cache(tiny_teacher, index, CacheConfig(dir=str(tmp_path / "undisturbed")))
    job = CacheJob(tiny_teacher, index, config)
    job.prepare()
    job.run(only=["sa_000000.tar"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(
            CacheError,
            match=r"sa_000001.tar: cannot be written: .*full .*; free some .*run the command again: finished shards",
        ):
            job.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(contents(directory)) == {"manifest.json", "sa_000000.tar", "sa_000000.json"}
    build_cache(tiny_teacher, index, config)
    assert contents(directory) == contents(tmp_path / "undisturbed")


@pytest.mark.skipif(sys.platform != "linux", reason="a directory that nobody, root included, can write to")
@pytest.mark.parametrize("name", ["/sys/kernel", "/sys/kernel/cache"])
def test_a_read_only_directory(tiny_teacher, photo_shards, name):
    with pytest.raises(CacheError, match="cannot be written: .*not writable; choose another cache.dir"):
        build_cache(tiny_teacher, photo_shards(2), CacheConfig(dir=name))


def test_a_newer_format(tiny_teacher, photo_shards, config):
    """Leave such a cache alone, in a job, in verification and in repair."""
    index, directory = photo_shards(3), Path(config.dir)
    build_cache(tiny_teacher, index, config)
    path = directory / "manifest.json"
    write_checksummed(path, parse_checksummed(path.read_bytes(), dict, "manifest") | {"format": 3})
    before = contents(directory)
    refusal = r"manifest.json: format 3, and this distill reads format 2: update distill"
    with pytest.raises(CacheError, match=refusal):
        build_cache(tiny_teacher, index, config)
    with pytest.raises(CacheError, match=refusal):
        verify_cache(directory)
    with pytest.raises(CacheError, match=refusal):
        find_damage(CacheJob(tiny_teacher, index, config))
    assert contents(directory) == before


def test_not_a_number_in_one_embedding(tiny_teacher, photo_shards, config, tmp_path):
    """Name the photo, keep the shards before it, and leave no part of its own shard."""
    index, directory = photo_shards(16), Path(config.dir)  # fidelity is measured on every second photo
    build_cache(tiny_teacher, index, CacheConfig(dir=str(tmp_path / "undisturbed")))
    with pytest.raises(CacheError, match=r"sample 'photo5': the teacher's embedding has 1 values that are NaN"):
        build_cache(nan_on(tiny_teacher, index, "photo5"), index, config)
    assert set(contents(directory)) == {"manifest.json", "sa_000000.tar", "sa_000000.json"}
    assert build_cache(tiny_teacher, index, config).totals.samples == 16
    assert contents(directory) == contents(tmp_path / "undisturbed")


def nan_on(teacher: Teacher, index: ShardIndex, key: str) -> Teacher:
    """Return the same teacher, except for one value of one photo's embedding."""
    member = next(member for shard in index.shards for member in index.members(shard.name) if member.key == key)
    pixels = letterbox(decode_image(index.read_image_bytes(member), key), teacher.image_size)  # (3, S, S)
    model = copy.deepcopy(teacher.model)

    def spoil(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[[torch.equal(item, pixels) for item in inputs[0]], 0, 1, 2] = torch.nan
        return output

    model.image_encoder.register_forward_hook(spoil)
    return Teacher(model, name=teacher.name, weights_sha256=teacher.weights_sha256)


def test_one_per_cent_of_photos_corrupt(tiny_teacher, photo_shards, config):
    """Go on within the default share, and count and name the photo."""
    index, directory = photo_shards(100, 10, bad={37}), Path(config.dir)
    manifest = build_cache(tiny_teacher, index, config)
    assert (manifest.totals.samples, manifest.totals.bad) == (99, 1)
    assert Sidecar.read(directory, "sa_000003.tar").bad == ("photo37",)
    assert verify_cache(directory) == []


def test_twenty_per_cent_of_photos_corrupt(tiny_teacher, photo_shards, config):
    """Stop as soon as too many photos are bad, not at the end of the job."""
    index, directory = photo_shards(50, 10, bad=set(range(2, 50, 5))), Path(config.dir)
    with pytest.raises(DataError, match=r"1 of 50 photos cannot be decoded \(photo2\), more than data.max_bad_share"):
        build_cache(tiny_teacher, index, config)
    assert set(contents(directory)) == {"manifest.json"}
    assert Manifest.read(directory).totals is None
