"""The caching job: which process writes which shard, what is kept from an earlier run, and when to stop.

Processes do not communicate. A file beside a shard says which process writes it (distill.leases), and each
process reads from the disk which shards are finished. A process begins with the shards of its rank and goes on with
those that are left, so a slow or killed process delays nobody. Nodes may come and go, two jobs may share a directory,
and a job may be killed and go on with another world size.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from distill.config.schema import CacheConfig, CacheRecipe
from distill.data.cache.checksummed_json import disk_errors
from distill.data.cache.codecs import check_codec
from distill.data.cache.embeddings import EmbeddingShardWriter
from distill.data.cache.fidelity import measure_fidelity
from distill.data.cache.manifest import (
    MANIFEST,
    Fidelity,
    ImageShard,
    Manifest,
    Sidecar,
    Totals,
    fingerprint_of,
    finished_sidecar,
    image_shards,
    sidecar_path,
)
from distill.data.cache.teacher_pool import TeacherPool
from distill.data.cache.views import check_views
from distill.data.shards.index import ShardIndex
from distill.data.shards.storage import is_remote
from distill.errors import CacheError, DataError
from distill.files import TEMPORARY_SUFFIX
from distill.leases import POLL_SECONDS, STALE_SECONDS, Lease, Leases, leased_name
from distill.models.teacher import Teacher, load_teacher
from distill.text import first_few

MAX_PAUSE_SECONDS = 15.0  # between two looks at the shards of other processes: a large job has many
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedShard:
    """What the job remembers of a finished shard. `bad` is that of its Sidecar."""

    samples: int
    bytes: int
    bad: tuple[str, ...]


def directory_of(config: CacheConfig) -> Path:
    """Return the directory of a cache. Raises CacheError when it is not given, or is not of this machine."""
    if config.dir is None:
        raise CacheError("cache.dir: missing; give the directory to write: cache.dir=DIR")
    if is_remote(config.dir):
        raise CacheError(
            f"cache.dir={config.dir}: a cache is written to a directory; give one, and copy it to its address when it "
            "is complete"
        )
    return Path(config.dir)


class CacheJob:
    """The job that builds one embedding cache: every process calls `prepare`, `run` and `finish`, in that order.

    Args:
        teacher: on the device on which it runs.
        index: the image shards.
        config: `dir` is the directory of the cache.
        max_bad_share: the share of photos that may fail to decode. They are left out and named.
        stale_seconds: a worker without a sign of life for so long is taken for dead. Another one writes its shard.

    Raises:
        CacheError: the codec, the views or the directory of `config`, or the name of a shard, cannot be used.
    """

    def __init__(
        self,
        teacher: Teacher,
        index: ShardIndex,
        config: CacheConfig,
        *,
        max_bad_share: float = 0.01,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        check_codec(config.codec)
        check_views(config.views)
        self.teacher = teacher
        self.index = index
        self.config = config
        self.directory = directory_of(config)
        self.max_bad_share = max_bad_share
        self.fingerprint = fingerprint_of(teacher, index, config)
        self.shards = image_shards(index)
        self.leases = Leases(self.directory, stale_seconds=stale_seconds, disk_errors=disk_errors)
        self._finished: dict[str, FinishedShard] = {}

    @classmethod
    def from_recipe(cls, recipe: CacheRecipe, *, stale_seconds: float = STALE_SECONDS) -> CacheJob:
        """Open the image shards of a recipe, and load its teacher on the CPU. Raises DistillError when either fails."""
        index = ShardIndex.open(recipe.data.images)
        teacher = load_teacher(recipe.teacher)
        bad_share = recipe.data.max_bad_share
        return cls(teacher, index, recipe.cache, max_bad_share=bad_share, stale_seconds=stale_seconds)

    def prepare(self) -> Manifest:
        """Measure the codec and write the manifest. Read it if an earlier run or another process wrote it.

        Raises:
            CacheError: the directory holds the cache of another recipe, or tars that are not embedding shards.
        """
        if not (self.directory / MANIFEST).exists():
            with disk_errors(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            with self.leases.hold(MANIFEST):
                if not (self.directory / MANIFEST).exists():
                    self._refuse_foreign_tars()
                    Manifest(self.fingerprint, self._measure_fidelity(), self.shards).write(self.directory)
        manifest = Manifest.read(self.directory)
        manifest.check(self.fingerprint, self.directory)
        return manifest

    def finished(self) -> dict[str, FinishedShard]:
        """Return the finished shards, by name."""
        return {shard.name: self._finished[shard.name] for shard in self.shards if self._is_finished(shard)}

    def num_done(self) -> int:
        """Return how many photos all processes of this directory have done, including those of unfinished shards."""
        if not self.directory.is_dir():
            return 0
        under_way, present = self.leases.progress(), set(os.listdir(self.directory))
        done = 0
        for shard in self.shards:
            if shard.name in present and sidecar_path(self.directory, shard.name).name in present:
                done += shard.num_samples
            else:
                done += min(under_way.get(shard.name, 0), shard.num_samples)
        return done

    def run(self, *, rank: int = 0, world_size: int = 1, only: Collection[str] | None = None) -> None:
        """Write missing shards, those of this rank first, until this or other processes have written all of them.

        Args:
            only: names of the shards to write. The default is all.

        Raises:
            DataError: too many photos cannot be decoded, or an image shard is damaged.
            CacheError: the disk is full or read-only, or an embedding is not finite. Finished shards are kept.
        """
        self.finished()
        self._check_bad(self._known_bad())
        own, others = self.shards[rank::world_size], [s for i, s in enumerate(self.shards) if i % world_size != rank]
        left = [shard for shard in (*own, *reversed(others)) if only is None or shard.name in only]
        pause = POLL_SECONDS
        with TeacherPool(self.teacher, self.index, self.config) as pool:
            while left := [shard for shard in left if not self._try_shard(pool, shard)]:
                time.sleep(pause)  # other workers write these; the lease of a dead one is taken over
                pause = min(2 * pause, MAX_PAUSE_SECONDS)

    def finish(self) -> Manifest:
        """Write the totals into the manifest and remove temporary files, if every shard is finished.

        Returns:
            the manifest; its `totals` are None while shards are missing.
        """
        manifest = Manifest.read(self.directory)
        finished = self.finished()
        if len(finished) < len(self.shards):
            return manifest
        self._check_bad(self._known_bad())
        totals = Totals(
            samples=sum(shard.samples for shard in finished.values()),
            bad=sum(len(shard.bad) for shard in finished.values()),
            bytes=sum(shard.bytes for shard in finished.values()),
        )
        if manifest.totals == totals and not self._leftovers():
            return manifest
        manifest = dataclasses.replace(manifest, totals=totals)
        with self.leases.hold(MANIFEST) as lease:
            if Manifest.read(self.directory) != manifest:
                manifest.write(self.directory)
            with disk_errors(self.directory):
                for path in self._leftovers():
                    if path != lease.path:
                        path.unlink(missing_ok=True)
        return manifest

    def _try_shard(self, pool: TeacherPool, shard: ImageShard) -> bool:
        """Write a shard that is not finished. Return False while another worker holds its lease."""
        if self._is_finished(shard):
            return True
        lease = self.leases.acquire(shard.name)
        if lease is None:
            return False
        with lease:
            return self._is_finished(shard) or self._write_shard(pool, shard, lease)

    def _write_shard(self, pool: TeacherPool, shard: ImageShard, lease: Lease) -> bool:
        """Write a shard whose lease is held. Return False if the lease was lost meanwhile."""
        self.finished()  # those of other processes too, for the photos that they left out
        bad = self._known_bad()
        with EmbeddingShardWriter(self.directory, shard, self.fingerprint.digest) as writer:
            for sample in pool.encode(self.index.members(shard.name)):
                if sample.reason:
                    log.warning("skipped: %s", sample.reason)
                    writer.skip(sample.key)
                    bad.append(sample.key)
                    self._check_bad(bad)
                else:
                    for view, blob in zip(self.config.views, sample.blobs, strict=True):
                        writer.add(sample.key, blob, view)
                lease.num_done += 1
            if not lease.is_held():
                log.warning(
                    "%s: another worker took this one for dead and writes the shard", self.directory / shard.name
                )
                return False
            self._remember(shard, writer.commit())
        return True

    def _measure_fidelity(self) -> Fidelity:
        with TeacherPool(self.teacher, self.index, self.config) as pool:
            return measure_fidelity(pool, [self.config.codec])[self.config.codec]

    def _is_finished(self, shard: ImageShard) -> bool:
        if shard.name not in self._finished:
            sidecar = finished_sidecar(self.directory, shard, self.fingerprint.digest)
            if sidecar is not None:
                self._remember(shard, sidecar)
        return shard.name in self._finished

    def _remember(self, shard: ImageShard, sidecar: Sidecar) -> None:
        self._finished[shard.name] = FinishedShard(sidecar.samples, sidecar.bytes, sidecar.bad)

    def _known_bad(self) -> list[str]:
        return [key for shard in self._finished.values() for key in shard.bad]

    def _leftovers(self) -> list[Path]:
        """List leases and temporary files of this cache, which are of no use once every shard is finished."""
        stems = {MANIFEST, *(shard.name for shard in self.shards)}
        stems |= {sidecar_path(self.directory, shard.name).name for shard in self.shards}
        with disk_errors(self.directory):
            return [path for path in sorted(self.directory.iterdir()) if _made_for(path.name) in stems]

    def _check_bad(self, bad: list[str]) -> None:
        num_samples = len(self.index)
        if len(bad) <= self.max_bad_share * num_samples:
            return
        raise DataError(
            f"{self.index.directory}: {len(bad)} of {num_samples} photos cannot be decoded ({first_few(bad)}), more "
            f"than data.max_bad_share={self.max_bad_share:g} allows; replace them, or raise data.max_bad_share"
        )

    def _refuse_foreign_tars(self) -> None:
        """Refuse a directory whose tars are not embedding shards, such as an image directory given by mistake."""
        tars = sorted(self.directory.glob("*.tar"))
        if tars and not any(map(_has_sidecar, tars)):
            raise CacheError(
                f"{self.directory}: holds tars that are no embedding shards ({tars[0].name}) and no {MANIFEST}; "
                "give a new directory: cache.dir=DIR"
            )


def _has_sidecar(tar: Path) -> bool:
    try:
        return Sidecar.read(tar.parent, tar.name) is not None
    except CacheError:
        return False


def _made_for(file: str) -> str | None:
    """Return the file for which a lease or temporary file was made. Return None if the name is of neither."""
    stem, _, unique = file.removesuffix(TEMPORARY_SUFFIX).rpartition(".")
    return stem if file.endswith(TEMPORARY_SUFFIX) and unique else leased_name(file)


def build_cache(
    teacher: Teacher,
    index: ShardIndex,
    config: CacheConfig,
    *,
    max_bad_share: float = 0.01,
    rank: int = 0,
    world_size: int = 1,
) -> Manifest:
    """Prepare, run and finish a CacheJob in this process. Return the manifest with its totals.

    See `distill.data.cache.run.run_cache_job` for a job on several devices.
    """
    job = CacheJob(teacher, index, config, max_bad_share=max_bad_share)
    job.prepare()
    job.run(rank=rank, world_size=world_size)
    return job.finish()
