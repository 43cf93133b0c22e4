"""The caching job: which process writes which shard, what is kept from an earlier run, and when to stop.

Processes need no word from each other: shard i belongs to rank i mod world size, what is finished is read from the
disk, and whoever finds all shards there writes the totals. So a job may be killed and go on with another world size.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from distill.config import CacheConfig
from distill.datasets.cachefiles import (
    MANIFEST,
    ImageShard,
    Manifest,
    Sidecar,
    Totals,
    fingerprint_of,
    finished_sidecar,
    sidecar_path,
)
from distill.datasets.codecs import check_codec
from distill.datasets.embeddings import EmbeddingShardWriter
from distill.datasets.fidelity import measure_fidelity
from distill.datasets.sealed import disk_errors
from distill.datasets.shards import ShardIndex
from distill.datasets.teacherpool import TeacherPool
from distill.errors import CacheError, DataError
from distill.teacher import Teacher

NUM_NAMED = 5  # keys that an error names
log = logging.getLogger(__name__)


class CacheJob:
    """One embedding cache in the making: `prepare` once, `run` in every process, `finish`.

    Args:
        teacher: on the device that it shall run on.
        config: `dir` is the directory of the cache.
        max_bad_share: the share of photos that may fail to decode; they are left out and named.
    """

    def __init__(
        self, teacher: Teacher, index: ShardIndex, config: CacheConfig, *, max_bad_share: float = 0.01
    ) -> None:
        if config.dir is None:
            raise CacheError("cache.dir: missing; give the directory to write: cache.dir=DIR")
        check_codec(config.codec)
        self.teacher = teacher
        self.index = index
        self.config = config
        self.directory = Path(config.dir)
        self.max_bad_share = max_bad_share
        self.fingerprint = fingerprint_of(teacher, index, config)
        self.shards = tuple(ImageShard(shard.name, shard.num_samples, shard.keys_hash) for shard in index.shards)

    def prepare(self) -> Manifest:
        """Measure the codec and write the manifest; or read it, when an earlier run did.

        Raises:
            CacheError: the directory holds the cache of another recipe, or tars that are no embedding shards.
        """
        if not (self.directory / MANIFEST).exists():
            self._check_directory()
            with TeacherPool(self.teacher, self.index, self.config) as pool:
                fidelity = measure_fidelity(pool, self.config.codec)
            Manifest(self.fingerprint, fidelity, self.shards).write(self.directory)
        manifest = Manifest.read(self.directory)
        manifest.check(self.fingerprint, self.directory)
        return manifest

    def finished(self) -> dict[str, Sidecar]:
        """The shards that are there, by name."""
        found = {shard.name: self._sidecar(shard) for shard in self.shards}
        return {name: sidecar for name, sidecar in found.items() if sidecar is not None}

    def own_shards(self, rank: int, world_size: int) -> tuple[ImageShard, ...]:
        """The shards of one rank, finished or not."""
        return self.shards[rank::world_size]

    def run(self, *, rank: int = 0, world_size: int = 1, advance: Callable[[int], None] = lambda count: None) -> None:
        """Write this rank's shards that are not there yet.

        Args:
            advance: called with a number of samples as they are done.
        Raises:
            DataError: too many photos cannot be decoded, or an image shard is damaged.
            CacheError: the disk is full or read-only, or an embedding is not finite. Finished shards are kept.
        """
        finished = self.finished()
        bad = [key for sidecar in finished.values() for key in sidecar.bad]
        self._check_bad(bad)
        with TeacherPool(self.teacher, self.index, self.config) as pool:
            for shard in self.own_shards(rank, world_size):
                if shard.name in finished:
                    advance(shard.num_samples)
                else:
                    self._write_shard(pool, shard, bad, advance)

    def finish(self) -> Manifest:
        """Write the totals into the manifest if every shard is there; the manifest as it is then."""
        manifest = Manifest.read(self.directory)
        finished = self.finished()
        if len(finished) < len(self.shards):
            return manifest
        self._check_bad([key for sidecar in finished.values() for key in sidecar.bad])
        totals = Totals(
            samples=sum(sidecar.samples for sidecar in finished.values()),
            bad=sum(len(sidecar.bad) for sidecar in finished.values()),
            bytes=sum(sidecar.bytes for sidecar in finished.values()),
        )
        if manifest.totals != totals:
            manifest = dataclasses.replace(manifest, totals=totals)
            manifest.write(self.directory)
        return manifest

    def _write_shard(
        self, pool: TeacherPool, shard: ImageShard, bad: list[str], advance: Callable[[int], None]
    ) -> None:
        with EmbeddingShardWriter(self.directory, shard, self.fingerprint.digest) as writer:
            for sample in pool.encode(self.index.members(shard.name)):
                if sample.blob is None:
                    log.warning("skipped: %s", sample.reason)
                    writer.skip(sample.key)
                    bad.append(sample.key)
                    self._check_bad(bad)
                else:
                    writer.add(sample.key, sample.blob)
                advance(1)
            writer.commit()

    def _check_bad(self, bad: list[str]) -> None:
        num_samples = len(self.index)
        if len(bad) <= self.max_bad_share * num_samples:
            return
        named = ", ".join(bad[:NUM_NAMED]) + (", ..." if len(bad) > NUM_NAMED else "")
        raise DataError(
            f"{self.index.directory}: {len(bad)} of {num_samples} photos cannot be decoded ({named}), more than "
            f"data.max_bad_share={self.max_bad_share:g} allows; replace them, or raise data.max_bad_share"
        )

    def _sidecar(self, shard: ImageShard) -> Sidecar | None:
        return finished_sidecar(self.directory, shard, self.fingerprint.digest)

    def _check_directory(self) -> None:
        """Make the directory, or refuse one whose tars are not ours: an image directory given by mistake, say."""
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        foreign = [path.name for path in sorted(self.directory.glob("*.tar")) if not _has_sidecar(path)]
        if foreign:
            raise CacheError(
                f"{self.directory}: holds tars that are no embedding shards ({foreign[0]}) and no {MANIFEST}; "
                "give a new directory: cache.dir=DIR"
            )


def _has_sidecar(tar: Path) -> bool:
    try:
        Sidecar.read(sidecar_path(tar.parent, tar.name))
    except (FileNotFoundError, CacheError):
        return False
    return True


def build_cache(
    teacher: Teacher,
    index: ShardIndex,
    config: CacheConfig,
    *,
    max_bad_share: float = 0.01,
    rank: int = 0,
    world_size: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> Manifest:
    """The whole job of one process, as CacheJob; the manifest, with its totals once all ranks are done."""
    job = CacheJob(teacher, index, config, max_bad_share=max_bad_share)
    job.prepare()
    job.run(rank=rank, world_size=world_size, advance=advance)
    return job.finish()
