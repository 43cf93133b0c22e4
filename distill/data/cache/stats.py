"""What an embedding cache holds, from its manifest and sidecars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.data.cache.manifest import Manifest, finished_sidecar
from distill.data.shards.storage import open_storage


@dataclass(frozen=True)
class CacheStats:
    """The finished shards of a cache: how many, their samples, their bytes, and the keys of photos left out."""

    manifest: Manifest
    num_finished: int  # shards
    num_samples: int
    num_bytes: int
    bad: tuple[str, ...]

    @property
    def num_expected(self) -> int:
        """Samples of the image shards that the cache follows."""
        return sum(shard.num_samples for shard in self.manifest.shards)


def read_cache_stats(directory: str | Path) -> CacheStats:
    """Read the manifest and all sidecars of a cache.

    Args:
        directory: its path, or its address.

    Raises:
        CacheError: there is no cache, or its manifest is damaged.
    """
    storage = open_storage(directory)
    manifest = Manifest.read(storage)
    digest = manifest.fingerprint.digest
    found = [sidecar for shard in manifest.shards if (sidecar := finished_sidecar(storage, shard, digest))]
    return CacheStats(
        manifest=manifest,
        num_finished=len(found),
        num_samples=sum(sidecar.samples for sidecar in found),
        num_bytes=sum(sidecar.bytes for sidecar in found),
        bad=tuple(key for sidecar in found for key in sidecar.bad),
    )
