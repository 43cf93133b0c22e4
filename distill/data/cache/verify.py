"""Verification of an embedding cache: every byte is compared with what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.data.cache.checksummed_json import DamagedFileError
from distill.data.cache.manifest import MANIFEST, ImageShard, Manifest, Sidecar, sidecar_name
from distill.data.shards.storage import ShardStorage, open_storage
from distill.errors import CacheError, DataError
from distill.files import TEMPORARY_SUFFIX
from distill.leases import leased_name

READ_BYTES = 1 << 22


@dataclass(frozen=True)
class CacheProblem:
    """What is wrong with one file of a cache.

    Attributes:
        file: its name.
        what: the problem in words.
        kind: one of
            "shard": a shard is damaged or missing,
            "foreign_shard": a shard of another cache has its name,
            "foreign": the file is not part of a cache,
            "leftover": the file is temporary,
            "totals": all shards are complete, but the job has not written the totals.
        shard: the name of the shard that must be written again.
    """

    file: str
    what: str
    kind: Literal["shard", "foreign_shard", "foreign", "leftover", "totals"] = "shard"
    shard: str | None = None


def verify_cache(directory: str | Path, advance: Callable[[int], None] = lambda count: None) -> list[CacheProblem]:
    """Hash every shard and return what is damaged, missing or foreign.

    Args:
        directory: the path of the cache, or its address, which is read by ranges of bytes.
        advance: is called with 1 after each shard.

    Raises:
        CacheError: there is no manifest to compare with, it is damaged, or a remote file cannot be read.
    """
    storage = open_storage(directory)
    manifest = Manifest.read(storage)
    problems = []
    try:
        present = storage.names()
        for shard in manifest.shards:
            problem = _shard_problem(storage, shard, manifest.fingerprint.digest, present)
            problems += [problem] if problem else []
            advance(1)
    except DataError as error:
        raise CacheError(str(error)) from error
    problems += _other_files(present, manifest)
    if not problems and manifest.totals is None:
        problems.append(CacheProblem(MANIFEST, "has no totals: the job was stopped before its end", "totals"))
    return problems


def _shard_problem(storage: ShardStorage, shard: ImageShard, cache: str, present: set[str]) -> CacheProblem | None:
    tar, json = shard.name, sidecar_name(shard.name)

    def problem(file: str, what: str) -> CacheProblem:
        return CacheProblem(file, what, shard=shard.name)

    if tar not in present:
        return problem(tar, "missing")
    try:
        sidecar = Sidecar.read(storage, shard.name)
    except DamagedFileError:
        return problem(json, "damaged: its content does not match its checksum, or cannot be true")
    if sidecar is None:
        return problem(tar, f"unfinished: it has no {json}")
    if sidecar.cache != cache or sidecar.keys_hash != shard.keys_hash:
        return CacheProblem(tar, "foreign: of another cache, or of another image shard", "foreign_shard", shard.name)
    if sidecar.samples + len(sidecar.bad) != shard.num_samples:
        return problem(tar, f"holds {sidecar.samples} of {shard.num_samples} samples")
    size = storage.size(tar)
    if size != sidecar.bytes:
        return problem(tar, f"damaged: {size:,} bytes, and {sidecar.bytes:,} were written")
    if _sha256(storage, tar, size) != sidecar.sha256:
        return problem(tar, "damaged: its sha256 is not that of what was written")
    return None


def _other_files(present: set[str], manifest: Manifest) -> list[CacheProblem]:
    names = {shard.name for shard in manifest.shards}
    known = {MANIFEST, *names, *map(sidecar_name, names)}
    problems = []
    for name in sorted(present - known):
        if name.endswith(TEMPORARY_SUFFIX) or leased_name(name) in known:
            problems.append(CacheProblem(name, "left over from a killed job, or in use by a running one", "leftover"))
        else:
            problems.append(CacheProblem(name, "foreign: not part of this cache", "foreign"))
    return problems


def _sha256(storage: ShardStorage, name: str, size: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, size, READ_BYTES):
        digest.update(storage.read(name, offset, min(READ_BYTES, size - offset)))
    return digest.hexdigest()
