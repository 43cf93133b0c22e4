"""A spot check finds embeddings that are not this teacher's, even if the cache is intact."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from distill.config.schema import CacheConfig
from distill.data.cache.codecs import encode_embedding
from distill.data.cache.embeddings import EmbeddingCache, EmbeddingShardWriter
from distill.data.cache.job import build_cache
from distill.data.cache.spot_check import SpotCheck, spot_check
from distill.data.cache.teacher_pool import TeacherPool
from distill.data.cache.verify import verify_cache


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), batch_size=2)


def check(teacher, index, config: CacheConfig, num_samples: int) -> SpotCheck:
    with TeacherPool(teacher, index, config) as pool:
        return spot_check(pool, EmbeddingCache.open(config.dir), num_samples, rng=random.Random(0))


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_a_true_cache(tiny_teacher, photo_shards, config, codec):
    config.codec = codec
    index = photo_shards(8, bad={2})
    build_cache(tiny_teacher, index, config, max_bad_share=0.2)
    found = check(tiny_teacher, index, config, 5)
    assert len({sample.key for sample in found.samples}) == 5 and not found.outliers
    assert all(sample.cosine > 0.9995 and sample.relative_l2 < 0.02 for sample in found.samples)
    assert len(check(tiny_teacher, index, config, 100).samples) == 7  # all samples that have an embedding


def test_swapped_embeddings_are_outliers(tiny_teacher, photo_shards, config):
    """Replace embeddings and keep all checksums right, so that only the teacher can find it."""
    index = photo_shards(6)
    manifest = build_cache(tiny_teacher, index, config)
    cache = EmbeddingCache.open(config.dir)
    first = manifest.shards[0]
    maps = [cache.read(f"photo{i}") for i in (0, 2, 1)]
    with EmbeddingShardWriter(cache.directory, first, manifest.fingerprint.digest) as writer:
        for i, embedding in enumerate(maps):
            key = f"photo{i}"
            writer.add(key, encode_embedding(embedding, (64, 64), "fp16", key=key))
        writer.commit()
    problems = verify_cache(cache.directory)
    assert not [problem for problem in problems if problem.kind != "totals"]
    found = check(tiny_teacher, index, config, 6)
    assert {sample.key for sample in found.outliers} == {"photo1", "photo2"}


def test_photos_that_are_gone_bad_since(tiny_teacher, photo_shards, config):
    build_cache(tiny_teacher, photo_shards(4), config)
    found = check(tiny_teacher, photo_shards(4, bad={3}, name="later"), config, 4)
    assert [sample.key for sample in found.outliers] == ["photo3"]
    assert "cannot be decoded" in found.outliers[0].reason
