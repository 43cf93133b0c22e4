"""The caching job gives the same bytes however it is run, and stops at the right errors."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.config.schema import CacheConfig
from distill.data.cache.embeddings import EmbeddingCache
from distill.data.cache.job import CacheJob, build_cache
from distill.data.cache.manifest import Manifest, Sidecar, fingerprint_of
from distill.data.cache.teacher_pool import TeacherPool
from distill.data.images import decode_image
from distill.errors import CacheError, DataError
from distill.geometry import letterbox, valid_grid_hw
from distill.leases import _machine, _start_of, lease_path


def lease_of_the_dead(path: Path) -> None:
    """Write a lease whose process was killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    content = {"machine": _machine(), "pid": process.pid, "started": _start_of(process.pid), "beat": 7, "num_done": 2}
    process.kill()
    process.communicate()
    path.write_text(json.dumps(content))


def contents(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), batch_size=2)


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_holds_the_teachers_embeddings(tiny_teacher, photo_shards, config, codec):
    config.codec = codec
    index = photo_shards(8)
    manifest = build_cache(tiny_teacher, index, config)
    cache = EmbeddingCache.open(config.dir, fingerprint_of(tiny_teacher, index, config))
    assert (manifest.totals.samples, manifest.totals.bad, len(cache)) == (8, 0, 8)
    assert manifest.totals.bytes == sum(path.stat().st_size for path in cache.directory.glob("*.tar"))
    for shard in index.shards:
        members = index.members(shard.name)
        assert [member.key for member in members] == [
            entry.key for entry in Sidecar.read(cache.directory, shard.name).members
        ]
        for member in members:
            image = decode_image(index.read_image_bytes(member), "")
            exact = tiny_teacher.embed(letterbox(image, 64)[None])[0]  # (C, E, E)
            rows, cols = valid_grid_hw(image.shape[:2], 8)
            stored = cache.read(member.key)
            error = (stored - exact)[:, :rows, :cols].norm() / exact[:, :rows, :cols].norm()
            assert error < {"fp16": 1e-3, "int8": 0.015}[codec]


def test_same_bytes_on_any_number_of_threads_and_batch_sizes(tiny_teacher, photo_shards, tmp_path):
    """Let a lone process write the shards of absent ranks too, with the same bytes."""
    index = photo_shards(8)
    threads = torch.get_num_threads()
    layouts = ((1, 1, 1), (2, 3, 1), (3, 2, 2), (5, 4, 2))  # world size, batch size, threads
    try:
        for world_size, batch_size, num_threads in layouts:
            torch.set_num_threads(num_threads)
            config = CacheConfig(dir=str(tmp_path / f"cache{world_size}"), batch_size=batch_size)
            assert build_cache(tiny_teacher, index, config, rank=world_size - 1, world_size=world_size).totals
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(threads)
    expected = contents(tmp_path / "cache1")
    assert set(expected) == {"manifest.json", *(f"sa_00000{i}.{end}" for i in range(3) for end in ("tar", "json"))}
    for world_size, *_ in layouts[1:]:
        assert contents(tmp_path / f"cache{world_size}") == expected


def test_a_restart_keeps_what_is_finished(tiny_teacher, photo_shards, config):
    """Write again what a kill left unfinished, with the same bytes, and remove its temporary files."""
    index, directory = photo_shards(8), Path(config.dir)
    build_cache(tiny_teacher, index, config)
    expected = contents(directory)
    finished_at = (directory / "sa_000000.tar").stat().st_mtime_ns
    (directory / "sa_000001.json").unlink()  # killed between tar and sidecar
    os.truncate(directory / "sa_000002.tar", 1000)
    for name in ("manifest.json", "sa_000000.tar", "sa_000001.tar", "sa_000002.json"):
        (directory / f"{name}.0123abcd.tmp").write_bytes(b"half")
    for name in ("manifest.json", "sa_000000.tar", "sa_000001.tar"):
        lease_of_the_dead(lease_path(directory, name, 0))
    (directory / "manifest.json.tmp").write_bytes(b"not ours")
    build_cache(tiny_teacher, index, config)
    (directory / "manifest.json.tmp").unlink()
    assert contents(directory) == expected
    assert (directory / "sa_000000.tar").stat().st_mtime_ns == finished_at


def test_a_finished_cache_is_not_written_again(tiny_teacher, photo_shards, config):
    index, directory = photo_shards(4), Path(config.dir)
    build_cache(tiny_teacher, index, config)

    def written() -> dict[Path, tuple[int, int, int]]:
        """Return what a write would change. Reading changes the time of access alone."""
        stats = {path: path.stat() for path in (directory, *directory.iterdir())}
        return {path: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}

    before = written()
    build_cache(tiny_teacher, index, config, world_size=3)
    assert written() == before


def test_progress_counts_all_processes(tiny_teacher, photo_shards, config):
    job = CacheJob(tiny_teacher, photo_shards(8), config)
    assert job.num_done() == 0
    job.prepare()
    job.run(only=["sa_000001.tar"])
    assert job.num_done() == 3 and set(job.finished()) == {"sa_000001.tar"}
    assert job.finish().totals is None
    with job.leases.hold("sa_000002.tar") as lease:
        lease.num_done = 2
        lease.path.write_bytes(lease._content())
        assert job.num_done() == 5
    job.run()
    assert job.num_done() == 8 and job.finish().totals is not None


