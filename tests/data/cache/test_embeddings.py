"""Embedding shards are written completely or not at all, and are read only if they are the expected ones."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import pickle
import resource
import sys
from pathlib import Path

import pytest
import torch
import webdataset

from distill.config.schema import CacheConfig
from distill.data.cache.codecs import decode_embedding, encode_embedding
from distill.data.cache.embeddings import EmbeddingCache, EmbeddingShardWriter
from distill.data.cache.manifest import (
    Fidelity,
    Fingerprint,
    ImageShard,
    Manifest,
    Sidecar,
    fingerprint_of,
    finished_sidecar,
)
from distill.errors import CacheError

FINGERPRINT = Fingerprint(
    teacher="tiny",
    weights_sha256="1" * 64,
    image_size=64,
    embedding_dim=4,
    embedding_size=8,
    preprocessing="p",
    precision="fp32",
    codec="fp16",
    views=("identity",),
    images="2" * 64,
)
FIDELITY = Fidelity(
    num_images=1,
    num_prompts=2,
    prompts="box",
    relative_l2=0.01,
    cosine=0.999,
    mask_iou=0.98,
    mask_iou_float32=0.99,
    bytes_per_image=1024.0,
)
SHARDS = (ImageShard("sa_000000.tar", 3, "a" * 64), ImageShard("sa_000001.tar", 2, "b" * 64))
HW = (48, 64)


def embedding_of(key: str) -> torch.Tensor:
    embedding = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(int(key[1:]))).half().float()
    embedding[:, 6:] = 0
    return embedding


def write_shard(directory: Path, shard: ImageShard, keys: list[str], bad: tuple[str, ...] = ()) -> Sidecar:
    with EmbeddingShardWriter(directory, shard, FINGERPRINT.digest) as writer:
        for key in keys:
            writer.add(key, encode_embedding(embedding_of(key), HW, "fp16", key=key))
        for key in bad:
            writer.skip(key)
        return writer.commit()


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """Write two shards of three and two samples. Sample k2 has no embedding."""
    directory = tmp_path / "cache"
    directory.mkdir()
    Manifest(FINGERPRINT, FIDELITY, SHARDS).write(directory)
    write_shard(directory, SHARDS[0], ["k0", "k1"], bad=("k2",))
    write_shard(directory, SHARDS[1], ["k3", "k4"])
    return directory


def test_reads_what_was_written(cache_dir: Path):
    cache = EmbeddingCache.open(cache_dir, FINGERPRINT)
    assert len(cache) == 4 and cache.manifest.fidelity == FIDELITY
    for key, shard in (("k0", None), ("k1", "sa_000000.tar"), ("k4", None), ("k3", "sa_000001.tar")):
        assert cache.has(key, shard) and torch.equal(cache.read(key, shard), embedding_of(key))
    assert not cache.has("k2") and not cache.has("k2", "sa_000000.tar") and not cache.has("other")
    with pytest.raises(CacheError, match="no embedding of sample 'k2'"):
        cache.read("k2")
    with pytest.raises(CacheError, match="no embedding shard 'other.tar'"):
        cache.read("k2", "other.tar")


def test_shards_are_plain_webdataset(cache_dir: Path):
    samples = list(webdataset.WebDataset(str(cache_dir / "sa_000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["k0", "k1"]
    assert torch.equal(decode_embedding(samples[1]["safetensors"]), embedding_of("k1"))


def test_the_sidecar_tells_the_tar(cache_dir: Path):
    sidecar = Sidecar.read(cache_dir, "sa_000000.tar")
    data = (cache_dir / "sa_000000.tar").read_bytes()
    assert (sidecar.samples, sidecar.bad, sidecar.bytes) == (2, ("k2",), len(data))
    assert sidecar.sha256 == hashlib.sha256(data).hexdigest()
    assert sidecar.keys_hash == SHARDS[0].keys_hash
    assert len(data) % 512 == 0 and [entry.key for entry in sidecar.members] == ["k0", "k1"]


def test_same_work_same_bytes(cache_dir: Path, tmp_path: Path):
    write_shard(tmp_path, SHARDS[0], ["k0", "k1"], bad=("k2",))
    for name in ("sa_000000.tar", "sa_000000.json"):
        assert (tmp_path / name).read_bytes() == (cache_dir / name).read_bytes()


def test_nothing_is_there_before_commit(tmp_path: Path):
    blob = encode_embedding(embedding_of("k0"), HW, "fp16", key="k0")
    with pytest.raises(ValueError, match="stop"), EmbeddingShardWriter(tmp_path, SHARDS[0], "digest") as writer:
        writer.add("k0", blob)
        assert not (tmp_path / "sa_000000.tar").exists()
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())


def test_a_killed_job_leaves_nothing_that_stays(cache_dir: Path):
    """Refuse a tar without its sidecar, and remove temporary files when the shard is written again."""
    (cache_dir / "sa_000001.json").unlink()
    (cache_dir / "sa_000001.tar.0123abcd.tmp").write_bytes(b"half")
    (cache_dir / "sa_000001.json.0123abcd.tmp").write_bytes(b"half")
    assert finished_sidecar(cache_dir, SHARDS[1], FINGERPRINT.digest) is None
    with pytest.raises(CacheError, match=r"1 of 2 .* missing \(sa_000001.tar\); run 'distill cache build"):
        EmbeddingCache.open(cache_dir)
    write_shard(cache_dir, SHARDS[1], ["k3", "k4"])
    assert finished_sidecar(cache_dir, SHARDS[1], FINGERPRINT.digest) is not None
    assert not list(cache_dir.glob("*.tmp"))


def test_a_shard_of_another_cache_is_not_finished(cache_dir: Path):
    shard = SHARDS[1]
    assert finished_sidecar(cache_dir, shard, "another digest") is None
    assert finished_sidecar(cache_dir, dataclasses.replace(shard, keys_hash="c" * 64), FINGERPRINT.digest) is None
    other = dataclasses.replace(FINGERPRINT, codec="bf16")
    Manifest(other, FIDELITY, SHARDS).write(cache_dir)
    with pytest.raises(CacheError, match="belongs to another cache"):
        EmbeddingCache.open(cache_dir).read("k3", "sa_000001.tar")


def test_no_cache(tmp_path: Path):
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CacheError, match="no embedding cache there; 'distill cache build RECIPE cache.dir="):
            EmbeddingCache.open(directory)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codec": "int8"}, r"codec \(cache.codec\): fp16 in the cache, int8 in the recipe"),
        (
            {"weights_sha256": "f" * 64, "teacher": "sam_vit_h"},
            r"teacher \(teacher.name\): tiny in the cache, sam",
        ),
        ({"image_size": 1024, "images": "e" * 64}, r"image_size: 64 in the cache.*\n  images \(data.images\)"),
        ({"preprocessing": "other"}, "preprocessing: p in the cache, other in the recipe"),
    ],
)
def test_a_stale_cache_is_refused(cache_dir: Path, changes: dict, words: str):
    with pytest.raises(CacheError, match=words) as refusal:
        EmbeddingCache.open(cache_dir, dataclasses.replace(FINGERPRINT, **changes))
    assert "Give another cache.dir" in str(refusal.value)


def test_the_same_weights_under_another_name_are_the_same_teacher(cache_dir: Path):
    assert len(EmbeddingCache.open(cache_dir, dataclasses.replace(FINGERPRINT, teacher="moved"))) == 4


def test_fingerprint_of_a_recipe(tiny_teacher, photo_shards):
    index = photo_shards(2)
    fingerprint = fingerprint_of(tiny_teacher, index, CacheConfig(codec="int8"))
    assert (fingerprint.codec, fingerprint.precision, fingerprint.views) == ("int8", "fp32", ("identity",))
    assert (fingerprint.image_size, fingerprint.embedding_dim, fingerprint.embedding_size) == (64, 32, 8)
    assert fingerprint.weights_sha256 == tiny_teacher.weights_sha256 and fingerprint.images == index.fingerprint


def test_a_newer_format(cache_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distill.data.cache.manifest.FORMAT_VERSION", 3)
    Manifest(FINGERPRINT, FIDELITY, SHARDS).write(cache_dir)
    monkeypatch.undo()
    with pytest.raises(CacheError, match="format 3, and this distill reads format 2: update distill"):
        EmbeddingCache.open(cache_dir)


def test_damage_is_found_while_reading(cache_dir: Path):
    tar = cache_dir / "sa_000000.tar"
    cache = EmbeddingCache.open(cache_dir)
    data = bytearray(tar.read_bytes())
    data[900] ^= 1
    tar.write_bytes(data)
    with pytest.raises(CacheError, match=r"sample 'k0': damaged.*'distill cache verify"):
        cache.read("k0")
    tar.write_bytes(data[:600])
    with pytest.raises(CacheError, match="damaged"):
        cache.read("k1")
    tar.unlink()
    with pytest.raises(CacheError, match=r"cannot be read \(No such file.*'distill cache verify"):
        pickle.loads(pickle.dumps(cache)).read("k1")  # the copy opens its own files
    assert cache.has("k3") and torch.equal(cache.read("k3"), embedding_of("k3"))


def write_entry(directory: Path, embedding: torch.Tensor, codec: str = "fp16") -> EmbeddingCache:
    """Write a cache whose sample k3 is stored as any cache may store it, with the right checksums."""
    blob = encode_embedding(embedding, HW, codec, key="k3")
    with EmbeddingShardWriter(directory, SHARDS[1], FINGERPRINT.digest) as writer:
        writer.add("k3", blob)
        writer.add("k4", blob)
        writer.commit()
    return EmbeddingCache.open(directory)


def test_entries_of_another_shape_are_refused(cache_dir: Path):
    """Compare each entry with what the manifest says of all."""
    for embedding, codec in ((torch.zeros(4, 8, 8), "int8"), (torch.zeros(4, 16, 16), "fp16")):
        with pytest.raises(CacheError, match="sample 'k3': the entry there is of another cache"):
            write_entry(cache_dir, embedding, codec).read("k3")
    with pytest.raises(CacheError, match="sample 'k3': 5 channels, and this cache's embeddings have 4"):
        write_entry(cache_dir, torch.zeros(5, 8, 8)).read("k3")
    with pytest.raises(CacheError, match="sample 'k4': the entry there is of another sample"):
        write_entry(cache_dir, torch.zeros(4, 8, 8)).read("k4")


def test_not_a_number_is_never_a_target(cache_dir: Path):
    """Refuse an embedding of NaN that a cache from elsewhere holds, with checksums that are right."""
    blob = encode_embedding(embedding_of("k3"), HW, "fp16", key="k3")
    header = 8 + int.from_bytes(blob[:8], "little")
    broken = blob[:header] + torch.tensor([float("nan")]).half().numpy().tobytes() + blob[header + 2 :]
    with EmbeddingShardWriter(cache_dir, SHARDS[1], FINGERPRINT.digest) as writer:
        writer.add("k3", broken)
        writer.commit()
    with pytest.raises(CacheError, match=r"sa_000001\.tar: sample 'k3': the embedding holds NaN"):
        EmbeddingCache.open(cache_dir).read("k3")


def test_a_tar_that_ends_before_its_entry(cache_dir: Path):
    """Take no memory for bytes that a sidecar only promises."""
    cache = EmbeddingCache.open(cache_dir)
    tar = cache_dir / "sa_000000.tar"
    assert cache.storage.read(tar.name, tar.stat().st_size - 10, 1 << 40) == bytes(10)
    assert cache.storage.read(tar.name, 1 << 40, 1 << 40) == b""


def _read_all(cache: EmbeddingCache) -> list[float]:
    return [float(cache.read(key).sum()) for key in ("k0", "k1", "k3", "k4")]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_read_in_a_worker(cache_dir: Path, method: str):
    cache = EmbeddingCache.open(cache_dir)
    expected = _read_all(cache)
    if method == "fork":
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(_read_all, (cache,)) == expected
    else:
        assert _read_all(pickle.loads(pickle.dumps(cache))) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as a disk that fills up")
def test_a_full_disk(tmp_path: Path):
    """Let a write fail in the middle of the shard: the error is clear, and nothing is left."""
    blob = encode_embedding(torch.randn(4, 8, 8), (64, 64), "fp16")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CacheError, match=r"sa_000000.tar: cannot be written: the disk is full .*; free some"):  # noqa: SIM117
            with EmbeddingShardWriter(tmp_path, SHARDS[0], "digest") as writer:
                for i in range(50):
                    writer.add(f"k{i}", blob)
                writer.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
