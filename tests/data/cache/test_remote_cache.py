"""Embedding caches on remote storage: fsspec's memory file system, and a server on the loopback interface."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import fsspec
import pytest
import torch

from distill.cli import main as cli
from distill.config.schema import CacheConfig
from distill.data.cache.embeddings import EmbeddingCache
from distill.data.cache.job import CacheJob, build_cache
from distill.data.cache.manifest import fingerprint_of
from distill.data.cache.verify import verify_cache
from distill.data.loading.loader import EpochLoader, EpochSampler
from distill.data.loading.samples import PhotoBatches
from distill.errors import CacheError

pytestmark = pytest.mark.usefixtures("cache_home")


@pytest.fixture
def local(tiny_teacher, photo_shards, tmp_path: Path) -> Path:
    """Build a cache of two shards of three and two photos."""
    build_cache(tiny_teacher, photo_shards(5), CacheConfig(dir=str(tmp_path / "cache")))
    return tmp_path / "cache"


def same(a: EmbeddingCache, b: EmbeddingCache) -> bool:
    return len(a) == len(b) and all(torch.equal(a.read(f"photo{i}"), b.read(f"photo{i}")) for i in range(5))


def test_a_remote_cache_is_the_local_one(local: Path, memory: str, upload, tiny_teacher, photo_shards):
    upload(local, memory)
    expected = fingerprint_of(tiny_teacher, photo_shards(5, name="again"), CacheConfig())
    remote = EmbeddingCache.open(memory, expected)
    assert same(remote, EmbeddingCache.open(local)) and same(pickle.loads(pickle.dumps(remote)), remote)
    assert verify_cache(memory) == []


def test_damage_over_the_net_is_named(local: Path, memory: str, upload):
    upload(local, memory)
    filesystem = fsspec.filesystem("memory")
    data = bytearray((local / "sa_000000.tar").read_bytes())
    data[900] ^= 1
    filesystem.pipe_file(f"{memory}/sa_000000.tar", bytes(data))
    with pytest.raises(CacheError, match=r"sa_000000.tar: sample 'photo0': damaged.*verify memory://"):
        EmbeddingCache.open(memory).read("photo0")
    filesystem.rm(f"{memory}/sa_000001.json")
    filesystem.pipe_file(f"{memory}/notes.txt", b"mine")
    assert [(item.file, item.kind) for item in verify_cache(memory)] == [
        ("sa_000000.tar", "shard"),
        ("sa_000001.tar", "shard"),
        ("notes.txt", "foreign"),
    ]
    with pytest.raises(CacheError, match=r"1 of 2 embedding shards are missing \(sa_000001.tar\)"):
        EmbeddingCache.open(memory)
    with pytest.raises(CacheError, match="no embedding cache there"):
        EmbeddingCache.open("memory://bucket/elsewhere")
    with pytest.raises(CacheError, match="a cache is written to a directory; give one, and copy it"):
        CacheJob(None, None, CacheConfig(dir=memory))


def test_only_what_is_read_goes_over_the_net(server, local: Path, tmp_path: Path):
    shutil.copytree(local, tmp_path / "served" / "cache")
    cache = EmbeddingCache.open(f"{server.url}/cache")
    cache.read("photo1", "sa_000000.tar")
    server.num_bytes = server.num_requests = 0
    embedding = cache.read("photo1", "sa_000000.tar")
    assert torch.equal(embedding, EmbeddingCache.open(local).read("photo1"))
    assert server.num_requests == 1 and server.num_bytes < 0.5 * (local / "sa_000000.tar").stat().st_size
    server.num_failures = 1  # tried again
    assert torch.equal(cache.read("photo1", "sa_000000.tar"), embedding)
    assert verify_cache(f"{server.url}/cache") == []


@pytest.mark.parametrize(("num_workers", "context"), [(0, None), (2, "fork")])
def test_batches_with_embeddings_from_a_server(server, local: Path, tmp_path: Path, photo_shards, num_workers, context):
    shutil.copytree(local, tmp_path / "served" / "cache")
    index = photo_shards(5, name="again")
    cache = EmbeddingCache.open(f"{server.url}/cache")
    photos = PhotoBatches(index, image_size=64, embedding_size=8, seed=0, cache=cache)
    sampler = EpochSampler(index.shard_sizes, seed=0, batch_size=2, shuffle=True)
    loader = EpochLoader(photos, sampler, num_workers=num_workers, max_bad_share=0.0, multiprocessing_context=context)
    here, keys = EmbeddingCache.open(local), []
    for batch in loader:
        keys += batch.keys
        assert torch.equal(batch.teacher_embeddings, torch.stack([here.read(key) for key in batch.keys]))
    loader.close()
    assert sorted(keys) == [f"photo{i}" for i in range(5)]


def test_stats_and_verify_take_addresses(local: Path, memory: str, upload, teacher_file: Path, tmp_path: Path, capsys):
    upload(local, memory)
    assert cli.main(["cache", "stats", memory]) == 0
    assert "2 of 2 finished" in capsys.readouterr().out
    recipe = ["--recipe", "quickstart/cache", f"teacher.name={teacher_file}", f"data.images={tmp_path / 'images'}"]
    assert cli.main(["cache", "verify", memory, "--spot", "3", *recipe]) == 0
    output = capsys.readouterr().out
    assert "2 shards, every byte as it was written" in output and "the teacher again on 3 random samples" in output
    fsspec.filesystem("memory").rm(f"{memory}/sa_000001.tar")
    assert cli.main(["cache", "verify", memory]) == 2
    assert "copy those again from where the cache was built" in capsys.readouterr().err
