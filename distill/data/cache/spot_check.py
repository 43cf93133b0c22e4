"""A spot check of a cache: the teacher runs on a few samples again, and its embeddings are compared with the cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from distill.config.schema import CacheRecipe
from distill.data.cache.embeddings import EmbeddingCache
from distill.data.cache.manifest import Manifest, fingerprint_of
from distill.data.cache.teacher_pool import TeacherPool
from distill.data.shards.index import Member, ShardIndex
from distill.geometry import valid_grid_hw
from distill.models.devices import one_device
from distill.models.teacher import load_teacher

# A sample is an outlier if its distance from cosine 1 is this many times that of its codec when the job began ...
OUTLIER_FACTOR = 10.0
# ... and at least this large: kernels of other devices or of another torch round differently.
OUTLIER_FLOOR = 1e-3
SPARE_FACTOR = 3  # positions that are drawn for each wanted sample


@dataclass(frozen=True)
class SpotSample:
    """One sample: cosine and relative L2 distance between the stored and the teacher's present embedding.

    The cosine is a mean over the positions that the photo covers, and the distance is over the same positions. If the
    photo cannot be decoded, `reason` says why.
    """

    key: str
    shard: str
    cosine: float
    relative_l2: float
    reason: str = ""


@dataclass(frozen=True)
class SpotCheck:
    """The samples of a spot check. Those with a cosine below `threshold` are outliers, like those without a cosine."""

    samples: tuple[SpotSample, ...]
    threshold: float

    @property
    def outliers(self) -> tuple[SpotSample, ...]:
        """Samples that differ too much, and those that could not be compared."""
        return tuple(sample for sample in self.samples if sample.reason or not sample.cosine >= self.threshold)


def spot_check_cache(
    directory: str | Path,
    recipe: CacheRecipe,
    num_samples: int,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> SpotCheck:
    """Compare random samples of a cache with the embeddings of a recipe's teacher on this machine.

    Codec, precision and views are the cache's own, whatever the recipe says.

    Args:
        advance: is called with 1 after each sample.

    Raises:
        CacheError: the cache is missing, damaged or of another teacher.
        DataError: an image shard cannot be read.
    """
    held = Manifest.read(directory).fingerprint
    config = replace(recipe.cache, codec=held.codec, precision=held.precision, views=list(held.views))
    index = ShardIndex.open(recipe.data.images)
    teacher = load_teacher(recipe.teacher).to(one_device())
    cache = EmbeddingCache.open(directory, fingerprint_of(teacher, index, config))
    with TeacherPool(teacher, index, config) as pool:
        return spot_check(pool, cache, num_samples, rng=random.Random(), advance=advance)


def spot_check(
    pool: TeacherPool,
    cache: EmbeddingCache,
    num_samples: int,
    *,
    rng: random.Random,
    advance: Callable[[int], None] = lambda count: None,
) -> SpotCheck:
    """Compare the stored embeddings of random samples with the teacher's present embeddings.

    Args:
        num_samples: fewer are compared if the set has fewer, or if many of its photos have no embedding.
        rng: draws the samples.
        advance: is called with 1 after each sample.

    Raises:
        CacheError: a stored embedding cannot be read.
        DataError: an image shard cannot be read.
    """
    index = pool.index
    num_tried = min(len(index), SPARE_FACTOR * num_samples)  # samples without an embedding are skipped
    drawn: list[Member] = []
    for member in map(index.member, rng.sample(range(len(index)), num_tried)):
        if len(drawn) == num_samples:
            break
        if cache.has(member.key, member.shard):
            drawn.append(member)
    samples = []
    for sample in pool.map(lambda member: _compare(pool, cache, member), drawn):
        samples.append(sample)
        advance(1)
    distance = max(OUTLIER_FACTOR * (1 - cache.manifest.fidelity.cosine), OUTLIER_FLOOR)
    return SpotCheck(tuple(samples), 1 - distance)


def _compare(pool: TeacherPool, cache: EmbeddingCache, member: Member) -> SpotSample:
    photo = pool.load(member)
    if photo.original_hw is None:
        return SpotSample(member.key, member.shard, 0.0, 1.0, photo.reason)
    rows, cols = valid_grid_hw(photo.original_hw, pool.teacher.embedding_size)
    live = pool.embed([photo.pixels[0]])[0].cpu()[:, :rows, :cols]  # (C, rows, cols)
    stored = cache.read(member.key, member.shard)[:, :rows, :cols]
    return SpotSample(
        key=member.key,
        shard=member.shard,
        cosine=float(F.cosine_similarity(stored, live, dim=0).mean()),
        relative_l2=float((stored - live).norm() / live.norm().clamp_min(torch.finfo(torch.float32).tiny)),
    )