def test_a_lost_claim_gives_the_shard_up(tiny_teacher, photo_shards, config, caplog):
    """Let a process sleep for so long that another one takes over its shard."""
    job = CacheJob(tiny_teacher, photo_shards(2), config)
    job.prepare()
    with job.leases.hold("sa_000000.tar") as lease:
        later = lease_path(job.directory, lease.name, 1)
        later.touch()
        with TeacherPool(tiny_teacher, job.index, config) as pool:
            assert not job._write_shard(pool, job.shards[0], lease)
        assert "took this one for dead" in caplog.text and not (job.directory / "sa_000000.tar").exists()
        later.unlink()
    assert not list(job.directory.glob("sa_*"))


def test_another_recipe_is_refused(tiny_teacher, photo_shards, config):
    index, directory = photo_shards(4), Path(config.dir)
    build_cache(tiny_teacher, index, config)
    before = contents(directory)
    config.codec = "int8"
    with pytest.raises(CacheError, match=r"codec \(cache.codec\): fp16 in the cache, int8 in the recipe"):
        build_cache(tiny_teacher, index, config)
    config.codec = "fp16"
    with pytest.raises(CacheError, match=r"images \(data.images\)"):
        build_cache(tiny_teacher, photo_shards(5, name="others"), config)
    assert contents(directory) == before


def test_image_shards_are_never_overwritten(tiny_teacher, photo_shards, config):
    index = photo_shards(4)
    before = contents(index.directory)
    config.dir = str(index.directory)
    with pytest.raises(CacheError, match="no embedding shards .* give a new directory"):
        build_cache(tiny_teacher, index, config)
    assert contents(index.directory) == before


def test_a_lost_manifest_is_made_again(tiny_teacher, photo_shards, config):
    index, directory = photo_shards(4), Path(config.dir)
    build_cache(tiny_teacher, index, config)
    before = contents(directory)
    (directory / "manifest.json").unlink()
    build_cache(tiny_teacher, index, config)
    assert contents(directory) == before


def test_a_few_corrupt_photos_are_left_out_and_named(tiny_teacher, photo_shards, config, caplog):
    index = photo_shards(8, bad={0, 4})
    manifest = build_cache(tiny_teacher, index, config, max_bad_share=0.25)
    cache = EmbeddingCache.open(config.dir)
    assert (manifest.totals.samples, manifest.totals.bad) == (6, 2)
    left_out = [key for key in map(str, index.keys()) if not cache.has(key)]
    assert left_out == ["photo0", "photo4"]
    skipped = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(skipped) == 2 and "sa_000001.tar: sample 'photo4': cannot be decoded" in skipped[1]


def test_too_many_corrupt_photos_stop_the_job(tiny_teacher, photo_shards, config):
    index, directory = photo_shards(9, bad={3, 4}), Path(config.dir)
    for _ in range(2):  # a second run stops there too
        with pytest.raises(DataError, match=r"2 of 9 photos cannot be decoded \(photo3, photo4\).*max_bad_share=0.2 "):
            build_cache(tiny_teacher, index, config, max_bad_share=0.2)
        assert {path.name for path in directory.iterdir()} == {"manifest.json", "sa_000000.tar", "sa_000000.json"}
    build_cache(tiny_teacher, index, config, max_bad_share=0.3)
    with pytest.raises(DataError, match="2 of 9"):
        CacheJob(tiny_teacher, index, config, max_bad_share=0.2).finish()


def test_no_photo_at_all(tiny_teacher, photo_shards, config):
    with pytest.raises(DataError, match="none of the photos tried can be decoded"):
        build_cache(tiny_teacher, photo_shards(3, bad={0, 1, 2}), config, max_bad_share=1)


def test_not_a_number(tiny_teacher, photo_shards, config):
    """Stop the job before anything is stored if the teacher gives NaN."""
    index = photo_shards(3)
    weight = next(tiny_teacher.model.image_encoder.parameters())
    kept = weight.detach().clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(CacheError, match="NaN or infinite; check the teacher's checkpoint"):
            build_cache(tiny_teacher, index, config)
    finally:
        weight.data.copy_(kept)
    assert not list(Path(config.dir).iterdir())


def test_fidelity_is_measured_and_kept(tiny_teacher, photo_shards, config):
    largest = {"fp16": 2**-11, "bf16": 2**-8, "int8": 0.015}
    for codec in largest:
        measured = CacheConfig(dir=f"{config.dir}_{codec}", codec=codec)
        fidelity = build_cache(tiny_teacher, photo_shards(8, name=codec), measured).fidelity
        assert fidelity == Manifest.read(Path(measured.dir)).fidelity
        assert (fidelity.num_images, fidelity.num_prompts, fidelity.prompts) == (8, 16, "box")
        assert 0 < fidelity.relative_l2 < largest[codec] and fidelity.cosine > 0.999
        assert 0 <= fidelity.mask_iou <= 1 and fidelity.bytes_per_image > 1024


def test_fidelity_without_annotations_uses_points(tiny_teacher, photo_shards, config):
    fidelity = build_cache(tiny_teacher, photo_shards(2, annotated=False, bad={1}), config, max_bad_share=0.5).fidelity
    assert (fidelity.num_images, fidelity.num_prompts, fidelity.prompts) == (1, 16, "point")


def test_lower_precision_is_another_cache(tiny_teacher, photo_shards, config):
    index = photo_shards(2)
    build_cache(tiny_teacher, index, config)
    exact = EmbeddingCache.open(config.dir).read("photo0")
    with pytest.raises(CacheError, match=r"precision \(cache.precision\): fp32 in the cache, bf16 in the recipe"):
        build_cache(tiny_teacher, index, CacheConfig(dir=config.dir, precision="bf16"))
    lower = CacheConfig(dir=f"{config.dir}_bf16", precision="bf16")
    build_cache(tiny_teacher, index, lower)
    error = (EmbeddingCache.open(lower.dir).read("photo0") - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.1
