"""Verification of an embedding cache: every byte against what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.data.cache.leases import claimed_name
from distill.data.cache.manifest import MANIFEST, ImageShard, Manifest, Sidecar, sidecar_name
from distill.data.cache.sealed_json import DamagedFileError
from distill.data.shards.storage import Place, place_of
from distill.errors import CacheError, DataError
from distill.files import TEMPORARY_SUFFIX

READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of a cache.

    kind: shard: a shard is damaged or not there. foreign_shard: another cache's stands in its place. foreign: no file
    of ours. leftover: temporary. totals: all shards are whole, and the job did not come to its end.
    shard: the name of the shard that must be written anew.
    """

    file: str
    what: str
    kind: Literal["shard", "foreign_shard", "foreign", "leftover", "totals"] = "shard"
    shard: str | None = None


def verify_cache(directory: str | Path, advance: Callable[[int], None] = lambda count: None) -> list[Problem]:
    """Hash every shard and compare; list what is damaged, missing or foreign.

    Args:
        directory: its path, or its address, which is read by ranges of bytes.
        advance: called with 1 after each shard.
    Raises:
        CacheError: there is no manifest, or it is damaged: then nothing can be compared. Or a remote file cannot be
            read.
    """
    place = place_of(directory)
    manifest = Manifest.read(place)
    problems = []
    try:
        present = place.names()
        for shard in manifest.shards:
            problem = _shard_problem(place, shard, manifest.fingerprint.digest, present)
            problems += [problem] if problem else []
            advance(1)
    except DataError as error:
        raise CacheError(str(error)) from error
    problems += _other_files(present, manifest)
    if not problems and manifest.totals is None:
        problems.append(Problem(MANIFEST, "has no totals: the job was stopped before its end", "totals"))
    return problems


def _shard_problem(place: Place, shard: ImageShard, cache: str, present: set[str]) -> Problem | None:
    tar, json = shard.name, sidecar_name(shard.name)

    def problem(file: str, what: str) -> Problem:
        return Problem(file, what, shard=shard.name)

    if tar not in present:
        return problem(tar, "missing")
    try:
        sidecar = Sidecar.read(place, shard.name)
    except DamagedFileError:
        return problem(json, "damaged: its content does not match its seal")
    if sidecar is None:
        return problem(tar, f"unfinished: it has no {json}")
    if sidecar.cache != cache or sidecar.keys_hash != shard.keys_hash:
        return Problem(tar, "foreign: of another cache, or of another image shard", "foreign_shard", shard.name)
    if sidecar.samples + len(sidecar.bad) != shard.num_samples:
        return problem(tar, f"holds {sidecar.samples} of {shard.num_samples} samples")
    size = place.size(tar)
    if size != sidecar.bytes:
        return problem(tar, f"damaged: {size:,} bytes, and {sidecar.bytes:,} were written")
    if _sha256(place, tar, size) != sidecar.sha256:
        return problem(tar, "damaged: its sha256 is not that of what was written")
    return None


def _other_files(present: set[str], manifest: Manifest) -> list[Problem]:
    names = {shard.name for shard in manifest.shards}
    known = {MANIFEST, *names, *map(sidecar_name, names)}
    problems = []
    for name in sorted(present - known):
        if name.endswith(TEMPORARY_SUFFIX) or claimed_name(name) in known:
            problems.append(Problem(name, "left over from a killed job, or of one that runs", "leftover"))
        else:
            problems.append(Problem(name, "foreign: not ours", "foreign"))
    return problems


def _sha256(place: Place, name: str, size: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, size, READ_BYTES):
        digest.update(place.read(name, offset, min(READ_BYTES, size - offset)))
    return digest.hexdigest()
